//! What a foreign issuer's agents are called here: a pattern that takes the
//! claim apart, and templates that put names together from its parts.
//!
//! `system:serviceaccount:{namespace}:{name}` reads a Kubernetes service
//! account; `{namespace}.{name}` and `{namespace}` make an agent and a tenant
//! of it.

/// How names are made of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    written: String,
    pattern: Vec<Part>,
    agent: Vec<Part>,
    tenant: Option<Vec<Part>>,
}

/// What an agent and its tenant are called. Not yet checked as names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) agent: String,
    pub(super) tenant: Option<String>,
}

/// Why a pattern or a template is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// A brace that is not part of `{word}`.
    #[error("{0:?}: write placeholders as {{name}}, of lower-case letters and _")]
    Form(String),
    /// Two placeholders with nothing in between.
    #[error("{0:?}: write something between two placeholders, or where one ends stays open")]
    Adjacent(String),
    /// A placeholder twice in the pattern.
    #[error("{pattern:?} has {{{name}}} twice: give each placeholder its own name")]
    Twice {
        /// The pattern.
        pattern: String,
        /// The placeholder.
        name: String,
    },
    /// A template uses what the pattern does not give.
    #[error("{template:?}: there is no {{{name}}} in {pattern:?}")]
    Unknown {
        /// The template.
        template: String,
        /// The placeholder.
        name: String,
        /// The pattern.
        pattern: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(String),
}

/// What takes and gives a claim as it is.
const WHOLE: &str = "{agent}";

impl Naming {
    /// A naming by a pattern for the claim, and templates for the agent and
    /// the tenant. The pattern and the agent's template are `{agent}` where
    /// there are none, which is the claim as it is.
    ///
    /// A placeholder stands for one or more characters, without the ones that
    /// stand next to it in the pattern: with `{namespace}:{name}` neither has a
    /// colon, so that a claim can be read in one way only.
    ///
    /// # Errors
    /// [`NamingError`].
    pub fn new(
        pattern: Option<&str>,
        agent: Option<&str>,
        tenant: Option<&str>,
    ) -> Result<Self, NamingError> {
        let written = pattern.unwrap_or(WHOLE);
        let pattern = parse(written)?;
        let mut names = Vec::new();
        for pair in pattern.windows(2) {
            if let [Part::Field(_), Part::Field(_)] = pair {
                return Err(NamingError::Adjacent(written.to_owned()));
            }
        }
        for name in fields(&pattern) {
            if names.contains(&name) {
                return Err(NamingError::Twice {
                    pattern: written.to_owned(),
                    name: name.to_owned(),
                });
            }
            names.push(name);
        }
        let template = |text: &str| {
            let parts = parse(text)?;
            match fields(&parts).find(|name| !names.contains(name)) {
                None => Ok(parts.clone()),
                Some(name) => Err(NamingError::Unknown {
                    template: text.to_owned(),
                    name: name.to_owned(),
                    pattern: written.to_owned(),
                }),
            }
        };
        Ok(Self {
            agent: template(agent.unwrap_or(WHOLE))?,
            tenant: tenant.map(template).transpose()?,
            written: written.to_owned(),
            pattern,
        })
    }

    /// The pattern, as it was written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.written
    }

    /// The names that a claim gives; `None` where it is not like the pattern.
    pub(super) fn apply(&self, claim: &str) -> Option<Named> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        let mut rest = claim;
        let mut before = None;
        for (at, part) in self.pattern.iter().enumerate() {
            match part {
                Part::Text(text) => {
                    rest = rest.strip_prefix(text.as_str())?;
                    before = text.chars().next_back();
                }
                Part::Field(name) => {
                    let next = match self.pattern.get(at + 1) {
                        Some(Part::Text(text)) => text.chars().next(),
                        _ => None,
                    };
                    let end = next.map_or(Some(rest.len()), |next| rest.find(next))?;
                    let (value, after) = rest.split_at(end);
                    if value.is_empty() || before.is_some_and(|c| value.contains(c)) {
                        return None;
                    }
                    found.push((name, value));
                    rest = after;
                }
            }
        }
        let fill = |template: &[Part]| -> String {
            let value = |name: &str| {
                let of_name = found.iter().find(|(known, _)| *known == name);
                of_name.map_or("", |(_, value)| *value)
            };
            template
                .iter()
                .map(|part| match part {
                    Part::Text(text) => text.as_str(),
                    Part::Field(name) => value(name),
                })
                .collect()
        };
        rest.is_empty().then(|| Named {
            agent: fill(&self.agent),
            tenant: self.tenant.as_deref().map(fill),
        })
    }
}

