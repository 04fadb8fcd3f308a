//! The kinds of values a key can have, and how each is read from text.
//!
//! Every kind says in its error what to write. Nothing here knows keys.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::egress::{AgentId, Authority, Destination, DnsName, Host, TenantId};
use crate::identity::ClientName;
use crate::limit::{Quota, QuotaError, WhenAway};
use crate::policy::Mode;

use super::error::{ConfigError, nearest};
use super::tree::{Entry, Node, Value};

/// The port of DNS, where a server's is not written.
const DNS_PORT: u16 = 53;
/// The longest path that a Unix socket can have, in bytes, on Linux.
const MAX_SOCKET_PATH: usize = 107;
/// The longest duration, which is far from any overflow of a clock.
const MAX_DAYS: u64 = 365;
/// The fewest bytes an HS256 secret may have (RFC 7518, 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Where the gateway listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// A TCP address. Port 0 lets the system choose one.
    Tcp(SocketAddr),
    /// A Unix socket, at this path.
    Unix(PathBuf),
}

/// Where something listens that the gateway connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host and a port.
    Tcp(Authority),
    /// A Unix socket, at this path.
    Unix(PathBuf),
}

/// The permissions of a Unix socket, at most `0777`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnixMode(u32);

/// Keys of one that issues tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustedKey {
    /// A PEM, JWK or JWKS file, or a directory of them.
    pub file: PathBuf,
    /// What `iss` must be; where absent, `identity.issuer`.
    pub issuer: Option<String>,
    /// What `aud` must hold; where absent, `identity.audience`.
    pub audience: Option<String>,
}

/// Whom the process at the other end of a Unix socket is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerCredential {
    /// Its user id.
    pub uid: u32,
    /// The agent.
    pub agent: AgentId,
    /// The agent's tenant.
    pub tenant: Option<TenantId>,
}

/// A certificate chain and its private key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificatePair {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A secret. Neither `Debug` nor the error messages show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Where a Redis or Valkey is: `redis://host:6379/0`, `rediss://` for TLS, or
/// `unix:/path`. It holds no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where it listens.
    pub address: RedisAddress,
    /// The user of its access control list, where one is named.
    pub user: Option<String>,
    /// The database; 0 where none is named.
    pub database: i64,
}

/// Where a Redis listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisAddress {
    /// In clear.
    Tcp {
        /// The host.
        host: Host,
        /// The port.
        port: u16,
    },
    /// Over TLS.
    Tls {
        /// The host, which its certificate must name.
        host: Host,
        /// The port.
        port: u16,
    },
    /// On a Unix socket, at this path.
    Unix(PathBuf),
}

/// How many worker threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// As many as the CPU limit of the container, or of the machine, allows.
    Auto,
    /// So many.
    Count(usize),
}

/// Where audit records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditPath {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

