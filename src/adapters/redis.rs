//! The connection to a Redis or Valkey that replicas share. It is made and kept
//! by a task of its own, and nobody waits for it: [`Redis::connection`] gives
//! what there is at this moment, or nothing.
//!
//! What is kept there is the business of those who use it. Passwords and CA
//! files are read anew for every connection, so that they may be rotated.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue,
    IntoConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates,
};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::config::{RedisAddress, RedisUrl, Secret};

/// How often a connection in use is asked whether it still lives.
const PULSE: Duration = Duration::from_secs(1);
/// The first and the longest wait between two attempts to connect.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Commands that may be under way at once; what is beyond waits in memory.
const PIPELINE: usize = 1024;

/// Where Redis is, and how to come in.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Where it is.
    pub url: RedisUrl,
    /// The password, where the environment gave it.
    pub password: Option<Secret>,
    /// A file that holds it; it may end in a line feed.
    pub password_file: Option<PathBuf>,
    /// A PEM bundle that its certificate is checked against; the system's
    /// roots where there is none.
    pub ca: Option<PathBuf>,
    /// For one attempt to connect, from the name to the login.
    pub connect_timeout: Duration,
    /// For the answer to one command.
    pub response_timeout: Duration,
    /// What every key and channel of ours begins with.
    pub prefix: String,
}

/// A shared connection to Redis. Cloning is cheap. The connection ends with the
/// last clone.
#[derive(Clone, Debug)]
pub struct Redis {
    link: Arc<Link>,
    _upkeep: Arc<Upkeep>,
}

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisState {
    /// Whether there is one.
    pub connected: bool,
    /// Why there is none, or why there was none last.
    pub last_error: Option<String>,
    /// How many times it has been lost or could not be made.
    pub failures: u64,
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RedisFailure {
    /// There is no connection at this moment.
    #[error("not connected to Redis: {0}")]
    Away(String),
    /// Redis answered with an error, or not in time.
    #[error("Redis: {0}")]
    Failed(#[from] RedisError),
}

struct Link {
    settings: RedisSettings,
    connection: ArcSwapOption<MultiplexedConnection>,
    last_error: Mutex<Option<String>>,
    failures: AtomicU64,
    /// Wakes the upkeep when a command has found the connection dead.
    doubt: Notify,
    /// Whether there is a connection, for those who wait for one or its end.
    up: watch::Sender<bool>,
}

#[derive(Debug)]
struct Upkeep(JoinHandle<()>);

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Redis {
    /// Starts to connect, in a task of the runtime that this is called on. A
    /// Redis that is not there is no error: it may come.
    #[must_use]
    pub fn start(settings: RedisSettings) -> Self {
        let link = Arc::new(Link {
            settings,
            connection: ArcSwapOption::empty(),
            last_error: Mutex::new(Some("no connection has been made yet".to_owned())),
            failures: AtomicU64::new(0),
            doubt: Notify::new(),
            up: watch::Sender::new(false),
        });
        let upkeep = tokio::spawn(keep(Arc::clone(&link)));
        Self {
            link,
            _upkeep: Arc::new(Upkeep(upkeep)),
        }
    }

    /// The connection of this moment. Its commands are bounded by
    /// `response_timeout`; tell [`Redis::failed`] of those that fail.
    #[must_use]
    pub fn connection(&self) -> Option<MultiplexedConnection> {
        self.link.connection.load().as_deref().cloned()
    }

    /// Sends one command and waits for its answer, at most `response_timeout`.
    ///
    /// # Errors
    /// [`RedisFailure`]; without a connection at once.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisFailure> {
        let mut connection = self.connection().ok_or_else(|| self.away())?;
        command
            .query_async(&mut connection)
            .await
            .map_err(|error| self.failed(error))
    }

    /// Takes note that a command failed: where that means that the connection
    /// is dead, it is made anew.
    #[must_use]
    pub fn failed(&self, error: RedisError) -> RedisFailure {
        if is_lost(&error) {
            self.link.doubt.notify_one();
        }
        RedisFailure::Failed(error)
    }

    /// The failure that there is no connection.
    #[must_use]
    pub fn away(&self) -> RedisFailure {
        let why = lock(&self.link.last_error).clone();
        RedisFailure::Away(why.unwrap_or_else(|| "it was just lost".to_owned()))
    }

    /// A connection of its own for messages of channels, as it must have. It
    /// ends when Redis goes: its stream then gives nothing more.
    ///
    /// # Errors
    /// Where it cannot be made within `connect_timeout`.
    pub async fn subscriber(&self) -> Result<PubSub, RedisFailure> {
        let client = self.link.settings.client().map_err(RedisFailure::Away)?;
        let subscriber = client.get_async_pubsub();
        match tokio::time::timeout(self.link.settings.connect_timeout, subscriber).await {
            Ok(made) => made.map_err(RedisFailure::Failed),
            Err(_) => Err(RedisFailure::Away(
                "no answer within redis.connect_timeout".to_owned(),
            )),
        }
    }

    /// Comes back when there is a connection: for tasks in the background,
    /// never for a request.
    pub async fn connected(&self) {
        // The sender lives as long as this does.
        let _ = self.link.up.subscribe().wait_for(|up| *up).await;
    }

    /// Comes back when there is no connection.
    pub async fn disconnected(&self) {
        let _ = self.link.up.subscribe().wait_for(|up| !*up).await;
    }

    /// A key or channel of ours: the prefix, and what it is called.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.link.settings.prefix)
    }

    /// How the connection is.
    #[must_use]
    pub fn state(&self) -> RedisState {
        RedisState {
            connected: self.link.connection.load().is_some(),
            last_error: lock(&self.link.last_error).clone(),
            failures: self.link.failures.load(Ordering::Relaxed),
        }
    }
}

