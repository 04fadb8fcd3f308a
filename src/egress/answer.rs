//! The head of an origin's answer (RFC 9112): read once, with one way to tell
//! where its body ends, and written anew for the client.
//!
//! Origins are no attackers as a rule, and some are old: a bare line feed and
//! blanks before a colon are taken (RFC 9112 sections 2.2 and 5.1). What could be
//! taken for the end of one answer and the begin of another is not.

use super::head::{self, HeadError};

/// The most header fields that an answer may have.
pub const MAX_FIELDS: usize = 256;
/// The most names that its `Connection` may have, in all.
const MAX_NAMED: usize = 64;

/// The head of an origin's answer, borrowed from the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The status, 100 to 999.
    pub status: u16,
    /// What stands behind it, which may be nothing.
    pub reason: &'a [u8],
    /// The fields in order: name as sent, value without surrounding blanks.
    pub fields: Vec<(&'a str, &'a [u8])>,
    /// How its body is delimited.
    pub body: AnswerBody,
    /// Whether the origin keeps its connection open behind it.
    pub persists: bool,
}

/// How an answer's body is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerBody {
    /// There is none.
    None,
    /// `Content-Length`.
    Bytes(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// By the end of the connection.
    ToTheEnd,
}

/// Why an answer is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is no head of HTTP/1.
    #[error("the destination's answer is not HTTP/1.1: {0}")]
    Head(#[from] HeadError),
    /// A client would take the coded bytes for others than we do.
    #[error("the destination's answer has a Transfer-Encoding other than chunked")]
    Encoding,
    /// Two lengths, or none that is a number.
    #[error("the destination's answer has no clear Content-Length")]
    Length,
    /// 101 without having been asked.
    #[error("the destination switches protocols, which nobody asked for")]
    Switches,
}

/// What never goes on: of the connection with the origin only (RFC 9110 section
/// 7.6.1), a hint to go round the gateway, and names that only the gateway may use.
pub const STAYS_HERE: [&str; 5] = [
    "keep-alive",
    "proxy-connection",
    "alt-svc",
    "proxy-authenticate",
    "x-agentport-reason",
];

/// What is written anew.
const ANEW: [&str; 3] = ["connection", "transfer-encoding", "x-request-id"];

/// What `Connection` may name in vain.
const PROTECTED: [&str; 2] = ["content-length", "upgrade"];

/// How the body is delimited by the values of `Transfer-Encoding` and of
/// `Content-Length`, whatever the request was.
///
/// # Errors
/// Where a client could tell it otherwise than we do: it would take what comes
/// behind for the answer of the next origin asked.
pub fn framing<'v>(
    mut codings: impl Iterator<Item = &'v [u8]>,
    mut lengths: impl Iterator<Item = &'v [u8]>,
) -> Result<AnswerBody, AnswerError> {
    let coding = codings.next();
    if codings.next().is_some() || !coding.is_none_or(|it| it.eq_ignore_ascii_case(b"chunked")) {
        return Err(AnswerError::Encoding);
    }
    let length = lengths.next();
    let number = match length {
        Some(digits) if lengths.all(|other| other == digits) => head::decimal(digits),
        Some(_) => None,
        None => Some(0),
    };
    let number = number.ok_or(AnswerError::Length)?;
    Ok(match (coding, length) {
        // A length beside it says nothing (RFC 9112 section 6.3).
        (Some(_), _) => AnswerBody::Chunked,
        (None, Some(_)) => AnswerBody::Bytes(number),
        (None, None) => AnswerBody::ToTheEnd,
    })
}

/// Where the head at the front of these bytes ends, its empty line included.
/// `from` is where the last look ended.
#[must_use]
pub fn end(bytes: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(2);
    memchr::memchr_iter(b'\n', bytes.get(start..)?).find_map(|lf| {
        let end = start + lf + 1;
        let line = &bytes[..end - 1];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        line.ends_with(b"\n").then_some(end)
    })
}

