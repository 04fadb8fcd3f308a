//! The settings, section by section: what each is, how far it may go, and
//! which must fit together. Where they were written is `load`'s business.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::egress::{Destination, DnsName, Host};
use crate::identity::ClientName;
use crate::limit::{Amount, Limit, Measure, Per, Quota, WhenAway};
use crate::policy::Mode;

use super::acme::{Acme, acme};
use super::issuer::{self, OtherIssuer};
use super::load::{Purpose, Reader};
use super::route::{self, NamedRoute};
use super::upstream::{self, UpstreamProxy, upstream_proxy};
use super::value::{
    AcmeChallenge, Alpn, AuditPath, AuthFailureStatus, BasicUser, ByteSize, CertificatePair,
    ClientCertificates, Endpoint, Family, Fsync, Listener, LogFormat, LogLevel, Overflow,
    PeerCredential, Plain, RedisAddress, RedisUrl, RequiredProof, Secret, Switch, Threads,
    TlsVersion, ToldInside, TrustedKey, UnixMode, Verdict,
};

/// The gateway's settings, all of them read and fitting together. Made by
/// [`Config::load`] alone.
///
/// `Debug` shows no secret.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where the gateway listens.
    pub listen: Listen,
    /// The policy: a file, or a directory. `None` where
    /// [`Config::allowed_destinations`] is the whole policy.
    pub policy: Option<PathBuf>,
    /// What every agent may reach, beside the policy. Empty: nothing more.
    pub allowed_destinations: Vec<Destination>,
    /// Whether decisions bind, where no policy says it.
    pub mode: Mode,
    /// TLS on the listeners that speak it.
    pub tls: Tls,
    /// How a refused `CONNECT` is told.
    pub refusals: Refusals,
    /// Agents that call each other; where [`Listen::peers`] is `None`, of no
    /// use.
    pub peers: Peers,
    /// Who is asking.
    pub identity: Identity,
    /// Names to addresses.
    pub resolver: Resolver,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How much, and how many at once.
    pub limits: Limits,
    /// What may happen inside a tunnel, where no rule says otherwise.
    pub tunnel: TunnelDefaults,
    /// The audit log.
    pub audit: Audit,
    /// What the gateway says of itself.
    pub log: Log,
    /// What replicas share; `None` where there is one gateway, or each keeps to
    /// itself.
    pub redis: Option<Redis>,
    /// The agent behind the gateway.
    pub agent: Agent,
    /// Origins that are reached by a path or a host on the gateway; names,
    /// prefixes and hosts are each there once.
    pub routes: Vec<NamedRoute>,
    /// A watched file with that list instead; `None` for none.
    pub routes_file: Option<PathBuf>,
    /// Worker threads.
    pub threads: Threads,
    /// Where the process writes its number.
    pub pid_file: Option<PathBuf>,
    /// A PEM bundle that upstream TLS is checked against, in place of the
    /// system's.
    pub upstream_ca: Option<PathBuf>,
    /// The proxy through which destinations are reached; `None` where the
    /// gateway reaches them itself.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// What a bad credential is answered with.
    pub auth_failure_status: AuthFailureStatus,
    /// What is allowed and worth a second look, for the log at start.
    pub warnings: Vec<String>,
    /// The settings as YAML; see [`Config::show`].
    pub(super) shown: String,
}

/// Where the gateway listens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listen {
    /// Where agents come in; at least one here or in `egress_tls`, each once.
    pub egress: Vec<Listener>,
    /// Where agents come in by TLS, at addresses of their own.
    pub egress_tls: Vec<Listener>,
    /// Who puts a PROXY protocol header before its connections.
    pub proxy_protocol: Vec<IpNet>,
    /// The permissions of Unix sockets.
    pub unix_mode: UnixMode,
    /// Whom the peers of Unix sockets are, each user id once.
    pub peer_credentials: Vec<PeerCredential>,
    /// Where agents call each other; `None` for no such listener. Never a Unix
    /// socket.
    pub peers: Option<Listener>,
    /// Metrics, health and readiness; `None` for no such listener.
    pub admin: Option<Listener>,
    /// A file with the secret that revocation and introspection want.
    pub admin_secret_file: Option<PathBuf>,
}

/// TLS on the listeners that speak it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls {
    /// Certificates with their keys; the first serves names that none has.
    pub certificates: Vec<CertificatePair>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The protocols that are offered, the preferred one first.
    pub alpn: Vec<Alpn>,
    /// Certificates of clients.
    pub clients: TlsClients,
    /// A certificate by ACME.
    pub acme: Option<Acme>,
}

/// How a refused `CONNECT` is told. Where [`Refusals::inside`] is not `off`,
/// certificate and key are there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusals {
    /// Which refusals are told inside the tunnel.
    pub inside: ToldInside,
    /// The CA's certificate, in PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key: Option<PathBuf>,
}

