//! The short token that is held for the agent: where it comes from, when it is
//! renewed, and how little of the program sees it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use tokio::sync::Notify;

use super::dial::{Address, Dialler};
use crate::adapters::host;

/// The most bytes that a token may have; a head of 32 KiB must hold it.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// How often a file is read again; a new token in it counts within a second.
const READ: Duration = Duration::from_millis(500);
/// The first and the longest wait after a token could not be had.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long a token of unknown end is held before another is asked for.
const UNKNOWN_LIFE: Duration = Duration::from_secs(300);
/// How long a request waits for a token where there is none.
const WAIT: Duration = Duration::from_secs(5);

/// Where tokens come from.
#[derive(Clone)]
pub enum TokenSource {
    /// A file that somebody else keeps fresh, such as a projected
    /// service-account token; sent as it is.
    File(PathBuf),
    /// A token endpoint (RFC 6749).
    Endpoint(TokenEndpoint),
}

/// A token endpoint, and what it is asked for.
#[derive(Clone)]
pub struct TokenEndpoint {
    /// Where it is.
    pub address: Address,
    /// The path on it.
    pub path: String,
    /// How one proves oneself there.
    pub proof: Proof,
    /// More parameters of the request: `agent_id`, `ttl` and the like.
    pub parameters: Vec<(String, String)>,
}

/// How one proves oneself at a token endpoint. Files are read for each request,
/// so that they may be rotated.
#[derive(Clone, Debug)]
pub enum Proof {
    /// A service account's key (RFC 6749, 4.4): the account and a file that
    /// holds its key.
    ServiceAccount {
        /// `client_id`.
        id: String,
        /// The file with the key.
        key_file: PathBuf,
    },
    /// A token of another issuer that is exchanged (RFC 8693), such as a
    /// projected service-account token.
    Exchange {
        /// The file with the token.
        subject_token_file: PathBuf,
    },
}

/// A token, and when it ends. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token {
    text: String,
    ends: Option<SystemTime>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// One line of visible ASCII. When it ends is read from the token itself,
    /// where it is a JWT; `life` is what its issuer said.
    fn parse(raw: &str, life: Option<Duration>, now: SystemTime) -> Result<Self, String> {
        let text = raw.trim();
        let visible = text.bytes().all(|b| (0x21..=0x7e).contains(&b));
        if !(1..=MAX_TOKEN_BYTES).contains(&text.len()) || !visible {
            return Err(
                "there is no token in it: one line of visible ASCII, at most 16 KiB".into(),
            );
        }
        let said = expiry(text);
        let ends = said.or_else(|| now.checked_add(life?));
        Ok(Self {
            text: text.to_owned(),
            ends,
        })
    }

    fn is_good(&self, now: SystemTime) -> bool {
        self.ends.is_none_or(|ends| now < ends)
    }

    /// When to ask for the next one: when four fifths of the life are over,
    /// and up to a tenth of it earlier, so that agents which started together
    /// do not come together.
    fn renew_in(&self, now: SystemTime, jitter: f64) -> Duration {
        let left = match self.ends {
            Some(ends) => ends.duration_since(now).unwrap_or_default(),
            None => UNKNOWN_LIFE,
        };
        left.mul_f64(0.8 - 0.1 * jitter)
            .max(Duration::from_millis(100))
    }
}

