//! Service accounts: who may have tokens issued, by which key, and within what
//! bounds. Read from one document; where that lies is `adapters`' business.
//!
//! A key is `apsa_ACCOUNT_KEY_SECRET`: it says which account and which of its
//! keys it is, so that a wrong one costs one hash as a right one does, whatever
//! accounts there are.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm as Variant, Argon2, Params, PasswordHasher, Version};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::claims::{is_name, is_scope};
use super::date;
use super::issue::MAX_LIFETIME;
use super::jwk::KeySet;
use super::key::VerifyingKey;
use crate::egress::{AgentId, Destination, TenantId};
use crate::limit::Quota;

/// The most bytes that the text of the document may have.
pub const MAX_ACCOUNTS_BYTES: usize = 4 * 1024 * 1024;
/// The most entries of one list.
const MAX_LIST: usize = 1000;
/// The most keys of one account: two in a rotation, and some to spare.
const MAX_KEYS: usize = 16;
/// What a key begins with, so that scanners for secrets know one.
const KEY_PREFIX: &str = "apsa_";
/// Hexadecimal digits of a key's secret: 256 bits.
const SECRET_DIGITS: usize = 64;

/// The service accounts in force. Empty, nobody is issued anything.
#[derive(Debug, Default)]
pub struct ServiceAccounts {
    by_id: HashMap<Arc<str>, Arc<ServiceAccount>>,
}

/// An account that may have tokens issued. Its `Debug` shows no hash.
#[derive(Debug)]
pub struct ServiceAccount {
    id: Arc<str>,
    revoked: bool,
    keys: Vec<AccountKey>,
    assertion_keys: Vec<VerifyingKey>,
    pub(super) bounds: Bounds,
    rate: Option<Quota>,
}

/// What an account may have issued.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) agents: Names,
    /// `None`: only tokens without a tenant.
    pub(super) tenants: Option<Names>,
    /// `None`: any, which is written out as `any`.
    pub(super) destinations: Option<Vec<Destination>>,
    pub(super) scope: Option<String>,
    pub(super) audiences: Vec<String>,
    pub(super) max_ttl: Option<Duration>,
}

/// Names of agents or tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Names {
    Any,
    /// Each a name, or the beginning of names before a `*`.
    Listed(Vec<String>),
}

/// One key of an account, hashed.
struct AccountKey {
    id: String,
    hash: Hashed,
    expires: Option<u64>,
}

/// An argon2id hash, taken apart.
#[derive(Clone)]
struct Hashed {
    params: Params,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

/// Why a client is not the account that it says it is. The text is for the
/// operator; to the client all but one look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// Not in the form `apsa_ACCOUNT_KEY_SECRET`.
    #[error("the key has not the form apsa_ACCOUNT_KEY_SECRET")]
    Form,
    /// Of another account than the client named.
    #[error("the key is another account's")]
    OtherAccount,
    /// There is no such account.
    #[error("there is no such service account")]
    UnknownAccount,
    /// The account has no key of this id.
    #[error("the account has no such key; it may have been revoked")]
    UnknownKey,
    /// The secret is another.
    #[error("the key's secret is wrong")]
    WrongSecret,
    /// The right key of a revoked account.
    #[error("the service account is revoked")]
    Revoked,
    /// The right key, past its end.
    #[error("the key has expired")]
    Expired,
    /// The machine has no memory for the hash.
    #[error("there is no memory to check the key")]
    NoMemory,
}

/// A key that is to be checked: one hash of 19 MiB and some ten milliseconds,
/// so that it belongs on a thread that may be kept busy.
pub struct KeyCheck {
    account: Option<Arc<ServiceAccount>>,
    secret: Vec<u8>,
    hash: Hashed,
    expires: Option<u64>,
    /// Known before any hash, and told after it.
    refused: Option<KeyRefused>,
    now: u64,
}

/// A key that has just been made.
pub struct NewKey {
    /// What the client keeps. It can be had only now.
    pub secret: String,
    /// What the document keeps.
    pub document: KeyDocument,
}