impl Refusals {
    /// The CA, where refusals are told inside tunnels.
    #[must_use]
    pub fn authority(&self) -> Option<CertificatePair> {
        match (self.inside, &self.certificate, &self.key) {
            (ToldInside::Off, ..) => None,
            (_, Some(certificate), Some(key)) => Some(CertificatePair {
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            _ => None,
        }
    }
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsClients {
    /// Whether they are asked for.
    pub certificates: ClientCertificates,
    /// What proves who asks on [`Listen::egress_tls`], where it is not what
    /// [`Identity::require`] says.
    pub require: Option<RequiredProof>,
    /// A PEM bundle of those who issue them; there where they are asked for.
    pub ca: Option<PathBuf>,
    /// PEM lists of those revoked.
    pub crl: Vec<PathBuf>,
    /// How their names are read as agents.
    pub names: Vec<ClientName>,
}

/// Agents that call each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peers {
    /// Certificates with their keys; the first serves names that none has.
    pub certificates: Vec<CertificatePair>,
    /// A PEM bundle of those who issue agents' certificates.
    pub ca: Option<PathBuf>,
    /// PEM lists of those revoked.
    pub crl: Vec<PathBuf>,
    /// How their names are read as agents.
    pub names: Vec<ClientName>,
    /// What proves who calls: never a token alone.
    pub require: RequiredProof,
    /// What the hosts of agents end in.
    pub domain: DnsName,
    /// The file that says where agents are.
    pub agents: Option<PathBuf>,
}

impl Config {
    /// TLS of [`Listen::peers`]: nobody comes in without a certificate.
    #[must_use]
    pub fn peers_tls(&self) -> Tls {
        Tls {
            certificates: self.peers.certificates.clone(),
            min_version: self.tls.min_version,
            alpn: self.tls.alpn.clone(),
            clients: TlsClients {
                certificates: ClientCertificates::Required,
                require: None,
                ca: self.peers.ca.clone(),
                crl: self.peers.crl.clone(),
                names: self.peers.names.clone(),
            },
            // Peers show certificates of their own CA.
            acme: None,
        }
    }
}

/// Who is asking, and what may be issued.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// What proves it.
    pub require: RequiredProof,
    /// The secret for HS256 tokens, from `AGENTPORT_JWKS_SECRET`. Never set
    /// together with [`Identity::secret_file`].
    pub secret: Option<Secret>,
    /// A file that holds it.
    pub secret_file: Option<PathBuf>,
    /// Keys of those who issue tokens.
    pub keys: Vec<TrustedKey>,
    /// Other issuers whose tokens are accepted; no two of one name, and none
    /// of [`Identity::issuer`].
    pub issuers: Vec<OtherIssuer>,
    /// A watched file with that list instead; `None` for none.
    pub issuers_file: Option<PathBuf>,
    /// `iss` of AgentPort's own tokens.
    pub issuer: String,
    /// `aud` of AgentPort's own tokens.
    pub audience: String,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// The longest token that is looked at.
    pub max_token: ByteSize,
    /// Tokens that held.
    pub cache: TokenCache,
    /// The file of agent keys; `None` for none.
    pub agent_keys: Option<PathBuf>,
    /// What is revoked.
    pub revocations: Revocations,
    /// Which user name may stand beside a token in Basic.
    pub basic_user: BasicUser,
    /// The private key that `issue-token` signs with, PEM. Its public half
    /// verifies: a gateway with a signing key has a key.
    pub signing_key: Option<PathBuf>,
    /// A folder of signing keys with its manifest. Never set together with
    /// [`Identity::signing_key`].
    pub signing_keys: Option<PathBuf>,
    /// How long an issued token lives.
    pub token_ttl: Duration,
    /// The longest life that may be asked for; at least `token_ttl`.
    pub max_token_ttl: Duration,
    /// The most actors of a delegation chain; 0 for no delegated tokens.
    pub max_delegation: usize,
    /// The file of service accounts; `None` for no token endpoint.
    pub service_accounts: Option<PathBuf>,
    /// The URL of the admin listener as clients see it, without a slash at its
    /// end.
    pub oauth_url: Option<String>,
}

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revocations {
    /// The list; `None` where nothing can be revoked.
    pub file: Option<PathBuf>,
    /// Whether the list is in Redis instead.
    pub redis: Switch,
}

/// The cache of tokens that held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenCache {
    /// How long one is remembered; zero switches the cache off.
    pub ttl: Duration,
    /// The most that are remembered.
    pub entries: usize,
}

/// Names to addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolver {
    /// DNS servers; empty means the system's.
    pub servers: Vec<SocketAddr>,
    /// The most that one lookup may take.
    pub timeout: Duration,
    /// Answers that are kept.
    pub cache: ResolverCache,
    /// Whether the system's search list completes short names.
    pub search: bool,
    /// The family that is dialled first (RFC 8305).
    pub prefer: Family,
}

/// The cache of answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResolverCache {
    /// The most names that are kept.
    pub entries: usize,
    /// An answer is kept at least so long.
    pub min_ttl: Duration,
    /// An answer is kept at most so long; at least `min_ttl`.
    pub max_ttl: Duration,
    /// That a name has no address is kept so long.
    pub negative_ttl: Duration,
}

