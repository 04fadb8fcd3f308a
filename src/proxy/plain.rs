//! A plain request from its head to the end of its answer: HTTP/1.1 in clear to
//! an origin, without a body and without an upgrade, which is most of what is
//! asked of a proxy in clear text.
//!
//! It goes by our own hands. What a full engine does for every request it could
//! meet (modules, caches, tasks between the two sides, a header map each way)
//! costs several times what this one needs. Everything else is Pingora's; both
//! ask the same gate, and write the same record.

use std::io::Write;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::egress::answer::{self, AnswerBody};
use crate::egress::head::{BodyLength, Head};
use crate::egress::{
    Ask, Authority, ChunkError, ChunkedBody, ConnectionWord, Edit, EgressRequest, OpenHead,
    RequestId, RequestTarget, Scheme, open_head,
};
use crate::gate::{Admission, Cause, Denial, Standing, TunnelEnd, Way};

use super::conn::ConnIo;
use super::exchange::{Exchange, LONG, SETTLING};
use super::fields::{SKILL_FIELD, TOKEN_FIELD, next_hop_trace, skill, trace_id};
use super::pool::Errand;
use super::serve::open_trail;
use super::tunnels::OpenKind;
use super::upstream::Upstream;
use super::{Shared, Wire, agents_name, dial, refusal, rpc};

/// The most bytes of an answer's head.
const MOST_HEAD: usize = 256 * 1024;
/// The most answers before the answer itself.
const MOST_INTERIM: usize = 32;
/// How much is read at once: of a head and what comes with it, and of a body.
const FIRST_READ: usize = 4 * 1024;
const LATER_READ: usize = 64 * 1024;
/// Up to so much of a body leaves with its head in one piece.
const TOGETHER: usize = 16 * 1024;

/// A plain request, its head read and written anew.
pub(super) struct PlainRequest {
    asked: EgressRequest,
    sent: Sent,
}

/// What goes on of it, and what it says besides.
struct Sent {
    method: Method,
    /// The head for the origin, whole.
    onward: Vec<u8>,
    /// The value of `Proxy-Authorization`.
    credential: Option<Vec<u8>>,
    trace: Option<String>,
    skill: Option<String>,
    /// Whether this gateway has seen it before.
    loops: bool,
    /// Whether the client wants no other request on its connection.
    closes: bool,
}

/// What becomes of the client's connection.
pub(super) enum After {
    /// Another request may come.
    Again,
    /// It is closed, so that the client gets what was said.
    Close,
    /// It is broken.
    Gone,
}

/// Writes the head anew: for an origin where this can be a plain request, else
/// for Pingora.
pub(super) fn rewrite(
    shared: &Shared,
    io: &ConnIo,
    head: &Head<'_>,
    target: &RequestTarget,
    authority: Option<&Authority>,
) -> Result<Box<PlainRequest>, OpenHead> {
    let (authority, path) = match (target, authority) {
        (RequestTarget::Absolute { path, .. } | RequestTarget::Origin { path, .. }, Some(to))
            if is_plain(shared, io, head) =>
        {
            (to, path)
        }
        _ => return Err(open_head(head, target, authority, |_, _| Edit::Keep)),
    };
    let mut traced = false;
    let mut open = open_head(head, target, Some(authority), |name, value| {
        if name.eq_ignore_ascii_case(TOKEN_FIELD) {
            return Edit::Drop;
        }
        if !name.eq_ignore_ascii_case("traceparent") {
            return Edit::Keep;
        }
        // There is one parent of what comes next (W3C Trace Context, section 3.2):
        // this hop, where it is a whole trace context.
        match next_hop_trace(value, (shared.random)()) {
            _ if std::mem::replace(&mut traced, true) => Edit::Drop,
            Some(next) => Edit::Replace(next),
            None => Edit::Keep,
        }
    });
    let Ok(method) = Method::from_bytes(head.method.as_bytes()) else {
        return Err(open);
    };
    if open.websocket || open.last_hop {
        return Err(open);
    }
    let via = shared.instance.as_bytes();
    for part in [&b"Via: 1.1 "[..], via, b"\r\n\r\n"] {
        open.bytes.extend_from_slice(part);
    }
    let is_via = |name: &str| name.eq_ignore_ascii_case("via");
    let mut passed = head.fields.iter().filter(|(name, _)| is_via(name));
    let loops = passed.any(|(_, value)| memchr::memmem::find(value, via).is_some());
    Ok(Box::new(PlainRequest {
        asked: EgressRequest {
            authority: authority.clone(),
            ask: Ask::Request {
                scheme: Scheme::Http,
                method: method.clone(),
                path: path.clone(),
            },
        },
        sent: Sent {
            method,
            onward: open.bytes,
            credential: match io.connection().tunnel {
                Some(_) => None,
                None => head.field("proxy-authorization").map(<[u8]>::to_vec),
            },
            trace: head.field("traceparent").and_then(trace_id),
            skill: head.field(SKILL_FIELD).and_then(skill),
            loops,
            closes: open.word == ConnectionWord::Close,
        },
    }))
}

