//! What a token whose signature held says, and whether it says it here and now.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::descent::{self, Ancestor};
use super::error::{Facts, TokenError};
use super::json::{self, JsonError};
use super::key::VerifyingKey;
use super::keys::{AgentClaim, TrustedIssuer};
use super::principal::{CredentialKind, Principal};
use crate::egress::{AgentId, Destination, TenantId};

/// The most actors a delegation chain may have.
pub const MAX_ACTORS: usize = 8;
/// The most bytes a `jti` or the name of an actor may have.
const MAX_NAME_BYTES: usize = 256;
/// The most bytes a scope may have.
const MAX_SCOPE_BYTES: usize = 1024;
/// The last second of the year 9999, the last that RFC 3339 can write.
pub(super) const MAX_DATE: u64 = 253_402_300_799;

/// Judges the claims of a token.
///
/// `now` and `leeway` are in seconds.
pub(super) fn judge(
    text: &[u8],
    issuer: &TrustedIssuer,
    key: &VerifyingKey,
    now: u64,
    leeway: u64,
    max_actors: usize,
) -> Result<Principal, TokenError> {
    let members = json::object(text).map_err(|error| {
        TokenError::Malformed(match error {
            JsonError::Syntax => "its claims are not valid JSON",
            JsonError::Duplicate => "its claims have a member twice",
            JsonError::NotObject => "its claims are not a JSON object",
        })
    })?;
    let claims = Claims {
        members: &members,
        facts: facts(&members, issuer),
    };
    let iss = claims.issuer(issuer)?;
    let audiences = claims.audience(issuer)?;
    let inherited = claims.inherited(issuer, iss)?;
    let (expires_at, issued_at) = claims.dates(now, leeway)?;
    let (agent, tenant) = claims.names(issuer)?;
    Ok(Principal {
        agent,
        tenant,
        destinations: claims.destinations()?,
        // Policy judges an exchanged token as what it was exchanged from.
        audiences: Some(inherited.audiences.unwrap_or(audiences)),
        jti: claims.name("jti")?.map(Into::into),
        act: claims.actors(max_actors)?,
        scope: claims.scope(),
        client: claims.name("client_id")?.map(Into::into),
        ancestors: inherited.ancestors,
        issuer: iss.map(Into::into),
        key_id: Arc::clone(key.id()),
        key_print: Some(Arc::clone(key.print())),
        issued_at,
        expires_at,
        kind: CredentialKind::Token,
        certificate: None,
    })
}

/// What a token has from those that it was exchanged from.
#[derive(Default)]
struct Inherited {
    ancestors: Option<Arc<[Ancestor]>>,
    audiences: Option<Arc<[String]>>,
}

/// The claims of one token, and what an error says of it.
struct Claims<'m> {
    members: &'m Map<String, Value>,
    facts: Facts,
}

impl<'m> Claims<'m> {
    /// What the agent and its tenant are called.
    fn names(&self, issuer: &TrustedIssuer) -> Result<(AgentId, Option<TenantId>), TokenError> {
        let (claim, name) = self.agent(issuer)?;
        let Some(naming) = &issuer.naming else {
            let agent = self.agent_id(claim, name)?;
            return Ok((agent, self.tenant(&issuer.tenant_claim)?));
        };
        let named = naming.apply(name).ok_or_else(|| {
            self.invalid(claim, &format!("{name:?} is not like {}", naming.pattern()))
        })?;
        let agent = self.agent_id(claim, &named.agent)?;
        let tenant = match &named.tenant {
            Some(tenant) => Some(
                TenantId::parse(tenant)
                    .map_err(|error| self.invalid(claim, &format!("as a tenant: {error}")))?,
            ),
            None => self.tenant(&issuer.tenant_claim)?,
        };
        Ok((agent, tenant))
    }

    fn agent_id(&self, claim: &str, name: &str) -> Result<AgentId, TokenError> {
        AgentId::parse(name).map_err(|error| self.invalid(claim, &error.to_string()))
    }

