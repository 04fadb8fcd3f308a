//! What policy says of a request, and why. How it comes to that is `decide`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::Mode;
use super::proven::Requirement;
use super::set::{RuleId, Rules};
use crate::egress::{AddressClass, AddressRange, AgentId};

/// What policy says of a request. There is no default.
#[derive(Clone, Debug)]
#[must_use]
pub enum Decision {
    /// It may go.
    Allow(Permit),
    /// It may not.
    Deny(Denied),
}

/// Leave to ask for one destination, within what [`Permit::address`] and
/// [`Permit::tls`] say. Only [`super::PolicySet::decide`] makes one.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) rules: Arc<Rules>,
    /// The rule that allows it; `None` where only audit mode does.
    pub(super) rule: Option<RuleId>,
    /// Allow rules by addresses only, which speak of a name once it is resolved.
    pub(super) by_address: Vec<RuleId>,
    /// Deny rules by addresses, and whether each is one that could be kept
    /// only where the inside of the tunnel is seen.
    pub(super) denied_addresses: Vec<(RuleId, bool)>,
    /// Whose it is.
    pub(super) agent: AgentId,
    /// The tenant's part of the set.
    pub(super) tenant: Option<usize>,
    /// The target, where it is an address.
    pub(super) literal: Option<IpAddr>,
    /// Where the credential allows the target by its address only: the ranges.
    pub(super) token_ranges: Option<Vec<AddressRange>>,
    pub(super) audited: Option<Denied>,
    /// Why bytes whose inside is not seen may not pass.
    pub(super) inside: Option<Denied>,
    /// Whether a deny rule speaks of clear text in this tunnel.
    pub(super) clear_text_denied: bool,
}

/// Why a request may not go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub(super) reason: DenyReason,
    pub(super) rule: Option<Arc<str>>,
    pub(super) rule_id: Option<RuleId>,
    pub(super) mode: Mode,
    pub(super) form: RefusalForm,
}

/// The reasons, each with a code that records, metrics and refusals carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// No allow rule speaks of it.
    NoRule,
    /// A deny rule speaks of it.
    Rule,
    /// A denylist has its host or address.
    Denylist,
    /// The credential's own destinations do not have it.
    TokenDestinations,
    /// The credential names a tenant that has no policy.
    UnknownTenant,
    /// The tenant's policy is for tokens of other audiences.
    TenantAudience,
    /// The address is not public, and no rule names its range.
    Address(AddressClass),
    /// The rule that allows the host allows other addresses only.
    AddressNotAllowed,
    /// A deny rule has the address.
    AddressDenied,
    /// The rules for it are about methods or paths, or about clear text, and
    /// the inside of the tunnel is not seen.
    NotInspectable,
    /// The rule that allows it wants more to have proven who asks.
    CredentialRequired(Requirement),
}

/// What an allowed tunnel may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct TlsRule {
    /// TLS or HTTP only, or any bytes.
    pub tls: TlsUse,
    /// What the ClientHello must name.
    pub sni: SniRule,
    /// Whether its name may be encrypted.
    pub ech: EchRule,
}

/// Whether bytes that are neither TLS nor HTTP may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TlsUse {
    /// They may not.
    #[default]
    Strict,
    /// They may.
    Any,
}

/// What the server name in a ClientHello must be (RFC 6066 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SniRule {
    /// The host that was asked for.
    #[default]
    Match,
    /// That, or absent.
    Optional,
    /// Whatever the client likes.
    Any,
}

/// How a `CONNECT` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusalForm {
    /// As the answer to it (RFC 9110 section 9.3.6).
    #[default]
    Connect,
    /// As the answer to the first request inside the tunnel, where the gateway
    /// is set up for it.
    Inside,
}

/// Whether Encrypted Client Hello (RFC 9849) may hide the server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EchRule {
    /// It may not.
    #[default]
    Refuse,
    /// It may.
    Allow,
}

impl Permit {
    /// The name of the rule that allows it; `None` where no rule does and only
    /// audit mode lets it pass.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.map(|id| &self.rules.rule(id).name)
    }

    /// Whether what is found out later binds, such as another name in the
    /// ClientHello: the mode of the rule.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.rule
            .map_or(Mode::Audit, |id| self.rules.mode(id, &self.agent))
    }

    /// What enforcing would have said, where only audit mode lets it pass.
    #[must_use]
    pub fn audited_denial(&self) -> Option<&Denied> {
        self.audited.as_ref()
    }

    /// What must have proven who asks, by the rule that allows it.
    pub(super) fn requirement(&self) -> Option<Requirement> {
        self.rules.rule(self.rule?).require
    }

    /// Whether bytes whose inside is not seen, such as TLS, may pass. Where
    /// they may not, the tunnel is for clear-text requests that are each judged
    /// on their own. Clear text is judged so in every tunnel.
    #[must_use]
    pub fn opaque(&self) -> bool {
        !self.inside.as_ref().is_some_and(Denied::enforced)
    }

    /// The refusal that bytes whose inside is not seen meet. It binds unless
    /// [`Permit::opaque`]; else it is for the record.
    #[must_use]
    pub fn opaque_denial(&self) -> Option<&Denied> {
        self.inside.as_ref()
    }

    /// What the tunnel may carry. Beside a deny rule about clear text that is
    /// never anything: what we do not take for a request an origin might, and
    /// the deny rule would not have been asked.
    #[must_use]
    pub fn tls(&self) -> TlsRule {
        let rule = self.rule.map(|id| self.rules.rule(id).tls);
        let mut tls = rule.unwrap_or_default();
        if self.clear_text_denied {
            tls.tls = TlsUse::Strict;
        }
        tls
    }
}