impl ByteSize {
    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl UnixMode {
    /// The permission bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Secret {
    /// The secret itself. Its UTF-8 bytes are the key of HS256, as they are.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Takes a secret from the environment.
    ///
    /// # Errors
    /// Says what is wrong without showing any of it.
    pub(super) fn parse(raw: &str) -> Result<Self, String> {
        if raw.trim() != raw {
            return Err("has white space at its start or end: remove it".into());
        }
        if raw.len() < MIN_SECRET_BYTES {
            return Err(format!(
                "has {} bytes and needs {MIN_SECRET_BYTES}: make one with `openssl rand -hex 32`",
                raw.len()
            ));
        }
        Ok(Self(raw.to_owned()))
    }

    /// Takes the password of a service from the environment: as long as that
    /// service likes it.
    ///
    /// # Errors
    /// Says what is wrong without showing any of it.
    pub(super) fn password(raw: &str) -> Result<Self, String> {
        if raw.trim() != raw {
            return Err("has white space at its start or end: remove it".into());
        }
        Ok(Self(raw.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[redacted]")
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 / bytes);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Listener {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Endpoint {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => authority.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for RedisUrl {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{user}@"));
        let user = user.unwrap_or_default();
        match &self.address {
            RedisAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            RedisAddress::Tcp { host, port } => {
                let host = Authority {
                    host: host.clone(),
                    port: *port,
                };
                write!(f, "redis://{user}{host}/{}", self.database)
            }
            RedisAddress::Tls { host, port } => {
                let host = Authority {
                    host: host.clone(),
                    port: *port,
                };
                write!(f, "rediss://{user}{host}/{}", self.database)
            }
        }
    }
}

/// A value that is written as one text.
pub(super) trait FromText: Sized {
    /// Reads it. The error says what to write.
    fn from_text(raw: &str) -> Result<Self, String>;

    /// What was written, as messages quote it.
    fn quoted(raw: &str) -> String {
        format!("{raw:?}")
    }

    /// Its size, where it can be too small or too large: milliseconds, bytes
    /// or a number.
    fn measure(&self) -> Option<u64> {
        None
    }
}

/// A value that a key can have: a text, a list, a mapping, or none.
pub(super) trait Setting: Sized {
    /// Reads it, and leaves what is wrong in `errors`: whenever the result is
    /// `None`, there is at least one.
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self>;

    /// As [`FromText::measure`].
    fn measure(&self) -> Option<u64> {
        None
    }
}

impl<T: FromText> Setting for T {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let message = match &node.value {
            Value::Scalar(text) => match T::from_text(text) {
                Ok(value) => return Some(value),
                Err(what) => format!("{}: {what}", T::quoted(text)),
            },
            Value::Null => "no value is written: write one, or remove the key".to_owned(),
            Value::List(_) => "a list is written: write one value".to_owned(),
            Value::Map(_) => "a mapping is written: write one value".to_owned(),
        };
        push(errors, node, key, message);
        None
    }

    fn measure(&self) -> Option<u64> {
        FromText::measure(self)
    }
}

/// `none`, `off` or null, or a value.
impl<T: FromText> Setting for Option<T> {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        match &node.value {
            Value::Null => Some(None),
            Value::Scalar(text) if matches!(text.as_str(), "none" | "off") => Some(None),
            _ => T::read(node, key, errors).map(Some),
        }
    }

    fn measure(&self) -> Option<u64> {
        self.as_ref().and_then(FromText::measure)
    }
}

/// A list, or one text with commas, as the environment has it.
impl<T: Setting> Setting for Vec<T> {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let split;
        let items = match &node.value {
            Value::List(items) => items,
            Value::Scalar(text) => {
                let part = |part: &str| Node::scalar(part.trim(), node.place.clone());
                split = text.split(',').map(part).collect();
                &split
            }
            Value::Null | Value::Map(_) => {
                push(errors, node, key, "write a list: [one, two]".to_owned());
                return None;
            }
        };
        // Every entry is read before any is missed.
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(at, item)| T::read(item, &format!("{key}[{at}]"), errors))
            .collect();
        read.into_iter().collect()
    }
}

impl Setting for TrustedKey {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        const KEYS: [&str; 3] = ["file", "issuer", "audience"];
        let Value::Map(entries) = &node.value else {
            return Some(Self {
                file: PathBuf::read(node, key, errors)?,
                issuer: None,
                audience: None,
            });
        };
        let before = errors.len();
        miss_unknown(entries, key, &KEYS, errors);
        let of = |name: &str| entries.iter().find(|entry| entry.key == name);
        let file = match of("file") {
            Some(entry) => PathBuf::read(&entry.node, &format!("{key}.file"), errors),
            None => {
                push(
                    errors,
                    node,
                    key,
                    "file is missing: write file: PATH".into(),
                );
                None
            }
        };
        let mut text = |name: &str| match of(name) {
            Some(entry) => {
                Option::<String>::read(&entry.node, &format!("{key}.{name}"), errors).flatten()
            }
            None => None,
        };
        let (issuer, audience) = (text("issuer"), text("audience"));
        (errors.len() == before).then_some(())?;
        Some(Self {
            file: file?,
            issuer,
            audience,
        })
    }
}

impl Setting for PeerCredential {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        const KEYS: [&str; 3] = ["uid", "agent", "tenant"];
        let Value::Map(entries) = &node.value else {
            let message = "write {uid: 1001, agent: bot-01}, with tenant: NAME where it has one";
            push(errors, node, key, message.to_owned());
            return None;
        };
        let before = errors.len();
        miss_unknown(entries, key, &KEYS, errors);
        let (mut uid, mut agent, mut tenant) = (None, None, None);
        for entry in entries {
            let place = format!("{key}.{}", entry.key);
            match entry.key.as_str() {
                "uid" => uid = u32::read(&entry.node, &place, errors),
                "agent" => agent = AgentId::read(&entry.node, &place, errors),
                "tenant" => tenant = TenantId::read(&entry.node, &place, errors),
                _ => {}
            }
        }
        for name in ["uid", "agent"] {
            if !entries.iter().any(|entry| entry.key == name) {
                push(errors, node, key, format!("{name} is missing: write it"));
            }
        }
        (errors.len() == before).then_some(())?;
        Some(Self {
            uid: uid?,
            agent: agent?,
            tenant,
        })
    }
}

