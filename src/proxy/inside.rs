//! A refused `CONNECT` that is told inside its tunnel: the client hears 200,
//! makes its TLS handshake with the gateway itself, and gets the refusal as the
//! answer to its first request. Nobody is dialled, and the record says that it
//! was refused.
//!
//! Many clients take a failed `CONNECT` for a fault of the network and ask again
//! for minutes; the status of an answer they understand.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::egress::ChunkedBody;
use crate::egress::head::{self, BodyLength, HeadProgress, progress};
use crate::egress::{Host, RequestId};
use crate::gate::{AuditTrail, Cause, Denial};
use crate::policy::RefusalForm;

use super::conn::ConnIo;
use super::{Wire, connect, refusal};

/// The gateway's own certificates for hosts that it refuses.
pub trait RefusalCertificates: Send + Sync {
    /// What to speak TLS with as this host; `None` where none can be made.
    fn server(&self, host: &Host) -> Option<Arc<ServerConfig>>;
}

/// Which refusals are told inside.
pub(super) struct Inside {
    pub(super) certificates: Arc<dyn RefusalCertificates>,
    /// All of policy's, or where the rule says so.
    pub(super) all: bool,
    /// How many are told at once. They take no places from tunnels: whoever is
    /// refused would else keep others out. Beyond it a refusal is told outside.
    pub(super) places: Arc<Semaphore>,
}

/// Leave to tell a refusal inside its tunnel.
pub(super) struct Telling {
    server: Arc<ServerConfig>,
    _place: OwnedSemaphorePermit,
}

impl Inside {
    /// For a gateway of so many tunnels.
    pub(super) fn new(
        certificates: Arc<dyn RefusalCertificates>,
        all: bool,
        tunnels: usize,
    ) -> Self {
        Self {
            certificates,
            all,
            places: Arc::new(Semaphore::new((tunnels / 8).clamp(1, MOST_TOLD))),
        }
    }

    /// Whether a refusal is one of those. Only what policy refuses is: who has
    /// no good credential gets no answer but that.
    pub(super) fn tells(&self, denial: &Denial) -> Option<Telling> {
        let refused = matches!(denial.cause, Cause::Policy(_) | Cause::OwnListener);
        if !refused || !(self.all || denial.form() == RefusalForm::Inside) {
            return None;
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        Some(Telling {
            server: self.certificates.server(&denial.destination()?.host)?,
            _place: place.ok()?,
        })
    }
}

/// Tells it, and writes the record when that is done.
pub(super) async fn tell(
    wire: Arc<Wire>,
    mut io: ConnIo,
    mut trail: AuditTrail,
    denial: Denial,
    telling: Telling,
) {
    trail.refused(&denial);
    let delay = trail.refusal_delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let settings = &wire.shared.settings;
    let longest = settings.handshake_timeout + settings.header_timeout + LEAVING;
    let mut told = false;
    let outcome = tokio::time::timeout(longest, async {
        connect::say_ok(&mut io).await.map_err(|_| ABORTED)?;
        let id = trail.request_id();
        converse(&mut io, &wire, (&denial, &id), telling.server, &mut told).await
    });
    let how = match outcome.await {
        // Whatever became of the rest of its request.
        _ if told => "told inside the tunnel",
        Ok(Err(how)) => how,
        Ok(Ok(())) | Err(_) => "to be told inside the tunnel: the client sent no request in time",
    };
    trail.explain(how.to_owned());
    trail.finish();
    io.close_gently().await;
}

/// The most that are told at once.
const MOST_TOLD: usize = 256;
/// How long a body may go on that nobody wants.
const LEAVING: Duration = Duration::from_secs(5);
/// How much of it is read.
const MOST_BODY: u64 = 16 * 1024 * 1024;

const ABORTED: &str = "to be told inside the tunnel: the client went away before it was";
/// Some libraries make the whole handshake before they look at the certificate.
const UNASKED: &str = "to be told inside the tunnel: the client went away without a request; it may not trust refusals.certificate";

/// Speaks what the client speaks: TLS, or HTTP in clear.
async fn converse(
    io: &mut ConnIo,
    wire: &Wire,
    refusal: (&Denial, &RequestId),
    server: Arc<ServerConfig>,
    told: &mut bool,
) -> Result<(), &'static str> {
    while io.unread().is_empty() {
        match io.look_further().await {
            Ok(0) | Err(_) => return Err(ABORTED),
            Ok(_) => {}
        }
    }
    let most = wire.shared.settings.header_bytes;
    // A record of TLS that holds a handshake (RFC 8446 section 5.1).
    if io.unread().first() != Some(&0x16) {
        return answer(io, refusal, most, told).await;
    }
    io.pass_through();
    let handshake = TlsAcceptor::from(server).accept(&mut *io).await;
    let mut tls = handshake.map_err(|_| {
        "to be told inside the tunnel: the handshake failed; the client may not trust refusals.certificate"
    })?;
    answer(&mut tls, refusal, most, told).await
}

/// Reads the head of one request, and answers it with the refusal. Says when it
/// is told, which is before all of the request has come.
async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    (denial, id): (&Denial, &RequestId),
    most: usize,
    told: &mut bool,
) -> Result<(), &'static str> {
    let mut head = Vec::with_capacity(1024);
    let mut seen = 0;
    let length = loop {
        match stream.read_buf(&mut head).await {
            Ok(0) | Err(_) if head.is_empty() => return Err(UNASKED),
            Ok(0) | Err(_) => return Err(ABORTED),
            Ok(_) => {}
        }
        match progress(&head, seen) {
            Ok(HeadProgress::Complete(length)) => break length,
            Ok(HeadProgress::Partial) if head.len() <= most => seen = head.len(),
            _ => return Err("to be told inside the tunnel: what came was no request"),
        }
    };
    let text = refusal::text(denial, id, head.starts_with(b"HEAD "), true);
    let sent = async {
        stream.write_all(&text).await?;
        stream.flush().await
    };
    sent.await.map_err(|_| ABORTED)?;
    *told = true;
    let (head, early) = head.split_at(length);
    let body = match head::parse(head) {
        // Who asks first whether to send it is told not to.
        Ok(head) if head.field("expect").is_none() => head.body,
        _ => BodyLength::None,
    };
    // Many send all of it before they read: one that finds the stream closed
    // meanwhile fails, and never sees the answer.
    let _ = tokio::time::timeout(LEAVING, discard(stream, early, body)).await;
    let _ = poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await;
    Ok(())
}

/// Throws away a body of which this has come already.
async fn discard(stream: &mut (impl AsyncRead + Unpin), early: &[u8], body: BodyLength) {
    let (mut chunked, mut seen) = (ChunkedBody::default(), 0);
    let mut is_over = |part: &[u8]| {
        seen += part.len() as u64;
        seen >= MOST_BODY
            || match body {
                BodyLength::None => true,
                BodyLength::Bytes(count) => seen >= count,
                BodyLength::Chunked => chunked.advance(part).is_err() || chunked.is_done(),
            }
    };
    if is_over(early) {
        return;
    }
    let mut part = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut part).await {
        if is_over(&part[..count]) {
            return;
        }
    }
}
