//! The head of an HTTP/1 request, byte for byte (RFC 9112), and that of an answer
//! as far as a parent proxy's matters.
//!
//! Checked here, before any other parser sees it, so that nothing in it can be
//! read in two ways: one line ending, one length, one host. What is lenient in
//! the RFC and has been used for smuggling is refused.

use super::target::MAX_TARGET_BYTES;

/// The most header fields a request may have.
pub const MAX_FIELDS: usize = 200;

/// The most names that its `Connection` may have, in all.
const MAX_NAMED: usize = 64;

/// A request head, borrowed from the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The method, upper case.
    pub method: &'a str,
    /// The request target as it was sent.
    pub target: &'a str,
    /// HTTP/1.1, else HTTP/1.0.
    pub version_11: bool,
    /// The fields in order: name as sent, value without surrounding blanks.
    pub fields: Vec<(&'a str, &'a [u8])>,
    /// How the body is delimited.
    pub body: BodyLength,
}

/// The head of an answer, borrowed from the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerHead<'a> {
    /// The status, 100 to 599.
    pub status: u16,
    /// The fields in order: name as sent, value without surrounding blanks.
    pub fields: Vec<(&'a str, &'a [u8])>,
}

/// How a request's body is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// `Content-Length`.
    Bytes(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// How far a head has come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadProgress {
    /// The empty line has not come yet.
    Partial,
    /// The head ends behind this many bytes, its empty line included.
    Complete(usize),
}

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// A line feed without a carriage return.
    BareLf,
    /// A carriage return without a line feed.
    BareCr,
    /// The request line is not `METHOD SP target SP HTTP/1.x`.
    RequestLine,
    /// The status line is not `HTTP/1.x SP status SP reason`.
    StatusLine,
    /// The method is no upper-case token.
    Method,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// A target over 8 KiB.
    TargetTooLong,
    /// A continuation line (obs-fold).
    Folded,
    /// A field name that is no token, or blanks before the colon.
    FieldName,
    /// A control character in a value.
    FieldValue,
    /// Over [`MAX_FIELDS`], or 64 names in `Connection`.
    TooManyFields,
    /// Two `Host` fields.
    TwoHosts,
    /// No `Host` in HTTP/1.1.
    NoHost,
    /// Two `Content-Length` fields or a list in one.
    TwoLengths,
    /// A `Content-Length` that is not decimal digits.
    Length,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthAndEncoding,
    /// A `Transfer-Encoding` other than exactly `chunked`.
    Encoding,
    /// `Transfer-Encoding` in HTTP/1.0.
    EncodingIn10,
    /// Two `Proxy-Authorization` fields.
    TwoCredentials,
    /// A `CONNECT` that announces a body.
    ConnectBody,
}

impl HeadError {
    /// What is wrong, in a sentence that may be shown to anybody.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::BareLf => "a line ends in a bare line feed; lines end in CRLF",
            Self::BareCr => "a carriage return stands without a line feed",
            Self::RequestLine => "the request line is not `METHOD target HTTP/1.1`",
            Self::StatusLine => "the status line is not `HTTP/1.1 status reason`",
            Self::Method => "the method is not an upper-case word",
            Self::Version => "the version is neither HTTP/1.1 nor HTTP/1.0",
            Self::TargetTooLong => "the request target is longer than 8 KiB",
            Self::Folded => "a header line is folded",
            Self::FieldName => "a header field's name is not a token followed by a colon",
            Self::FieldValue => "a header field's value has a control character",
            Self::TooManyFields => "there are too many header fields, or names in Connection",
            Self::TwoHosts => "there are two Host fields",
            Self::NoHost => "an HTTP/1.1 request needs a Host field",
            Self::TwoLengths => "there are two Content-Length values",
            Self::Length => "the Content-Length is not a decimal number",
            Self::LengthAndEncoding => "there are both Content-Length and Transfer-Encoding",
            Self::Encoding => "the Transfer-Encoding is not exactly `chunked`",
            Self::EncodingIn10 => "an HTTP/1.0 request has a Transfer-Encoding",
            Self::TwoCredentials => "there are two Proxy-Authorization fields",
            Self::ConnectBody => "a CONNECT request has a body",
        }
    }
}

impl std::fmt::Display for HeadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for HeadError {}