impl Setting for CertificatePair {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        const SHAPE: &str = "write {certificate: PATH, key: PATH}";
        let Value::Map(entries) = &node.value else {
            push(errors, node, key, SHAPE.to_owned());
            return None;
        };
        let before = errors.len();
        for entry in entries {
            if !["certificate", "key"].contains(&entry.key.as_str()) {
                errors.push(ConfigError {
                    place: entry.place.clone(),
                    key: Some(format!("{key}.{}", entry.key)),
                    message: format!("unknown key: {SHAPE}"),
                });
            }
        }
        let mut path = |name: &str| {
            let Some(entry) = entries.iter().find(|entry| entry.key == name) else {
                push(errors, node, key, format!("{name} is missing: {SHAPE}"));
                return None;
            };
            PathBuf::read(&entry.node, &format!("{key}.{name}"), errors)
        };
        let (certificate, private) = (path("certificate"), path("key"));
        (errors.len() == before).then_some(())?;
        Some(Self {
            certificate: certificate?,
            key: private?,
        })
    }
}

impl FromText for u32 {
    fn from_text(raw: &str) -> Result<Self, String> {
        match number_and_rest(raw) {
            Some((number, "")) => Self::try_from(number).map_err(|_| "too large".into()),
            _ => Err("write a whole number".into()),
        }
    }
}

impl FromText for AgentId {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw).map_err(|error| error.to_string())
    }
}

impl FromText for TenantId {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw).map_err(|error| error.to_string())
    }
}

pub(super) fn push(errors: &mut Vec<ConfigError>, node: &Node, key: &str, message: String) {
    errors.push(ConfigError {
        place: node.place.clone(),
        key: Some(key.to_owned()),
        message,
    });
}

/// Says of each entry that is none of these keys which one was meant.
pub(super) fn miss_unknown(
    entries: &[Entry],
    key: &str,
    keys: &[&str],
    errors: &mut Vec<ConfigError>,
) {
    let unknown = |entry: &&Entry| !keys.contains(&entry.key.as_str());
    errors.extend(entries.iter().filter(unknown).map(|entry| ConfigError {
        place: entry.place.clone(),
        key: Some(format!("{key}.{}", entry.key)),
        message: match nearest(&entry.key, keys.iter().copied()) {
            Some(known) => format!("unknown key: did you mean {known}?"),
            None => format!("unknown key: the keys here are {}", keys.join(", ")),
        },
    }));
}

/// Reads a time as the configuration writes it: `250ms`, `10s`, `15m`, `1h`.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    Duration::from_text(text)
}

impl FromText for Duration {
    fn from_text(raw: &str) -> Result<Self, String> {
        const SHAPE: &str = "write a whole number and a unit: 250ms, 10s, 2m, 1h or 1d";
        let (digits, unit) = number_and_rest(raw).ok_or(SHAPE)?;
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(format!("the unit is missing: write {raw}s for seconds")),
            _ => return Err(SHAPE.into()),
        };
        digits
            .checked_mul(unit_ms)
            .filter(|ms| *ms <= MAX_DAYS * 86_400_000)
            .map(Self::from_millis)
            .ok_or(format!("too long: write at most {MAX_DAYS}d"))
    }

    fn measure(&self) -> Option<u64> {
        u64::try_from(self.as_millis()).ok()
    }
}

impl FromText for ByteSize {
    fn from_text(raw: &str) -> Result<Self, String> {
        const SHAPE: &str = "write a number of bytes, or 32KiB, 1MiB, 1GiB";
        let (digits, unit) = number_and_rest(raw).ok_or(SHAPE)?;
        // One letter is what nginx writes.
        let bytes = match unit {
            "" | "B" => 1,
            "KiB" | "k" | "K" => 1 << 10,
            "MiB" | "m" | "M" => 1 << 20,
            "GiB" | "g" | "G" => 1 << 30,
            "kB" | "KB" => return Err(format!("write {digits}KiB, which is 1024 bytes each")),
            "MB" | "GB" => return Err(format!("write {digits}{}iB", &unit[..1])),
            _ => return Err(SHAPE.into()),
        };
        let size = digits.checked_mul(bytes).filter(|size| *size <= 1 << 50);
        size.map(Self).ok_or("too large".into())
    }