/// A document of service accounts, as it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountsDocument {
    /// The version of this format: 1.
    pub version: u32,
    /// The accounts.
    #[serde(default)]
    pub accounts: Vec<AccountDocument>,
}

/// One account, as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountDocument {
    /// Its name: 1 to 64 lower-case letters, digits and hyphens.
    pub id: String,
    /// For readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether it is issued nothing any more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub revoked: bool,
    /// Its keys, hashed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyDocument>,
    /// Public keys of its signed assertions (RFC 7523), as a JWK Set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<yaml_serde::Value>,
    /// Agents that it may have tokens for: `any`, names, or `ci-*`.
    pub agents: AnyOrList,
    /// Tenants, as agents. Without it, only tokens without a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<AnyOrList>,
    /// The most that its tokens' `allowed_destinations` may hold: `any`, or
    /// hosts and ranges. A token that names none carries these.
    pub destinations: AnyOrList,
    /// Words that a token's scope may have. Without it, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// Audiences beside the gateway's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audiences: Option<Vec<String>>,
    /// The longest life of its tokens, such as `1h`. Without it, what the
    /// gateway sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<String>,
    /// How many tokens in how long: `60/m`. Without it, as many as it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
}

/// One key, as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDocument {
    /// 8 hexadecimal digits, which also stand in the key.
    pub id: String,
    /// Its argon2id hash, as a PHC string.
    pub hash: String,
    /// When it was made, for readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it ends: `2027-01-31T00:00:00Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// `any`, or a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "write `any`, or a list such as [\"one\", \"two\"]"
)]
pub enum AnyOrList {
    /// The word `any`.
    Any(Any),
    /// At least one entry.
    Listed(Vec<String>),
}

/// The word `any`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Any {
    /// Written out.
    #[serde(rename = "any")]
    Any,
}

/// Everything that is wrong with a document, a line for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct AccountsError(pub Vec<String>);

impl AccountsDocument {
    /// Reads a document, YAML or JSON. What its values mean is
    /// [`ServiceAccounts::build`]'s business.
    ///
    /// # Errors
    /// [`AccountsError`] with line and column.
    pub fn parse(text: &str) -> Result<Self, AccountsError> {
        if text.len() > MAX_ACCOUNTS_BYTES {
            let message = format!("the document has more than {MAX_ACCOUNTS_BYTES} bytes");
            return Err(AccountsError(vec![message]));
        }
        yaml_serde::from_str(text)
            .map_err(|error| AccountsError(vec![without_keys(&error.to_string())]))
    }

    /// The document as YAML.
    ///
    /// # Errors
    /// Where a value cannot be written, which none that was read is.
    pub fn to_yaml(&self) -> Result<String, AccountsError> {
        yaml_serde::to_string(self).map_err(|error| AccountsError(vec![error.to_string()]))
    }
}

impl ServiceAccounts {
    /// Reads and judges a document.
    ///
    /// # Errors
    /// Every mistake, with its place and what to write.
    pub fn parse(text: &str) -> Result<Self, AccountsError> {
        Self::build(&AccountsDocument::parse(text)?)
    }

    /// Judges a document.
    ///
    /// # Errors
    /// Every mistake, with its place and what to write.
    pub fn build(document: &AccountsDocument) -> Result<Self, AccountsError> {
        let mut mistakes = Mistakes::default();
        if document.version != 1 {
            mistakes.add("version", "write 1");
        }
        let mut by_id = HashMap::new();
        for (at, written) in document.accounts.iter().enumerate() {
            let place = format!("accounts[{at}]");
            let account = account(written, &place, &mut mistakes);
            if by_id.contains_key(account.id.as_ref()) {
                mistakes.add(&format!("{place}.id"), "an earlier account has this name");
            }
            by_id.insert(Arc::clone(&account.id), Arc::new(account));
        }
        if mistakes.0.is_empty() {
            Ok(Self { by_id })
        } else {
            Err(AccountsError(mistakes.0))
        }
    }