/// How long things may take. None is zero but `drain` and `upstream_idle`,
/// which may be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// A request's head.
    pub header: Duration,
    /// A client's connection between two requests.
    pub keepalive: Duration,
    /// A TLS handshake, and a PROXY protocol header.
    pub handshake: Duration,
    /// Between two bytes of a body.
    pub body: Duration,
    /// Connecting to a destination, all addresses together.
    pub connect: Duration,
    /// The destination's first byte.
    pub response: Duration,
    /// A pooled connection that nobody uses.
    pub upstream_idle: Duration,
    /// A tunnel in which nothing moves.
    pub tunnel_idle: Duration,
    /// The first bytes inside a tunnel.
    pub client_hello: Duration,
    /// A WebSocket on which nothing moves.
    pub websocket_idle: Duration,
    /// How long the end waits for requests and tunnels.
    pub drain: Duration,
}

/// How much, and how many at once. `None` sets no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// A request's head.
    pub header_bytes: ByteSize,
    /// A request's target; at most `header_bytes`.
    pub target_bytes: ByteSize,
    /// A request's body.
    pub body_bytes: Option<ByteSize>,
    /// A body that is read to judge its methods of JSON-RPC; at most 64 KiB.
    pub rpc_body_bytes: ByteSize,
    /// Connections on one listener.
    pub connections: usize,
    /// Requests at one time, tunnels not counted.
    pub in_flight: usize,
    /// Open tunnels.
    pub tunnels: usize,
    /// What is counted for each agent, tenant, token, destination or source.
    pub per_owner: Vec<Arc<Limit>>,
    /// Whether replicas share these limits, and those of policy, by Redis.
    pub shared: bool,
    /// How many replicas there are at least.
    pub replicas: NonZeroU32,
    /// Connections of one source address.
    pub connections_per_source: Option<NonZeroU32>,
    /// Idle connections kept to destinations; zero keeps none.
    pub upstream_pool: usize,
}

/// What may happen inside a tunnel, where no rule says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelDefaults {
    /// TLS without a server name (RFC 6066, 3).
    pub no_sni: Verdict,
    /// TLS whose server name is not the tunnel's host.
    pub other_sni: Verdict,
    /// TLS with Encrypted Client Hello.
    pub ech: Verdict,
    /// HTTP in clear.
    pub plain: Plain,
    /// Bytes that are neither TLS nor HTTP.
    pub opaque: Verdict,
    /// Whether an open tunnel lives on when its token has expired.
    pub outlive_token: bool,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audit {
    /// Where records go.
    pub path: AuditPath,
    /// Records that may wait to be written.
    pub queue: usize,
    /// What happens when so many wait.
    pub overflow: Overflow,
    /// Whether records are forced to disk.
    pub fsync: Fsync,
    /// The size at which a file is rotated; `None` for never.
    pub max_bytes: Option<ByteSize>,
    /// How many rotated files are kept.
    pub keep: usize,
}

/// What the gateway says of itself, on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// How much.
    pub level: LogLevel,
    /// How.
    pub format: LogFormat,
}

/// The Redis or Valkey that replicas share.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redis {
    /// Where it is.
    pub url: RedisUrl,
    /// Its password, from `AGENTPORT_REDIS_PASSWORD`. Never set together with
    /// [`Redis::password_file`].
    pub password: Option<Secret>,
    /// A file that holds it.
    pub password_file: Option<PathBuf>,
    /// A PEM bundle that its certificate is checked against.
    pub ca: Option<PathBuf>,
    /// For one attempt to connect.
    pub connect_timeout: Duration,
    /// For the answer to one command.
    pub response_timeout: Duration,
    /// What every key of ours begins with.
    pub prefix: String,
}

/// The agent behind the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Agent {
    /// Where its API listens; `None` where there is no such agent.
    pub upstream: Option<Endpoint>,
    /// The name by which policy speaks of it.
    pub name: DnsName,
}

/// How small and how large a value may be, where more than zero is not
/// enough, zero is, or a large one is a slip. Empty stands for no upper bound.
pub(super) const BOUNDS: &[(&str, &str, &str)] = &[
    ("identity.leeway", "0s", "5m"),
    ("identity.max_token", "256", "32KiB"),
    ("identity.cache.ttl", "0s", "1h"),
    ("identity.token_ttl", "1s", ""),
    ("identity.max_token_ttl", "1s", ""),
    ("identity.max_delegation", "0", "8"),
    ("resolver.timeout", "10ms", "1m"),
    ("resolver.cache.min_ttl", "0s", "1h"),
    ("resolver.cache.max_ttl", "0s", "1d"),
    ("resolver.cache.negative_ttl", "0s", "5m"),
    ("redis.connect_timeout", "10ms", "1m"),
    ("redis.response_timeout", "10ms", "1m"),
    ("timeouts.upstream_idle", "0s", ""),
    ("timeouts.drain", "0s", ""),
    // Tokens of 5 kB are in use, so less than this would refuse real clients.
    ("limits.header_bytes", "8KiB", "1MiB"),
    // `egress::MAX_TARGET_BYTES` is the most that is ever parsed.
    ("limits.target_bytes", "256", "8KiB"),
    // What is read is kept where no more fits, until it is sent on.
    ("limits.rpc_body_bytes", "256", "64KiB"),
    ("limits.upstream_pool", "0", ""),
    ("audit.max_bytes", "64KiB", ""),
    ("audit.keep", "0", "1000"),
    ("threads", "1", "1024"),
];

