//! Decides. Never opens a socket, reads a file or asks the time.
//!
//! A [`PolicyDocument`] is the policy as somebody wrote it; a [`PolicySet`] is
//! all documents in force, validated and indexed. [`PolicySet::decide`] gives a
//! [`Decision`], and only it can make a [`Permit`].
//!
//! What a request has to pass, whatever the order in which it is looked up:
//!
//! 1. Its tenant has a document, where any tenant has one.
//! 2. No denylist and no deny rule speaks of it, in the global documents or in
//!    its tenant's. Deny wins, always.
//! 3. An allow rule speaks of it, in the global documents or in its tenant's.
//!    Nothing matches: deny.
//! 4. The credential's own destinations hold it, where it has any.
//! 5. The address that is to be dialled passes [`Permit::address`]: public, or
//!    in a range that the rule names, and in no range that is denied.
//!
//! The conditions of an allow rule must all hold. A deny rule refuses what
//! either its `hosts` or its `addresses` name, within its agents, ports,
//! schemes, methods and paths: whoever lists a bad name and a bad range means
//! both. In audit mode 2 and 3 let a request pass, and the permit says what
//! enforcing would have done; 1 and 4 bind always, and so do the classes of
//! addresses unless the document says `audit_addresses: true`.

mod again;
mod apart;
mod cases;
mod cover;
mod decide;
mod decision;
mod diff;
mod document;
mod explain;
mod finding;
mod index;
mod learn;
mod limits;
mod lint;
mod locate;
mod modes;
mod proven;
mod range;
mod reach;
mod record;
mod replay;
mod rule;
mod schema;
mod set;
mod shape;
#[cfg(test)]
mod tests;

pub use again::KnownRules;
pub use cases::{Case, CaseFile, CaseOutcome, Coverage, Expectation, Question};
pub use decision::{
    Decision, Denied, DenyReason, EchRule, Permit, RefusalForm, SniRule, TlsRule, TlsUse,
};
pub use diff::{Change, Direction, PolicyDiff, TooDifferent};
pub use document::{
    Action, AgentModes, AnyOr, Format, MAX_DOCUMENT_BYTES, Mode, PolicyDocument, PortEntry,
    RuleDocument,
};
pub use explain::{Check, CheckOutcome, Difference, Explanation, NearestRule, RuleRef, Verdict};
pub use finding::{Concern, Finding, Location, PolicyError, PolicyWarning, Problem, SourceName};
pub use learn::{LearnError, LearnOptions, Learned, LearnedRule, Learner, LeftOut};
pub use limits::{DocumentLimits, LimitShown, LimitsDocument};
pub use locate::locate;
pub use proven::{Proven, Requirement};
pub use reach::{Reach, ReachRule};
pub use record::{MAX_RECORD_BYTES, Recorded, RecordedEvent};
pub use replay::{Replay, ReplayReport, Replayed};
pub use rule::Calls;
pub use schema::{cases_schema, policy_schema};
pub use set::{CheckedDocument, PolicySet};