/// Connects, asks again and again whether the connection lives, and connects
/// anew when it does not, for ever.
async fn keep(link: Arc<Link>) {
    let mut wait = BACK_OFF.0;
    loop {
        match link.settings.connect().await {
            Ok(connection) => {
                wait = BACK_OFF.0;
                tracing::info!(redis = %link.settings.url, "connected to Redis");
                *lock(&link.last_error) = None;
                link.connection.store(Some(Arc::new(connection.clone())));
                link.up.send_replace(true);
                let lost = live(&link, connection).await;
                link.connection.store(None);
                link.up.send_replace(false);
                link.lost("the connection to Redis is lost", lost);
            }
            Err(error) => {
                link.lost("cannot connect to Redis", error);
                tokio::time::sleep(jittered(wait)).await;
                wait = (wait * 2).min(BACK_OFF.1);
            }
        }
    }
}

/// Comes back when the connection is dead, with how that showed.
async fn live(link: &Link, mut connection: MultiplexedConnection) -> String {
    loop {
        // A doubt is settled by asking, too: one slow command is no dead Redis.
        tokio::select! {
            () = tokio::time::sleep(PULSE) => {}
            () = link.doubt.notified() => {}
        }
        let pulse: Result<String, RedisError> =
            redis::cmd("PING").query_async(&mut connection).await;
        match pulse {
            Ok(_) => {}
            // Busy with a long script or loading its data: it lives, and what
            // is asked of it fails by itself.
            Err(error) if !is_lost(&error) => {}
            Err(error) => return error.to_string(),
        }
    }
}

impl Link {
    /// Notes it, and says it in the log once, not at every attempt.
    fn lost(&self, what: &'static str, error: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let known = lock(&self.last_error).replace(error.clone());
        if known.as_ref() != Some(&error) {
            tracing::warn!(redis = %self.settings.url, %error, "{what}");
        }
    }
}

impl RedisSettings {
    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let client = self.client()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout))
            .set_pipeline_buffer_size(PIPELINE);
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        // The library's own bound leaves the login out.
        match tokio::time::timeout(self.connect_timeout * 2, connect).await {
            Ok(made) => made.map_err(|error| explain(&error)),
            Err(_) => Err("no answer within redis.connect_timeout".to_owned()),
        }
    }

    /// Reads what is in files, blocking for a moment: only the upkeep waits.
    fn client(&self) -> Result<Client, String> {
        let (address, tls) = match &self.url.address {
            RedisAddress::Tcp { host, port } => {
                (ConnectionAddr::Tcp(bare(&host.to_string()), *port), false)
            }
            RedisAddress::Tls { host, port } => {
                let address = ConnectionAddr::TcpTls {
                    host: bare(&host.to_string()),
                    port: *port,
                    insecure: false,
                    tls_params: None,
                };
                (address, true)
            }
            RedisAddress::Unix(path) => (ConnectionAddr::Unix(path.clone()), false),
        };
        let mut login = RedisConnectionInfo::default()
            .set_db(self.url.database)
            .set_lib_name("agentport", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &self.url.user {
            login = login.set_username(user);
        }
        if let Some(password) = self.password()? {
            login = login.set_password(password);
        }
        let info = address
            .into_connection_info()
            .map_err(|error| explain(&error))?
            .set_redis_settings(login);
        if !tls {
            return Client::open(info).map_err(|error| explain(&error));
        }
        let root_cert = match &self.ca {
            Some(path) => Some(
                std::fs::read(path)
                    .map_err(|error| format!("redis.ca: {}: {error}", path.display()))?,
            ),
            None => None,
        };
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert,
        };
        Client::build_with_tls(info, certificates).map_err(|error| explain(&error))
    }

    fn password(&self) -> Result<Option<String>, String> {
        if let Some(secret) = &self.password {
            return Ok(Some(secret.reveal().to_owned()));
        }
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let failed =
            |error: std::io::Error| format!("redis.password_file: {}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// What went wrong, and what to do where that is known.
fn explain(error: &RedisError) -> String {
    let hint = match error.kind() {
        ErrorKind::AuthenticationFailed => {
            ": check redis.password_file or AGENTPORT_REDIS_PASSWORD"
        }
        _ if error.code() == Some("NOAUTH") => {
            ": it wants a password: set redis.password_file or AGENTPORT_REDIS_PASSWORD"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

/// Whether an error says that the connection is of no more use.
fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error() || error.is_timeout()
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> String {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned()
}

/// Between half and all of it, so that replicas do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let random = u32::try_from(super::host::random_bits() & 0xffff).unwrap_or(0);
    wait / 2 + wait / 2 * random / 0xffff
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("url", &self.settings.url)
            .field("connected", &self.connection.load().is_some())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
