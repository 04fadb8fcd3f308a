//! The agent's credential: where it comes from, and how little of the program
//! ever sees it.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::egress::AgentId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;

/// How long before its end a token is read from its file again at every use,
/// whatever the file's time says.
const REFRESH_BEFORE_EXPIRY: Duration = Duration::from_secs(60);
/// The most bytes a token may have; a head of 32 KiB must hold it.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// A token. It shows itself only to [`Token::bearer`].
#[derive(Clone, PartialEq, Eq)]
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token]")
    }
}

/// Where the token comes from.
#[derive(Debug)]
pub(in crate::openclaw) enum TokenSource {
    /// None: the gateway knows the agent by its socket.
    None,
    /// The environment, once; it cannot be refreshed.
    Fixed(FixedToken),
    /// A file that somebody keeps fresh.
    File(TokenFile),
}

/// A token that stays as it is.
#[derive(Debug)]
pub(in crate::openclaw) struct FixedToken(Token);

/// A file with a token, and what was last read from it.
#[derive(Debug)]
pub(in crate::openclaw) struct TokenFile {
    path: PathBuf,
    last: Mutex<Option<Loaded>>,
}

#[derive(Clone, Debug)]
struct Loaded {
    token: Token,
    stamp: Stamp,
    expires: Option<SystemTime>,
}

/// What tells one state of a file from the next: a rename changes the inode, a
/// write the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(in crate::openclaw) enum TokenError {
    /// The file cannot be read.
    #[error("the token file {path} cannot be read: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no token.
    #[error("{place} holds no token: write one line of visible ASCII, at most 16 KiB")]
    Invalid {
        /// The file, or the variable.
        place: String,
    },
}

impl TokenSource {
    /// A token from the environment.
    ///
    /// # Errors
    /// [`TokenError::Invalid`].
    pub(in crate::openclaw) fn fixed(raw: &str) -> Result<Self, TokenError> {
        let token = Token::parse(raw).ok_or_else(|| TokenError::Invalid {
            place: "AGENTPORT_TOKEN".to_owned(),
        })?;
        Ok(Self::Fixed(FixedToken(token)))
    }

    /// A token from a file, which must be there now.
    ///
    /// # Errors
    /// [`TokenError`].
    pub(in crate::openclaw) fn file(path: PathBuf, now: SystemTime) -> Result<Self, TokenError> {
        let file = TokenFile {
            path,
            last: Mutex::new(None),
        };
        file.current(now)?;
        Ok(Self::File(file))
    }

    fn current(&self, now: SystemTime) -> Result<Option<Token>, TokenError> {
        match self {
            Self::None => Ok(None),
            Self::Fixed(FixedToken(token)) => Ok(Some(token.clone())),
            Self::File(file) => file.current(now).map(Some),
        }
    }