/// Reads every field of a section by its own name, and takes those after the
/// semicolon as they have been read before. All are read before the first that
/// is missing ends it, so that no mistake hides another.
macro_rules! section {
    ($read:ident, $section:literal, $kind:ident {
        $($field:ident),* $(,)? $(; $($inner:ident),*)?
    }) => {{
        $(let $field = $read.value(concat!($section, ".", stringify!($field)));)*
        Some($kind { $($field: $field?,)* $($($inner: $inner?,)*)? })
    }};
}

pub(super) fn config(read: &mut Reader<'_>, purpose: Purpose) -> Option<Config> {
    let listen = listen(read);
    let policy = policy(read);
    let allowed_destinations = read.value("allowed_destinations");
    let mode = read.value("mode");
    let tls = tls(read);
    let refusals = section!(
        read,
        "refusals",
        Refusals {
            inside,
            certificate,
            key
        }
    );
    let peers = section!(
        read,
        "peers",
        Peers {
            certificates,
            ca,
            crl,
            names,
            require,
            domain,
            agents
        }
    );
    let identity = identity(read);
    let resolver = resolver(read);
    let timeouts = timeouts(read);
    let limits = limits(read);
    let tunnel = tunnel(read);
    let audit = audit(read);
    let log = log(read);
    let redis = redis(read);
    let agent = agent(read);
    let routes = routes(read);
    let routes_file: Option<Option<PathBuf>> = read.value("routes_file");
    if let (Some(Some(_)), Some([_, ..])) = (&routes_file, routes.as_deref()) {
        let message = "routes is written too: keep one of them";
        read.mistake("routes_file", message);
    }
    let threads = read.value("threads");
    let pid_file = read.value("pid_file");
    let upstream_ca = read.value("upstream_ca");
    let upstream_proxy = upstream_proxy(read);
    let auth_failure_status = read.value("auth_failure_status");
    if let (Purpose::Serve, Some(identity)) = (purpose, &identity) {
        some_key(read, identity);
    }
    let mut config = Config {
        listen: listen?,
        policy: policy?,
        allowed_destinations: allowed_destinations?,
        mode: mode?,
        tls: tls?,
        refusals: refusals?,
        peers: peers?,
        identity: identity?,
        resolver: resolver?,
        timeouts: timeouts?,
        limits: limits?,
        tunnel: tunnel?,
        audit: audit?,
        log: log?,
        redis: redis?,
        agent: agent?,
        routes: routes?,
        routes_file: routes_file?,
        threads: threads?,
        pid_file: pid_file?,
        upstream_ca: upstream_ca?,
        upstream_proxy: upstream_proxy?,
        auth_failure_status: auth_failure_status?,
        warnings: Vec::new(),
        shown: String::new(),
    };
    let revocations = &config.identity.revocations;
    if revocations.redis == Switch::On {
        if revocations.file.is_some() {
            let message = "identity.revocations.file is written too: keep one of them";
            read.mistake("identity.revocations.redis", message);
        }
        if config.redis.is_none() {
            let message = "there is no Redis: write redis.url";
            read.mistake("identity.revocations.redis", message);
        }
    }
    if config.identity.max_token > config.limits.header_bytes {
        let most = config.limits.header_bytes;
        let message = format!("more than limits.header_bytes: write at most {most}");
        read.mistake("identity.max_token", message);
    }
    tls_fits(read, &config);
    refusals_fit(read, &config.refusals);
    peers_fit(read, &config);
    config.warnings = warnings(&config);
    Some(config)
}

fn listen(read: &mut Reader<'_>) -> Option<Listen> {
    let listen = section!(
        read,
        "listen",
        Listen {
            egress,
            egress_tls,
            proxy_protocol,
            unix_mode,
            peer_credentials,
            peers,
            admin,
            admin_secret_file
        }
    )?;
    for (at, peer) in listen.peer_credentials.iter().enumerate() {
        let earlier = &listen.peer_credentials[..at];
        if earlier.iter().any(|other| other.uid == peer.uid) {
            let key = format!("listen.peer_credentials[{at}]");
            let message = format!("uid {} is named by an earlier entry: remove one", peer.uid);
            read.mistake_at("listen.peer_credentials", key, message);
        }
    }
    let unix = |listener: &Listener| matches!(listener, Listener::Unix(_));
    if !listen.peer_credentials.is_empty() && !listen.egress.iter().any(unix) {
        let message = "no listener is a Unix socket: write unix:/path in listen.egress";
        read.mistake("listen.peer_credentials", message);
    }
    if listen.egress.is_empty() && listen.egress_tls.is_empty() {
        let message = "the list is empty: write at least one, such as [\"127.0.0.1:8080\"]";
        read.mistake("listen.egress", message);
    }
    for (at, listener) in listen.egress_tls.iter().enumerate() {
        let key = format!("listen.egress_tls[{at}]");
        let earlier = listen.egress.iter().chain(&listen.egress_tls[..at]);
        if matches!(listener, Listener::Unix(_)) {
            let message = "write address:port: a Unix socket goes into listen.egress";
            read.mistake_at("listen.egress_tls", key, message);
        } else if earlier.into_iter().any(|other| overlap(other, listener)) {
            let message = format!("{listener} is taken by another listener: remove one");
            read.mistake_at("listen.egress_tls", key, message);
        }
    }
    for (at, listener) in listen.egress.iter().enumerate() {
        if listen.egress[..at]
            .iter()
            .any(|other| overlap(other, listener))
        {
            let key = format!("listen.egress[{at}]");
            let message = format!("{listener} is taken by an earlier entry: remove one");
            read.mistake_at("listen.egress", key, message);
        }
    }
    if let Some(peers) = &listen.peers {
        let mut others = (listen.egress.iter())
            .chain(&listen.egress_tls)
            .chain(&listen.admin);
        if matches!(peers, Listener::Unix(_)) {
            let message = "write address:port, or off: no certificate comes by a Unix socket";
            read.mistake("listen.peers", message);
        } else if others.any(|other| overlap(other, peers)) {
            let message = format!("{peers} is taken by another listener: write another port");
            read.mistake("listen.peers", message);
        }
    }
    if let Some(admin) = &listen.admin
        && (listen.egress.iter())
            .chain(&listen.egress_tls)
            .any(|other| overlap(other, admin))
    {
        let message = format!(
            "{admin} is taken by listen.egress or listen.egress_tls: write another port, or off"
        );
        read.mistake("listen.admin", message);
    }
    Some(listen)
}

