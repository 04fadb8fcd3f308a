//! From which tokens a token has been exchanged: its claim `exchanged_from`,
//! the nearest first, so that what revokes one of them reaches it too.
//!
//! The nearest also says whom that one was for, where that differs: a tenant's
//! document is chosen by it, and not by the new token's own `aud`, which only
//! says who takes the token. Otherwise an exchange would be a way from the
//! document for one audience to the document for another.
//!
//! It can only make a token weaker. Of another issuer that writes tokens as
//! AgentPort does it is believed as well; elsewhere the name may mean anything,
//! and is passed over where it cannot be read so.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::claims::is_name;
use super::grant::GrantError;
use super::principal::Principal;

/// The claim.
pub(super) const CLAIM: &str = "exchanged_from";
/// Whom the nearest was for, in its entry.
const AUDIENCES: &str = "aud";
/// The most tokens that one may descend from. A chain of delegation of the
/// greatest depth has as many: two for each exchange with an actor.
pub const MAX_ANCESTORS: usize = 16;

/// A token that another one was exchanged from, by what it can be revoked by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ancestor {
    pub(super) issuer: Option<Arc<str>>,
    pub(super) jti: Option<Arc<str>>,
    pub(super) key_id: Arc<str>,
    pub(super) client: Option<Arc<str>>,
}

/// What a token inherits from those that it is exchanged from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descent {
    /// `iat`: that of the oldest, and none where one has none.
    pub iat: Option<u64>,
    pub(super) ancestors: Vec<Ancestor>,
    /// Whom the subject's token was for; `None` where nothing is inherited.
    pub(super) audiences: Option<Arc<[String]>>,
}

/// The claim as it was read.
pub(super) struct Inherited {
    pub(super) ancestors: Arc<[Ancestor]>,
    /// Whom the nearest was for, where the claim says it.
    pub(super) audiences: Option<Arc<[String]>>,
}

impl Ancestor {
    fn of(who: &Principal) -> Self {
        Self {
            issuer: who.issuer().cloned(),
            jti: who.jti().cloned(),
            key_id: Arc::clone(who.key_id()),
            client: who.client().cloned(),
        }
    }

    fn written(&self, own: &str) -> Value {
        let mut written = json!({ "kid": self.key_id.as_ref() });
        let others = self.issuer.as_deref().filter(|issuer| *issuer != own);
        for (name, value) in [
            ("iss", others),
            ("jti", self.jti.as_deref()),
            ("client_id", self.client.as_deref()),
        ] {
            if let Some(value) = value {
                written[name] = value.into();
            }
        }
        written
    }

    fn read(value: &Value, own: Option<&str>, first: bool) -> Result<Self, &'static str> {
        let Value::Object(members) = value else {
            return Err("an entry is not an object");
        };
        let known: &[&str] = match first {
            true => &["iss", "jti", "kid", "client_id", AUDIENCES],
            false => &["iss", "jti", "kid", "client_id"],
        };
        if !members.keys().all(|name| known.contains(&name.as_str())) {
            return Err(
                "an entry has other members than iss, jti, kid, client_id and, in the first, aud",
            );
        }
        Ok(Self {
            issuer: name(members, "iss")?.or(own).map(Into::into),
            jti: name(members, "jti")?.map(Into::into),
            key_id: name(members, "kid")?.ok_or("an entry has no kid")?.into(),
            client: name(members, "client_id")?.map(Into::into),
        })
    }
}

fn name<'m>(members: &'m Map<String, Value>, of: &str) -> Result<Option<&'m str>, &'static str> {
    match members.get(of) {
        None => Ok(None),
        Some(Value::String(name)) if is_name(name) => Ok(Some(name)),
        Some(_) => Err("a member of an entry is not a name of 1 to 256 bytes"),
    }
}

impl Descent {
    /// That of a token of nobody else's, issued at `iat`.
    #[must_use]
    pub fn none(iat: u64) -> Self {
        Self {
            iat: Some(iat),
            ancestors: Vec::new(),
            audiences: None,
        }
    }

    /// That of a token exchanged from this one, perhaps with an actor's.
    ///
    /// # Errors
    /// [`GrantError::InvalidRequest`]: more than [`MAX_ANCESTORS`].
    pub fn from(subject: &Principal, actor: Option<&Principal>) -> Result<Self, GrantError> {
        let mut iat = subject.issued_at();
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for parent in std::iter::once(subject).chain(actor) {
            iat = iat.and_then(|iat| parent.issued_at().map(|of| iat.min(of)));
            let inherited = parent.ancestors().iter().cloned();
            for ancestor in std::iter::once(Ancestor::of(parent)).chain(inherited) {
                if !ancestors.contains(&ancestor) {
                    ancestors.push(ancestor);
                }
            }
        }
        if ancestors.len() > MAX_ANCESTORS {
            return Err(GrantError::request(format!(
                "the token would descend from {} others, and {MAX_ANCESTORS} is the most: exchange one that is nearer to the first",
                ancestors.len()
            )));
        }
        Ok(Self {
            iat,
            ancestors,
            audiences: subject.audiences().cloned(),
        })
    }

    /// The claim, in a token of the issuer `own` with this `aud`; `None` where
    /// there is nothing to say.
    pub(super) fn claim(&self, own: &str, aud: &str) -> Option<Vec<Value>> {
        let written = self.ancestors.iter().map(|ancestor| ancestor.written(own));
        let mut written: Vec<Value> = written.collect();
        let first = written.first_mut()?;
        if let Some(audiences) = self.audiences.as_deref().filter(|list| *list != [aud]) {
            first[AUDIENCES] = json!(audiences);
        }
        Some(written)
    }
}