    fn measure(&self) -> Option<u64> {
        Some(self.0)
    }
}

impl FromText for Quota {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw).map_err(|error| match error {
            // The value is quoted once, by the caller.
            QuotaError::Form(_) => "write 100/s, 6000/m or 10/s burst 20".into(),
            QuotaError::Zero => "nothing would pass: write more than zero, or none".into(),
            QuotaError::TooLarge => "larger than is counted: write none for no limit".into(),
            QuotaError::Period(_) => error.to_string(),
        })
    }
}

impl FromText for RedisUrl {
    fn from_text(raw: &str) -> Result<Self, String> {
        const SHAPE: &str =
            "write redis://host:6379, rediss://host:6379/0 for TLS, or unix:/path/redis.sock";
        const PORT: u16 = 6379;
        if let Some(path) = raw.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(SHAPE.into());
            }
            return Ok(Self {
                address: RedisAddress::Unix(PathBuf::from(path)),
                user: None,
                database: 0,
            });
        }
        let (scheme, rest) = raw.split_once("://").ok_or(SHAPE)?;
        let (user, rest) = match rest.rsplit_once('@') {
            Some((login, _)) if login.contains(':') => {
                return Err(
                    "passwords do not stand in this file: write redis.password_file, or set \
                     AGENTPORT_REDIS_PASSWORD"
                        .into(),
                );
            }
            Some(("", _)) => return Err(SHAPE.into()),
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, rest),
        };
        let (place, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match database {
            "" => 0,
            digits => digits
                .parse::<u16>()
                .map(i64::from)
                .map_err(|_| "the database behind the slash is a number: write /0")?,
        };
        let (host, port) = Authority::parse_optional_port(place).map_err(|_| SHAPE)?;
        let port = port.unwrap_or(PORT);
        let address = match scheme {
            "redis" | "valkey" => RedisAddress::Tcp { host, port },
            "rediss" | "valkeys" => RedisAddress::Tls { host, port },
            _ => return Err(SHAPE.into()),
        };
        Ok(Self {
            address,
            user,
            database,
        })
    }

    /// Without what stands before the host, which people take for the place of
    /// the password.
    fn quoted(raw: &str) -> String {
        match raw.rsplit_once('@') {
            Some((_, rest)) => format!("\"…@{}\"", rest.escape_debug()),
            None => format!("{raw:?}"),
        }
    }
}

impl FromText for usize {
    fn from_text(raw: &str) -> Result<Self, String> {
        match number_and_rest(raw) {
            Some((number, "")) => Self::try_from(number).map_err(|_| "too large".into()),
            _ => Err("write a whole number".into()),
        }
    }

    fn measure(&self) -> Option<u64> {
        u64::try_from(*self).ok()
    }
}

impl FromText for NonZeroU32 {
    fn from_text(raw: &str) -> Result<Self, String> {
        positive(raw)
            .and_then(Self::new)
            .ok_or("write a whole number above zero, or none for no limit".into())
    }
}

impl FromText for Threads {
    fn from_text(raw: &str) -> Result<Self, String> {
        if raw == "auto" {
            return Ok(Self::Auto);
        }
        usize::from_text(raw)
            .map(Self::Count)
            .map_err(|_| "write auto, or a whole number".into())
    }

    fn measure(&self) -> Option<u64> {
        match self {
            Self::Auto => None,
            Self::Count(count) => FromText::measure(count),
        }
    }
}

impl FromText for bool {
    fn from_text(raw: &str) -> Result<Self, String> {
        match raw {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("write true or false".into()),
        }
    }
}

impl FromText for String {
    fn from_text(raw: &str) -> Result<Self, String> {
        if raw.is_empty() || raw.len() > 1024 || raw.chars().any(char::is_control) {
            return Err("write 1 to 1024 bytes without control characters".into());
        }
        Ok(raw.to_owned())
    }
}

impl FromText for PathBuf {
    fn from_text(raw: &str) -> Result<Self, String> {
        if raw.is_empty() || raw.contains('\0') {
            return Err("write a path".into());
        }
        Ok(raw.into())
    }
}