    /// The claim that names the agent, and what it says.
    fn agent<'i>(&self, issuer: &'i TrustedIssuer) -> Result<(&'i str, &'m str), TokenError> {
        let (claim, name) = match &issuer.agent {
            AgentClaim::Named(claim) => (claim.as_str(), self.text(claim)?),
            AgentClaim::Own => match (self.text("agent_id")?, self.text("sub")?) {
                (Some(agent), Some(sub)) if agent != sub => {
                    return Err(self.invalid("sub", "it differs from agent_id"));
                }
                (Some(agent), _) => ("agent_id", Some(agent)),
                (None, Some(sub)) => ("sub", Some(sub)),
                (None, None) => ("agent_id", None),
            },
        };
        Ok((claim, name.ok_or_else(|| self.missing(claim))?))
    }

    fn tenant(&self, claim: &str) -> Result<Option<TenantId>, TokenError> {
        self.text(claim)?
            .map(|name| {
                TenantId::parse(name).map_err(|error| self.invalid(claim, &error.to_string()))
            })
            .transpose()
    }

    /// One bad entry refuses the token: dropped, it would narrow or widen what
    /// the issuer meant.
    fn destinations(&self) -> Result<Option<Vec<Destination>>, TokenError> {
        const CLAIM: &str = "allowed_destinations";
        let items = match self.members.get(CLAIM) {
            None => return Ok(None),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(self.invalid(CLAIM, "it is not a list of strings")),
        };
        let parse = |(at, item): (usize, &Value)| {
            let Value::String(raw) = item else {
                return Err(self.invalid(CLAIM, "it is not a list of strings"));
            };
            Destination::parse(raw)
                .map_err(|error| self.invalid(CLAIM, &format!("entry {at}, {raw:?}: {error}")))
        };
        items
            .iter()
            .enumerate()
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// The chain of `act`, flattened (RFC 8693, 4.1): the present actor first.
    fn actors(&self, most: usize) -> Result<Option<Arc<[String]>>, TokenError> {
        let mut next = self.members.get("act");
        let mut chain = Vec::new();
        while let Some(act) = next {
            if chain.len() >= most.min(MAX_ACTORS) {
                let why = format!("it has more than {} actors", most.min(MAX_ACTORS));
                return Err(self.invalid("act", &why));
            }
            let Some(Value::String(actor)) = act.get("sub") else {
                return Err(self.invalid("act", "an actor has no `sub`"));
            };
            if !is_name(actor) {
                return Err(self.invalid("act", NOT_A_NAME));
            }
            chain.push(actor.clone());
            next = act.get("act");
        }
        Ok(if chain.is_empty() {
            None
        } else {
            Some(chain.into())
        })
    }

    /// What it was exchanged from, where the issuer writes tokens as we do, and
    /// whom that was for. The latter is taken from whoever says it: no issuer
    /// gains by it what another `aud` would not give.
    fn inherited(
        &self,
        issuer: &TrustedIssuer,
        iss: Option<&str>,
    ) -> Result<Inherited, TokenError> {
        let ours = issuer.agent == AgentClaim::Own && issuer.naming.is_none();
        let claim = self.members.get(descent::CLAIM);
        Ok(match claim.map(|claim| descent::read(claim, iss)) {
            None => Inherited::default(),
            Some(Ok(read)) => Inherited {
                ancestors: Some(read.ancestors).filter(|_| ours),
                audiences: read.audiences,
            },
            Some(Err(why)) if ours => return Err(self.invalid(descent::CLAIM, why)),
            Some(Err(_)) => Inherited::default(),
        })
    }

    /// Foreign issuers also write it as a list, or with other words in it;
    /// such a scope is one that cannot be handed on.
    fn scope(&self) -> Option<Arc<str>> {
        match self.members.get("scope") {
            Some(Value::String(scope)) if is_scope(scope) => Some(scope.as_str().into()),
            _ => None,
        }
    }

    fn issuer(&self, issuer: &TrustedIssuer) -> Result<Option<&'m str>, TokenError> {
        let found = self.name("iss")?;
        let Some(expected) = &issuer.issuer else {
            return Ok(found);
        };
        match found {
            None => Err(self.missing("iss")),
            Some(found) if found != expected => Err(TokenError::WrongIssuer {
                facts: self.facts.clone(),
                found: found.to_owned(),
                expected: expected.clone(),
            }),
            Some(_) => Ok(found),
        }
    }

    /// Whom the token is for, of whom one at least is expected.
    fn audience(&self, issuer: &TrustedIssuer) -> Result<Arc<[String]>, TokenError> {
        let found: Vec<&str> = match self.members.get("aud") {
            None if issuer.audiences.is_empty() => return Ok(Arc::default()),
            None => return Err(self.missing("aud")),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(items)) => items
                .iter()
                .map(Value::as_str)
                .collect::<Option<_>>()
                .ok_or_else(|| self.invalid("aud", NOT_AUDIENCE))?,
            Some(_) => return Err(self.invalid("aud", NOT_AUDIENCE)),
        };
        if found
            .iter()
            .any(|audience| issuer.audiences.iter().any(|ours| ours == audience))
        {
            return Ok(found.into_iter().map(str::to_owned).collect());
        }
        Err(TokenError::WrongAudience {
            facts: self.facts.clone(),
            found: found.into_iter().map(str::to_owned).collect(),
            expected: issuer.audiences.clone(),
        })
    }

    /// `exp` and `iat`, where `exp`, `nbf` and `iat` all agree with the clock.
    /// Part of a second counts against the token.
    fn dates(&self, now: u64, leeway: u64) -> Result<(u64, Option<u64>), TokenError> {
        let exp = self
            .date("exp", Rounding::Down)?
            .ok_or_else(|| self.missing("exp"))?;
        let nbf = self.date("nbf", Rounding::Up)?;
        let iat = self.date("iat", Rounding::Up)?;
        // "On or after" (RFC 7519, 4.1.4).
        if now >= exp.saturating_add(leeway) {
            return Err(TokenError::Expired {
                facts: self.facts.clone(),
                ago: now.saturating_sub(exp),
            });
        }
        for (claim, date) in [("nbf", nbf), ("iat", iat)] {
            if let Some(date) = date
                && date > now.saturating_add(leeway)
            {
                return Err(TokenError::NotYetValid {
                    facts: self.facts.clone(),
                    claim,
                    ahead: date.saturating_sub(now),
                });
            }
        }
        Ok((exp, iat))
    }

    /// A `NumericDate` (RFC 7519, 2): seconds since 1970, perhaps with a
    /// fraction, not before 1970 and not after 9999.
    fn date(&self, claim: &str, rounding: Rounding) -> Result<Option<u64>, TokenError> {
        const WHY: &str = "it is not a number of seconds since 1970, up to the year 9999";
        let Some(value) = self.members.get(claim) else {
            return Ok(None);
        };
        let seconds = match value {
            Value::Number(number) => match (number.as_u64(), number.as_f64()) {
                (Some(whole), _) => Some(whole),
                (None, Some(decimal)) => whole_seconds(decimal, rounding),
                (None, None) => None,
            },
            _ => None,
        };
        match seconds {
            Some(seconds) if seconds <= MAX_DATE => Ok(Some(seconds)),
            _ => Err(self.invalid(claim, WHY)),
        }
    }

    /// A string of 1 to 256 bytes that can stand in a record.
    fn name(&self, claim: &str) -> Result<Option<&'m str>, TokenError> {
        match self.text(claim)? {
            Some(name) if !is_name(name) => Err(self.invalid(claim, NOT_A_NAME)),
            name => Ok(name),
        }
    }

    /// `null` is no absence: a claim that is there has a value.
    fn text(&self, claim: &str) -> Result<Option<&'m str>, TokenError> {
        match self.members.get(claim) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.invalid(claim, "it is not a string")),
        }
    }

    fn missing(&self, claim: &str) -> TokenError {
        TokenError::MissingClaim {
            facts: self.facts.clone(),
            claim: claim.to_owned(),
        }
    }

    fn invalid(&self, claim: &str, why: &str) -> TokenError {
        TokenError::InvalidClaim {
            facts: self.facts.clone(),
            claim: claim.to_owned(),
            why: why.to_owned(),
        }
    }
}