/// Puts blanks where a field goes on in the next line (RFC 9112 section 5.2).
/// The first line has none (section 2.2), nor has one that is no field.
pub fn unfold(head: &mut [u8]) {
    let mut line = memchr::memchr(b'\n', head).map_or(0, |lf| lf + 1);
    let mut from = line;
    while let Some(lf) = memchr::memchr(b'\n', &head[from..]) {
        let lf = from + lf;
        from = lf + 1;
        // What has been a field up to here stays one.
        let goes_on = matches!(head.get(from), Some(b' ' | b'\t'));
        if !goes_on || memchr::memchr(b':', &head[line..lf]).is_none() {
            line = from;
            continue;
        }
        head[lf] = b' ';
        if head[lf - 1] == b'\r' {
            head[lf - 1] = b' ';
        }
    }
}

/// Whether a head that has not come whole can become none any more: whoever speaks
/// does not speak HTTP/1. Lines that had ended at `from` have been looked at.
#[must_use]
pub fn is_hopeless(bytes: &[u8], from: usize) -> bool {
    const BEGIN: &[u8] = b"HTTP/1.";
    let begin = BEGIN.len().min(bytes.len());
    if bytes[..begin] != BEGIN[..begin] {
        return true;
    }
    let from = from.min(bytes.len());
    let line = memchr::memrchr(b'\n', &bytes[..from]).map_or(0, |lf| lf + 1);
    let mut lines = bytes[line..].split_inclusive(|byte| *byte == b'\n');
    // The first line of all is no field.
    let skipped = if line == 0 { 1 } else { 0 };
    lines.by_ref().take(skipped).for_each(drop);
    lines.any(|line| {
        let goes_on = matches!(line.first(), Some(b' ' | b'\t'));
        line.ends_with(b"\n") && !goes_on && !line.contains(&b':')
    })
}

/// Parses the complete head of the answer to a request by this method, unfolded.
///
/// # Errors
/// [`AnswerError`].
pub fn parse<'a>(bytes: &'a [u8], method: &str) -> Result<Answer<'a>, AnswerError> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').map(|line| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    let first = lines.next().unwrap_or_default();
    let (version_11, status, reason) = head::status_line(first)?;
    let mut fields: Vec<(&str, &[u8])> = Vec::with_capacity(16);
    for line in lines.take_while(|line| !line.is_empty()) {
        if memchr::memchr(b'\r', line).is_some() {
            return Err(HeadError::BareCr.into());
        }
        if fields.len() == MAX_FIELDS {
            return Err(HeadError::TooManyFields.into());
        }
        fields.push(head::answers_field(line)?);
    }
    let of = |wanted: &'static str| {
        fields
            .iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| *value)
    };
    let framed = framing(of("transfer-encoding"), of("content-length"))?;
    if status == 101 {
        return Err(AnswerError::Switches);
    }
    let commas = |value: &[u8]| memchr::memchr_iter(b',', value).count() + 1;
    if of("connection").map(commas).sum::<usize>() > MAX_NAMED {
        return Err(HeadError::TooManyFields.into());
    }
    let bodiless = method == "HEAD" || matches!(status, 100..200 | 204 | 304);
    let body = if bodiless { AnswerBody::None } else { framed };
    let says = |wanted: &[u8]| {
        of("connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|word| word.trim_ascii().eq_ignore_ascii_case(wanted))
    };
    // Chunks in HTTP/1.0, or beside a length, are taken once, and the connection
    // is not trusted any further (RFC 9112 section 6.1).
    // Nor is one that announces a body where there can be none: it may follow.
    let clear = match framed {
        AnswerBody::Chunked => version_11 && of("content-length").count() == 0 && status != 204,
        AnswerBody::Bytes(length) => length == 0 || status != 204,
        AnswerBody::None | AnswerBody::ToTheEnd => true,
    };
    let persists = body != AnswerBody::ToTheEnd
        && clear
        && !says(b"close")
        && (version_11 || says(b"keep-alive"));
    Ok(Answer {
        status,
        reason,
        fields,
        body,
        persists,
    })
}