impl Denied {
    /// The reason.
    #[must_use]
    pub fn reason(&self) -> DenyReason {
        self.reason
    }

    /// The rule that refuses, or the allow rule that does not reach so far.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }

    /// How the rule that refuses wants a `CONNECT` to be told.
    #[must_use]
    pub fn form(&self) -> RefusalForm {
        self.form
    }

    /// Whether it binds; else it is what enforcing would have said.
    #[must_use]
    pub fn enforced(&self) -> bool {
        self.mode == Mode::Enforce
    }

    /// What the agent, or whoever runs it, can do next.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self.reason {
            DenyReason::NoRule => {
                "Do not retry. If the task needs this destination, ask the operator for a rule that allows it."
            }
            DenyReason::Rule | DenyReason::Denylist | DenyReason::AddressDenied => {
                "Do not retry, and do not look for another way to it: the operator refuses this destination."
            }
            DenyReason::TokenDestinations => {
                "Do not retry with this token. Ask for one whose allowed_destinations have this destination."
            }
            DenyReason::TenantAudience => {
                "Do not retry with this token. Ask for one whose `aud` the tenant's policy names in `audience`."
            }
            DenyReason::UnknownTenant => {
                "Do not retry. The tenant of this token has no policy; the operator must add one."
            }
            DenyReason::Address(_) | DenyReason::AddressNotAllowed => {
                "Do not retry. If the task needs this address, ask the operator to name its range in `addresses` of a rule."
            }
            DenyReason::NotInspectable => {
                "Use a route of the gateway or clear-text HTTP, so that it sees method and path; or ask the operator for a rule without `methods` and `paths`."
            }
            DenyReason::CredentialRequired(_) => {
                "Do not retry with the same credentials. Show what the rule wants, certificate and token of the same agent."
            }
        }
    }
}

impl DenyReason {
    /// The code: `no_rule`, `address_private` and so on.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRule => "no_rule",
            Self::Rule => "rule",
            Self::Denylist => "denylist",
            Self::TokenDestinations => "not_in_token",
            Self::UnknownTenant => "unknown_tenant",
            Self::TenantAudience => "tenant_audience",
            Self::Address(class) => match class {
                AddressClass::Public => "address_public",
                AddressClass::Loopback => "address_loopback",
                AddressClass::Private => "address_private",
                AddressClass::CarrierNat => "address_carrier_nat",
                AddressClass::LinkLocal => "address_link_local",
                AddressClass::UniqueLocal => "address_unique_local",
                AddressClass::Multicast => "address_multicast",
                AddressClass::Broadcast => "address_broadcast",
                AddressClass::Unspecified => "address_unspecified",
                AddressClass::Documentation => "address_documentation",
                AddressClass::Reserved => "address_reserved",
                AddressClass::Metadata => "address_metadata",
                AddressClass::Translated => "address_translated",
            },
            Self::AddressNotAllowed => "address_not_allowed",
            Self::AddressDenied => "address_denied",
            Self::NotInspectable => "not_inspectable",
            Self::CredentialRequired(_) => "credential_required",
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Denied {
    /// One sentence, without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.rule.as_deref().unwrap_or("?");
        match self.reason {
            DenyReason::NoRule => f.write_str("no rule allows this"),
            DenyReason::Rule => write!(f, "rule \"{rule}\" refuses this"),
            DenyReason::Denylist => f.write_str("the destination is on a denylist"),
            DenyReason::TokenDestinations => {
                f.write_str("the token's allowed_destinations do not have this destination")
            }
            DenyReason::UnknownTenant => f.write_str("the token's tenant has no policy"),
            DenyReason::TenantAudience => {
                f.write_str("the policy of the token's tenant is for tokens of another audience")
            }
            DenyReason::Address(class) => write!(
                f,
                "the address is not public ({class}) and no rule names its range"
            ),
            DenyReason::AddressNotAllowed => {
                write!(
                    f,
                    "rule \"{rule}\" allows this host at other addresses only"
                )
            }
            DenyReason::AddressDenied => write!(f, "rule \"{rule}\" refuses this address"),
            DenyReason::NotInspectable => write!(
                f,
                "rule \"{rule}\" depends on what is inside the connection, which a tunnel hides"
            ),
            DenyReason::CredentialRequired(wanted) => {
                write!(f, "rule \"{rule}\" wants {}", wanted.words())
            }
        }
    }
}