const NOT_A_NAME: &str = "it has not 1 to 256 bytes, or control characters";
const NOT_AUDIENCE: &str = "it is neither a string nor a list of strings";

/// Which way part of a second is rounded: against the token.
#[derive(Clone, Copy)]
enum Rounding {
    Down,
    Up,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the range is checked first, and all of it is exact in an f64"
)]
fn whole_seconds(decimal: f64, rounding: Rounding) -> Option<u64> {
    if !(0.0..=MAX_DATE as f64).contains(&decimal) {
        return None;
    }
    Some(match rounding {
        Rounding::Down => decimal.floor() as u64,
        Rounding::Up => decimal.ceil() as u64,
    })
}

pub(super) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Whether it is `scope-token *( SP scope-token )` (RFC 6749, 3.3) of a length
/// that fits into a token.
pub(super) fn is_scope(text: &str) -> bool {
    let of_token = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    text.len() <= MAX_SCOPE_BYTES
        && text
            .split(' ')
            .all(|word| !word.is_empty() && word.bytes().all(of_token))
}

/// Agent and `jti` where they can be read, whatever else is wrong.
fn facts(members: &Map<String, Value>, issuer: &TrustedIssuer) -> Facts {
    let text = |claim: &str| members.get(claim).and_then(Value::as_str);
    let agent = match &issuer.agent {
        AgentClaim::Own => text("agent_id").or_else(|| text("sub")),
        AgentClaim::Named(claim) => text(claim),
    };
    Facts {
        agent: agent.and_then(|name| match &issuer.naming {
            None => AgentId::parse(name).ok(),
            Some(naming) => AgentId::parse(&naming.apply(name)?.agent).ok(),
        }),
        jti: text("jti").filter(|jti| is_name(jti)).map(Into::into),
    }
}