impl FromText for AuditPath {
    fn from_text(raw: &str) -> Result<Self, String> {
        if raw == "-" {
            return Ok(Self::Stdout);
        }
        if raw == "stdout" || raw == "stderr" {
            return Err(format!(
                "write \"-\" for standard output, or ./{raw} for a file of this name"
            ));
        }
        PathBuf::from_text(raw)
            .map(Self::File)
            .map_err(|_| "write a path, or \"-\" for standard output".into())
    }
}

impl FromText for UnixMode {
    fn from_text(raw: &str) -> Result<Self, String> {
        let octal = (3..=4).contains(&raw.len()) && raw.bytes().all(|b| matches!(b, b'0'..=b'7'));
        match u32::from_str_radix(raw, 8) {
            Ok(bits) if octal && bits <= 0o777 => Ok(Self(bits)),
            _ => Err("write permissions in octal, such as 0660".into()),
        }
    }
}

impl FromText for Listener {
    fn from_text(raw: &str) -> Result<Self, String> {
        if let Some(path) = raw.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        if let Ok(address) = raw.parse() {
            return Ok(Self::Tcp(address));
        }
        let port = raw.strip_prefix(':').unwrap_or(raw);
        if port.parse::<u16>().is_ok() {
            return Err(format!(
                "write 127.0.0.1:{port}, or 0.0.0.0:{port} for every interface"
            ));
        }
        if let Some(("localhost", port)) = raw.split_once(':') {
            return Err(format!("write the address: 127.0.0.1:{port}"));
        }
        Err("write address:port, [IPv6]:port or unix:/path".into())
    }
}

impl FromText for Endpoint {
    fn from_text(raw: &str) -> Result<Self, String> {
        if let Some(path) = raw.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        if let Some((_, rest)) = raw.split_once("://") {
            let host = rest.split('/').next().unwrap_or(rest);
            return Err(format!("write the host and port only, here {host:?}"));
        }
        Authority::parse(raw)
            .map(Self::Tcp)
            .map_err(|error| format!("{error}: write host:port or unix:/path"))
    }
}

/// A DNS server; port 53 where none is written.
impl FromText for SocketAddr {
    fn from_text(raw: &str) -> Result<Self, String> {
        let address = raw.parse::<Self>();
        address
            .or_else(|_| raw.parse::<IpAddr>().map(|ip| Self::new(ip, DNS_PORT)))
            .map_err(|_| "write an address, or address:port".into())
    }
}

impl FromText for Destination {
    fn from_text(raw: &str) -> Result<Self, String> {
        if raw.is_empty() {
            return Err("write a host, *.suffix, or a range of addresses".into());
        }
        Self::parse(raw).map_err(|error| error.to_string())
    }
}

impl FromText for ClientName {
    fn from_text(raw: &str) -> Result<Self, String> {
        raw.parse()
            .map_err(|error: crate::identity::ClientNameError| error.to_string())
    }
}

impl FromText for IpNet {
    fn from_text(raw: &str) -> Result<Self, String> {
        let net = raw
            .parse::<Self>()
            .or_else(|_| raw.parse::<IpAddr>().map(Self::from))
            .map_err(|_| "write a range of addresses, such as 10.0.0.0/8")?;
        if net.addr() != net.network() {
            return Err(format!("write {}", net.trunc()));
        }
        Ok(net)
    }
}

impl FromText for DnsName {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw).map_err(|error| format!("{error}: write a name such as agent.internal"))
    }
}

fn socket_path(path: &str) -> Result<PathBuf, String> {
    if path.starts_with("//") {
        return Err("write unix:/path, with one slash".into());
    }
    if path.is_empty() || path.len() > MAX_SOCKET_PATH || path.contains('\0') {
        return Err(format!(
            "write unix:/path, with a path of 1 to {MAX_SOCKET_PATH} bytes"
        ));
    }
    Ok(path.into())
}

/// Decimal digits and what follows them: no sign, no space, no fraction.
fn number_and_rest(raw: &str) -> Option<(u64, &str)> {
    let end = raw.find(|c: char| !c.is_ascii_digit()).unwrap_or(raw.len());
    let (digits, rest) = raw.split_at(end);
    Some((digits.parse().ok()?, rest))
}