    /// `Proxy-Authorization: Bearer …` as it is to be sent now (RFC 6750, 2.1).
    ///
    /// # Errors
    /// [`TokenError`].
    pub(in crate::openclaw) fn authorization(
        &self,
        now: SystemTime,
    ) -> Result<Option<HeaderValue>, TokenError> {
        let Some(token) = self.current(now)? else {
            return Ok(None);
        };
        let mut value = HeaderValue::try_from(token.bearer()).map_err(|_| TokenError::Invalid {
            place: "the token's source".to_owned(),
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The agent that the token names. Nothing is verified: this only says what
    /// to call oneself, and the gateway judges the token itself.
    pub(in crate::openclaw) fn agent_id(&self, now: SystemTime) -> Option<AgentId> {
        let claims = self.current(now).ok()??.claims()?;
        ["agent_id", "sub"]
            .iter()
            .find_map(|name| AgentId::parse(claims.get(name)?.as_str()?).ok())
    }

    /// The text with the token taken out, should anybody have echoed it.
    pub(in crate::openclaw) fn redact(&self, text: &str) -> String {
        match self.current(SystemTime::now()) {
            Ok(Some(Token(token))) if text.contains(&token) => text.replace(&token, "[token]"),
            Ok(_) | Err(_) => text.to_owned(),
        }
    }
}

impl TokenFile {
    /// The token as the file has it now. Where the file has just gone or holds
    /// nonsense, the last one serves until it ends: a writer without an atomic
    /// rename must not stop the agent.
    fn current(&self, now: SystemTime) -> Result<Token, TokenError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.refresh(last.as_ref(), now), last.as_ref()) {
            (Ok(None), Some(loaded)) => Ok(loaded.token.clone()),
            (Ok(Some(loaded)), _) => {
                let token = loaded.token.clone();
                *last = Some(loaded);
                Ok(token)
            }
            (Err(error), Some(loaded)) if loaded.expires.is_some_and(|end| now < end) => {
                tracing::warn!(
                    event = "token_not_refreshed",
                    error = %error,
                    "the last token serves until it ends"
                );
                Ok(loaded.token.clone())
            }
            (Err(error), _) => Err(error),
            (Ok(None), None) => Err(self.invalid()),
        }
    }

    /// What the file holds, or `None` where the last reading still stands.
    fn refresh(
        &self,
        last: Option<&Loaded>,
        now: SystemTime,
    ) -> Result<Option<Loaded>, TokenError> {
        let unreadable = |source| TokenError::Unreadable {
            path: self.path.clone(),
            source,
        };
        // The stamp is taken before the text: a write in between is then seen
        // as a change next time, never missed.
        let stamp = Stamp::of(&self.path).map_err(unreadable)?;
        let fresh = last.is_some_and(|loaded| {
            loaded.stamp == stamp
                && loaded
                    .expires
                    .is_none_or(|end| now + REFRESH_BEFORE_EXPIRY < end)
        });
        if fresh {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&self.path).map_err(unreadable)?;
        let token = Token::parse(&text).ok_or_else(|| self.invalid())?;
        let expires = token.expires();
        Ok(Some(Loaded {
            token,
            stamp,
            expires,
        }))
    }

    fn invalid(&self) -> TokenError {
        TokenError::Invalid {
            place: self.path.display().to_string(),
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> std::io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            seconds: meta.mtime(),
            nanoseconds: meta.mtime_nsec(),
        })
    }
}

impl Token {
    fn parse(raw: &str) -> Option<Self> {
        let raw = raw.trim();
        let good = (1..=MAX_TOKEN_BYTES).contains(&raw.len())
            && raw.bytes().all(|b| (0x21..=0x7e).contains(&b));
        good.then(|| Self(raw.to_owned()))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The claims, unverified.
    fn claims(&self) -> Option<serde_json::Value> {
        let payload = self.0.split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    fn expires(&self) -> Option<SystemTime> {
        let seconds = self.claims()?.get("exp")?.as_f64()?;
        let after = Duration::try_from_secs_f64(seconds).ok()?;
        UNIX_EPOCH.checked_add(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn sent(source: &TokenSource, now: u64) -> Option<String> {
        let now = UNIX_EPOCH + Duration::from_secs(now);
        let value = source.authorization(now).ok()??;
        Some(value.to_str().expect("ASCII").replace("Bearer ", ""))
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_bridged_until_expiry() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let first = token(r#"{"exp":1000,"agent_id":"bot-01"}"#);
        let second = token(r#"{"exp":2000,"sub":"bot-02","more":1}"#);
        std::fs::write(&path, format!("{first}\n")).expect("written");
        let source = TokenSource::file(path.clone(), UNIX_EPOCH).expect("a token");
        assert_eq!(sent(&source, 100).as_ref(), Some(&first));
        assert_eq!(
            source.agent_id(UNIX_EPOCH).expect("named").as_str(),
            "bot-01"
        );
        std::fs::write(&path, &second).expect("written");
        assert_eq!(sent(&source, 101).as_ref(), Some(&second));
        assert_eq!(
            source.agent_id(UNIX_EPOCH).expect("named").as_str(),
            "bot-02"
        );
        std::fs::write(&path, "two words").expect("written");
        assert_eq!(sent(&source, 1999).as_ref(), Some(&second));
        assert_eq!(sent(&source, 2000), None);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(sent(&source, 1999).as_ref(), Some(&second));
    }

    #[test]
    fn it_never_shows() {
        let source = TokenSource::fixed("secret-token").expect("a token");
        assert!(!format!("{source:?}").contains("secret-token"));
        assert_eq!(source.redact("Bearer secret-token!"), "Bearer [token]!");
        let value = source
            .authorization(UNIX_EPOCH)
            .expect("good")
            .expect("there");
        assert!(!format!("{value:?}").contains("secret-token"));
    }
}