impl Answer<'_> {
    /// Writes the head for a client of HTTP/1.1, up to where the gateway's own
    /// fields and the empty line belong. A body without a length is to follow in
    /// chunks.
    pub fn write_onward(&self, out: &mut Vec<u8>) {
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        put(&[b"HTTP/1.1 ", self.status.to_string().as_bytes()]);
        put(&[b" ", self.reason, b"\r\n"]);
        let named: Vec<&[u8]> = self
            .values("connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        let in_our_name = self.values("proxy-status").any(names_us);
        let is_coded = self.values("transfer-encoding").next().is_some();
        let mut has_length = false;
        for (name, value) in &self.fields {
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
            let dropped = named
                .iter()
                .any(|word| name.as_bytes().eq_ignore_ascii_case(word))
                && !PROTECTED.iter().any(|kept| is(kept));
            if dropped || STAYS_HERE.iter().chain(&ANEW).any(|gone| is(gone)) {
                continue;
            }
            if is("content-length") {
                // Once; not beside chunks; and not where none can be
                // (RFC 9110 section 8.6).
                if std::mem::replace(&mut has_length, true) || is_coded || self.is_bare() {
                    continue;
                }
            }
            // Who may come again by another protocol is told which (RFC 9110
            // section 15.5.22); elsewhere it is of the hop.
            if (is("upgrade") && self.status != 426) || (is("proxy-status") && in_our_name) {
                continue;
            }
            put(&[name.as_bytes(), b": ", value, b"\r\n"]);
        }
        if matches!(self.body, AnswerBody::Chunked | AnswerBody::ToTheEnd) {
            put(&[b"Transfer-Encoding: chunked\r\n"]);
        }
    }

    /// Whether it is one of those before the answer itself (RFC 9110 section
    /// 15.2).
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Whether it does not say when it was made; then who passes it on does
    /// (RFC 9110 section 6.6.1).
    #[must_use]
    pub fn says_no_date(&self) -> bool {
        self.values("date").next().is_none()
    }

    fn is_bare(&self) -> bool {
        self.is_interim() || self.status == 204
    }

    fn values(&self, wanted: &'static str) -> impl Iterator<Item = &[u8]> {
        self.fields
            .iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| *value)
    }
}

/// Whether a `Proxy-Status` (RFC 9209) is written in this gateway's name.
#[must_use]
pub fn names_us(value: &[u8]) -> bool {
    const US: &[u8] = b"agentport";
    value
        .windows(US.len())
        .any(|part| part.eq_ignore_ascii_case(US))
}