    /// The account of this name, also a revoked one.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<ServiceAccount>> {
        self.by_id.get(id)
    }

    /// How many there are, revoked ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// What there is to check where a client shows this key at `now`, in
    /// seconds since 1970. `client` is the account that it says it is.
    #[must_use]
    pub fn check(&self, client: &str, key: &str, now: u64) -> KeyCheck {
        let mut check = KeyCheck {
            account: None,
            secret: key.as_bytes().to_vec(),
            hash: NOBODYS.clone(),
            expires: None,
            refused: None,
            now,
        };
        let Some((account, id)) = key_parts(key) else {
            return check.refused(KeyRefused::Form);
        };
        if account != client {
            return check.refused(KeyRefused::OtherAccount);
        }
        let Some(account) = self.by_id.get(account) else {
            return check.refused(KeyRefused::UnknownAccount);
        };
        let Some(key) = account.keys.iter().find(|key| key.id == id) else {
            return check.refused(KeyRefused::UnknownKey);
        };
        check.account = Some(Arc::clone(account));
        check.hash = key.hash.clone();
        check.expires = key.expires;
        check
    }
}

impl KeyCheck {
    fn refused(mut self, why: KeyRefused) -> Self {
        self.refused = Some(why);
        self
    }

    /// Computes the hash, once in any case, and says whose key it is.
    ///
    /// # Errors
    /// [`KeyRefused`].
    pub fn run(self) -> Result<Arc<ServiceAccount>, KeyRefused> {
        let confirmed = self.hash.confirms(&self.secret)?;
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let account = self.account.ok_or(KeyRefused::UnknownAccount)?;
        if !confirmed {
            return Err(KeyRefused::WrongSecret);
        }
        if account.revoked {
            return Err(KeyRefused::Revoked);
        }
        if self.expires.is_some_and(|end| self.now >= end) {
            return Err(KeyRefused::Expired);
        }
        Ok(account)
    }
}

impl ServiceAccount {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Whether it is issued nothing any more.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// The keys of its signed assertions.
    #[must_use]
    pub fn assertion_keys(&self) -> &[VerifyingKey] {
        &self.assertion_keys
    }

    /// How many tokens it may have in how long.
    #[must_use]
    pub fn rate(&self) -> Option<Quota> {
        self.rate
    }
}

