//! What must have proven an agent before a rule lets it pass, beyond what the
//! listener asks of everybody.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decision::{Decision, Denied, DenyReason};

/// What has proven who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// A token, or an agent key in its place.
    pub token: bool,
    /// The client's certificate.
    pub certificate: bool,
}

impl Proven {
    /// A token alone, as of most agents.
    pub const BY_TOKEN: Self = Self {
        token: true,
        certificate: false,
    };

    /// What records call it: `token`, `certificate`, `token+certificate`. Of
    /// another word nothing is proven by either.
    #[must_use]
    pub fn recorded(credential: &str) -> Self {
        let has = |word: &str| credential.split('+').any(|part| part == word);
        Self {
            token: has("token") || has("agent_key"),
            certificate: has("certificate"),
        }
    }

    fn words(self) -> &'static str {
        match (self.token, self.certificate) {
            (true, true) => "a client certificate and a token",
            (true, false) => "a token",
            (false, true) => "a client certificate",
            (false, false) => "neither a token nor a client certificate",
        }
    }
}

impl From<Requirement> for Proven {
    /// What meets it, and no more.
    fn from(required: Requirement) -> Self {
        Self {
            token: required != Requirement::Certificate,
            certificate: required != Requirement::Token,
        }
    }
}

/// What an allow rule wants to have proven who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    /// A token.
    Token,
    /// The client's certificate.
    Certificate,
    /// Both, of the same agent.
    Both,
}

impl Requirement {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Both => "both",
        }
    }

    /// Whether this was enough.
    #[must_use]
    pub fn is_met_by(self, proven: Proven) -> bool {
        match self {
            Self::Token => proven.token,
            Self::Certificate => proven.certificate,
            Self::Both => proven.token && proven.certificate,
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Token => "a token",
            Self::Certificate => "a client certificate",
            Self::Both => "a client certificate and a token of the same agent",
        }
    }

    /// Whether what meets `narrow` meets `wide` as well.
    pub(super) fn covers(wide: Option<Self>, narrow: Option<Self>) -> bool {
        match (wide, narrow) {
            (None, _) => true,
            (Some(_), Some(Self::Both)) => true,
            (Some(wide), narrow) => narrow == Some(wide),
        }
    }
}

impl Decision {
    /// The same, where the rule that allows it wants no more than this to have
    /// proven who asks. It is that rule alone which counts, the nearest and then
    /// the first: a wider one does not let pass what it wants more for.
    pub fn proven_by(self, proven: Proven) -> Self {
        let Self::Allow(mut permit) = self else {
            return self;
        };
        let (Some(id), Some(wanted)) = (permit.rule, permit.requirement()) else {
            return Self::Allow(permit);
        };
        if wanted.is_met_by(proven) {
            return Self::Allow(permit);
        }
        let reason = DenyReason::CredentialRequired(wanted);
        let denied = Denied::by(reason, id, &permit.rules, &permit.agent);
        if denied.enforced() {
            return Self::Deny(denied);
        }
        permit.audited.get_or_insert(denied);
        Self::Allow(permit)
    }