fn is_plain(shared: &Shared, io: &ConnIo, head: &Head<'_>) -> bool {
    shared.peers.is_none()
        && !io.is_http2_stream()
        && shared.settings.parent.is_none()
        && head.version_11
        && matches!(head.body, BodyLength::None | BodyLength::Bytes(0))
        && head.field("expect").is_none()
        && head.field("upgrade").is_none()
}

/// Serves one. What comes behind it on the connection stays unread. It can be
/// ended from outside; its record is then written where it is dropped.
pub(super) async fn serve(wire: &Wire, io: &mut ConnIo, request: PlainRequest) -> After {
    let ending = Arc::clone(&io.connection().ending);
    let mut exchange = Exchange::default();
    exchange.ending = Some(Arc::clone(&ending));
    exchange.trail = Some(open_trail(wire, io));
    tokio::select! {
        biased;
        _ = ending.ended() => After::Gone,
        after = exchange_one(wire, io, request, &mut exchange) => after,
    }
}

/// How an exchange fails.
enum Failure {
    /// The client is told.
    Denied(Denial),
    /// It has been told otherwise already: why it broke off, and more for the
    /// operator.
    BrokeOff(&'static str, String),
}

/// The client is gone, or takes nothing.
fn client_gone(what: &'static str) -> Failure {
    Failure::BrokeOff("aborted", what.to_owned())
}

async fn exchange_one(
    wire: &Wire,
    io: &mut ConnIo,
    request: PlainRequest,
    exchange: &mut Exchange,
) -> After {
    let shared = &*wire.shared;
    let PlainRequest { asked, sent } = request;
    if let Err(denial) = admit(shared, io, asked, &sent, exchange).await {
        let closes = denial.status() == 407;
        return Box::pin(refuse(wire, io, &sent, exchange, (denial, closes))).await;
    }
    let served = match fetch(shared, io, &sent, exchange).await {
        Ok(origin) => answer_with(wire, io, &sent, exchange, origin).await,
        Err(failure) => Err(failure),
    };
    exchange.registered = None;
    let after = match served {
        Ok(true) => After::Close,
        Ok(false) => After::Again,
        Err(Failure::Denied(denial)) => {
            let denial = match &exchange.admission {
                Some(admission) => denial.towards(admission.authority()),
                None => denial,
            };
            // What failed on the way ends the connection.
            return Box::pin(refuse(wire, io, &sent, exchange, (denial, true))).await;
        }
        Err(Failure::BrokeOff(why, detail)) => {
            if let Some(trail) = &mut exchange.trail {
                trail.broke_off(why, Some(detail));
            }
            After::Gone
        }
    };
    if let Some(mut trail) = exchange.trail.take() {
        trail.bytes(0, exchange.sent);
        trail.finish();
    }
    after
}

/// Who asks, whether it may, and by which addresses.
async fn admit(
    shared: &Shared,
    io: &ConnIo,
    asked: EgressRequest,
    sent: &Sent,
    exchange: &mut Exchange,
) -> Result<(), Denial> {
    let Some(trail) = exchange.trail.as_mut() else {
        return Err(Denial::new(Cause::Internal));
    };
    trail.method(sent.method.as_str());
    trail.labels(sent.trace.as_deref(), sent.skill.as_deref());
    let connection = io.connection();
    let who = match &connection.tunnel {
        Some(tunnel) => {
            let source = connection.client.map(|client| client.ip());
            let again = shared.gate.again(&tunnel.who, source, trail).await;
            again.map(|()| Arc::clone(&tunnel.who))
        }
        None => {
            let credential = sent.credential.as_deref();
            shared.who(connection, credential, trail).await
        }
    };
    let who = who.map_err(|denial| denial.towards(&asked.authority))?;
    if sent.loops {
        return Err(Denial::new(Cause::Loop).towards(&asked.authority));
    }
    if shared.settings.is_agent(&asked.authority) {
        return Err(agents_name(&asked.authority));
    }
    let admission = rpc::admit_bodiless(shared, &who, &asked, trail).await?;
    exchange.admitted(shared, admission, asked)
}

/// Refuses, and records it.
async fn refuse(
    wire: &Wire,
    io: &mut ConnIo,
    sent: &Sent,
    exchange: &mut Exchange,
    (denial, closes): (Denial, bool),
) -> After {
    let Some(mut trail) = exchange.trail.take() else {
        return After::Gone;
    };
    trail.refused(&denial);
    let id = trail.request_id();
    let delay = trail.refusal_delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let closes = closes || sent.closes || *wire.shutdown.borrow();
    let text = refusal::text(&denial, &id, sent.method == Method::HEAD, closes);
    let head = memchr::memmem::find(&text, b"\r\n\r\n").map_or(0, |at| at + 4);
    trail.bytes(0, (text.len() - head) as u64);
    trail.finish();
    match send(&wire.shared, io, &text).await {
        Ok(()) if closes => After::Close,
        Ok(()) => After::Again,
        Err(_) => After::Gone,
    }
}

/// An origin that has begun to answer.
struct Origin {
    stream: TcpStream,
    /// What it may serve afterwards.
    errand: Errand,
    /// What has come behind the head of its answer.
    unread: BytesMut,
    status: u16,
    body: AnswerBody,
    /// Whether its connection stays open behind the answer.
    persists: bool,
    /// The head for the client, but for the gateway's own fields.
    onward: Vec<u8>,
}

/// Asks the origin, on a connection that waits or on a new one, and reads the head
/// of its answer. A connection that waited may have been closed by the origin at
/// the same moment: what can be asked twice then is asked once more on a new one
/// (RFC 9112 section 9.3.1, RFC 9110 section 9.2.2).
async fn fetch(
    shared: &Shared,
    io: &mut ConnIo,
    sent: &Sent,
    exchange: &mut Exchange,
) -> Result<Origin, Failure> {
    let Some(admission) = &exchange.admission else {
        return Err(Failure::Denied(Denial::new(Cause::Internal)));
    };
    let errand = shared.pool.errand(admission.who(), admission.authority());
    let waiting = (shared.pool).take(errand, admission.who(), &exchange.addresses);
    if let Some((stream, index)) = waiting {
        exchange.attempt = index;
        match ask(shared, io, sent, exchange, (stream, errand)).await {
            Err(Asked::Unheard) if sent.method.is_idempotent() => {}
            other => return other.map_err(Asked::into_failure),
        }
    }
    // Boxed: nearly all go on a connection that waits.
    let stream = Box::pin(dialled(shared, exchange)).await;
    let stream = stream.map_err(Failure::Denied)?;
    let asked = ask(shared, io, sent, exchange, (stream, errand)).await;
    asked.map_err(Asked::into_failure)
}

/// A new connection to one of the admitted addresses.
async fn dialled(shared: &Shared, exchange: &mut Exchange) -> Result<TcpStream, Denial> {
    let internal = |why: &str| Denial::new(Cause::Internal).detail(why);
    let Some(admission) = &exchange.admission else {
        return Err(internal("no admission"));
    };
    let dialled = dial::dial(shared, admission).await?;
    // What was dialled must be one of what was admitted.
    let index = exchange
        .addresses
        .iter()
        .position(|address| Some(*address) == dialled.address)
        .ok_or_else(|| internal("an address that was not admitted"))?;
    exchange.attempt = index;
    match dialled.upstream {
        Upstream::Direct(stream) => Ok(stream),
        Upstream::ByParent(_) => Err(internal("a parent proxy where there is none")),
    }
}

/// How asking an origin fails.
enum Asked {
    /// The origin has closed the connection without a word.
    Unheard,
    Failed(Failure),
}

impl Asked {
    fn into_failure(self) -> Failure {
        match self {
            Self::Unheard => {
                let denial = Denial::new(Cause::UpstreamClosed);
                Failure::Denied(denial.detail("it was closed before an answer came"))
            }
            Self::Failed(failure) => failure,
        }
    }
}

async fn ask(
    shared: &Shared,
    io: &mut ConnIo,
    sent: &Sent,
    exchange: &mut Exchange,
    (mut stream, errand): (TcpStream, Errand),
) -> Result<Origin, Asked> {
    let denied =
        |cause, detail: &str| Asked::Failed(Failure::Denied(Denial::new(cause).detail(detail)));
    let address = exchange.addresses.get(exchange.attempt);
    if let (Some(trail), Some(address)) = (&mut exchange.trail, address) {
        trail.dialled(address.ip());
        trail.under_way();
    }
    let settings = &shared.settings;
    let written = timeout(settings.body_timeout, stream.write_all(&sent.onward));
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(Asked::Unheard),
        Err(_) => return Err(denied(Cause::UpstreamTimeout, "WriteTimedout")),
    }
    let mut unread = BytesMut::with_capacity(FIRST_READ);
    let mut interim = 0;
    loop {
        let reading = timeout(
            settings.response_timeout,
            read_head(&mut stream, &mut unread),
        );
        let read = tokio::select! {
            biased;
            read = reading => read,
            () = io.broken() => return Err(Asked::Failed(client_gone("ReadError"))),
        };
        let head = match read {
            Ok(Ok(Some(head))) => head,
            Ok(Ok(None)) => {
                let why = match unread.len() > MOST_HEAD {
                    true => "the head of the answer is longer than 256 KiB",
                    false => "the destination does not answer in HTTP/1",
                };
                return Err(denied(Cause::UpstreamProtocol, why));
            }
            Ok(Err(_)) if unread.is_empty() && interim == 0 => return Err(Asked::Unheard),
            Ok(Err(error)) => return Err(denied(Cause::UpstreamClosed, &error.to_string())),
            Err(_) => return Err(denied(Cause::UpstreamTimeout, "ReadTimedout")),
        };
        answer::unfold(&mut unread[..head]);
        let parsed = answer::parse(&unread[..head], sent.method.as_str());
        let answer = parsed.map_err(|why| denied(Cause::UpstreamProtocol, &why.to_string()))?;
        let mut onward = Vec::with_capacity(2 * 1024);
        answer.write_onward(&mut onward);
        let (status, body, persists) = (answer.status, answer.body, answer.persists);
        let is_interim = answer.is_interim();
        if !is_interim && answer.says_no_date() {
            refusal::write_date(&mut onward);
        }
        unread.advance(head);
        if !is_interim {
            return Ok(Origin {
                stream,
                errand,
                unread,
                status,
                body,
                persists,
                onward,
            });
        }
        interim += 1;
        if interim > MOST_INTERIM {
            let why = "there are more than 32 answers before the answer";
            return Err(denied(Cause::UpstreamProtocol, why));
        }
        finish_head(&mut onward, shared, exchange, false);
        send(shared, io, &onward).await.map_err(Asked::Failed)?;
    }
}