impl NewKey {
    /// Makes a key for an account at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Where the machine gives no random numbers or has no memory.
    pub fn generate(account: &str, now: u64, expires: Option<u64>) -> Result<Self, AccountsError> {
        let failed = |why: &str| AccountsError(vec![format!("cannot make a key: {why}")]);
        let random = SystemRandom::new();
        let (mut id, mut secret) = ([0; 4], [0; SECRET_DIGITS / 2]);
        random
            .fill(&mut id)
            .and_then(|()| random.fill(&mut secret))
            .map_err(|_| failed("the system gives no random numbers"))?;
        let id = hex(&id);
        let secret = format!("{KEY_PREFIX}{account}_{id}_{}", hex(&secret));
        let hash = Argon2::default()
            .hash_password(secret.as_bytes())
            .map_err(|error| failed(&error.to_string()))?;
        Ok(Self {
            document: KeyDocument {
                id,
                hash: hash.to_string(),
                created: Some(date::rfc3339(now)),
                expires: expires.map(date::rfc3339),
            },
            secret,
        })
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountKey")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl Hashed {
    /// The parameters are bounded, since whoever asks makes the gateway pay
    /// for them.
    fn parse(text: &str) -> Result<Self, String> {
        const WHAT: &str = "write an argon2id hash, $argon2id$v=19$m=19456,t=2,p=1$SALT$HASH, as `agentport service-account add-key` makes it";
        let phc = PasswordHash::new(text).map_err(|_| WHAT.to_owned())?;
        if phc.algorithm.as_str() != "argon2id" || phc.version != Some(19) {
            return Err(WHAT.to_owned());
        }
        let params = Params::try_from(&phc).map_err(|_| WHAT.to_owned())?;
        if params.m_cost() > 64 * 1024 || params.t_cost() > 8 || params.p_cost() > 4 {
            return Err("the hash costs too much: at most m=65536,t=8,p=4".to_owned());
        }
        let (Some(salt), Some(hash)) = (phc.salt, phc.hash) else {
            return Err(WHAT.to_owned());
        };
        if hash.as_ref().len() < 16 || salt.as_ref().len() < 8 {
            return Err("the hash or its salt is too short".to_owned());
        }
        Ok(Self {
            params,
            salt: salt.as_ref().to_vec(),
            hash: hash.as_ref().to_vec(),
        })
    }

    fn confirms(&self, secret: &[u8]) -> Result<bool, KeyRefused> {
        let mut computed = vec![0; self.hash.len()];
        Argon2::new(Variant::Argon2id, Version::V0x13, self.params.clone())
            .hash_password_into(secret, &self.salt, &mut computed)
            .map_err(|_| KeyRefused::NoMemory)?;
        Ok(computed.ct_eq(&self.hash).into())
    }
}

/// A hash of the cost of ours that no key has, for clients that are nobody.
static NOBODYS: LazyLock<Hashed> = LazyLock::new(|| Hashed {
    params: Params::DEFAULT,
    salt: vec![0; 16],
    hash: vec![0; 32],
});

/// The account and the id of a key in the form of one.
#[must_use]
pub fn key_parts(key: &str) -> Option<(&str, &str)> {
    let mut parts = key.strip_prefix(KEY_PREFIX)?.split('_');
    let (account, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = parts.next().is_none()
        && is_account_id(account)
        && is_key_id(id)
        && secret.len() == SECRET_DIGITS
        && secret.bytes().all(is_hex);
    fits.then_some((account, id))
}

/// A text without the keys in it: one that was written where its hash belongs
/// is quoted by the parser.
fn without_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(KEY_PREFIX) {
        out.push_str(&rest[..at]);
        out.push_str("a key itself");
        let behind = &rest[at..];
        let end = behind
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')
            .unwrap_or(behind.len());
        rest = &behind[end..];
    }
    out.push_str(rest);
    if rest.len() < text.len() {
        out.push_str("; write {id, hash}, as `agentport service-account create` does");
    }
    out
}

/// Whether this can name an account: 1 to 64 lower-case letters, digits and
/// hyphens, not a hyphen first.
#[must_use]
pub fn is_account_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && !id.starts_with('-')
        && id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether this can be the id of a key: 8 hexadecimal digits.
#[must_use]
pub fn is_key_id(id: &str) -> bool {
    id.len() == 8 && id.bytes().all(is_hex)
}

fn is_hex(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// A lifetime: `90s`, `15m`, `1h`, `7d`, or seconds as a number alone.
///
/// # Errors
/// What to write instead.
pub fn parse_lifetime(text: &str) -> Result<Duration, String> {
    const WHAT: &str = "write a lifetime such as 900, 90s, 15m, 1h or 7d, at most 366d";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(WHAT.to_owned()),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number = plain.then(|| digits.parse::<u64>().ok()).flatten();
    number
        .and_then(|number| number.checked_mul(unit))
        .map(Duration::from_secs)
        .filter(|lifetime| !lifetime.is_zero() && *lifetime <= MAX_LIFETIME)
        .ok_or_else(|| WHAT.to_owned())
}

impl Names {
    pub(super) fn hold(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(list) => list.iter().any(|entry| match entry.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == entry,
            }),
        }
    }

    /// The one name, where there is no other.
    pub(super) fn only(&self) -> Option<&str> {
        match self {
            Self::Listed(list) => match list.as_slice() {
                [one] if !one.ends_with('*') => Some(one),
                _ => None,
            },
            Self::Any => None,
        }
    }
}

