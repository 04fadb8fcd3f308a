//! The parent proxy: where there is no other way out, it is asked by CONNECT
//! (RFC 9110 section 9.3.6) for a tunnel to each destination that was admitted.
//!
//! It is asked for the address that was checked, so that what it reaches is
//! what was judged; for a name only where the operator says so. What it answers
//! is read by our own strict parser, bounded and timed, and never goes on to
//! the client: that it wants a credential is between it and the operator.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddress;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::upstreams::peer::PeerOptions;
use pingora::{Error, ErrorType};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::egress::head::{HeadError, HeadProgress, parse_answer, progress};
use crate::egress::{Authority, Host, NoProxy};
use crate::gate::ports::{Elsewhere, OffLimits, Resolve};
use crate::gate::{Cause, Denial, Gate};

use super::peers::KnownAddresses;
use super::upgrade::InTurn;
use super::upstream::{Carrier, Upstream};

/// The most bytes of the parent's answer, interim answers included.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// What Pingora calls an error of ours.
const PARENT: ErrorType = ErrorType::Custom("parent_proxy");

/// The proxy through which destinations are reached.
pub struct Parent {
    authority: Authority,
    shown: Arc<str>,
    asks: ParentAsks,
    direct: NoProxy,
    access: ArcSwap<ParentAccess>,
    /// Where it answered last, which is tried first.
    answered: ArcSwapOption<SocketAddr>,
    /// Where its name leads and has lately led, which no agent may reach through it.
    known: KnownAddresses,
}

/// What the parent proxy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentAsks {
    /// The address that was checked.
    Address,
    /// The name, after its addresses were checked.
    Name,
    /// The name, which nobody here resolves.
    UnresolvedName,
}

/// How the parent proxy is spoken to; replaced whole when a file changes.
#[derive(Clone, Default)]
pub struct ParentAccess {
    /// The value of `Proxy-Authorization`, where it wants one. Without control
    /// characters.
    pub authorization: Option<String>,
    /// TLS towards it, where it speaks that.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Why there is no tunnel through the parent proxy.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParentError {
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    #[error("TLS with {0}: {1}")]
    Tls(SocketAddr, io::Error),
    #[error("{0}")]
    Name(String),
    #[error("no answer in time")]
    Timeout,
    #[error("it closed the connection before it answered")]
    Closed,
    #[error("its answer has more than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    #[error("its answer is no HTTP: {0}")]
    Head(#[from] HeadError),
    #[error("it answered {0}")]
    Answered(u16),
}

impl ParentError {
    /// What it means to the client.
    pub(super) fn denial(&self) -> Denial {
        let cause = match self {
            Self::Connect(..) | Self::Tls(..) | Self::Name(_) => Cause::ParentUnreachable,
            Self::Timeout => Cause::ParentTimeout,
            Self::Closed | Self::TooLong | Self::Head(_) => Cause::ParentProtocol,
            Self::Answered(407) => Cause::ParentCredential,
            Self::Answered(400..500) => Cause::ParentRefused,
            Self::Answered(500..) => Cause::ParentFailed,
            // An interim answer that is the last, or a redirect.
            Self::Answered(_) => Cause::ParentProtocol,
        };
        Denial::new(cause).detail(format!("the parent proxy: {self}"))
    }

    /// Whether another address of the destination may do better.
    pub(super) fn is_of_the_destination(&self) -> bool {
        matches!(self, Self::Answered(500..) | Self::Timeout)
    }

    /// What one of Pingora's errors holds of it.
    pub(super) fn of(error: &Error) -> Option<&Self> {
        (*error.etype() == PARENT).then(|| error.root_cause().downcast_ref())?
    }

    fn pingoras(self) -> Box<Error> {
        Error::because(PARENT, "connecting by the parent proxy", self)
    }
}

impl Parent {
    /// The proxy at this host and port, for all but what is reached directly.
    #[must_use]
    pub fn new(
        authority: Authority,
        asks: ParentAsks,
        direct: NoProxy,
        access: ParentAccess,
    ) -> Self {
        Self {
            shown: authority.to_string().into(),
            authority,
            asks,
            direct,
            access: ArcSwap::from_pointee(access),
            answered: ArcSwapOption::empty(),
            known: KnownAddresses::default(),
        }
    }

    /// Host and port, as records show it.
    pub(super) fn shown(&self) -> &Arc<str> {
        &self.shown
    }

    /// Host and port.
    #[must_use]
    pub fn listens_at(&self) -> &Authority {
        &self.authority
    }

    /// Speaks to it so from now on.
    pub fn replace(&self, access: ParentAccess) {
        self.access.store(Arc::new(access));
    }

