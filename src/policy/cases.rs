//! Cases: requests with the answer that a policy must give, kept as data beside
//! it. Runs them, and says which rules no case touches.

use std::collections::HashSet;
use std::net::IpAddr;

use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{Format, Mode, present};
use super::explain::{Explanation, RuleRef, Verdict};
use super::finding::{Finding, PolicyError, Problem, SourceName};
use super::proven::{Proven, Requirement};
use super::rule::Calls;
use super::schema::cases_schema;
use super::set::PolicySet;
use super::shape;
use crate::egress::{
    AgentId, Ask, Authority, Destination, EgressRequest, RequestTarget, RpcError, Scheme, Subject,
    TenantId, rpc_called,
};

/// A file of cases.
///
/// ```yaml
/// policy: [openclaw.yaml]
/// cases:
///   - name: the model is reached
///     agent: openclaw
///     connect: api.openai.com:443
///     expect: allow
///     rule: models
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// The policy files or directories that are tried, from this file's folder.
    /// Without it `NAME.yaml` beside `NAME.cases.yaml`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy: Vec<String>,
    /// `enforce` or `audit`, as the gateway is set. Without it, `enforce`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub mode: Option<Mode>,
    /// The cases.
    #[schemars(length(min = 1))]
    pub cases: Vec<Case>,
}

/// One request, and what must become of it. It needs `connect` or `url`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["connect"]}, {"required": ["url"]}]))]
pub struct Case {
    /// What it shows, in words; unique in its file.
    pub name: String,
    /// The agent that asks.
    pub agent: String,
    /// Its tenant.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub tenant: Option<String>,
    /// Whom its token is for (`aud`). Without it, whomever the tenant's document
    /// wants.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub audience: Option<Vec<String>>,
    /// What its token is limited to: hosts and ranges. Without it, nothing.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub allowed_destinations: Option<Vec<String>>,
    /// A tunnel: `host:port`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub connect: Option<String>,
    /// A request by its URL. What goes to an `https` URL goes in a tunnel,
    /// unless `inside` says that it is seen.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub url: Option<String>,
    /// The method of a request by URL. Without it, GET.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub method: Option<String>,
    /// Whether the gateway sees method and path of a request to an `https` URL,
    /// as it does on its named routes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inside: bool,
    /// The methods that the body calls by JSON-RPC: one, or those of a batch;
    /// an empty list is a request without a body. Without it the body is one
    /// that cannot be read, which a rule with `rpc_methods` refuses.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub rpc_methods: Option<Vec<String>>,
    /// What has proven the agent: `token`, `certificate` or `both`. Without it,
    /// a token.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub credentials: Option<Requirement>,
    /// The addresses that the name has. Without them addresses are not tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// What must become of it.
    pub expect: Expectation,
    /// The rule that must decide.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub rule: Option<String>,
    /// The code of the refusal, such as `no_rule` or `denylist`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub reason: Option<String>,
}

/// What must become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Expectation {
    /// It goes.
    Allow,
    /// It goes, because of audit mode only.
    Audit,
    /// It is refused.
    Deny,
}

/// What became of one case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseOutcome {
    /// The case's name.
    pub name: String,
    /// Where the file has it: `cases[2]`.
    pub path: String,
    /// In what the answer is not the expected one; empty where the case holds.
    pub failures: Vec<String>,
    /// The answer.
    pub explanation: Explanation,
}

/// Which rules the cases touch: those that decide one.
#[derive(Clone, Debug, Serialize)]
pub struct Coverage {
    /// How many rules there are.
    pub rules: usize,
    /// How many of them decide a case.
    pub touched: usize,
    /// The others, in order of precedence.
    pub untouched: Vec<RuleRef>,
}

impl CaseFile {
    /// Reads a file of cases.
    ///
    /// # Errors
    /// Every mistake, with its place: in the shape, names that are written
    /// twice, agents, tenants, targets and destinations that are none.
    pub fn parse(
        source: &SourceName,
        format: Format,
        text: &str,
    ) -> Result<Self, Vec<PolicyError>> {
        let file: Self = shape::read(source, format, text, &cases_schema())?;
        let mut errors = Vec::new();
        if file.cases.is_empty() {
            errors.push(Finding::new(source, "cases", Problem::EmptyList));
        }
        let mut names = HashSet::new();
        for (at, case) in file.cases.iter().enumerate() {
            if !names.insert(case.name.as_str()) {
                let problem = Problem::Text(format!(
                    "{:?} is the name of a case already; give each case its own",
                    case.name
                ));
                errors.push(Finding::new(source, format!("cases[{at}].name"), problem));
            }
            if let Err((member, message)) = Question::of(case) {
                let path = format!("cases[{at}].{member}");
                errors.push(Finding::new(source, path, Problem::Text(message)));
            }
        }
        if errors.is_empty() {
            return Ok(file);
        }
        PolicyError::locate(&mut errors, source, text);
        Err(errors)
    }