/// What is wrong, a line for each.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, place: &str, message: &str) {
        self.0.push(format!("{place}: {message}"));
    }

    /// Reads a list entry by entry.
    fn list<T>(
        &mut self,
        place: &str,
        list: &[String],
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        if list.is_empty() {
            self.add(
                place,
                "the list is empty: write at least one entry, or `any`",
            );
        }
        if list.len() > MAX_LIST {
            self.add(place, "the list has more than 1000 entries");
            return Vec::new();
        }
        let mut good = Vec::new();
        for (at, entry) in list.iter().enumerate() {
            match read(entry) {
                Ok(entry) => good.push(entry),
                Err(message) => {
                    self.add(&format!("{place}[{at}]"), &format!("{entry:?}: {message}"))
                }
            }
        }
        good
    }
}

/// Cooks one account. What is wrong is left in `mistakes`.
fn account(written: &AccountDocument, place: &str, mistakes: &mut Mistakes) -> ServiceAccount {
    let at = |field: &str| format!("{place}.{field}");
    if !is_account_id(&written.id) {
        mistakes.add(
            &at("id"),
            "write 1 to 64 lower-case letters, digits and hyphens, not a hyphen first",
        );
    }
    let name = |check: fn(&str) -> Result<(), String>| {
        move |entry: &str| {
            let beginning = entry.strip_suffix('*').unwrap_or(entry);
            if beginning.is_empty() {
                return Err("write `any` instead of a list".to_owned());
            }
            check(beginning).map(|()| entry.to_owned())
        }
    };
    let agent = name(|raw| AgentId::parse(raw).map(drop).map_err(|e| e.to_string()));
    let tenant = name(|raw| TenantId::parse(raw).map(drop).map_err(|e| e.to_string()));
    let agents = match &written.agents {
        AnyOrList::Any(_) => Names::Any,
        AnyOrList::Listed(list) => Names::Listed(mistakes.list(&at("agents"), list, agent)),
    };
    let tenants = written.tenants.as_ref().map(|tenants| match tenants {
        AnyOrList::Any(_) => Names::Any,
        AnyOrList::Listed(list) => Names::Listed(mistakes.list(&at("tenants"), list, tenant)),
    });
    let destinations = match &written.destinations {
        AnyOrList::Any(_) => None,
        AnyOrList::Listed(list) => Some(mistakes.list(&at("destinations"), list, |raw| {
            Destination::parse(raw).map_err(|error| error.to_string())
        })),
    };
    let scope = written.scopes.as_ref().map(|scopes| {
        let word = |word: &str| {
            let good = is_scope(word) && !word.contains(' ');
            good.then(|| word.to_owned())
                .ok_or_else(|| "write one word of printable ASCII without quotes".to_owned())
        };
        mistakes.list(&at("scopes"), scopes, word).join(" ")
    });
    let audiences = written.audiences.as_ref().map(|audiences| {
        let name = |name: &str| {
            is_name(name)
                .then(|| name.to_owned())
                .ok_or_else(|| "write 1 to 256 bytes without control characters".to_owned())
        };
        mistakes.list(&at("audiences"), audiences, name)
    });
    let mut text = |field: &str, message: String| mistakes.add(&at(field), &message);
    let max_ttl = written.max_ttl.as_deref().and_then(|raw| {
        parse_lifetime(raw)
            .map_err(|error| text("max_ttl", format!("{raw:?}: {error}")))
            .ok()
    });
    let rate = written.rate.as_deref().and_then(|raw| {
        Quota::parse(raw)
            .map_err(|error| text("rate", error.to_string()))
            .ok()
    });
    ServiceAccount {
        id: written.id.as_str().into(),
        revoked: written.revoked,
        keys: keys(written, place, mistakes),
        assertion_keys: assertion_keys(written, place, mistakes),
        bounds: Bounds {
            agents,
            tenants,
            destinations,
            scope,
            audiences: audiences.unwrap_or_default(),
            max_ttl,
        },
        rate,
    }
}

