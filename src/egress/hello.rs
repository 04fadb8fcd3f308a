//! The TLS ClientHello (RFC 8446 section 4.1.2), as far as a gateway that does
//! not decrypt needs it: the server name (RFC 6066), the protocols offered
//! (RFC 7301), and whether the real hello is encrypted (RFC 9849, ECH).

/// The most bytes a ClientHello may take, record headers included.
pub const MAX_HELLO_BYTES: usize = 32 * 1024;

/// What a ClientHello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The `host_name` of the server-name extension as it was sent.
    pub server_name: Option<String>,
    /// Whether the extension `encrypted_client_hello` is there, be it real or
    /// grease: the two cannot be told apart.
    pub encrypted: bool,
    /// The protocols of the ALPN extension, as they were sent.
    pub protocols: Vec<Vec<u8>>,
}

/// How far a ClientHello has come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloProgress {
    /// More bytes are needed.
    Partial,
    /// It is whole.
    Complete(ClientHello),
}

/// Why bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first byte is that of no TLS handshake record.
    #[error("not TLS")]
    NotTls,
    /// A record or a length that does not fit.
    #[error("the TLS ClientHello is malformed")]
    Malformed,
    /// Over [`MAX_HELLO_BYTES`].
    #[error("the TLS ClientHello is longer than 32 KiB")]
    TooLong,
    /// Two server names, or two server-name extensions.
    #[error("the TLS ClientHello has two server names")]
    TwoNames,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// Earlier drafts of ECH, and the ESNI that came before.
const OLD_ENCRYPTED: [u16; 5] = [0xffce, 0xfe08, 0xfe09, 0xfe0a, 0xfe0b];

/// Reads a ClientHello from the first bytes of a stream. It may be spread over
/// any number of records (RFC 8446 section 5.1).
///
/// # Errors
/// [`HelloError`].
pub fn progress(bytes: &[u8]) -> Result<HelloProgress, HelloError> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match rest.first() {
            Some(&HANDSHAKE) => {}
            Some(_) if message.is_empty() && rest.len() == bytes.len() => {
                return Err(HelloError::NotTls);
            }
            Some(_) => return Err(HelloError::Malformed),
            None => return partial(bytes),
        }
        match rest.get(1) {
            Some(3) => {}
            Some(_) => return Err(HelloError::Malformed),
            None => return partial(bytes),
        }
        let Some((header, body)) = rest.split_at_checked(5) else {
            return partial(bytes);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        // Empty handshake records are forbidden, longer ones too.
        if length == 0 || length > 1 << 14 {
            return Err(HelloError::Malformed);
        }
        let available = body.len().min(length);
        message.extend_from_slice(&body[..available]);
        if let Some(hello) = whole(&message)? {
            return parse_hello(hello).map(HelloProgress::Complete);
        }
        if available < length {
            return partial(bytes);
        }
        rest = &body[length..];
    }
}

fn partial(bytes: &[u8]) -> Result<HelloProgress, HelloError> {
    if bytes.len() >= MAX_HELLO_BYTES {
        return Err(HelloError::TooLong);
    }
    Ok(HelloProgress::Partial)
}

/// The body of the handshake message, once all of it is there.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, HelloError> {
    let Some((header, body)) = message.split_at_checked(4) else {
        return match message.first() {
            None | Some(&CLIENT_HELLO) => Ok(None),
            Some(_) => Err(HelloError::Malformed),
        };
    };
    if header[0] != CLIENT_HELLO {
        return Err(HelloError::Malformed);
    }
    let length =
        usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
    if length > MAX_HELLO_BYTES {
        return Err(HelloError::TooLong);
    }
    Ok(body.get(..length))
}