/// Reads the claim of a token with this `iss`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(value: &Value, iss: Option<&str>) -> Result<Inherited, &'static str> {
    let Value::Array(entries) = value else {
        return Err("it is not a list");
    };
    if !(1..=MAX_ANCESTORS).contains(&entries.len()) {
        return Err("it has not 1 to 16 entries");
    }
    let ancestors = entries
        .iter()
        .enumerate()
        .map(|(at, entry)| Ancestor::read(entry, iss, at == 0))
        .collect::<Result<_, _>>()?;
    Ok(Inherited {
        ancestors,
        audiences: audiences(&entries[0])?,
    })
}

fn audiences(first: &Value) -> Result<Option<Arc<[String]>>, &'static str> {
    const WHY: &str = "the aud of an entry is not a list of strings";
    let items = match first.get(AUDIENCES) {
        None => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(WHY),
    };
    let texts = items
        .iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or(WHY));
    texts.collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::AgentId;
    use crate::identity::{
        IssueRequest, SigningKey, TokenIssuer, TokenVerifier, TrustedIssuer, VerifierSettings,
        VerifyingKeys,
    };

    const NOW: u64 = 1_767_225_600;
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn issuer() -> TokenIssuer {
        let key = SigningKey::from_secret(SECRET).expect("a secret");
        TokenIssuer::new(key, "agentport", "agentport")
    }

    fn issue(jti: u128, client: Option<&str>, descent: &Descent) -> Principal {
        let request = IssueRequest {
            agent: AgentId::parse("bot-01").expect("an agent"),
            tenant: None,
            destinations: None,
            lifetime: std::time::Duration::from_secs(60),
            audience: None,
            jti,
            actors: Vec::new(),
            scope: None,
            client: client.map(str::to_owned),
        };
        let issuer = issuer();
        let token = issuer
            .issue_descending(&request, NOW, descent)
            .expect("a token");
        let keys = VerifyingKeys::new()
            .with(TrustedIssuer::default(), [issuer.verifying_key().clone()])
            .expect("keys");
        TokenVerifier::new(keys, VerifierSettings::default())
            .verify(&token, NOW)
            .expect("good")
    }

    #[test]
    fn a_token_names_all_that_it_comes_from_and_no_more_than_sixteen() {
        let first = issue(1, Some("first"), &Descent::none(NOW - 9));
        assert_eq!(
            (first.issued_at(), first.ancestors()),
            (Some(NOW - 9), &[][..])
        );
        let other = issue(2, Some("other"), &Descent::none(NOW - 20));
        let descent = Descent::from(&first, Some(&other)).expect("two");
        assert_eq!(descent.iat, Some(NOW - 20));
        let second = issue(3, Some("second"), &descent);
        let third = issue(4, None, &Descent::from(&second, None).expect("three"));
        let said: Vec<_> = third
            .ancestors()
            .iter()
            .map(|of| (of.jti.as_deref().expect("a jti"), of.client.as_deref()))
            .collect();
        let jti = |number: u128| format!("{number:032x}");
        assert_eq!(
            said,
            [
                (jti(3).as_str(), Some("second")),
                (jti(1).as_str(), Some("first")),
                (jti(2).as_str(), Some("other")),
            ]
        );
        let own = third.ancestors().iter();
        assert!(
            own.clone()
                .all(|of| of.issuer.as_deref() == Some("agentport"))
        );
        assert!(own.clone().all(|of| of.key_id == *third.key_id()));

        let mut last = first;
        for depth in 1..=MAX_ANCESTORS {
            let descent = Descent::from(&last, None).expect("not yet too many");
            last = issue(100 + depth as u128, None, &descent);
            assert_eq!(last.ancestors().len(), depth);
        }
        let error = Descent::from(&last, None).expect_err("too many");
        assert!(error.to_string().contains("nearer to the first"), "{error}");
    }

    #[test]
    fn the_claim_is_read_strictly() {
        let good = json!([{"kid": "k", "jti": "j", "client_id": "c", "iss": "https://a.test"}, {"kid": "k"}]);
        let claim = read(&good, Some("agentport")).expect("good");
        assert_eq!(claim.audiences, None);
        let read_one = claim.ancestors;
        assert_eq!(read_one[0].issuer.as_deref(), Some("https://a.test"));
        assert_eq!(read_one[1].issuer.as_deref(), Some("agentport"));
        let many: Vec<_> = std::iter::repeat_n(json!({"kid": "k"}), MAX_ANCESTORS + 1).collect();
        for (case, claim) in [
            ("no list", json!({"kid": "k"})),
            ("nothing", json!([])),
            ("null", Value::Null),
            ("too many", Value::Array(many)),
            ("a name alone", json!(["k"])),
            ("no key", json!([{"jti": "j"}])),
            ("another member", json!([{"kid": "k", "sub": "s"}])),
            ("a number", json!([{"kid": "k", "jti": 1}])),
            ("null in it", json!([{"kid": "k", "jti": null}])),
            ("an empty name", json!([{"kid": ""}])),
            ("a control character", json!([{"kid": "k", "jti": "a\nb"}])),
            ("one audience", json!([{"kid": "k", "aud": "dev"}])),
            (
                "an audience that is a number",
                json!([{"kid": "k", "aud": ["dev", 1]}]),
            ),
            ("no audience", json!([{"kid": "k", "aud": null}])),
            (
                "the audience of another than the nearest",
                json!([{"kid": "k"}, {"kid": "l", "aud": ["dev"]}]),
            ),
        ] {
            assert!(read(&claim, None).is_err(), "{case}");
        }
    }
}