    /// Its name leads here.
    pub fn leads_to(&self, addresses: Vec<IpAddr>) {
        self.known.found(addresses);
    }

    /// Whether this destination is reached through it.
    #[must_use]
    pub fn takes(&self, to: &Authority, address: Option<IpAddr>) -> bool {
        !self.direct.has(to, address)
    }

    /// Whether it is asked for the address that is given.
    pub(super) fn is_given_addresses(&self) -> bool {
        self.asks == ParentAsks::Address
    }

    /// What it is asked for, to reach this destination.
    pub(super) fn target(&self, to: &Authority, address: Option<SocketAddr>) -> String {
        match (self.asks, address) {
            (ParentAsks::Address, Some(address)) => address.to_string(),
            _ => to.to_string(),
        }
    }

    /// Where it is now: the address that answered last before the others.
    pub(super) async fn locate(&self, gate: &Gate) -> Result<Vec<SocketAddr>, ParentError> {
        let found = gate.locate(&self.authority).await;
        let found = found.map_err(|denial| {
            let detail = denial.operator_detail().unwrap_or_default();
            ParentError::Name(format!("{} has no address: {detail}", self.authority.host))
        })?;
        Ok(self.found(found))
    }

    /// It was found to be here: where it is tried, in this order.
    fn found(&self, mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let is_known = |at: &SocketAddr| self.known.any(|ip| ip == at.ip());
        if self.authority.host.name().is_some() && !found.iter().all(is_known) {
            self.leads_to(found.iter().map(SocketAddr::ip).collect());
        }
        if let Some(last) = self.answered.load_full()
            && let Some(at) = found.iter().position(|address| *address == *last)
        {
            found.swap(0, at);
        }
        found
    }

    /// A tunnel for the gateway itself, to this destination or to this address
    /// of it, within this time. Who asks has seen that it is for the parent, and
    /// that the address may be reached.
    ///
    /// # Errors
    /// What went wrong, in a sentence for the operator.
    pub async fn carry(
        &self,
        names: &dyn Resolve,
        to: &Authority,
        address: Option<IpAddr>,
        within: Duration,
    ) -> Result<Box<dyn Carried>, String> {
        let carried = async {
            let found = match &self.authority.host {
                Host::Address(ip) => vec![*ip],
                Host::Name(name) => {
                    let found = names.lookup(name).await.map_err(|error| {
                        ParentError::Name(format!("{name} has no address: {error}"))
                    })?;
                    found.to_vec()
                }
            };
            let port = self.authority.port;
            let at = found.into_iter().map(|ip| SocketAddr::new(ip, port));
            let at = self.found(at.collect());
            let address = address.map(|ip| SocketAddr::new(ip, to.port));
            self.open(&at, &self.target(to, address), within).await
        };
        match carried.await {
            Ok(upstream) => Ok(Box::new(upstream)),
            Err(error) => Err(format!("the parent proxy {}: {error}", self.shown)),
        }
    }

    /// Opens a tunnel to `target`, within this time.
    pub(super) async fn open(
        &self,
        at: &[SocketAddr],
        target: &str,
        within: Duration,
    ) -> Result<Upstream, ParentError> {
        let opened = tokio::time::timeout(within, async {
            let (tcp, address) = self.connect(at).await?;
            let access = self.access.load_full();
            let mut carrier = match &access.tls {
                None => Carrier::Tcp(tcp),
                Some(config) => {
                    let name = match &self.authority.host {
                        Host::Address(ip) => ServerName::from(*ip),
                        Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                            .map_err(|_| ParentError::Name("no name for TLS".to_owned()))?,
                    };
                    let connector = TlsConnector::from(Arc::clone(config));
                    let tls = connector.connect(name, tcp).await;
                    Carrier::Tls(Box::new(
                        tls.map_err(|error| ParentError::Tls(address, error))?,
                    ))
                }
            };
            let early = ask(&mut carrier, target, access.authorization.as_deref()).await?;
            Ok(Upstream::by_parent(carrier, early))
        });
        opened.await.unwrap_or(Err(ParentError::Timeout))
    }