/// Whether two listeners cannot both be bound.
fn overlap(left: &Listener, right: &Listener) -> bool {
    match (left, right) {
        (Listener::Tcp(left), Listener::Tcp(right)) => {
            let one_is_all = left.ip().is_unspecified() || right.ip().is_unspecified();
            let same = left.ip() == right.ip();
            let covered = one_is_all && left.is_ipv4() == right.is_ipv4();
            left.port() != 0 && left.port() == right.port() && (same || covered)
        }
        (Listener::Unix(left), Listener::Unix(right)) => left == right,
        _ => false,
    }
}

/// A policy that is only the default does not stand beside the one-line form:
/// who writes that alone has no such file.
fn policy(read: &mut Reader<'_>) -> Option<Option<PathBuf>> {
    let path: PathBuf = read.value("policy")?;
    let one_line = read.is_written("allowed_destinations");
    if !read.is_written("policy") && one_line {
        let list: Option<Vec<Destination>> = read.last("allowed_destinations");
        if list.is_none_or(|list| !list.is_empty()) {
            return Some(None);
        }
    }
    Some(Some(path))
}

fn tls(read: &mut Reader<'_>) -> Option<Tls> {
    let clients = section!(
        read,
        "tls.clients",
        TlsClients {
            certificates,
            require,
            ca,
            crl,
            names
        }
    );
    let acme = acme(read);
    let tls = section!(read, "tls", Tls { certificates, min_version, alpn; clients, acme })?;
    if tls.alpn.is_empty() {
        let message = "the list is empty: write [h2, http/1.1], or one of them";
        read.mistake("tls.alpn", message);
    }
    let clients = &tls.clients;
    let asked = clients.certificates != ClientCertificates::None;
    if asked && clients.ca.is_none() {
        let message = "client certificates are asked for: write the PEM bundle of their issuers";
        read.mistake("tls.clients.ca", message);
    }
    if !asked {
        let unused = [
            ("tls.clients.require", clients.require.is_some()),
            ("tls.clients.ca", clients.ca.is_some()),
            ("tls.clients.crl", !clients.crl.is_empty()),
            ("tls.clients.names", !clients.names.is_empty()),
        ];
        for (key, _) in unused.into_iter().filter(|(_, written)| *written) {
            let message = "has no effect: write tls.clients.certificates: optional, or required";
            read.mistake(key, message);
        }
    }
    Some(tls)
}

/// What `tls`, `listen` and `identity` must agree on.
fn tls_fits(read: &mut Reader<'_>, config: &Config) {
    let (listen, tls) = (&config.listen, &config.tls);
    if !listen.egress_tls.is_empty() && tls.certificates.is_empty() && tls.acme.is_none() {
        let message = "listen.egress_tls needs a certificate: write {certificate: PATH, key: PATH}, \
                       or tls.acme";
        read.mistake("tls.certificates", message);
    }
    if let Some(acme) = &tls.acme {
        if listen.egress_tls.is_empty() {
            let message = "no listener speaks TLS: write listen.egress_tls";
            read.mistake("tls.acme.directory", message);
        }
        let own = Listener::Tcp(acme.http_listen);
        let mut others = (listen.egress.iter())
            .chain(&listen.egress_tls)
            .chain(&listen.admin);
        if acme.challenge == AcmeChallenge::Http01 && others.any(|other| overlap(other, &own)) {
            let message = format!("{own} is taken by another listener: write another port");
            read.mistake("tls.acme.http_listen", message);
        }
    }
    let wants = |proof| proof != RequiredProof::Token;
    let asked = tls.clients.certificates != ClientCertificates::None;
    let key = match tls.clients.require {
        // That it has no effect is said elsewhere.
        Some(_) if !asked => return,
        Some(proof) if wants(proof) => "tls.clients.require",
        _ if wants(config.identity.require) => "identity.require",
        _ => return,
    };
    if listen.egress_tls.is_empty() || !asked {
        let message = "nobody can show a certificate: write listen.egress_tls and \
                       tls.clients.certificates, or token here";
        read.mistake(key, message);
    } else if tls.clients.names.is_empty() {
        let message = "no certificate names an agent: write patterns such as \
                       spiffe://example.org/agent/{agent}";
        read.mistake("tls.clients.names", message);
    }
}