fn keys(written: &AccountDocument, place: &str, mistakes: &mut Mistakes) -> Vec<AccountKey> {
    if written.keys.is_empty() && written.jwks.is_none() && !written.revoked {
        let message = "the account has no key: make one with `agentport service-account add-key`, or write jwks";
        mistakes.add(place, message);
    }
    if written.keys.len() > MAX_KEYS {
        mistakes.add(&format!("{place}.keys"), "an account has at most 16 keys");
    }
    let mut ids = HashSet::new();
    let mut keys = Vec::new();
    for (at, key) in written.keys.iter().enumerate() {
        let place = format!("{place}.keys[{at}]");
        if !is_key_id(&key.id) {
            mistakes.add(
                &format!("{place}.id"),
                "write 8 hexadecimal digits in lower case",
            );
        }
        if !ids.insert(&key.id) {
            mistakes.add(&format!("{place}.id"), "an earlier key has this id");
        }
        let mut when = |field: &str, text: &Option<String>| {
            text.as_deref().and_then(|text| {
                date::parse(text)
                    .map_err(|error| mistakes.add(&format!("{place}.{field}"), &error))
                    .ok()
            })
        };
        when("created", &key.created);
        let expires = when("expires", &key.expires);
        match Hashed::parse(&key.hash) {
            Ok(hash) => keys.push(AccountKey {
                id: key.id.clone(),
                hash,
                expires,
            }),
            Err(error) => mistakes.add(&format!("{place}.hash"), &error),
        }
    }
    keys
}