/// `exp` of a JWT, unverified: it only says when to ask again.
fn expiry(token: &str) -> Option<SystemTime> {
    let mut parts = token.split('.');
    let (claims, rest) = (parts.nth(1)?, parts.count());
    if rest != 1 {
        return None;
    }
    let claims: serde_json::Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let seconds = claims.get("exp")?.as_f64()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

/// Holds the token and renews it.
pub(super) struct Holder {
    source: TokenSource,
    dialler: Arc<Dialler>,
    held: ArcSwap<Held>,
    /// Wakes those who wait for a first token.
    changed: Notify,
}

#[derive(Clone, Debug, Default)]
struct Held {
    token: Option<Token>,
    /// Why the last attempt gave none.
    error: Option<String>,
}

impl Holder {
    pub(super) fn new(source: TokenSource, dialler: Arc<Dialler>) -> Self {
        Self {
            source,
            dialler,
            held: ArcSwap::default(),
            changed: Notify::new(),
        }
    }

    /// The value of `Proxy-Authorization` for a request that goes out now.
    /// Waits a little where there is no token yet, or no more.
    ///
    /// # Errors
    /// Why there is none, for whoever runs the agent.
    pub(super) async fn credential(&self) -> Result<String, String> {
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Armed before the look, so that no change is missed.
            changed.as_mut().enable();
            let held = self.held.load();
            if let Some(token) = &held.token
                && token.is_good(SystemTime::now())
            {
                return Ok(format!("Bearer {}", token.text));
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let held = self.held.load();
                return Err(match (&held.error, &held.token) {
                    (Some(error), _) => error.clone(),
                    (None, Some(_)) => format!("{}: the token has ended", self.place()),
                    (None, None) => format!("{}: no answer yet", self.place()),
                });
            }
        }
    }

    /// Renews for ever.
    pub(super) async fn keep(&self) {
        let mut wait = BACK_OFF.0;
        loop {
            let now = SystemTime::now();
            let next = match self.fetch(now).await {
                Ok(token) => {
                    wait = BACK_OFF.0;
                    let renew = match self.source {
                        TokenSource::File(_) => READ,
                        TokenSource::Endpoint(_) => token.renew_in(now, random()),
                    };
                    self.hold(token);
                    renew
                }
                Err(error) => {
                    self.miss(format!("{}: {error}", self.place()));
                    let next = match self.source {
                        TokenSource::File(_) => READ,
                        TokenSource::Endpoint(_) => wait.mul_f64(0.5 + 0.5 * random()),
                    };
                    wait = (wait * 2).min(BACK_OFF.1);
                    next
                }
            };
            tokio::time::sleep(next).await;
        }
    }

    fn hold(&self, token: Token) {
        let held = self.held.load();
        if held.token.as_ref() == Some(&token) && held.error.is_none() {
            return;
        }
        match token.ends {
            Some(ends) => tracing::info!(
                ends = %crate::audit::Rfc3339(ends),
                "a token is held"
            ),
            None => tracing::info!("a token of unknown end is held"),
        }
        self.held.store(Arc::new(Held {
            token: Some(token),
            error: None,
        }));
        self.changed.notify_waiters();
    }

    /// The last token stays until it ends.
    fn miss(&self, error: String) {
        let held = self.held.load();
        if held.error.as_ref() != Some(&error) {
            tracing::warn!(%error, "no new token");
        }
        self.held.store(Arc::new(Held {
            token: held.token.clone(),
            error: Some(error),
        }));
    }

    fn place(&self) -> String {
        match &self.source {
            TokenSource::File(path) => path.display().to_string(),
            TokenSource::Endpoint(endpoint) => format!("{}{}", endpoint.address, endpoint.path),
        }
    }

    async fn fetch(&self, now: SystemTime) -> Result<Token, String> {
        match &self.source {
            TokenSource::File(path) => {
                let text = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|error| error.to_string())?;
                let token = Token::parse(&text, None, now)?;
                if !token.is_good(now) {
                    return Err("the token in it has ended, and nobody has renewed it".into());
                }
                Ok(token)
            }
            TokenSource::Endpoint(endpoint) => endpoint.ask(&self.dialler, now).await,
        }
    }
}