    async fn connect(&self, at: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), ParentError> {
        let mut failed = ParentError::Name("it has no address".to_owned());
        for address in at {
            match TcpStream::connect(address).await {
                Ok(tcp) => {
                    let _ = tcp.set_nodelay(true);
                    if self.answered.load().as_deref() != Some(address) {
                        self.answered.store(Some(Arc::new(*address)));
                    }
                    return Ok((tcp, *address));
                }
                Err(error) => failed = ParentError::Connect(*address, error),
            }
        }
        Err(failed)
    }
}

/// A connection of the gateway itself.
pub trait Carried: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carried for T {}

/// One attempt at a destination through the parent proxy.
#[derive(Clone, Debug)]
pub(super) struct Hop {
    pub(super) parent: Arc<Parent>,
    /// Where the parent is tried, in this order; at least one.
    at: Vec<SocketAddr>,
    /// Where the tunnel leads; unknown where the parent was given a name.
    pub(super) address: Option<SocketAddr>,
    target: String,
}

impl Hop {
    /// The way to this destination, where the parent proxy is on it.
    ///
    /// # Errors
    /// Where the parent has no address.
    pub(super) async fn to(
        parent: &Arc<Parent>,
        gate: &Gate,
        to: &Authority,
        address: Option<SocketAddr>,
    ) -> pingora::Result<Option<Self>> {
        if !parent.takes(to, address.map(|address| address.ip())) {
            return Ok(None);
        }
        let at = parent.locate(gate).await.map_err(ParentError::pingoras)?;
        Ok(Some(Self {
            target: parent.target(to, address),
            address: address.filter(|_| parent.is_given_addresses()),
            at,
            parent: Arc::clone(parent),
        }))
    }

    /// What Pingora takes for the other end: its pool looks at who that is.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.at.first().copied()
    }

    /// What tells connections to one destination from those to another.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// Has Pingora dial through the parent, within this time. `upgrades` is that
    /// of a request that may become a WebSocket.
    pub(super) fn set(&self, options: &mut PeerOptions, within: Duration, upgrades: bool) {
        options.custom_l4 = Some(Arc::new(ForRequest {
            hop: self.clone(),
            within,
            upgrades,
        }));
        // The parent has its own time, so that it is told from the destination;
        // what is left is for TLS with the latter.
        options.total_connection_timeout = Some(within * 2);
        if self.parent.access.load().tls.is_some() {
            // Pingora's pool knows connections by their sockets, and knows of
            // none below TLS that is not its own.
            options.idle_timeout = Some(Duration::ZERO);
        }
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parent({})", self.authority)
    }
}