/// A CA is there exactly where it is needed.
fn refusals_fit(read: &mut Reader<'_>, refusals: &Refusals) {
    let written = [
        ("refusals.certificate", refusals.certificate.is_some()),
        ("refusals.key", refusals.key.is_some()),
    ];
    let wanted = refusals.inside != ToldInside::Off;
    for (key, written) in written {
        match (wanted, written) {
            (true, false) => read.mistake(
                key,
                "refusals.inside needs a CA: write its PEM file, such as one of `agentport ca init`",
            ),
            (false, true) => read.mistake(key, "has no effect: write refusals.inside: rules"),
            _ => {}
        }
    }
}

/// What `peers` and `listen.peers` must agree on.
fn peers_fit(read: &mut Reader<'_>, config: &Config) {
    let peers = &config.peers;
    let written = [
        ("peers.certificates", !peers.certificates.is_empty()),
        ("peers.ca", peers.ca.is_some()),
        ("peers.names", !peers.names.is_empty()),
        ("peers.agents", peers.agents.is_some()),
    ];
    if !matches!(
        peers.require,
        RequiredProof::Certificate | RequiredProof::Both
    ) {
        let message = "no agent is called without a certificate: write certificate or both";
        read.mistake("peers.require", message);
    }
    if config.listen.peers.is_none() {
        for (key, _) in written.into_iter().filter(|(_, written)| *written) {
            read.mistake(key, "has no effect: write listen.peers: 0.0.0.0:8443");
        }
        return;
    }
    let what = [
        "listen.peers needs a certificate: write {certificate: PATH, key: PATH}",
        "listen.peers needs the PEM bundle of those who issue agents' certificates",
        "no certificate names an agent: write patterns such as \
         spiffe://example.org/agent/{agent}",
        "listen.peers needs the file that says where agents are",
    ];
    for ((key, written), message) in written.into_iter().zip(what) {
        if !written {
            read.mistake(key, message);
        }
    }
}

fn identity(read: &mut Reader<'_>) -> Option<Identity> {
    let secret = read.secret();
    let cache = section!(read, "identity.cache", TokenCache { ttl, entries });
    let revocations = section!(read, "identity.revocations", Revocations { file, redis });
    let identity = section!(read, "identity", Identity {
        require, secret_file, keys, agent_keys, issuers, issuers_file, issuer, audience, leeway, max_token,
        basic_user, signing_key,
        signing_keys, token_ttl, max_token_ttl, max_delegation, service_accounts, oauth_url;
        secret, cache, revocations
    })?;
    if identity.secret.is_some() && identity.secret_file.is_some() {
        let message = "AGENTPORT_JWKS_SECRET is set too: keep one of them";
        read.mistake("identity.secret_file", message.to_owned());
    }
    if identity.signing_key.is_some() && identity.signing_keys.is_some() {
        let message = "identity.signing_key is set too: keep one of them";
        read.mistake("identity.signing_keys", message.to_owned());
    }
    for (at, message) in issuer::same_names(&identity.issuers, &identity.issuer) {
        let key = format!("identity.issuers[{at}]");
        read.mistake_at("identity.issuers", key, message);
    }
    if identity.issuers_file.is_some() && !identity.issuers.is_empty() {
        let message = "identity.issuers is written too: keep one of them";
        read.mistake("identity.issuers_file", message.to_owned());
    }
    if identity.token_ttl > identity.max_token_ttl {
        let message = "more than identity.max_token_ttl: write at most that";
        read.mistake("identity.token_ttl", message.to_owned());
    }
    if let Some(url) = &identity.oauth_url
        && !is_base_url(url)
    {
        let message = "write the scheme and the authority, and no slash at the end: \
                       https://tokens.example.internal";
        read.mistake("identity.oauth_url", message.to_owned());
    }
    Some(identity)
}

/// `http://authority` or `https://authority`, perhaps with a path.
fn is_base_url(url: &str) -> bool {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && !rest.ends_with('/')
            && rest
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"?#@\"\\<>".contains(&b))
    })
}

/// A gateway without any key would refuse everybody. Better that it says so.
/// What to write where there is no key that anybody could pass by.
pub const SET_A_KEY: &str = "set AGENTPORT_JWKS_SECRET (make one with `openssl rand -hex 32`), or \
                             write identity.signing_key (make one with `agentport keys generate \
                             --out FILE`), identity.signing_keys (a folder of them, by `agentport \
                             keys generate --folder`), identity.secret_file, identity.keys, \
                             identity.issuers, identity.issuers_file or identity.agent_keys \
                             (`agentport agent-key create`)";

fn some_key(read: &mut Reader<'_>, identity: &Identity) {
    let has_one = identity.secret.is_some()
        || identity.secret_file.is_some()
        || identity.signing_key.is_some()
        || identity.signing_keys.is_some()
        || !identity.keys.is_empty()
        || !identity.issuers.is_empty()
        || identity.issuers_file.is_some()
        || identity.agent_keys.is_some();
    // A secret that is there and bad has been reported.
    if !has_one {
        read.missing(&format!("no key, so nobody could pass: {SET_A_KEY}"));
    }
}