/// Takes apart what has a length in front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<usize, HelloError> {
        Ok(usize::from(self.take(1)?[0]))
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u8()?;
        self.take(length)
    }

    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn parse_hello(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    let mut hello = ClientHello {
        server_name: None,
        encrypted: false,
        protocols: Vec::new(),
    };
    // TLS 1.2 and older may end here, without extensions.
    if reader.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    if !reader.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut named = false;
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        match kind {
            SERVER_NAME if named => return Err(HelloError::TwoNames),
            SERVER_NAME => {
                named = true;
                hello.server_name = server_name(data)?;
            }
            ALPN => {
                let mut list = Reader(data);
                let mut names = Reader(list.vector16()?);
                while !names.is_empty() {
                    hello.protocols.push(names.vector8()?.to_vec());
                }
            }
            ENCRYPTED_CLIENT_HELLO => hello.encrypted = true,
            other if OLD_ENCRYPTED.contains(&other) => hello.encrypted = true,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(data: &[u8]) -> Result<Option<String>, HelloError> {
    let mut outer = Reader(data);
    let mut list = Reader(outer.vector16()?);
    if !outer.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let name = list.vector16()?;
        if kind != 0 {
            continue;
        }
        if found.is_some() {
            return Err(HelloError::TwoNames);
        }
        let name = std::str::from_utf8(name).map_err(|_| HelloError::Malformed)?;
        if name.is_empty() || !name.is_ascii() {
            return Err(HelloError::Malformed);
        }
        found = Some(name.to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector16(body: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(body.len())
            .expect("short")
            .to_be_bytes()
            .to_vec();
        out.extend_from_slice(body);
        out
    }

    fn name_entry(kind: u8, name: &[u8]) -> Vec<u8> {
        let mut entry = vec![kind];
        entry.extend(vector16(name));
        entry
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut out = kind.to_be_bytes().to_vec();
        out.extend(vector16(data));
        out
    }

    fn sni(name: &str) -> Vec<u8> {
        extension(SERVER_NAME, &vector16(&name_entry(0, name.as_bytes())))
    }

    fn handshake(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(vector16(&[0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(vector16(extensions));
        let mut message = vec![CLIENT_HELLO, 0];
        message.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
        message.extend(body);
        message
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in message.chunks(size) {
            out.extend([HANDSHAKE, 3, 1]);
            out.extend(vector16(part));
        }
        out
    }

    fn hello(extensions: &[u8]) -> Result<HelloProgress, HelloError> {
        progress(&records(&handshake(extensions), 1 << 14))
    }

    fn name_of(result: Result<HelloProgress, HelloError>) -> Option<String> {
        match result {
            Ok(HelloProgress::Complete(hello)) => hello.server_name,
            other => panic!("no hello: {other:?}"),
        }
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        let message = handshake(&[extension(10, &[0, 2, 0, 29]), sni("api.example.com")].concat());
        for size in [1, 2, 3, 4, 5, 40, 1000] {
            let bytes = records(&message, size);
            assert_eq!(
                name_of(progress(&bytes)).as_deref(),
                Some("api.example.com")
            );
            for cut in 0..bytes.len() {
                // Behind the last byte of the message nothing is missing.
                assert_eq!(
                    progress(&bytes[..cut]),
                    Ok(HelloProgress::Partial),
                    "{size} {cut}"
                );
            }
        }
    }

    #[test]
    fn what_a_hello_may_say() {
        assert_eq!(name_of(hello(&[])), None);
        assert_eq!(
            name_of(hello(&sni("A.example"))).as_deref(),
            Some("A.example")
        );
        let other_kind = extension(SERVER_NAME, &vector16(&name_entry(9, b"x")));
        assert_eq!(name_of(hello(&other_kind)), None);
        for kind in [ENCRYPTED_CLIENT_HELLO, 0xffce, 0xfe0a] {
            let Ok(HelloProgress::Complete(found)) =
                hello(&[sni("a"), extension(kind, &[0])].concat())
            else {
                panic!("no hello");
            };
            assert!(found.encrypted);
        }
        let alpn = extension(ALPN, &vector16(b"\x02h2\x08http/1.1"));
        let Ok(HelloProgress::Complete(found)) = hello(&alpn) else {
            panic!("no hello")
        };
        assert_eq!(found.protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    }

    #[test]
    fn broken_hellos_are_refused() {
        use HelloError::*;
        let two = [sni("a.example"), sni("b.example")].concat();
        assert_eq!(hello(&two), Err(TwoNames));
        let list = [name_entry(0, b"a"), name_entry(0, b"b")].concat();
        assert_eq!(
            hello(&extension(SERVER_NAME, &vector16(&list))),
            Err(TwoNames)
        );
        assert_eq!(hello(&sni("")), Err(Malformed));
        assert_eq!(hello(&sni("ä.example")), Err(Malformed));
        assert_eq!(
            hello(&extension(SERVER_NAME, &[0, 9, 0, 0, 1, b'a'])),
            Err(Malformed)
        );
        assert_eq!(hello(&[0, 0, 0]), Err(Malformed));
        assert_eq!(progress(b"GET / HTTP/1.1"), Err(NotTls));
        assert_eq!(progress(&[0x80, 0x2e, 1, 3, 1]), Err(NotTls));
        assert_eq!(progress(&[HANDSHAKE, 2, 0]), Err(Malformed));
        assert_eq!(progress(&[HANDSHAKE, 3, 1, 0, 0]), Err(Malformed));
        assert_eq!(progress(&[HANDSHAKE, 3, 1, 0x40, 1]), Err(Malformed));
        assert_eq!(progress(&[HANDSHAKE, 3, 1, 0, 1, 2]), Err(Malformed));
        // A record of another type between two parts of the hello.
        let mut mixed = records(&handshake(&sni("a.example")), 10);
        mixed[15] = 23;
        assert_eq!(progress(&mixed), Err(Malformed));
        assert_eq!(
            progress(&records(&[CLIENT_HELLO, 0xff, 0xff, 0xff], 4)),
            Err(TooLong)
        );
        let endless = records(
            &[&[CLIENT_HELLO, 0, 0x7f, 0xff][..], &vec![0; 40_000]].concat(),
            100,
        );
        assert!(progress(&endless[..MAX_HELLO_BYTES]).is_err());
    }
}