/// Asks for the tunnel. Gives what came behind the answer, which is the
/// destination's.
async fn ask(
    carrier: &mut Carrier,
    target: &str,
    authorization: Option<&str>,
) -> Result<Vec<u8>, ParentError> {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(value) = authorization {
        request.push_str("Proxy-Authorization: ");
        request.push_str(value);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let broken = |_: io::Error| ParentError::Closed;
    // One that has refused already may not read; its answer is there then.
    let written = async {
        carrier.write_all(request.as_bytes()).await?;
        carrier.flush().await
    };
    let _ = written.await;
    let mut bytes = Vec::with_capacity(512);
    // From where on it is the head that is read now, and how far it was looked at.
    let (mut start, mut looked) = (0, 0);
    loop {
        match progress(&bytes[start..], looked)? {
            HeadProgress::Complete(end) => {
                let status = parse_answer(&bytes[start..start + end])?.status;
                start += end;
                looked = 0;
                match status {
                    200..300 => {
                        bytes.drain(..start);
                        return Ok(bytes);
                    }
                    // Another protocol was not asked for.
                    101 => return Err(ParentError::Answered(status)),
                    100..200 => {}
                    _ => return Err(ParentError::Answered(status)),
                }
            }
            HeadProgress::Partial if bytes.len() >= MAX_ANSWER_BYTES => {
                return Err(ParentError::TooLong);
            }
            HeadProgress::Partial => {
                looked = bytes.len() - start;
                let room = MAX_ANSWER_BYTES - bytes.len();
                let mut limited = (&mut *carrier).take(room as u64);
                if limited.read_buf(&mut bytes).await.map_err(broken)? == 0 {
                    return Err(ParentError::Closed);
                }
            }
        }
    }
}

/// What dials for one request.
#[derive(Debug)]
struct ForRequest {
    hop: Hop,
    within: Duration,
    upgrades: bool,
}

#[async_trait]
impl L4Connect for ForRequest {
    async fn connect(&self, _: &PingoraAddress) -> pingora::Result<Stream> {
        let hop = &self.hop;
        let opened = hop.parent.open(&hop.at, &hop.target, self.within).await;
        let opened = opened.map_err(ParentError::pingoras)?;
        if self.upgrades {
            let socket = VirtualSocketStream::new(Box::new(InTurn::of(opened)));
            return Ok(Stream::from(socket));
        }
        Ok(match opened.into_tcp() {
            Ok((tcp, early)) => {
                let mut stream = Stream::from(tcp);
                stream.rewind(&early);
                stream
            }
            Err(opened) => Stream::from(VirtualSocketStream::new(Box::new(opened))),
        })
    }
}

impl Elsewhere for Parent {
    fn resolves(&self, to: &Authority) -> bool {
        let Some(name) = to.host.name() else {
            return false;
        };
        // Whose own machine that would be.
        let local = name.is_localhost();
        self.asks == ParentAsks::UnresolvedName && !local && self.takes(to, None)
    }

    fn resolves_again(&self, to: &Authority) -> bool {
        let is_given_it = self.asks != ParentAsks::Address && to.host.name().is_some();
        is_given_it && !self.resolves(to) && self.takes(to, None)
    }
}

impl OffLimits for Parent {
    fn why(&self) -> &'static str {
        "the parent proxy is the gateway's way out, and no destination"
    }

    fn authority(&self, to: &Authority) -> bool {
        *to == self.authority
    }

    fn address(&self, address: SocketAddr, is: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> bool {
        let port = self.authority.port;
        if address.port() != port {
            return false;
        }
        if let Host::Address(ip) = self.authority.host {
            return is(SocketAddr::new(ip, port), address);
        }
        self.known.any(|ip| is(SocketAddr::new(ip, port), address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(at: &str, asks: ParentAsks, direct: &str) -> Parent {
        Parent::new(
            Authority::parse(at).expect("an authority"),
            asks,
            NoProxy::parse(direct).expect("a list"),
            ParentAccess::default(),
        )
    }

    #[test]
    fn what_it_is_asked_for() {
        let to = Authority::parse("a.test:443").expect("an authority");
        let v4 = "192.0.2.1:443".parse().ok();
        let v6 = "[2001:db8::1]:443".parse().ok();
        for (asks, address, expected) in [
            (ParentAsks::Address, v4, "192.0.2.1:443"),
            (ParentAsks::Address, v6, "[2001:db8::1]:443"),
            (ParentAsks::Name, v4, "a.test:443"),
            (ParentAsks::UnresolvedName, None, "a.test:443"),
        ] {
            let parent = parent("proxy.test:3128", asks, "");
            assert_eq!(parent.target(&to, address), expected);
        }
    }

    #[test]
    fn who_resolves_a_name() {
        let unresolved = parent("proxy.test:3128", ParentAsks::UnresolvedName, ".internal");
        for (to, elsewhere) in [
            ("a.test:443", true),
            ("a.internal:443", false),
            ("localhost:80", false),
            ("a.localhost:80", false),
            ("192.0.2.1:443", false),
        ] {
            let to = Authority::parse(to).expect("an authority");
            assert_eq!(unresolved.resolves(&to), elsewhere, "{to}");
        }
        let to = Authority::parse("a.test:443").expect("an authority");
        for asks in [ParentAsks::Address, ParentAsks::Name] {
            assert!(!parent("proxy.test:3128", asks, "").resolves(&to));
        }
    }

    #[test]
    fn nobody_reaches_the_parent_itself() {
        let same = |left: SocketAddr, right: SocketAddr| left == right;
        let at = |text: &str| text.parse().expect("an address");
        let named = parent("proxy.test:3128", ParentAsks::Address, "");
        assert!(named.authority(&Authority::parse("proxy.test:3128").expect("one")));
        assert!(!named.authority(&Authority::parse("proxy.test:443").expect("one")));
        assert!(!named.address(at("192.0.2.1:3128"), &same), "not known yet");
        named.leads_to(vec![[192, 0, 2, 1].into()]);
        assert!(named.address(at("192.0.2.1:3128"), &same));
        assert!(!named.address(at("192.0.2.1:443"), &same));
        let written = parent("192.0.2.7:3128", ParentAsks::Address, "");
        assert!(written.address(at("192.0.2.7:3128"), &same));
    }

    #[test]
    fn what_its_failures_mean() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let at: SocketAddr = "192.0.2.1:1".parse().expect("an address");
        for (error, code, status) in [
            (
                ParentError::Connect(at, refused()),
                "parent_unreachable",
                502,
            ),
            (ParentError::Tls(at, refused()), "parent_unreachable", 502),
            (ParentError::Timeout, "parent_timeout", 504),
            (ParentError::Closed, "parent_protocol", 502),
            (ParentError::TooLong, "parent_protocol", 502),
            (ParentError::Head(HeadError::BareLf), "parent_protocol", 502),
            (ParentError::Answered(101), "parent_protocol", 502),
            (ParentError::Answered(302), "parent_protocol", 502),
            (ParentError::Answered(403), "parent_refused", 502),
            (ParentError::Answered(407), "parent_credential", 502),
            (ParentError::Answered(503), "parent_failed", 502),
        ] {
            let denial = error.denial();
            assert_eq!((denial.code(), denial.status()), (code, status), "{error}");
            assert!(denial.is_upstreams(), "{error}");
        }
    }
}