fn resolver(read: &mut Reader<'_>) -> Option<Resolver> {
    let cache = section!(
        read,
        "resolver.cache",
        ResolverCache {
            entries,
            min_ttl,
            max_ttl,
            negative_ttl
        }
    );
    if let Some(cache) = &cache
        && cache.min_ttl > cache.max_ttl
    {
        let message = "more than resolver.cache.max_ttl: write at most that";
        read.mistake("resolver.cache.min_ttl", message.to_owned());
    }
    section!(read, "resolver", Resolver { servers, timeout, search, prefer; cache })
}

fn timeouts(read: &mut Reader<'_>) -> Option<Timeouts> {
    section!(
        read,
        "timeouts",
        Timeouts {
            header,
            keepalive,
            handshake,
            body,
            connect,
            response,
            upstream_idle,
            tunnel_idle,
            client_hello,
            websocket_idle,
            drain
        }
    )
}

fn limits(read: &mut Reader<'_>) -> Option<Limits> {
    let per_owner = per_owner(read);
    let limits = section!(
        read,
        "limits",
        Limits {
            header_bytes,
            target_bytes,
            body_bytes,
            rpc_body_bytes,
            connections,
            in_flight,
            tunnels,
            shared,
            replicas,
            connections_per_source,
            upstream_pool;
            per_owner
        }
    )?;
    if limits.target_bytes > limits.header_bytes {
        let most = limits.header_bytes;
        let message = format!("more than limits.header_bytes: write at most {most}");
        read.mistake("limits.target_bytes", message);
    }
    Some(limits)
}

/// The limits that are counted for each owner apart. A limit is called as its
/// key is.
fn per_owner(read: &mut Reader<'_>) -> Option<Vec<Arc<Limit>>> {
    let when_away: Option<WhenAway> = read.value("limits.when_away");
    let mut limits = Vec::new();
    let mut complete = true;
    for (key, measure, per) in OWNER_LIMITS {
        let amount = match measure {
            Measure::Concurrent | Measure::Tunnels => read
                .value::<Option<NonZeroU32>>(&format!("limits.{key}"))
                .map(|most| most.map(Amount::AtOnce)),
            Measure::Requests | Measure::Connections | Measure::BytesUp | Measure::BytesDown => {
                read.value::<Option<Quota>>(&format!("limits.{key}"))
                    .map(|quota| quota.map(Amount::Over))
            }
        };
        complete &= amount.is_some();
        if let (Some(Some(amount)), Some(when_away)) = (amount, when_away) {
            let limit = Limit::new(*key, *measure, *per, amount, when_away);
            limits.push(Arc::new(limit));
        }
    }
    (complete && when_away.is_some()).then_some(limits)
}

/// The keys of limits that are counted for each owner apart.
const OWNER_LIMITS: &[(&str, Measure, Per)] = &[
    ("requests_per_agent", Measure::Requests, Per::Agent),
    ("requests_per_tenant", Measure::Requests, Per::Tenant),
    ("requests_per_token", Measure::Requests, Per::Token),
    (
        "requests_per_destination",
        Measure::Requests,
        Per::Destination,
    ),
    ("requests_per_source", Measure::Requests, Per::Source),
    ("tunnel_rate_per_agent", Measure::Connections, Per::Agent),
    ("tunnel_rate_per_tenant", Measure::Connections, Per::Tenant),
    ("tunnel_rate_per_token", Measure::Connections, Per::Token),
    (
        "tunnel_rate_per_destination",
        Measure::Connections,
        Per::Destination,
    ),
    ("tunnel_rate_per_source", Measure::Connections, Per::Source),
    ("tunnels_per_agent", Measure::Tunnels, Per::Agent),
    ("concurrent_per_agent", Measure::Concurrent, Per::Agent),
    ("concurrent_per_tenant", Measure::Concurrent, Per::Tenant),
    ("concurrent_per_token", Measure::Concurrent, Per::Token),
    (
        "concurrent_per_destination",
        Measure::Concurrent,
        Per::Destination,
    ),
    ("concurrent_per_source", Measure::Concurrent, Per::Source),
    ("bytes_up_per_agent", Measure::BytesUp, Per::Agent),
    ("bytes_up_per_tenant", Measure::BytesUp, Per::Tenant),
    ("bytes_up_per_token", Measure::BytesUp, Per::Token),
    (
        "bytes_up_per_destination",
        Measure::BytesUp,
        Per::Destination,
    ),
    ("bytes_up_per_source", Measure::BytesUp, Per::Source),
    ("bytes_down_per_agent", Measure::BytesDown, Per::Agent),
    ("bytes_down_per_tenant", Measure::BytesDown, Per::Tenant),
    ("bytes_down_per_token", Measure::BytesDown, Per::Token),
    (
        "bytes_down_per_destination",
        Measure::BytesDown,
        Per::Destination,
    ),
    ("bytes_down_per_source", Measure::BytesDown, Per::Source),
];