/// Looks for the end of a head. `from` is where the last look ended, so that a
/// head which comes byte by byte is not read over and over.
///
/// # Errors
/// [`HeadError::BareLf`] as soon as one is seen: such a head would never end.
pub fn progress(bytes: &[u8], from: usize) -> Result<HeadProgress, HeadError> {
    let start = from.saturating_sub(3);
    for lf in memchr::memchr_iter(b'\n', bytes.get(start..).unwrap_or(&[])) {
        let lf = start + lf;
        if lf == 0 || bytes[lf - 1] != b'\r' {
            return Err(HeadError::BareLf);
        }
        if lf >= 3 && &bytes[lf - 3..=lf] == b"\r\n\r\n" {
            return Ok(HeadProgress::Complete(lf + 1));
        }
    }
    Ok(HeadProgress::Partial)
}

/// Parses a complete head, empty line included.
///
/// # Errors
/// [`HeadError`].
pub fn parse(bytes: &[u8]) -> Result<Head<'_>, HeadError> {
    let mut lines = Lines(bytes);
    let (method, target, version_11) = request_line(lines.next_line()?)?;
    let mut fields = Vec::with_capacity(16);
    loop {
        let line = lines.next_line()?;
        if line.is_empty() {
            break;
        }
        if fields.len() == MAX_FIELDS {
            return Err(HeadError::TooManyFields);
        }
        fields.push(field(line)?);
    }
    let body = body_length(&fields, version_11)?;
    let named = |wanted: &str| {
        fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .count()
    };
    match named("host") {
        0 if version_11 && method != "CONNECT" => return Err(HeadError::NoHost),
        0 | 1 => {}
        _ => return Err(HeadError::TwoHosts),
    }
    // Each of its names is held against each field.
    let commas = |value: &[u8]| memchr::memchr_iter(b',', value).count() + 1;
    let of_connection = fields
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    if of_connection.map(|(_, value)| commas(value)).sum::<usize>() > MAX_NAMED {
        return Err(HeadError::TooManyFields);
    }
    if named("proxy-authorization") > 1 {
        return Err(HeadError::TwoCredentials);
    }
    if method == "CONNECT" && !matches!(body, BodyLength::None | BodyLength::Bytes(0)) {
        return Err(HeadError::ConnectBody);
    }
    Ok(Head {
        method,
        target,
        version_11,
        fields,
        body,
    })
}

/// Parses the complete head of an answer, empty line included. How its body is
/// delimited is not looked at: what answers a CONNECT well has none, whatever
/// it says (RFC 9110 section 9.3.6).
///
/// # Errors
/// [`HeadError`].
pub fn parse_answer(bytes: &[u8]) -> Result<AnswerHead<'_>, HeadError> {
    let mut lines = Lines(bytes);
    let (_, status, _) = status_line(lines.next_line()?)?;
    if status >= 600 {
        return Err(HeadError::StatusLine);
    }
    let mut fields = Vec::new();
    loop {
        let line = lines.next_line()?;
        if line.is_empty() {
            return Ok(AnswerHead { status, fields });
        }
        if fields.len() == MAX_FIELDS {
            return Err(HeadError::TooManyFields);
        }
        fields.push(field(line)?);
    }
}

impl<'a> Head<'a> {
    /// The value of the first field of this name, lower case.
    #[must_use]
    pub fn field(&self, wanted: &str) -> Option<&'a [u8]> {
        self.fields
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| *value)
    }
}

struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    /// The next line without its CRLF. A head always ends in an empty one.
    fn next_line(&mut self) -> Result<&'a [u8], HeadError> {
        let Some(lf) = memchr::memchr(b'\n', self.0) else {
            return Err(HeadError::RequestLine);
        };
        let (line, rest) = self.0.split_at(lf + 1);
        self.0 = rest;
        let line = line.strip_suffix(b"\r\n").ok_or(HeadError::BareLf)?;
        if memchr::memchr(b'\r', line).is_some() {
            return Err(HeadError::BareCr);
        }
        Ok(line)
    }
}

/// Whether this is a method as they are written: in capitals, and not long.
#[must_use]
pub fn is_method(word: &str) -> bool {
    let written = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    !word.is_empty() && word.len() <= 32 && word.bytes().all(written)
}

fn request_line(line: &[u8]) -> Result<(&str, &str, bool), HeadError> {
    let line = std::str::from_utf8(line).map_err(|_| HeadError::RequestLine)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HeadError::RequestLine);
    };
    if !is_method(method) {
        return Err(HeadError::Method);
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(HeadError::TargetTooLong);
    }
    if target.is_empty() || !target.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return Err(HeadError::RequestLine);
    }
    match version {
        "HTTP/1.1" => Ok((method, target, true)),
        "HTTP/1.0" => Ok((method, target, false)),
        _ => Err(HeadError::Version),
    }
}