    /// Puts every case to the policy.
    #[must_use]
    pub fn run(&self, set: &PolicySet) -> Vec<CaseOutcome> {
        let mut outcomes = Vec::with_capacity(self.cases.len());
        for (at, case) in self.cases.iter().enumerate() {
            // One that is no question was refused when the file was read.
            if let Ok(question) = Question::of(case) {
                let explanation = question.ask(set, &case.addresses);
                outcomes.push(CaseOutcome {
                    name: case.name.clone(),
                    path: format!("cases[{at}]"),
                    failures: failures(case, &explanation),
                    explanation,
                });
            }
        }
        outcomes
    }
}

impl Coverage {
    /// Which rules of a set these cases touch.
    #[must_use]
    pub fn of<'o>(set: &PolicySet, outcomes: impl IntoIterator<Item = &'o CaseOutcome>) -> Self {
        let touched: HashSet<(&SourceName, &str)> = outcomes
            .into_iter()
            .filter_map(|outcome| outcome.explanation.rule.as_ref())
            .map(|rule| (&rule.source, rule.path.as_str()))
            .collect();
        let all: Vec<RuleRef> = set.rules().collect();
        let rules = all.len();
        let untouched: Vec<RuleRef> = all
            .into_iter()
            .filter(|rule| !touched.contains(&(&rule.source, rule.path.as_str())))
            .collect();
        Self {
            rules,
            touched: rules - untouched.len(),
            untouched,
        }
    }

    /// Whole per cent, rounded down; 100 where there is no rule.
    #[must_use]
    pub fn percent(&self) -> usize {
        (self.touched * 100).checked_div(self.rules).unwrap_or(100)
    }
}

/// A question to a policy, as a command line or a case writes it.
#[derive(Clone, Debug)]
pub struct Question {
    /// The agent.
    pub agent: AgentId,
    /// Its tenant.
    pub tenant: Option<TenantId>,
    /// Whom its token is for; `None` where that is not told.
    pub audiences: Option<Vec<String>>,
    /// What its token is limited to.
    pub destinations: Option<Vec<Destination>>,
    /// What it asks for.
    pub request: EgressRequest,
    /// What its body calls by JSON-RPC, where that is told.
    pub calls: Option<Vec<String>>,
    /// What has proven the agent.
    pub proven: Proven,
}

