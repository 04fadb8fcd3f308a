//! Where HTTP-01 challenges are answered (RFC 8555 section 8.3): a listener
//! that knows one kind of page, and closes after each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::AcmeFolder;

/// How many may ask at once. A CA comes from a handful of places.
const CONNECTIONS: usize = 64;
/// How long a connection may last.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest head that is read.
const MAX_HEAD_BYTES: usize = 4096;
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

/// A listener that is bound.
#[derive(Debug)]
pub struct Http01 {
    listener: TcpListener,
    folder: AcmeFolder,
}

impl Http01 {
    /// Binds it.
    ///
    /// # Errors
    /// What the system answers, with the address.
    pub async fn bind(address: SocketAddr, folder: AcmeFolder) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("tls.acme.http_listen: {address}: {error}"),
            )
        })?;
        Ok(Self { listener, folder })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers, for ever.
    pub async fn serve(self) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of descriptors: whoever has some gives them back.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let folder = self.folder.clone();
            tokio::spawn(async move {
                let _ = tokio::time::timeout(LONGEST, answer(stream, &folder)).await;
                drop(slot);
            });
        }
    }
}

async fn answer(mut stream: TcpStream, folder: &AcmeFolder) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let page = token_asked(&head).and_then(|token| folder.http01(token));
    let (status, body) = match page {
        Some(page) => ("200 OK", page),
        None => ("404 Not Found", "no such challenge\n".to_owned()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// The token that the first line of a head asks for.
#[must_use]
pub fn token_asked(head: &[u8]) -> Option<&str> {
    let end = head.windows(2).position(|window| window == b"\r\n")?;
    let line = std::str::from_utf8(&head[..end]).ok()?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let token = target.strip_prefix(WELL_KNOWN)?;
    let plain = method == "GET" && version.starts_with("HTTP/1.") && words.next().is_none();
    (plain && super::is_token(token)).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_of_page_is_known() {
        for (case, head, token) in [
            (
                "a challenge",
                "GET /.well-known/acme-challenge/a-_9 HTTP/1.1\r\nHost: a\r\n\r\n",
                Some("a-_9"),
            ),
            ("another page", "GET / HTTP/1.1\r\n\r\n", None),
            (
                "another method",
                "POST /.well-known/acme-challenge/a HTTP/1.1\r\n\r\n",
                None,
            ),
            (
                "a way out",
                "GET /.well-known/acme-challenge/../account.json HTTP/1.1\r\n\r\n",
                None,
            ),
            (
                "no token",
                "GET /.well-known/acme-challenge/ HTTP/1.1\r\n\r\n",
                None,
            ),
            (
                "four words",
                "GET /.well-known/acme-challenge/a b HTTP/1.1\r\n\r\n",
                None,
            ),
            ("half a line", "GET /.well-known/acme-challenge/a", None),
        ] {
            assert_eq!(token_asked(head.as_bytes()), token, "{case}");
        }
    }
}