/// Whether it is HTTP/1.1 and not 1.0, the status of three digits and the reason.
/// That may be missing, and the blank before it too, as real servers have it; some
/// have statuses beyond those of RFC 9110 (section 15).
pub(super) fn status_line(line: &[u8]) -> Result<(bool, u16, &[u8]), HeadError> {
    let (version_11, rest) = match line.split_at_checked(9) {
        Some((b"HTTP/1.1 ", rest)) => (true, rest),
        Some((b"HTTP/1.0 ", rest)) => (false, rest),
        _ => return Err(HeadError::StatusLine),
    };
    let (digits, reason) = rest.split_at_checked(3).ok_or(HeadError::StatusLine)?;
    let whole = reason.is_empty() || reason[0] == b' ';
    let control = |b: &u8| (*b < 0x20 && *b != b'\t') || *b == 0x7f;
    let status = decimal(digits).and_then(|number| u16::try_from(number).ok());
    status
        .filter(|status| (100..1000).contains(status) && whole && !reason.iter().any(control))
        .map(|status| (version_11, status, reason.trim_ascii()))
        .ok_or(HeadError::StatusLine)
}

/// A number of up to 18 decimal digits, which fits any signed 64 bits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let are_digits = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    are_digits
        .then(|| (digits.iter()).fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// A field of an answer. Blanks between its name and the colon are taken, and do
/// not go on (RFC 9112 section 5.1).
pub(super) fn answers_field(line: &[u8]) -> Result<(&str, &[u8]), HeadError> {
    let colon = memchr::memchr(b':', line).ok_or(HeadError::FieldName)?;
    let name = line[..colon].trim_ascii_end();
    if name.len() == colon {
        return field(line);
    }
    let (name_alone, value) = (field_name(name)?, field_value(&line[colon + 1..])?);
    Ok((name_alone, value))
}

fn field(line: &[u8]) -> Result<(&str, &[u8]), HeadError> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadError::Folded);
    }
    let colon = memchr::memchr(b':', line).ok_or(HeadError::FieldName)?;
    Ok((
        field_name(&line[..colon])?,
        field_value(&line[colon + 1..])?,
    ))
}

fn field_name(name: &[u8]) -> Result<&str, HeadError> {
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    if name.is_empty() || !name.iter().all(token) {
        return Err(HeadError::FieldName);
    }
    std::str::from_utf8(name).map_err(|_| HeadError::FieldName)
}

fn field_value(value: &[u8]) -> Result<&[u8], HeadError> {
    // Every byte is looked at, without a branch: a credential is long.
    let control = |b: &u8| (*b < 0x20 && *b != b'\t') || *b == 0x7f;
    if value.iter().fold(false, |found, b| found | control(b)) {
        return Err(HeadError::FieldValue);
    }
    Ok(value.trim_ascii())
}

