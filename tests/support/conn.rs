//! A connection whose bytes are seen and sent exactly: the client's end towards
//! the gateway, and the origin's end behind it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::DEADLINE;

/// One end of a connection, with what was read and not yet taken.
pub(crate) struct Conn {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// The start line and the fields of a message, as they came.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) start: String,
    pub(crate) fields: Vec<(String, String)>,
}

/// A whole response.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) head: Head,
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) body: Vec<u8>,
    /// The trailer section of a chunked body.
    pub(crate) trailers: Vec<(String, String)>,
}

impl Conn {
    /// Connects.
    pub(crate) fn to(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).expect("the address accepts"))
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    /// The socket below, for what is not covered here.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The bytes read and not taken, and the socket.
    pub(crate) fn into_parts(self) -> (Vec<u8>, TcpStream) {
        (self.unread, self.stream)
    }

    /// Sends these bytes, in as few segments as the system makes of them.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .expect("the other side reads");
    }

    /// Sends what the other side still takes: it may close at any time.
    pub(crate) fn send_lossy(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Closes the sending side.
    pub(crate) fn finish(&mut self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("still connected");
    }

    /// Breaks the connection with a reset, as a killed client does.
    pub(crate) fn abort(self) {
        let socket = nix::sys::socket::sockopt::Linger;
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&self.stream, socket, &linger).expect("linger");
    }

    /// Reads some more. `false` at the end; a reset is an end as well.
    fn more(&mut self) -> bool {
        let mut part = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return false,
                Ok(count) => {
                    self.unread.extend_from_slice(&part[..count]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    panic!(
                        "nothing came in time; so far: {:?}",
                        String::from_utf8_lossy(&self.unread)
                    );
                }
                Err(_) => return false,
            }
        }
    }

    /// The next so many bytes.
    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(
                self.more(),
                "closed after {} of {count} bytes: {:?}",
                self.unread.len(),
                String::from_utf8_lossy(&self.unread)
            );
        }
        self.unread.drain(..count).collect()
    }

    /// The next line without its end; `None` where the connection has closed
    /// instead.
    pub(crate) fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line).into_owned();
                return Some(text.trim_end_matches(['\r', '\n']).to_owned());
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// Whatever comes until these bytes have, or the other side closes.
    pub(crate) fn until(&mut self, end: &[u8]) -> Vec<u8> {
        while !self.unread.windows(end.len()).any(|part| part == end) && self.more() {}
        std::mem::take(&mut self.unread)
    }

    /// Whether the other side has closed neither way, as far as is known here by
    /// now. What has come meanwhile is kept.
    pub(crate) fn is_open(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("set");
        let mut part = [0; 1024];
        let end = loop {
            match self.stream.read(&mut part) {
                Ok(0) => break false,
                Ok(count) => self.unread.extend_from_slice(&part[..count]),
                Err(error) => break error.kind() == ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).expect("set");
        end
    }

    /// Whatever comes until the other side closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.unread)
    }

    /// Whether the other side closes without another byte.
    pub(crate) fn closes(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// The next head; `None` where the connection has closed instead.
    pub(crate) fn head(&mut self) -> Option<Head> {
        let start = self.line()?;
        Some(Head {
            start,
            fields: self.fields()?,
        })
    }

    fn fields(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':').expect("a field has a colon");
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The next chunk of a chunked body; empty at its end, with the trailers
    /// still to come.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let size = self.line().expect("a chunk");
        let digits = size.split(';').next().unwrap_or_default().trim();
        let count = usize::from_str_radix(digits, 16).expect("a chunk size");
        if count == 0 {
            return Vec::new();
        }
        let data = self.exactly(count);
        assert_eq!(self.exactly(2), b"\r\n", "a chunk ends in CRLF");
        data
    }

    /// Reads until so many bytes are there. `false` where it closes before.
    pub(crate) fn has(&mut self, count: usize) -> bool {
        while self.unread.len() < count {
            if !self.more() {
                return false;
            }
        }
        true
    }

    /// The body that this head announces, with its trailers.
    pub(crate) fn body_of(&mut self, head: &Head) -> (Vec<u8>, Vec<(String, String)>) {
        if head.chunked() {
            let mut body = Vec::new();
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    return (body, self.fields().expect("the trailer section"));
                }
                body.extend_from_slice(&chunk);
            }
        }
        let count = head.field("content-length").map_or(0, |length| {
            length.parse::<usize>().expect("a decimal length")
        });
        (self.exactly(count), Vec::new())
    }

    /// The next response to a request of this method, interim ones left out.
    pub(crate) fn response_to(&mut self, method: &str) -> Response {
        loop {
            let head = self.head().expect("a response");
            let status = head.status();
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let bodiless = method == "HEAD" || matches!(status, 101 | 204 | 304);
            let tunnel = method == "CONNECT" && status == 200;
            let (body, trailers) = if bodiless || tunnel {
                (Vec::new(), Vec::new())
            } else if head.chunked() || head.field("content-length").is_some() {
                self.body_of(&head)
            } else {
                (self.rest(), Vec::new())
            };
            return Response {
                status,
                reason: head.start.splitn(3, ' ').nth(2).unwrap_or("").to_owned(),
                head,
                body,
                trailers,
            };
        }
    }

    /// The next response to a GET.
    pub(crate) fn response(&mut self) -> Response {
        self.response_to("GET")
    }
}

impl Head {
    /// The value of the first field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// The values of all fields of this name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The status, where this is a response's head.
    pub(crate) fn status(&self) -> u16 {
        self.start
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {:?}", self.start))
    }

    /// The method and the target, where this is a request's head.
    pub(crate) fn asks(&self) -> (&str, &str) {
        let mut words = self.start.split(' ');
        (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        )
    }

    fn chunked(&self) -> bool {
        self.field("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    }
}

impl Response {
    /// The value of the first field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The gateway's own word for why it refused; empty where it did not.
    pub(crate) fn refusal(&self) -> &str {
        self.field("x-agentport-reason").unwrap_or("")
    }
}