/// The fields that may follow a chunked body (RFC 9110 section 6.5.1), from a
/// trailer section that has come whole; `None` for one that means something to
/// the message before it: its framing, its routing, or who may see it.
#[must_use]
pub fn trailer(line: &[u8]) -> Option<(&str, &[u8])> {
    const NEVER: [&str; 23] = [
        "age",
        "authorization",
        "cache-control",
        "connection",
        "cookie",
        "date",
        "expires",
        "forwarded",
        "host",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "te",
        "trailer",
        "upgrade",
        "vary",
        "via",
        "warning",
        "www-authenticate",
    ];
    const NEVER_SO: [&str; 8] = [
        "content-",
        "transfer-",
        "proxy-",
        "if-",
        "ratelimit",
        "x-agentport-",
        "alt-svc",
        "x-request-id",
    ];
    let (name, value) = head::answers_field(line).ok()?;
    let lower = name.to_ascii_lowercase();
    let never =
        NEVER.contains(&lower.as_str()) || NEVER_SO.iter().any(|start| lower.starts_with(start));
    (!never).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(raw: &'a str, method: &str) -> Result<Answer<'a>, AnswerError> {
        assert_eq!(end(raw.as_bytes(), 0), Some(raw.len()), "{raw:?}");
        parse(raw.as_bytes(), method)
    }

    fn onward(raw: &str, method: &str) -> String {
        let mut out = Vec::new();
        read(raw, method).expect("an answer").write_onward(&mut out);
        String::from_utf8(out).expect("ascii")
    }

    #[test]
    fn there_is_one_way_to_tell_where_a_body_ends() {
        use AnswerBody::{Bytes, Chunked, None, ToTheEnd};
        for (method, status, fields, body, persists) in [
            ("GET", "200 OK", "Content-Length: 5\r\n", Bytes(5), true),
            (
                "GET",
                "200 OK",
                "Content-Length: 5\r\nContent-Length: 5\r\n",
                Bytes(5),
                true,
            ),
            (
                "GET",
                "200 OK",
                "Transfer-Encoding: Chunked\r\n",
                Chunked,
                true,
            ),
            ("GET", "200 OK", "", ToTheEnd, false),
            (
                "GET",
                "200 OK",
                "Content-Length: 5\r\nConnection: x, Close\r\n",
                Bytes(5),
                false,
            ),
            // A length beside chunks says nothing, and smells.
            (
                "GET",
                "200 OK",
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                Chunked,
                false,
            ),
            ("HEAD", "200 OK", "Content-Length: 5\r\n", None, true),
            ("HEAD", "200 OK", "", None, true),
            ("GET", "204 No Content", "", None, true),
            ("GET", "204 No Content", "Content-Length: 0\r\n", None, true),
            // What it announces may come nevertheless.
            (
                "GET",
                "204 No Content",
                "Content-Length: 5\r\n",
                None,
                false,
            ),
            (
                "GET",
                "204 No Content",
                "Transfer-Encoding: chunked\r\n",
                None,
                false,
            ),
            ("GET", "999 Denied", "Content-Length: 5\r\n", Bytes(5), true),
            (
                "GET",
                "304 Not Modified",
                "Content-Length: 5\r\n",
                None,
                true,
            ),
            ("GET", "103 Early Hints", "", None, true),
        ] {
            let raw = format!("HTTP/1.1 {status}\r\n{fields}\r\n");
            let answer = read(&raw, method).expect("an answer");
            assert_eq!(
                (answer.body, answer.persists),
                (body, persists),
                "{method} {raw:?}"
            );
        }
        let old = read("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "GET").expect("an answer");
        assert!(!old.persists);
        let kept = "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\n";
        assert!(read(kept, "GET").expect("an answer").persists);
        let odd = "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(!read(odd, "GET").expect("an answer").persists);
    }

    #[test]
    fn what_a_client_could_read_otherwise_is_refused() {
        use AnswerError::{Encoding, Head, Length, Switches};
        for (rest, error) in [
            ("200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", Encoding),
            (
                "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Encoding,
            ),
            ("200 OK\r\nTransfer-Encoding: identity\r\n", Encoding),
            (
                "200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
                Length,
            ),
            ("200 OK\r\nContent-Length: 5, 5\r\n", Length),
            ("200 OK\r\nContent-Length: +5\r\n", Length),
            ("200 OK\r\nContent-Length:\r\n", Length),
            ("200 OK\r\nContent-Length: 1234567890123456789\r\n", Length),
            // Also where no body follows: the next proxy may not know.
            ("304 Not Modified\r\nContent-Length: x\r\n", Length),
            (
                "101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n",
                Switches,
            ),
            ("20 OK\r\n", Head(HeadError::StatusLine)),
            ("200 OK\r\nno field\r\n", Head(HeadError::FieldName)),
            (" 200 OK\r\n", Head(HeadError::StatusLine)),
            ("200 OK\r\n X: y\r\n", Head(HeadError::Folded)),
            ("200 OK\r\nX: y\r\n fold: ed\r\n", Head(HeadError::Folded)),
            ("200 OK\r\nX: y\rZ: z\r\n", Head(HeadError::BareCr)),
            ("200 OK\r\nX: y\0\r\n", Head(HeadError::FieldValue)),
        ] {
            let raw = format!("HTTP/1.1 {rest}\r\n");
            assert_eq!(read(&raw, "GET"), Err(error), "{raw:?}");
        }
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "X: y\r\n".repeat(MAX_FIELDS + 1)
        );
        assert_eq!(read(&many, "GET"), Err(Head(HeadError::TooManyFields)));
        assert_eq!(parse(b"", "GET"), Err(Head(HeadError::StatusLine)));
        let names = format!(
            "HTTP/1.1 200 OK\r\nConnection: {}\r\n\r\n",
            "a,".repeat(MAX_NAMED)
        );
        assert_eq!(read(&names, "GET"), Err(Head(HeadError::TooManyFields)));
    }

    #[test]
    fn what_old_origins_write_is_taken_and_written_well() {
        assert_eq!(
            onward("HTTP/1.0 200\nServer : old\nContent-Length : 2\n\n", "GET"),
            "HTTP/1.1 200 \r\nServer: old\r\nContent-Length: 2\r\n"
        );
        assert_eq!(
            onward("HTTP/1.0 200 Very OK\r\nA: b\r\n\r\n", "GET"),
            "HTTP/1.1 200 Very OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n"
        );
    }

    #[test]
    fn what_is_no_http_is_known_before_its_end() {
        let good = b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nC : d\n";
        for split in 0..good.len() {
            for looked in 0..=split {
                assert!(!is_hopeless(&good[..split], looked), "{split} {looked}");
            }
        }
        for (raw, looked) in [
            (&b"SSH-2.0-x\r\n"[..], 0),
            (b"220 mail ESMTP\r\n", 0),
            (b"HTTP/2 200\r\n", 0),
            (b"\x15\x03", 0),
            (b"hello", 5),
            (b"HTTP/1.1 200 OK\r\nno field\r\n", 0),
            (b"HTTP/1.1 200 OK\r\nno field\r\n", 20),
        ] {
            assert!(is_hopeless(raw, looked), "{raw:?}");
        }
    }

    #[test]
    fn a_folded_field_is_one_line() {
        let mut raw = *b"HTTP/1.1 200 OK\r\nA: b\r\n c\n\td\r\nE: f\r\n\r\n x";
        let head = end(&raw, 0).expect("a head");
        unfold(&mut raw[..head]);
        let answer = parse(&raw[..head], "GET").expect("an answer");
        assert_eq!(answer.fields, [("A", &b"b   c \td"[..]), ("E", b"f")]);
        let mut name = *b"HTTP/1.1 200 OK\r\nX\r\n : y\r\n\r\n";
        unfold(&mut name);
        assert_eq!(name, *b"HTTP/1.1 200 OK\r\nX\r\n : y\r\n\r\n");
        let mut first = *b"HTTP/1.1 200 OK\r\n X: y\r\n\r\n";
        unfold(&mut first);
        assert_eq!(first, *b"HTTP/1.1 200 OK\r\n X: y\r\n\r\n");
        for mut odd in [&b"\n"[..], b"\n ", b" \n", b"\r\n ", b""].map(<[u8]>::to_vec) {
            unfold(&mut odd);
        }
    }

    #[test]
    fn what_belongs_to_the_hop_or_to_the_gateway_does_not_go_on() {
        assert_eq!(
            onward(
                concat!(
                    "HTTP/1.1 200 OK\r\nConnection: X-Hop, content-length, keep-alive\r\n",
                    "X-Hop: 1\r\nKeep-Alive: timeout=5\r\nAlt-Svc: h3=\":443\"\r\n",
                    "Proxy-Authenticate: Basic\r\nX-AgentPort-Reason: ok\r\nX-Request-Id: 1\r\n",
                    "Proxy-Status: AgentPort; error=x\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n",
                    "Content-Length: 5\r\nContent-Length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n",
                ),
                "GET"
            ),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n"
        );
        assert_eq!(
            onward(
                "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0\r\nProxy-Status: other\r\nContent-Length: 0\r\n\r\n",
                "GET"
            ),
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0\r\nProxy-Status: other\r\nContent-Length: 0\r\n"
        );
        assert_eq!(
            onward(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                "GET"
            ),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
        );
        assert_eq!(
            onward(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                "HEAD"
            ),
            "HTTP/1.1 200 OK\r\n"
        );
        // No body, and no word of one where none can be.
        assert_eq!(
            onward(
                "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
                "GET"
            ),
            "HTTP/1.1 204 No Content\r\n"
        );
        assert_eq!(
            onward(
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                "GET"
            ),
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n"
        );
        assert_eq!(
            onward("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD"),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
        );
    }

    #[test]
    fn a_head_may_come_byte_by_byte() {
        for raw in [
            "HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
            "HTTP/1.1 200 OK\nA: b\n\n",
        ] {
            let with_body = format!("{raw}body");
            for split in 0..raw.len() {
                assert_eq!(end(&raw.as_bytes()[..split], 0), None, "{split}");
                assert_eq!(end(with_body.as_bytes(), split), Some(raw.len()), "{split}");
            }
        }
    }

    #[test]
    fn a_trailer_changes_nothing_that_came_before_it() {
        assert_eq!(trailer(b"Grpc-Status: 0"), Some(("Grpc-Status", &b"0"[..])));
        assert_eq!(trailer(b"Digest: x"), Some(("Digest", &b"x"[..])));
        for line in [
            "Content-Length: 5",
            "transfer-encoding: chunked",
            "Set-Cookie: a=b",
            "Proxy-Status: agentport",
            "X-AgentPort-Reason: ok",
            "Connection: close",
            "no field",
            "",
        ] {
            assert_eq!(trailer(line.as_bytes()), None, "{line}");
        }
    }
}