impl Question {
    /// The question of a case; else the member that is wrong, and what to write.
    fn of(case: &Case) -> Result<Self, (&'static str, String)> {
        for (member, value) in [("rule", &case.rule), ("reason", &case.reason)] {
            if value.as_ref().is_some_and(String::is_empty) {
                let message = "nothing is written; write which, or take the member away";
                return Err((member, message.to_owned()));
            }
        }
        let wrong = |raw: &str, error: &dyn std::fmt::Display| format!("{raw:?}: {error}");
        let request = match (&case.connect, &case.url) {
            (Some(raw), None) => {
                if case.method.is_some() {
                    return Err((
                        "method",
                        "a tunnel hides it; take it away, or write `url`".to_owned(),
                    ));
                }
                Self::request("CONNECT", raw, false)
                    .map_err(|error| ("connect", wrong(raw, &error)))?
            }
            (None, Some(raw)) => {
                let method = case.method.as_deref().unwrap_or("GET");
                Self::request(method, raw, case.inside)
                    .map_err(|error| ("url", wrong(raw, &error)))?
            }
            _ => return Err(("", "write either `connect: host:port` or `url`".to_owned())),
        };
        let calls = Self::calls(case.rpc_methods.clone(), &request)
            .map_err(|message| ("rpc_methods", message))?;
        let tenant = match &case.tenant {
            Some(raw) => {
                Some(TenantId::parse(raw).map_err(|error| ("tenant", wrong(raw, &error)))?)
            }
            None => None,
        };
        let destinations = case
            .allowed_destinations
            .iter()
            .flatten()
            .map(|raw| {
                Destination::parse(raw)
                    .map_err(|error| ("allowed_destinations", wrong(raw, &error)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            agent: AgentId::parse(&case.agent)
                .map_err(|error| ("agent", wrong(&case.agent, &error)))?,
            tenant,
            audiences: case.audience.clone(),
            destinations: case.allowed_destinations.as_ref().map(|_| destinations),
            request,
            calls,
            proven: case.credentials.map_or(Proven::BY_TOKEN, Proven::from),
        })
    }

    /// A request by method and URL, or `CONNECT` and `host:port`. Over TLS the
    /// gateway sees a tunnel and judges that, unless `inside` says that it sees
    /// more, as on a named route.
    ///
    /// # Errors
    /// What is wrong with it and what to write.
    pub fn request(method: &str, url: &str, inside: bool) -> Result<EgressRequest, String> {
        if method == "CONNECT"
            && let Some(authority) = authority_of(url)
        {
            return Err(format!("CONNECT asks for host and port: write {authority}"));
        }
        match RequestTarget::parse(method, url).map_err(|error| error.to_string())? {
            RequestTarget::Authority(authority) => Ok(EgressRequest {
                authority,
                ask: Ask::Tunnel,
            }),
            RequestTarget::Absolute {
                scheme,
                authority,
                path,
                ..
            } => {
                let method = Method::from_bytes(method.as_bytes())
                    .map_err(|_| "write a method such as GET".to_owned())?;
                let ask = match scheme {
                    Scheme::Https if !inside => Ask::Tunnel,
                    _ => Ask::Request {
                        scheme,
                        method,
                        path,
                    },
                };
                Ok(EgressRequest { authority, ask })
            }
            RequestTarget::Origin { .. } | RequestTarget::Asterisk => Err(
                "write a URL such as http://api.example.com/v1, or host:port for CONNECT"
                    .to_owned(),
            ),
        }
    }

    /// The methods that the body of a request calls, as they are told: those
    /// that the gateway could read out of one.
    ///
    /// # Errors
    /// What is wrong with them and what to write.
    pub fn calls(
        methods: Option<Vec<String>>,
        request: &EgressRequest,
    ) -> Result<Option<Vec<String>>, String> {
        let Some(methods) = methods else {
            return Ok(None);
        };
        if matches!(request.ask, Ask::Tunnel) {
            return Err(
                "a tunnel hides them; say that the inside is seen, or ask for an http URL"
                    .to_owned(),
            );
        }
        match rpc_called(methods) {
            Err(RpcError::Empty) => Ok(Some(Vec::new())),
            called => called.map(Some).map_err(|error| error.message().to_owned()),
        }
    }

    /// Puts it to a policy.
    #[must_use]
    pub fn ask(&self, set: &PolicySet, addresses: &[IpAddr]) -> Explanation {
        let subject = Subject {
            agent: &self.agent,
            tenant: self.tenant.as_ref(),
            destinations: self.destinations.as_deref(),
            audiences: self.audiences.as_deref(),
        };
        let calls = match &self.calls {
            Some(methods) => Calls::Seen(methods),
            None => Calls::Unseen,
        };
        set.explain_proven(&subject, &self.request, calls, self.proven, addresses)
    }
}

/// The `host:port` that a URL asks for, as a tunnel to it is asked for.
fn authority_of(url: &str) -> Option<Authority> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let port = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => 80,
        _ => 443,
    };
    Authority::parse(host)
        .or_else(|_| Authority::parse(&format!("{host}:{port}")))
        .ok()
}