    /// What the rule that allows it, or would, wants to have proven who asks,
    /// and whether this was enough; in words too.
    pub(super) fn asks_for(&self, proven: Proven) -> Option<(bool, String)> {
        let wanted = match self {
            Self::Allow(permit) => permit.requirement()?,
            Self::Deny(denied) => match denied.reason {
                DenyReason::CredentialRequired(wanted) => wanted,
                _ => return None,
            },
        };
        let has = proven.words();
        let words = format!("the rule wants {}; there is {has}", wanted.words());
        Some((wanted.is_met_by(proven), words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::{AgentId, Ask, Authority, EgressRequest, Subject};
    use crate::policy::{Format, Mode, PolicyDocument, PolicySet, SourceName};

    const TOKEN: Proven = Proven::BY_TOKEN;
    const CERTIFICATE: Proven = Proven {
        token: false,
        certificate: true,
    };
    const BOTH: Proven = Proven {
        token: true,
        certificate: true,
    };

    fn set(text: &str) -> PolicySet {
        let source = SourceName::from("p.yaml");
        let document = PolicyDocument::parse(&source, Format::Yaml, text).expect("a document");
        PolicySet::build(vec![(source, document)], Mode::Enforce).expect("a policy")
    }

    #[test]
    fn a_rule_may_want_more_than_the_listener() {
        let set = set("version: 1\nrules:\n\
             - {name: wide, action: allow, agents: any, hosts: [\"*.a.ex\"]}\n\
             - {name: both, action: allow, agents: any, hosts: [x.a.ex], require: both}\n\
             - {name: shown, action: allow, agents: any, hosts: [y.a.ex], require: certificate}\n\
             - {name: token, action: allow, agents: any, hosts: [z.a.ex], require: token}\n\
             - {name: trial, action: allow, mode: audit, agents: any, hosts: [w.a.ex], \
             require: both}\n");
        let agent = AgentId::parse("bot").expect("an agent");
        let who = Subject {
            agent: &agent,
            tenant: None,
            destinations: None,
            audiences: None,
        };
        for (host, proven, expected) in [
            ("v.a.ex", TOKEN, Ok(None)),
            ("x.a.ex", TOKEN, Err("both")),
            ("x.a.ex", CERTIFICATE, Err("both")),
            ("x.a.ex", BOTH, Ok(None)),
            ("y.a.ex", TOKEN, Err("shown")),
            ("y.a.ex", CERTIFICATE, Ok(None)),
            ("z.a.ex", CERTIFICATE, Err("token")),
            ("z.a.ex", TOKEN, Ok(None)),
            ("w.a.ex", TOKEN, Ok(Some("trial"))),
            ("w.a.ex", BOTH, Ok(None)),
        ] {
            let what = EgressRequest {
                authority: Authority::parse(&format!("{host}:443")).expect("an authority"),
                ask: Ask::Tunnel,
            };
            let found = match set.decide(&who, &what).proven_by(proven) {
                Decision::Allow(permit) => {
                    let audited = permit.audited_denial();
                    Ok(audited.map(|denied| denied.rule().expect("a rule").to_string()))
                }
                Decision::Deny(denied) => {
                    assert_eq!(denied.reason().as_str(), "credential_required");
                    Err(denied.rule().expect("a rule").to_string())
                }
            };
            let expected = expected
                .map(|rule: Option<&str>| rule.map(str::to_owned))
                .map_err(str::to_owned);
            assert_eq!(found, expected, "{host} by {proven:?}");
        }
    }

    #[test]
    fn a_deny_rule_wants_nothing_and_a_wrong_word_is_said() {
        for (rule, says) in [
            ("action: deny, require: both", "require"),
            ("action: allow, require: either", "require"),
        ] {
            let source = SourceName::from("p.yaml");
            let text =
                format!("version: 1\nrules:\n- {{name: a, {rule}, agents: any, hosts: [a.ex]}}\n");
            let read = PolicyDocument::check(&source, Format::Yaml, &text)
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())
                .and_then(|document| {
                    PolicySet::build(vec![(source, document)], Mode::Enforce)
                        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
                });
            let errors = read.map(|_| ()).expect_err(rule).join("\n");
            assert!(errors.contains(says), "{rule}: {errors}");
        }
    }

    #[test]
    fn what_a_record_says_was_seen() {
        for (word, expected) in [
            ("token", TOKEN),
            ("agent_key", TOKEN),
            ("certificate", CERTIFICATE),
            ("token+certificate", BOTH),
            ("agent_key+certificate", BOTH),
            (
                "peer",
                Proven {
                    token: false,
                    certificate: false,
                },
            ),
        ] {
            assert_eq!(Proven::recorded(word), expected, "{word}");
        }
    }

    #[test]
    fn what_wants_more_is_covered_by_what_wants_less() {
        use Requirement::{Both, Certificate, Token};
        for (wide, narrow, expected) in [
            (None, None, true),
            (None, Some(Both), true),
            (Some(Token), Some(Both), true),
            (Some(Token), Some(Token), true),
            (Some(Token), Some(Certificate), false),
            (Some(Both), Some(Token), false),
            (Some(Both), None, false),
        ] {
            let found = Requirement::covers(wide, narrow);
            assert_eq!(found, expected, "{wide:?} {narrow:?}");
        }
    }
}