fn body_length(fields: &[(&str, &[u8])], version_11: bool) -> Result<BodyLength, HeadError> {
    let mut length = None;
    let mut chunked = false;
    for (name, value) in fields {
        if name.eq_ignore_ascii_case("content-length") {
            if length.is_some() || value.contains(&b',') {
                return Err(HeadError::TwoLengths);
            }
            length = Some(decimal(value).ok_or(HeadError::Length)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !version_11 {
                return Err(HeadError::EncodingIn10);
            }
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::Encoding);
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(HeadError::LengthAndEncoding),
        (None, true) => Ok(BodyLength::Chunked),
        (Some(bytes), false) => Ok(BodyLength::Bytes(bytes)),
        (None, false) => Ok(BodyLength::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_clients_send() {
        let head = parse(b"GET http://example.com/a?b HTTP/1.1\r\nHost: example.com\r\nX-A:  b \r\nx-empty:\r\n\r\n").expect("a head");
        assert_eq!(
            (head.method, head.target, head.version_11),
            ("GET", "http://example.com/a?b", true)
        );
        assert_eq!(head.field("x-a"), Some(&b"b"[..]));
        assert_eq!(head.field("X-Empty"), Some(&b""[..]));
        // Python below 3.12 and undici.
        assert!(parse(b"CONNECT example.com:443 HTTP/1.0\r\n\r\n").is_ok());
        assert!(parse(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n").is_ok());
        assert!(parse(b"CONNECT example.com:443 HTTP/1.1\r\n\r\n").is_ok());
        assert!(parse(b"GET http://a/ HTTP/1.0\r\n\r\n").is_ok());
        let head =
            parse(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").expect("a head");
        assert_eq!(head.body, BodyLength::Bytes(5));
        let head = parse(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
            .expect("a head");
        assert_eq!(head.body, BodyLength::Chunked);
        assert!(parse(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xc3\xa4\ttab\r\n\r\n").is_ok());
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        use HeadError::*;
        for (raw, error) in [
            (&b"GET / HTTP/1.1\nHost: a\n\n"[..], BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", BareCr),
            (b"GET /\r\n\r\n", RequestLine),
            (b"GET  / HTTP/1.1\r\n\r\n", RequestLine),
            (b" GET / HTTP/1.1\r\n\r\n", RequestLine),
            (b"GET / HTTP/1.1 \r\n\r\n", RequestLine),
            (b"GET / a HTTP/1.1\r\n\r\n", RequestLine),
            (b"GET\t/\tHTTP/1.1\r\n\r\n", RequestLine),
            (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", Method),
            (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Method),
            (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", Version),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
            (b"GET / http/1.1\r\nHost: a\r\n\r\n", Version),
            (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", Folded),
            (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Folded),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", FieldName),
            (b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", FieldName),
            (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", FieldName),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n", FieldName),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0\r\n\r\n", FieldValue),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\x7f\r\n\r\n", FieldValue),
            (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n", FieldValue),
            (b"GET / HTTP/1.1\r\n\r\n", NoHost),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", TwoHosts),
            (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", TwoHosts),
            (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", TwoHosts),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", TwoLengths),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", TwoLengths),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", Length),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", Length),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", Length),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Length),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\n", Length),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", Length),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", LengthAndEncoding),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n", Encoding),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Encoding),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", Encoding),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Encoding),
            (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", EncodingIn10),
            (b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Bearer a\r\nproxy-authorization: Bearer b\r\n\r\n", TwoCredentials),
            (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", ConnectBody),
            (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", ConnectBody),
        ] {
            assert_eq!(parse(raw), Err(error), "{:?}", String::from_utf8_lossy(raw));
        }
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: y\r\n".repeat(MAX_FIELDS)
        );
        assert_eq!(parse(many.as_bytes()), Err(TooManyFields));
        let long = format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "a".repeat(MAX_TARGET_BYTES)
        );
        assert_eq!(parse(long.as_bytes()), Err(TargetTooLong));
    }

    #[test]
    fn answers_of_parent_proxies() {
        #[rustfmt::skip]
        let cases: [(&[u8], Result<u16, HeadError>); 16] = [
            (b"HTTP/1.1 200 Connection established\r\n\r\n", Ok(200)),
            (b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n", Ok(200)),
            (b"HTTP/1.1 200\r\n\r\n", Ok(200)),
            (b"HTTP/1.1 200 \r\n\r\n", Ok(200)),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n", Ok(407)),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Ok(200)),
            (b"HTTP/1.1 2000 OK\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 099 OK\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 600 OK\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 +20 OK\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1  200 OK\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/2 200\r\n\r\n", Err(HeadError::StatusLine)),
            (b"\x15\x03\x01\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 200 a\x00b\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", Err(HeadError::FieldName)),
            (b"HTTP/1.1 200 OK\r\n folded: a\r\n\r\n", Err(HeadError::Folded)),
        ];
        for (raw, expected) in cases {
            let found = parse_answer(raw).map(|answer| answer.status);
            assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(raw));
        }
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "X: y\r\n".repeat(MAX_FIELDS + 1)
        );
        assert_eq!(parse_answer(many.as_bytes()), Err(HeadError::TooManyFields));
        assert_eq!(parse_answer(b""), Err(HeadError::RequestLine));
    }

    #[test]
    fn a_head_may_come_byte_by_byte() {
        let raw = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        let end = raw.len() - b"body".len();
        for split in 0..end {
            assert_eq!(
                progress(&raw[..split], 0),
                Ok(HeadProgress::Partial),
                "{split}"
            );
            assert_eq!(
                progress(raw, split),
                Ok(HeadProgress::Complete(end)),
                "{split}"
            );
        }
        assert_eq!(progress(b"GET / HTTP/1.1\n", 0), Err(HeadError::BareLf));
        assert_eq!(progress(b"\n", 0), Err(HeadError::BareLf));
    }
}