fn assertion_keys(
    written: &AccountDocument,
    place: &str,
    mistakes: &mut Mistakes,
) -> Vec<VerifyingKey> {
    let Some(jwks) = &written.jwks else {
        return Vec::new();
    };
    let place = format!("{place}.jwks");
    let text = match serde_json::to_string(jwks) {
        Ok(text) => text,
        Err(_) => {
            mistakes.add(&place, "write a JWK Set: {keys: [...]}");
            return Vec::new();
        }
    };
    match KeySet::parse(&text) {
        // A shared secret in this file would be one that others can read.
        Ok(set) if set.keys.iter().any(|key| key.algorithm().is_symmetric()) => {
            mistakes.add(&place, "a key is a shared secret: write public keys only");
            Vec::new()
        }
        Ok(set) => set.keys,
        Err(error) => {
            mistakes.add(&place, &error.to_string());
            Vec::new()
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// 2026-01-01.
    pub(in super::super) const NOW: u64 = 1_767_225_600;

    /// An account of these members, with a key, and the key.
    pub(in super::super) fn account_with(members: &str) -> (ServiceAccounts, String) {
        let key = NewKey::generate("ci", NOW, Some(NOW + 100)).expect("a key");
        let text = format!(
            "version: 1\naccounts:\n- id: ci\n  keys:\n  - {{id: {}, hash: '{}', expires: '{}'}}\n  {}\n",
            key.document.id,
            key.document.hash,
            key.document.expires.as_deref().expect("an end"),
            members.replace('\n', "\n  "),
        );
        let accounts = ServiceAccounts::parse(&text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        (accounts, key.secret)
    }

    const OPEN: &str = "agents: any\ndestinations: any";

    #[test]
    fn a_key_opens_its_account_and_no_other() {
        let (accounts, key) = account_with(OPEN);
        let last = if key.ends_with('0') { "1" } else { "0" };
        let wrong = format!("{}{last}", &key[..key.len() - 1]);
        let other_id = format!("apsa_ci_00000000_{}", &key[key.len() - 64..]);
        let nobody = key.replace("_ci_", "_nobody_");
        let check = |client: &str, key: &str, now: u64| {
            let who = accounts.check(client, key, now).run();
            who.map(|account| account.id().to_string())
        };
        for (case, client, key, now, answer) in [
            ("the key", "ci", &key, NOW, Ok("ci".to_owned())),
            (
                "another secret",
                "ci",
                &wrong,
                NOW,
                Err(KeyRefused::WrongSecret),
            ),
            (
                "another id",
                "ci",
                &other_id,
                NOW,
                Err(KeyRefused::UnknownKey),
            ),
            (
                "no account",
                "nobody",
                &nobody,
                NOW,
                Err(KeyRefused::UnknownAccount),
            ),
            (
                "under another name",
                "cd",
                &key,
                NOW,
                Err(KeyRefused::OtherAccount),
            ),
            (
                "no key",
                "ci",
                &"hunter2".to_owned(),
                NOW,
                Err(KeyRefused::Form),
            ),
            ("nothing", "ci", &String::new(), NOW, Err(KeyRefused::Form)),
            ("its last second", "ci", &key, NOW + 99, Ok("ci".to_owned())),
            (
                "past its end",
                "ci",
                &key,
                NOW + 100,
                Err(KeyRefused::Expired),
            ),
        ] {
            assert_eq!(check(client, key, now), answer, "{case}");
        }
    }

    #[test]
    fn a_revoked_account_is_told_only_to_its_key() {
        let (accounts, key) = account_with(&format!("revoked: true\n{OPEN}"));
        let answer = accounts.check("ci", &key, NOW).run();
        assert_eq!(answer.map(drop), Err(KeyRefused::Revoked));
        let guess = format!("{}{}", &key[..key.len() - 64], "0".repeat(64));
        let answer = accounts.check("ci", &guess, NOW).run();
        assert_eq!(answer.map(drop), Err(KeyRefused::WrongSecret));
    }

    #[test]
    fn nothing_of_a_key_is_shown() {
        let (accounts, key) = account_with(OPEN);
        let shown = format!("{accounts:?}");
        assert!(
            !shown.contains("argon2") && !shown.contains(&key),
            "{shown}"
        );
    }

    #[test]
    fn a_document_is_written_as_it_is_read() {
        let key = NewKey::generate("ci", NOW, None).expect("a key");
        let document = AccountsDocument {
            version: 1,
            accounts: vec![AccountDocument {
                id: "ci".into(),
                description: Some("Builds".into()),
                revoked: false,
                keys: vec![key.document],
                jwks: None,
                agents: AnyOrList::Listed(vec!["ci-*".into()]),
                tenants: Some(AnyOrList::Any(Any::Any)),
                destinations: AnyOrList::Listed(vec!["*.example.com".into(), "10.0.0.0/8".into()]),
                scopes: Some(vec!["read".into()]),
                audiences: None,
                max_ttl: Some("1h".into()),
                rate: Some("60/m".into()),
            }],
        };
        let text = document.to_yaml().expect("YAML");
        let accounts = ServiceAccounts::parse(&text).expect("accounts");
        let account = accounts.get("ci").expect("the account");
        assert!(account.bounds.agents.hold("ci-7") && !account.bounds.agents.hold("bot"));
        assert_eq!(account.bounds.tenants, Some(Names::Any));
        assert_eq!(account.bounds.destinations.as_ref().map(Vec::len), Some(2));
        assert_eq!(account.bounds.max_ttl, Some(Duration::from_secs(3600)));
        assert!(accounts.check("ci", &key.secret, NOW).run().is_ok());
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let good = format!("keys: [{{id: 0a0b0c0d, hash: '{hash}'}}]");
        for (case, members, says) in [
            ("no key", "agents: any, destinations: any".to_owned(), "accounts[0]: the account has no key"),
            ("no agents", format!("{good}, destinations: any"), "missing field `agents`"),
            ("no destinations", format!("{good}, agents: any"), "missing field `destinations`"),
            ("an unknown member", format!("{good}, agents: any, destinations: any, ttl: 1h"), "unknown field `ttl`"),
            ("another word than any", format!("{good}, agents: all, destinations: any"), "write `any`, or a list"),
            ("an empty list", format!("{good}, agents: [], destinations: any"), "accounts[0].agents: the list is empty"),
            ("a star alone", format!("{good}, agents: ['*'], destinations: any"), "accounts[0].agents[0]: \"*\": write `any`"),
            ("a bad agent", format!("{good}, agents: ['a b'], destinations: any"), "accounts[0].agents[0]: \"a b\": the name may have"),
            ("a bad tenant", format!("{good}, agents: any, tenants: [''], destinations: any"), "accounts[0].tenants[0]"),
            ("a bad host", format!("{good}, agents: any, destinations: ['A.example']"), "accounts[0].destinations[0]: \"A.example\": write \"a.example\""),
            ("bits behind the prefix", format!("{good}, agents: any, destinations: ['10.1.0.0/8']"), "write 10.0.0.0/8"),
            ("two words", format!("{good}, agents: any, destinations: any, scopes: ['a b']"), "accounts[0].scopes[0]"),
            ("a bad lifetime", format!("{good}, agents: any, destinations: any, max_ttl: soon"), "accounts[0].max_ttl: \"soon\": write a lifetime"),
            ("a bad rate", format!("{good}, agents: any, destinations: any, rate: 60"), "accounts[0].rate"),
            ("another hash", "keys: [{id: 0a0b0c0d, hash: '$2b$12$abc'}], agents: any, destinations: any".to_owned(), "accounts[0].keys[0].hash: write an argon2id hash"),
            ("the key itself", "keys: [{id: 0a0b0c0d, hash: apsa_ci_0a0b0c0d_00}], agents: any, destinations: any".to_owned(), "accounts[0].keys[0].hash: write an argon2id hash"),
            ("a hash that costs too much", format!("keys: [{{id: 0a0b0c0d, hash: '{}'}}], agents: any, destinations: any", hash.replace("m=19456", "m=4194304")), "costs too much"),
            ("a bad key id", format!("keys: [{{id: X, hash: '{hash}'}}], agents: any, destinations: any"), "accounts[0].keys[0].id"),
            ("a bad date", format!("keys: [{{id: 0a0b0c0d, hash: '{hash}', expires: tomorrow}}], agents: any, destinations: any"), "accounts[0].keys[0].expires: write a time in UTC"),
            ("two keys of one id", format!("keys: [{{id: 0a0b0c0d, hash: '{hash}'}}, {{id: 0a0b0c0d, hash: '{hash}'}}], agents: any, destinations: any"), "accounts[0].keys[1].id: an earlier key"),
            ("a shared secret", "jwks: {keys: [{kty: oct, k: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA}]}, agents: any, destinations: any".to_owned(), "accounts[0].jwks: a key is a shared secret"),
            ("no JWK Set", "jwks: {}, agents: any, destinations: any".to_owned(), "accounts[0].jwks"),
        ] {
            let text = format!("{{version: 1, accounts: [{{id: ci, {members}}}]}}");
            let error = ServiceAccounts::parse(&text).expect_err(case).to_string();
            assert!(error.contains(says), "{case}: {error}");
        }
        for (case, text, says) in [
            ("another version", "{version: 2}", "version: write 1"),
            ("no version", "{accounts: []}", "missing field `version`"),
            (
                "a bad name",
                "{version: 1, accounts: [{id: A_b, revoked: true, agents: any, destinations: any}]}",
                "accounts[0].id",
            ),
            (
                "one name twice",
                "{version: 1, accounts: [{id: a, revoked: true, agents: any, destinations: any}, {id: a, revoked: true, agents: any, destinations: any}]}",
                "accounts[1].id: an earlier account",
            ),
            (
                "two mistakes",
                "{version: 2, accounts: [{id: A, revoked: true, agents: any, destinations: any}]}",
                "version: write 1\naccounts[0].id",
            ),
            ("nothing", "", ""),
        ] {
            let error = ServiceAccounts::parse(text).expect_err(case).to_string();
            assert!(error.contains(says), "{case}: {error}");
        }
        assert!(
            ServiceAccounts::parse("{version: 1}")
                .expect("none")
                .is_empty()
        );
    }

    #[test]
    fn lifetimes() {
        for (text, seconds) in [
            ("900", Some(900)),
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("1h", Some(3600)),
            ("366d", Some(366 * 86_400)),
            ("367d", None),
            ("0", None),
            ("", None),
            ("m", None),
            ("-1", None),
            ("+1", None),
            ("1.5h", None),
            ("1w", None),
            ("99999999999999999999", None),
            ("1\u{e9}", None),
        ] {
            let lifetime = parse_lifetime(text).ok();
            assert_eq!(
                lifetime.map(|lifetime| lifetime.as_secs()),
                seconds,
                "{text}"
            );
        }
    }
}