impl TokenEndpoint {
    async fn ask(&self, dialler: &Dialler, now: SystemTime) -> Result<Token, String> {
        let mut form: Vec<(&str, &str)> = Vec::new();
        let mut authorization = None;
        let secret;
        match &self.proof {
            Proof::ServiceAccount { id, key_file } => {
                let key = read_secret(key_file).await?;
                form.push(("grant_type", "client_credentials"));
                // Each part form-encoded first (RFC 6749, 2.3.1).
                let pair = format!("{}:{}", form_encoded(id), form_encoded(&key));
                authorization = Some(format!("Basic {}", STANDARD.encode(pair)));
            }
            Proof::Exchange { subject_token_file } => {
                secret = read_secret(subject_token_file).await?;
                form.push((
                    "grant_type",
                    "urn:ietf:params:oauth:grant-type:token-exchange",
                ));
                form.push(("subject_token", &secret));
                form.push(("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"));
            }
        }
        form.extend(
            self.parameters
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        let body = form
            .iter()
            .map(|(name, value)| format!("{}={}", form_encoded(name), form_encoded(value)))
            .collect::<Vec<_>>()
            .join("&");
        let (status, answer) = dialler
            .post_form(&self.address, &self.path, authorization, body)
            .await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)
            .map_err(|_| format!("answered {status} and no JSON; is that the token endpoint?"))?;
        let text = |name: &str| answer.get(name).and_then(serde_json::Value::as_str);
        if status != 200 {
            let error = text("error").unwrap_or("no error named");
            let more = text("error_description").unwrap_or("");
            // What comes from elsewhere stays short and on one line.
            let said: String = format!("answered {status} {error} {more}")
                .chars()
                .filter(|c| !c.is_control())
                .take(300)
                .collect();
            return Err(said.trim_end().to_owned());
        }
        let bearer = text("token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
        if !bearer {
            return Err("gave a token that is no Bearer token".into());
        }
        let token = text("access_token").ok_or("gave no access_token")?;
        let life = answer
            .get("expires_in")
            .and_then(serde_json::Value::as_f64)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let token = Token::parse(token, life, now)?;
        if !token.is_good(now) {
            return Err("gave a token that has ended: compare the clocks".into());
        }
        Ok(token)
    }
}

async fn read_secret(path: &std::path::Path) -> Result<String, String> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| format!("{}: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{}: the file is empty", path.display())),
        text => Ok(text.to_owned()),
    }
}

/// `application/x-www-form-urlencoded`, one part of it.
fn form_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._*".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

/// From 0 to 1.
fn random() -> f64 {
    f64::from(u32::try_from(host::random_bits() & 0xffff_ffff).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn when_a_token_ends_is_read_from_it_or_said_by_its_issuer() {
        let now = at(1_000);
        let life = Some(Duration::from_secs(60));
        for (case, text, life, ends) in [
            ("a JWT", jwt(r#"{"exp":2000}"#), None, Some(at(2_000))),
            (
                "a JWT and what was said",
                jwt(r#"{"exp":2000}"#),
                life,
                Some(at(2_000)),
            ),
            ("no exp", jwt("{}"), None, None),
            ("opaque", "opaque".to_owned(), life, Some(at(1_060))),
            ("opaque, unknown", "opaque\n".to_owned(), None, None),
        ] {
            let token = Token::parse(&text, life, now).expect(case);
            assert_eq!(token.ends, ends, "{case}");
            assert!(!format!("{token:?}").contains(text.trim()), "{case}");
        }
        for bad in [
            "",
            " \n",
            "two words",
            "t\u{e4}st",
            &"x".repeat(MAX_TOKEN_BYTES + 1),
        ] {
            assert!(Token::parse(bad, None, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_is_renewed_before_it_ends() {
        let token = Token::parse("t", Some(Duration::from_secs(1_000)), at(0)).expect("a token");
        assert_eq!(token.renew_in(at(0), 0.0), Duration::from_secs(800));
        assert_eq!(token.renew_in(at(0), 1.0), Duration::from_secs(700));
        assert_eq!(token.renew_in(at(5_000), 0.5), Duration::from_millis(100));
        assert!(token.is_good(at(999)) && !token.is_good(at(1_000)));
    }

    #[test]
    fn parts_of_a_form_are_encoded() {
        assert_eq!(
            form_encoded("a b+c&d=é*-._~"),
            "a%20b%2Bc%26d%3D%C3%A9*-._%7E"
        );
    }
}