fn failures(case: &Case, got: &Explanation) -> Vec<String> {
    let mut failures = Vec::new();
    let expected = match case.expect {
        Expectation::Allow => Verdict::Allow,
        Expectation::Audit => Verdict::Audit,
        Expectation::Deny => Verdict::Deny,
    };
    if got.verdict != expected {
        failures.push(format!(
            "expected {}, got {}: {}",
            expected.as_str(),
            got.verdict.as_str(),
            got.message
        ));
    }
    let rule = got.rule.as_ref().map(|rule| &*rule.name);
    if let Some(wanted) = &case.rule
        && rule != Some(wanted)
    {
        let got = rule.map_or_else(|| "none".to_owned(), |name| format!("{name:?}"));
        failures.push(format!("expected rule {wanted:?}, got {got}"));
    }
    if let Some(wanted) = &case.reason
        && got.reason != Some(wanted)
    {
        let got = got.reason.unwrap_or("none");
        failures.push(format!("expected reason {wanted}, got {got}"));
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_asked_for_by_host_and_port() {
        for (url, says) in [
            ("https://github.com/", "write github.com:443"),
            ("http://github.com", "write github.com:80"),
            ("wss://github.com:8443/a?b", "write github.com:8443"),
            ("https://[::1]/", "write [::1]:443"),
            ("github.com", "write host:port"),
        ] {
            let error = Question::request("CONNECT", url, false).expect_err(url);
            assert!(error.ends_with(says), "{url}: {error}");
        }
        Question::request("CONNECT", "github.com:443", false).expect("a tunnel");
    }
    use crate::policy::PolicyDocument;

    const POLICY: &str = "version: 1
rules:
  - {name: models, action: allow, agents: [bot], hosts: [api.example.com], ports: [443]}
  - {name: files, action: allow, agents: any, hosts: [files.example], paths: [/pub/**]}
  - {name: never, action: deny, agents: any, hosts: [bad.example]}
  - {name: both, action: allow, agents: any, hosts: [both.example], ports: [443], require: both}
  - {name: trial, action: deny, mode: audit, agents: any, hosts: [api.example.com]}
";

    fn set() -> PolicySet {
        let source = SourceName::from("p.yaml");
        let document = PolicyDocument::parse(&source, Format::Yaml, POLICY).expect("a policy");
        PolicySet::build(vec![(source, document)], Mode::Enforce).expect("a policy")
    }

    fn parse(text: &str) -> Result<CaseFile, Vec<String>> {
        CaseFile::parse(&SourceName::from("c"), Format::Yaml, text)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn cases_hold_or_say_what_is_otherwise() {
        let file = parse(
            "cases:
  - {name: holds, agent: bot, url: \"http://files.example/pub/a\", expect: allow, rule: files}
  - {name: by both, agent: bot, connect: \"both.example:443\", credentials: both, expect: allow, rule: both}
  - {name: by one, agent: bot, connect: \"both.example:443\", expect: deny, reason: credential_required, rule: both}
  - {name: a trial, agent: bot, connect: \"api.example.com:443\", expect: audit, rule: trial}
  - {name: refused, agent: cat, connect: \"x.example:443\", expect: deny, reason: no_rule}
  - {name: seen, agent: a, url: \"https://files.example/pub/\", inside: true, expect: allow}
  - {name: hidden, agent: a, url: \"https://files.example/pub/\", expect: deny, reason: not_inspectable, rule: files}
  - {name: private, agent: a, url: \"http://files.example/pub/\", addresses: [10.0.0.1], expect: deny, reason: address_private}
  - {name: token, agent: bot, allowed_destinations: [], url: \"http://files.example/pub/a\", expect: deny, reason: not_in_token}
  - {name: wrong, agent: cat, connect: \"x.example:443\", expect: allow, rule: models, reason: rule}
",
        )
        .expect("cases");
        let set = set();
        let outcomes = file.run(&set);
        let (wrong, holding) = outcomes.split_last().expect("cases");
        for outcome in holding {
            assert!(
                outcome.failures.is_empty(),
                "{}: {:?}",
                outcome.name,
                outcome.failures
            );
        }
        assert_eq!(
            wrong.failures,
            [
                "expected allow, got deny: no rule allows this",
                "expected rule \"models\", got none",
                "expected reason rule, got no_rule",
            ]
        );
        let coverage = Coverage::of(&set, &outcomes);
        let untouched: Vec<&str> = coverage.untouched.iter().map(|rule| &*rule.name).collect();
        assert_eq!(untouched, ["models", "never"]);
        assert_eq!(
            (coverage.touched, coverage.rules, coverage.percent()),
            (3, 5, 60)
        );
    }

    #[test]
    fn mistakes_in_cases_are_named_at_once() {
        assert_eq!(
            parse(
                "cases:
  - {name: a, agent: bot, connect: \"x.example\", expect: allow}
  - {name: a, agent: \"b t\", url: \"http://x.example/\", expect: allow}
  - {name: b, agent: bot, url: \"/x\", expect: allow}
  - {name: c, agent: bot, expect: allow}
"
            )
            .expect_err("mistakes")
            .len(),
            5
        );
        assert_eq!(
            parse("cases:\n  - {name: a, agent: b, conect: \"x:1\", expect: permit}\n")
                .expect_err("mistakes"),
            [
                "c:2:25: cases[0].conect: unknown member: did you mean `connect`?",
                "c:2:40: cases[0].expect: \"permit\": write `allow` or `audit` or `deny`",
            ]
        );
        assert!(parse("cases: []").is_err());
        assert!(
            parse("cases:\n  - {name: a, agent: b, connect: \"x:1\", expect: deny, rule: }")
                .is_err()
        );
    }
}