fn parse(text: &str) -> Result<Vec<Part>, NamingError> {
    let wrong = || NamingError::Form(text.to_owned());
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(wrong)?;
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        if name.is_empty() || !name.chars().all(plain) || before.contains('}') {
            return Err(wrong());
        }
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(Part::Field(name.to_owned()));
        rest = after;
    }
    if rest.contains('}') {
        return Err(wrong());
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

fn fields(parts: &[Part]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        Part::Field(name) => Some(name.as_str()),
        Part::Text(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_claims() {
        const ACCOUNT: &str = "system:serviceaccount:{namespace}:{name}";
        const BOTH: &str = "{namespace}.{name}";
        type Names = Option<(&'static str, Option<&'static str>)>;
        type Templates = (
            Option<&'static str>,
            Option<&'static str>,
            Option<&'static str>,
        );
        #[rustfmt::skip]
        let cases: [(&str, Templates, &str, Names); 13] = [
            ("as it is", (None, None, None), "bot-01", Some(("bot-01", None))),
            ("a prefix", (None, Some("ci-{agent}"), None), "bot", Some(("ci-bot", None))),
            ("one tenant for all", (None, None, Some("acme")), "bot", Some(("bot", Some("acme")))),
            ("a service account", (Some(ACCOUNT), Some(BOTH), Some("{namespace}")),
             "system:serviceaccount:prod:crawler", Some(("prod.crawler", Some("prod")))),
            ("only its name", (Some(ACCOUNT), Some("{name}"), Some("{namespace}")),
             "system:serviceaccount:prod:crawler", Some(("crawler", Some("prod")))),
            ("a colon too many", (Some(ACCOUNT), Some(BOTH), None),
             "system:serviceaccount:prod:crawler:x", None),
            ("an empty part", (Some(ACCOUNT), Some(BOTH), None), "system:serviceaccount::crawler", None),
            ("an empty end", (Some(ACCOUNT), Some(BOTH), None), "system:serviceaccount:prod:", None),
            ("another beginning", (Some(ACCOUNT), Some(BOTH), None), "system:node:prod:crawler", None),
            ("a beginning before it", (Some(ACCOUNT), Some(BOTH), None),
             "xsystem:serviceaccount:prod:crawler", None),
            ("an end that is not there", (Some("{agent}@example.com"), None, None), "bot@example.org", None),
            ("an end", (Some("{agent}@example.com"), None, None), "bot@example.com", Some(("bot", None))),
            ("two ends", (Some("{agent}@example.com"), None, None), "bot@example.com@example.com", None),
        ];
        for (case, (pattern, agent, tenant), claim, expected) in cases {
            let naming = Naming::new(pattern, agent, tenant).expect("a naming");
            let expected = expected.map(|(agent, tenant)| Named {
                agent: agent.to_owned(),
                tenant: tenant.map(str::to_owned),
            });
            assert_eq!(naming.apply(claim), expected, "{case}");
        }
    }

    #[test]
    fn patterns_that_are_none() {
        #[rustfmt::skip]
        let cases = [
            ("an open brace", "a{b", None, "\"a{b\": write placeholders as {name}, of lower-case letters and _"),
            ("a closing brace", "a}b", None, "\"a}b\": write placeholders as {name}, of lower-case letters and _"),
            ("nothing in it", "{}", None, "\"{}\": write placeholders as {name}, of lower-case letters and _"),
            ("side by side", "{a}{b}", None,
             "\"{a}{b}\": write something between two placeholders, or where one ends stays open"),
            ("twice", "{a}:{a}", None, "\"{a}:{a}\" has {a} twice: give each placeholder its own name"),
            ("unknown", "{a}", Some("{b}"), "\"{b}\": there is no {b} in \"{a}\""),
            ("the default unknown", "{a}", None, "\"{agent}\": there is no {agent} in \"{a}\""),
        ];
        for (case, pattern, agent, expected) in cases {
            let error = Naming::new(Some(pattern), agent, None).expect_err(case);
            assert_eq!(error.to_string(), expected, "{case}");
        }
    }
}