/// Reads until a head is whole, and gives its length; `None` where it is too long,
/// or will never be one.
async fn read_head(
    stream: &mut TcpStream,
    unread: &mut BytesMut,
) -> std::io::Result<Option<usize>> {
    let mut looked = 0;
    loop {
        // Some send an empty line too many (RFC 9112 section 2.2).
        let blank = |bytes: &[u8]| match bytes {
            [b'\r', b'\n', ..] => 2,
            [b'\n', ..] => 1,
            _ => 0,
        };
        while blank(unread) > 0 {
            unread.advance(blank(unread));
            looked = 0;
        }
        if let Some(end) = answer::end(unread, looked) {
            return Ok(Some(end));
        }
        if unread.len() > MOST_HEAD || answer::is_hopeless(unread, looked) {
            return Ok(None);
        }
        looked = unread.len();
        unread.reserve(FIRST_READ);
        if stream.read_buf(unread).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Writes what the gateway adds to an answer, and the empty line.
fn finish_head(out: &mut Vec<u8>, shared: &Shared, exchange: &Exchange, closes: bool) {
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    put(&[b"Via: 1.1 ", shared.instance.as_bytes(), b"\r\n"]);
    let standing = exchange.admission.iter().flat_map(Admission::standing);
    for (name, value) in standing.flat_map(Standing::fields) {
        put(&[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    let id = exchange.trail.as_ref().map(|trail| trail.request_id());
    let id = id.as_ref().map_or("", RequestId::as_str);
    put(&[b"X-Request-Id: ", id.as_bytes(), b"\r\n"]);
    if closes {
        put(&[b"Connection: close\r\n"]);
    }
    put(&[b"\r\n"]);
}

/// Sends bytes to the client.
async fn send(shared: &Shared, io: &mut ConnIo, bytes: &[u8]) -> Result<(), Failure> {
    match timeout(shared.settings.body_timeout, io.send(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(client_gone("WriteError")),
        Err(_) => Err(client_gone("WriteTimedout")),
    }
}

/// Passes an answer on. Says whether the client's connection ends with it.
async fn answer_with(
    wire: &Wire,
    io: &mut ConnIo,
    sent: &Sent,
    exchange: &mut Exchange,
    origin: Origin,
) -> Result<bool, Failure> {
    let shared = &*wire.shared;
    let Origin {
        mut stream,
        errand,
        mut unread,
        status,
        body,
        persists,
        onward: mut out,
    } = origin;
    let closes = sent.closes || *wire.shutdown.borrow();
    finish_head(&mut out, shared, exchange, closes);
    if let Some(trail) = &mut exchange.trail {
        trail.answered(status);
    }
    exchange.answered = true;
    match body {
        AnswerBody::None => {}
        AnswerBody::Bytes(length) if length <= LONG => {}
        _ => exchange.lasts(shared, OpenKind::Exchange),
    }
    let mut rest = Rest::of(body);
    pass_on(
        shared,
        io,
        exchange,
        (&mut stream, &mut unread),
        (&mut out, &mut rest),
    )
    .await?;
    // Whatever came behind the answer was not asked for.
    let is_done = persists && unread.is_empty();
    let address = exchange.addresses.get(exchange.attempt);
    if let (true, Some(admission), Some(address)) = (is_done, &exchange.admission, address) {
        shared.pool.put(stream, errand, admission.who(), *address);
    }
    Ok(closes)
}

/// Passes the body on behind what is in `out` already, to its end.
async fn pass_on(
    shared: &Shared,
    io: &mut ConnIo,
    exchange: &mut Exchange,
    (stream, unread): (&mut TcpStream, &mut BytesMut),
    (out, rest): (&mut Vec<u8>, &mut Rest),
) -> Result<(), Failure> {
    let broke_off = |why: &str| Failure::BrokeOff("upstream_broke_off", why.to_owned());
    let (mut last, mut begun) = (0, false);
    loop {
        let before = out.len();
        // What is long goes on from where it lies.
        let direct = rest.direct(unread.len()).filter(|count| *count > TOGETHER);
        let mut data = direct.unwrap_or(0) as u64;
        // What came before a mistake is good, and goes on.
        let framed = match direct {
            Some(_) => Ok(()),
            None => rest.pass(unread, out, &mut data),
        };
        let settled = match exchange.try_spend(Way::Down, data) {
            Ok(settled) => settled,
            Err(error) => {
                let cut = exchange.cut.clone().unwrap_or_else(|| error.to_string());
                if !begun {
                    // Nothing of the answer has left: the client is told why.
                    let cause = Cause::Throttled {
                        limit: "bytes",
                        retry_after: SETTLING,
                    };
                    return Err(Failure::Denied(Denial::new(cause).detail(cut)));
                }
                out.truncate(before);
                // The client may be gone; that is not why it ends.
                let _ = send(shared, io, out).await;
                return Err(Failure::BrokeOff(TunnelEnd::Budget.code(), cut));
            }
        };
        if !out.is_empty() {
            send(shared, io, out).await?;
            out.clear();
        }
        begun = true;
        if let Some(count) = direct {
            send(shared, io, &unread[..count]).await?;
            unread.advance(count);
            rest.passed(count);
        }
        exchange.sent += data;
        framed.map_err(|error| broke_off(&error.to_string()))?;
        if !settled {
            // Replicas are settling what is left; this part was let pass.
            tokio::time::sleep(SETTLING).await;
        }
        if rest.is_done() {
            return Ok(());
        }
        make_room(unread, last);
        let reading = timeout(shared.settings.response_timeout, stream.read_buf(unread));
        let read = tokio::select! {
            biased;
            read = reading => read,
            () = io.broken() => return Err(client_gone("ReadError")),
        };
        match read {
            Ok(Ok(0)) if rest.ends_here() => {}
            Ok(Ok(0)) => return Err(broke_off("ConnectionClosed")),
            Ok(Ok(count)) => last = count,
            Ok(Err(_)) => return Err(broke_off("ReadError")),
            Err(_) => return Err(broke_off("ReadTimedout")),
        }
    }
}

/// Makes room for the next part of a body, after one of this length: a long one for
/// what comes as fast as it is read, a short one for what comes now and then, of
/// which many may be open.
fn make_room(unread: &mut BytesMut, last: usize) {
    let wanted = match last {
        FIRST_READ.. => LATER_READ,
        _ => FIRST_READ,
    };
    if unread.is_empty() && unread.capacity() > 2 * wanted {
        *unread = BytesMut::new();
    }
    unread.reserve(wanted);
}

/// What is still to come of an answer's body, and how it goes on.
enum Rest {
    /// So many bytes, as they are.
    Bytes(u64),
    /// Chunks, which are framed anew; with what has come of a line of trailers.
    Chunks(Box<(ChunkedBody, Vec<u8>)>),
    /// All until the end, in chunks.
    ToTheEnd { ended: bool },
}

impl Rest {
    fn of(body: AnswerBody) -> Self {
        match body {
            AnswerBody::None => Self::Bytes(0),
            AnswerBody::Bytes(count) => Self::Bytes(count),
            AnswerBody::Chunked => Self::Chunks(Box::default()),
            AnswerBody::ToTheEnd => Self::ToTheEnd { ended: false },
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Bytes(left) => *left == 0,
            Self::Chunks(chunks) => chunks.0.is_done(),
            Self::ToTheEnd { ended } => *ended,
        }
    }

    /// The origin has closed: whether that is how the body ends.
    fn ends_here(&mut self) -> bool {
        match self {
            Self::ToTheEnd { ended } => {
                *ended = true;
                true
            }
            Self::Bytes(_) | Self::Chunks(_) => false,
        }
    }

    /// How many of so many bytes go on as they are.
    fn direct(&self, came: usize) -> Option<usize> {
        match self {
            Self::Bytes(left) => Some(came.min(usize::try_from(*left).unwrap_or(usize::MAX))),
            Self::Chunks(_) | Self::ToTheEnd { .. } => None,
        }
    }

    fn passed(&mut self, count: usize) {
        if let Self::Bytes(left) = self {
            *left -= count as u64;
        }
    }

    /// Takes what has come, writes what goes on of it, and counts the bytes of that
    /// which are data. What comes behind the body stays.
    fn pass(
        &mut self,
        unread: &mut BytesMut,
        out: &mut Vec<u8>,
        data: &mut u64,
    ) -> Result<(), ChunkError> {
        match self {
            Self::Bytes(_) => {
                let count = self.direct(unread.len()).unwrap_or(0);
                out.extend_from_slice(&unread[..count]);
                unread.advance(count);
                self.passed(count);
                *data += count as u64;
            }
            Self::ToTheEnd { ended } => {
                write_chunk(out, unread);
                *data += unread.len() as u64;
                unread.clear();
                if *ended {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
            }
            Self::Chunks(chunks) => pass_chunks(chunks, unread, out, data)?,
        }
        Ok(())
    }
}

/// The same for chunks, which need not be those in which the origin has cut them.
/// Trailers are data too: an agent gets them.
fn pass_chunks(
    (body, trailers): &mut (ChunkedBody, Vec<u8>),
    unread: &mut BytesMut,
    out: &mut Vec<u8>,
    data: &mut u64,
) -> Result<(), ChunkError> {
    if body.is_done() {
        return Ok(());
    }
    while !unread.is_empty() && !body.is_done() {
        let sure = usize::try_from(body.data_left()).unwrap_or(usize::MAX);
        let count = sure.min(unread.len()).max(1);
        body.advance(&unread[..count])?;
        if sure > 0 {
            write_chunk(out, &unread[..count]);
            *data += count as u64;
        } else if body.in_trailers() {
            trailers.push(unread[0]);
        }
        unread.advance(count);
    }
    if body.is_done() {
        out.extend_from_slice(b"0\r\n");
        let before = out.len();
        write_trailers(out, trailers);
        *data += (out.len() - before) as u64;
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        // A vector takes all that is written to it.
        let _ = write!(out, "{:x}\r\n", data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes those of the trailers that may go on.
fn write_trailers(out: &mut Vec<u8>, section: &[u8]) {
    for line in section.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some((name, value)) = answer::trailer(line) {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes on of these bytes, cut in two here, and what stays.
    fn passed(body: AnswerBody, bytes: &[u8], cut: usize) -> (String, u64, usize) {
        let (mut rest, mut out, mut unread) = (Rest::of(body), Vec::new(), BytesMut::new());
        let mut data = 0;
        for part in [&bytes[..cut], &bytes[cut..]] {
            unread.extend_from_slice(part);
            (rest.pass(&mut unread, &mut out, &mut data)).expect("well framed");
        }
        if rest.ends_here() {
            (rest.pass(&mut unread, &mut out, &mut data)).expect("well framed");
        }
        assert!(rest.is_done());
        (String::from_utf8(out).expect("ascii"), data, unread.len())
    }

    /// The data in well-framed chunks, and what follows the last one.
    fn unchunked(mut text: &str) -> (String, &str) {
        let mut data = String::new();
        loop {
            let (size, rest) = text.split_once("\r\n").expect("a size");
            let size = usize::from_str_radix(size, 16).expect("a number");
            if size == 0 {
                return (data, rest);
            }
            data.push_str(&rest[..size]);
            text = rest[size..].strip_prefix("\r\n").expect("an end");
        }
    }

    #[test]
    fn a_body_goes_on_whole_however_it_is_cut() {
        let raw = b"3;ext=x\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 7\r\nHost: x\r\n\r\nnext";
        for cut in 0..raw.len() {
            let (text, data, left) = passed(AnswerBody::Chunked, raw, cut);
            let (found, behind) = unchunked(&text);
            assert_eq!((found.as_str(), data), ("abc0123456789", 13 + 10), "{cut}");
            assert_eq!((behind, left), ("X-Sum: 7\r\n\r\n", 4), "{cut}");
        }
        for cut in 0..8 {
            let whole = ("0123".to_owned(), 4, 4);
            assert_eq!(
                passed(AnswerBody::Bytes(4), b"01234567", cut),
                whole,
                "{cut}"
            );
            let (text, data, left) = passed(AnswerBody::ToTheEnd, b"01234567", cut);
            assert_eq!((data, left), (8, 0), "{cut}");
            assert_eq!(unchunked(&text), ("01234567".to_owned(), "\r\n"), "{cut}");
        }
        assert_eq!(passed(AnswerBody::None, b"x", 0), (String::new(), 0, 1));
    }

    #[test]
    fn there_is_room_for_what_comes_fast_and_none_is_held_for_what_does_not() {
        let mut unread = BytesMut::with_capacity(FIRST_READ);
        for (last, least, most) in [
            (0, FIRST_READ, FIRST_READ),
            (100, FIRST_READ, FIRST_READ),
            (FIRST_READ, LATER_READ, LATER_READ),
            (20_000, LATER_READ, LATER_READ),
            (LATER_READ, LATER_READ, LATER_READ),
            (100, FIRST_READ, FIRST_READ),
        ] {
            make_room(&mut unread, last);
            let room = unread.capacity();
            assert!((least..=most).contains(&room), "{last}: {room}");
        }
    }

    #[test]
    fn badly_framed_chunks_go_no_further() {
        for raw in [
            &b"3\r\nabcd\r\n"[..],
            b"x\r\n",
            b"3\nabc\n",
            b"0\r\nno field\r\n\r\n",
        ] {
            let (mut rest, mut out) = (Rest::of(AnswerBody::Chunked), Vec::new());
            let passed = rest.pass(&mut BytesMut::from(raw), &mut out, &mut 0);
            assert!(passed.is_err(), "{raw:?}");
            assert!(!out.ends_with(b"0\r\n\r\n"), "{raw:?}");
        }
    }
}
