//! A refusal on the wire, the same by every way in.

use std::time::Duration;

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::protocols::http::date::get_cached_date;
use pingora::proxy::Session;
use tokio::io::AsyncWriteExt;

use crate::egress::RequestId;
use crate::gate::Denial;

use super::conn::ConnIo;

/// How long a client may take to accept a refusal.
const LONGEST: Duration = Duration::from_secs(5);

/// Writes a refusal to a connection that is closed afterwards.
pub(super) async fn write_raw(mut io: ConnIo, denial: &Denial, id: &RequestId) {
    if io.http2_stream().is_some() {
        let _ = tokio::time::timeout(LONGEST, write_stream(io, denial, id)).await;
        return;
    }
    let out = text(denial, id, false, true);
    // A client that does not read must not hold the connection.
    let answer = async {
        if io.write_all(&out).await.is_ok() {
            io.close_gently().await;
        }
    };
    let _ = tokio::time::timeout(LONGEST, answer).await;
}

/// Offers a refusal to a connection that is closed at once, come what may.
pub(super) fn offer_raw(mut io: ConnIo, denial: &Denial, id: &RequestId) {
    io.offer(&text(denial, id, false, true));
}

/// A refusal in HTTP/1.1. Without its body where only the head was asked for; by
/// one that `closes` its connection ends.
pub(super) fn text(denial: &Denial, id: &RequestId, head_only: bool, closes: bool) -> Vec<u8> {
    let body = denial.body(id);
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {} {}\r\n",
            denial.status(),
            denial.reason_phrase(id)
        )
        .as_bytes(),
    );
    for (name, value) in denial.fields(id) {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    write_date(&mut out);
    out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    out.extend_from_slice(match closes {
        true => b"Connection: close\r\n\r\n",
        false => &b"\r\n"[..],
    });
    if !head_only {
        out.extend_from_slice(&body);
    }
    out
}

/// Writes when it is said (RFC 9110 section 6.6.1).
pub(super) fn write_date(out: &mut Vec<u8>) {
    out.extend_from_slice(b"Date: ");
    out.extend_from_slice(get_cached_date().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes a refusal as the answer to a CONNECT in a stream of HTTP/2.
async fn write_stream(mut io: ConnIo, denial: &Denial, id: &RequestId) -> std::io::Result<()> {
    let body = denial.body(id);
    if let Some(stream) = io.http2_stream() {
        let header = header(denial, id, body.len()).map_err(std::io::Error::other)?;
        stream.answer(header, false)?;
    }
    io.write_all(&body).await?;
    io.flush().await?;
    AsyncWriteExt::shutdown(&mut io).await
}

fn header(denial: &Denial, id: &RequestId, length: usize) -> pingora::Result<ResponseHeader> {
    let mut header = ResponseHeader::build(denial.status(), Some(10))?;
    header.set_reason_phrase(Some(&denial.reason_phrase(id)))?;
    for (name, value) in denial.fields(id) {
        header.append_header(name, value)?;
    }
    header.insert_header("Content-Length", length.to_string())?;
    Ok(header)
}

/// Writes a refusal as the answer to a request that Pingora has read.
///
/// # Errors
/// Pingora's, when the client is gone.
pub(super) async fn write_session(
    session: &mut Session,
    denial: &Denial,
    id: &RequestId,
    close: bool,
) -> pingora::Result<()> {
    let body = denial.body(id);
    let header = header(denial, id, body.len())?;
    if close {
        session.set_keepalive(None);
    }
    let head_only = session.req_header().method == http::Method::HEAD;
    session
        .write_response_header(Box::new(header), head_only)
        .await?;
    if !head_only {
        session
            .write_response_body(Some(Bytes::from(body)), true)
            .await?;
    }
    Ok(())
}