fn positive(raw: &str) -> Option<u32> {
    let plain = raw.bytes().all(|b| b.is_ascii_digit());
    raw.parse().ok().filter(|number| plain && *number > 0)
}

/// Kinds that are one word out of a few.
macro_rules! words {
    ($($kind:ident: $($word:literal => $variant:ident),+;)+) => {$(
        impl FromText for $kind {
            fn from_text(raw: &str) -> Result<Self, String> {
                match raw {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("write {}", [$($word),+].join(" or "))),
                }
            }
        }
    )+};
}

words! {
    Mode: "enforce" => Enforce, "audit" => Audit;
    BasicUser: "any" => Any, "match" => Match;
    Family: "ipv6" => V6, "ipv4" => V4;
    Verdict: "refuse" => Refuse, "allow" => Allow;
    Switch: "off" => Off, "on" => On;
    ToldInside: "off" => Off, "rules" => Rules, "all" => All;
    Plain: "judge" => Judge, "refuse" => Refuse;
    WhenAway: "local" => Local, "deny" => Deny;
    Overflow: "block" => Block, "deny" => Deny;
    TlsVersion: "1.2" => Tls12, "1.3" => Tls13;
    AcmeChallenge: "http-01" => Http01, "tls-alpn-01" => TlsAlpn01;
    Alpn: "h2" => Http2, "http/1.1" => Http11;
    ClientCertificates: "none" => None, "optional" => Optional, "required" => Required;
    RequiredProof: "token" => Token, "certificate" => Certificate, "either" => Either,
        "both" => Both;
    Fsync: "none" => None, "batch" => Batch, "interval" => Interval;
    LogLevel: "error" => Error, "warn" => Warn, "info" => Info, "debug" => Debug, "trace" => Trace;
    LogFormat: "text" => Text, "json" => Json;
    AuthFailureStatus: "403" => Forbidden, "407" => ProxyAuthenticationRequired;
}

/// Which user name may stand beside a token in Basic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BasicUser {
    /// Any; only the token counts.
    Any,
    /// The agent's own name.
    Match,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// How a name is proven to an ACME server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a page at port 80 (RFC 8555 section 8.3).
    Http01,
    /// By a certificate at port 443 (RFC 8737).
    TlsAlpn01,
}

/// A protocol that is offered inside TLS (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http11,
}

impl Alpn {
    /// Its registered name.
    #[must_use]
    pub fn id(self) -> &'static [u8] {
        match self {
            Self::Http2 => b"h2",
            Self::Http11 => b"http/1.1",
        }
    }
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked.
    None,
    /// They are asked, and one that is shown must hold.
    Optional,
    /// Without one that holds there is no connection.
    Required,
}

/// What proves who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredProof {
    /// A token.
    Token,
    /// The client's certificate.
    Certificate,
    /// One of them; where both are there, they name the same agent.
    Either,
    /// Both, of the same agent.
    Both,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv6.
    V6,
    /// IPv4.
    V4,
}

/// What happens to a tunnel whose inside does not show its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is closed.
    Refuse,
    /// It goes on.
    Allow,
}

/// Which refusals of a `CONNECT` are told inside its tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldInside {
    /// None.
    Off,
    /// Those of rules that say so.
    Rules,
    /// All that policy refuses.
    All,
}

/// Whether something is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It is not.
    Off,
    /// It is.
    On,
}

/// What happens to HTTP in clear inside a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Each request is judged as if it had come by itself.
    Judge,
    /// The tunnel is closed.
    Refuse,
}

/// What happens when the audit queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// New work waits for room.
    Block,
    /// New work is refused.
    Deny,
}

/// When audit records are forced to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// When the system likes to.
    None,
    /// After every write.
    Batch,
    /// From time to time.
    Interval,
}

/// How much the gateway says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what should be looked at.
    Warn,
    /// And what happened.
    Info,
    /// And how.
    Debug,
    /// And every step.
    Trace,
}

/// How the gateway says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// Lines of JSON.
    Json,
}

/// The status that a bad credential gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthFailureStatus {
    /// 403, so that clients do not loop on prompts.
    Forbidden,
    /// 407, for clients that fetch a new credential when asked.
    ProxyAuthenticationRequired,
}

impl AuthFailureStatus {
    /// The status code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Forbidden => 403,
            Self::ProxyAuthenticationRequired => 407,
        }
    }
}

impl LogLevel {
    /// The level's name, as `tracing` filters write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