fn tunnel(read: &mut Reader<'_>) -> Option<TunnelDefaults> {
    section!(
        read,
        "tunnel",
        TunnelDefaults {
            no_sni,
            other_sni,
            ech,
            plain,
            opaque,
            outlive_token
        }
    )
}

fn audit(read: &mut Reader<'_>) -> Option<Audit> {
    let audit = section!(
        read,
        "audit",
        Audit {
            path,
            queue,
            overflow,
            fsync,
            max_bytes,
            keep
        }
    )?;
    if audit.path == AuditPath::Stdout && audit.max_bytes.is_some() {
        let message = "standard output cannot be rotated: write audit.path, or none here";
        read.mistake("audit.max_bytes", message.to_owned());
    }
    Some(audit)
}

fn log(read: &mut Reader<'_>) -> Option<Log> {
    section!(read, "log", Log { level, format })
}

/// Nothing is shared where no `redis.url` is written. What is written beside it
/// is read all the same, so that no mistake waits for its day.
fn redis(read: &mut Reader<'_>) -> Option<Option<Redis>> {
    let url: Option<Option<RedisUrl>> = read.value("redis.url");
    let password = read.redis_password();
    let password_file: Option<Option<PathBuf>> = read.value("redis.password_file");
    let ca: Option<Option<PathBuf>> = read.value("redis.ca");
    let connect_timeout = read.value("redis.connect_timeout");
    let response_timeout = read.value("redis.response_timeout");
    let prefix: Option<String> = read.value("redis.prefix");
    let (url, password, password_file, ca) = (url?, password?, password_file?, ca?);
    let (connect_timeout, response_timeout, prefix) =
        (connect_timeout?, response_timeout?, prefix?);
    if password.is_some() && password_file.is_some() {
        let message = "AGENTPORT_REDIS_PASSWORD is set too: keep one of them";
        read.mistake("redis.password_file", message);
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:{}".contains(&b);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(plain) {
        let message = format!("{prefix:?}: write 1 to 64 letters, digits or -_.:{{}}");
        read.mistake("redis.prefix", message);
    }
    let Some(url) = url else {
        let idle = [
            ("redis.password_file", password_file.is_some()),
            ("redis.ca", ca.is_some()),
        ];
        for (key, _) in idle.into_iter().filter(|(_, written)| *written) {
            read.mistake(key, "is of no use without redis.url: write that too");
        }
        return Some(None);
    };
    if ca.is_some() && !matches!(url.address, RedisAddress::Tls { .. }) {
        read.mistake("redis.ca", "redis.url is not TLS: write rediss://");
    }
    Some(Some(Redis {
        url,
        password,
        password_file,
        ca,
        connect_timeout,
        response_timeout,
        prefix,
    }))
}

fn agent(read: &mut Reader<'_>) -> Option<Agent> {
    section!(read, "agent", Agent { upstream, name })
}

fn routes(read: &mut Reader<'_>) -> Option<Vec<NamedRoute>> {
    let routes: Vec<NamedRoute> = read.value("routes")?;
    for (at, message) in route::twice(&routes) {
        read.mistake_at("routes", format!("routes[{at}]"), message);
    }
    Some(routes)
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.mode == Mode::Audit {
        warnings.push("mode is audit: what policy refuses passes, and is only recorded".into());
    }
    if let (Some(policy), false) = (&config.policy, config.allowed_destinations.is_empty()) {
        warnings.push(format!(
            "allowed_destinations adds to {}: every agent of every tenant may reach them",
            policy.display()
        ));
    }
    if let Some(Listener::Tcp(admin)) = &config.listen.admin
        && !admin.ip().is_loopback()
    {
        warnings.push(format!(
            "listen.admin is {admin}, which is not loopback: keep agents away from it"
        ));
    }
    if config.peers.ca.is_some() && config.peers.ca == config.tls.clients.ca {
        warnings.push(
            "peers.ca is tls.clients.ca too: a certificate that opens the egress port calls \
             agents as well"
                .into(),
        );
    }
    let others_write = config.listen.unix_mode.bits() & 0o002 != 0;
    if others_write
        && config
            .listen
            .egress
            .iter()
            .any(|l| matches!(l, Listener::Unix(_)))
    {
        warnings.push("listen.unix_mode lets every user of this machine connect".into());
    }
    let by_certificate = matches!(
        config.identity.require,
        RequiredProof::Certificate | RequiredProof::Both
    );
    if by_certificate && !config.listen.egress.is_empty() {
        warnings.push(
            "identity.require wants certificates, so listen.egress, which has no TLS, refuses \
             everybody: write listen.egress: []"
                .into(),
        );
    }
    if let Some(redis) = &config.redis
        && let RedisAddress::Tcp { host, .. } = &redis.url.address
        && (redis.password.is_some() || redis.password_file.is_some())
        && !matches!(host, Host::Address(address) if address.is_loopback())
    {
        warnings.push(format!(
            "redis.url is {}, so its password travels in clear: write rediss://",
            redis.url
        ));
    }
    warnings.extend(config.upstream_proxy.iter().flat_map(upstream::warnings));
    if config.tunnel.opaque == Verdict::Allow {
        warnings.push(
            "tunnel.opaque is allow: what is neither TLS nor HTTP passes unseen, where no rule \
             says otherwise"
                .into(),
        );
    }
    warnings
}
