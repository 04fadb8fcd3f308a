//! Paths, as policy sees them, and the globs that rules write.
//!
//! What travels on to the origin is the path as it was sent. What is judged is
//! every way in which an origin may read it: a path that origins would read
//! differently has several views, an allow rule must match all and a deny rule
//! needs to match one. So `/v1%2fadmin` is no way round `/v1/admin`.
//!
//! Where dot segments come together with what some origins take for a slash, or
//! for nothing, there is no end to the readings, and one that nobody thought of
//! climbs somewhere else. Such a path, as `/public/..%2fadmin`, is in no pattern
//! of an allow rule but one for every path, and in each pattern of a deny rule.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// The path of a request, without its query, and the views policy matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath {
    raw: String,
    /// Unreserved characters decoded, dot segments removed (RFC 3986, 6.2.2).
    strict: String,
    /// As other origins read it, where that differs: decoded once or several
    /// times, backslashes as slashes, matrix parameters dropped, empty segments
    /// merged, and any of these without the others.
    lenient: Vec<String>,
    /// Whether it may lead anywhere.
    unclear: bool,
}

/// Why a path is refused before any rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not absolute.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A space, a control character or a byte outside ASCII.
    #[error("the path has a space, a control character or a byte outside ASCII; percent-encode it")]
    InvalidCharacter,
    /// `%` without two hexadecimal digits.
    #[error("the path has a percent sign without two hexadecimal digits")]
    InvalidEscape,
    /// An escaped control character, such as `%00`.
    #[error("the path has an escaped control character")]
    EscapedControl,
}

/// How often an origin may decode a path one time too many.
const MAX_DECODINGS: usize = 4;

impl RequestPath {
    /// Parses a path without its query: `/a/b`.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn parse(raw: &str) -> Result<Self, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        if !raw.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            return Err(PathError::InvalidCharacter);
        }
        if is_plain(raw) {
            return Ok(Self {
                strict: raw.to_owned(),
                lenient: Vec::new(),
                unclear: false,
                raw: raw.to_owned(),
            });
        }
        let decoded = decode_unreserved(raw)?;
        let strict = remove_dot_segments(&decoded);
        let mut decodings = decodings(raw)?;
        let most = decodings.last().unwrap_or(&decoded);
        let unclear = has_dot_segment(most) && is_uncertain(raw);
        decodings.insert(0, decoded);
        let mut lenient: Vec<String> = Vec::new();
        for view in decodings.iter().flat_map(|text| readings(text)) {
            if view != strict && !lenient.contains(&view) {
                lenient.push(view);
            }
        }
        Ok(Self {
            lenient,
            unclear,
            strict,
            raw: raw.to_owned(),
        })
    }

    /// The path as it was sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.raw
    }

    /// Whether nobody can tell where it leads: it has a dot segment beside an
    /// empty segment, a semicolon, a backslash, or one of these, a slash or a
    /// percent sign escaped.
    #[must_use]
    pub fn is_unclear(&self) -> bool {
        self.unclear
    }

    /// The views that rules are matched against: one, or several where origins
    /// may differ.
    pub fn views(&self) -> impl Iterator<Item = &str> {
        let lenient = self.lenient.iter().map(String::as_str);
        std::iter::once(self.strict.as_str()).chain(lenient)
    }
}

/// No escape, no dot segment, no empty segment, nothing lenient: nearly all.
fn is_plain(raw: &str) -> bool {
    let bytes = raw.as_bytes();
    !bytes.iter().any(|b| matches!(b, b'%' | b'\\' | b';'))
        && !bytes
            .windows(2)
            .any(|w| w[0] == b'/' && matches!(w[1], b'.' | b'/'))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

/// The octet that the escape at `at` stands for.
fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    match (bytes.get(at + 1), bytes.get(at + 2)) {
        (Some(&high), Some(&low)) => Some(hex(high)? << 4 | hex(low)?),
        _ => None,
    }
}

fn decode_unreserved(raw: &str) -> Result<String, PathError> {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            out.push(char::from(bytes[at]));
            at += 1;
            continue;
        }
        let octet = escape_at(bytes, at).ok_or(PathError::InvalidEscape)?;
        if octet < 0x20 || octet == 0x7f {
            return Err(PathError::EscapedControl);
        }
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            out.push(char::from(octet));
        } else {
            out.push('%');
            out.push(char::from(bytes[at + 1].to_ascii_uppercase()));
            out.push(char::from(bytes[at + 2].to_ascii_uppercase()));
        }
        at += 3;
    }
    Ok(out)
}

/// The path decoded once, twice and so on, as long as that changes anything.
fn decodings(raw: &str) -> Result<Vec<String>, PathError> {
    let mut all = Vec::new();
    let mut bytes = raw.as_bytes().to_vec();
    for _ in 0..MAX_DECODINGS {
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            match (bytes[at] == b'%').then(|| escape_at(&bytes, at)).flatten() {
                Some(octet) => {
                    if octet < 0x20 || octet == 0x7f {
                        return Err(PathError::EscapedControl);
                    }
                    out.push(octet);
                    at += 3;
                }
                None => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        if out.len() == bytes.len() {
            break;
        }
        all.push(String::from_utf8_lossy(&out).into_owned());
        bytes = out;
    }
    Ok(all)
}

/// The ways to read a decoded path: with or without backslashes as slashes,
/// without matrix parameters, with empty segments merged.
fn readings(text: &str) -> impl Iterator<Item = String> {
    (0..8_u8).filter_map(move |ways| {
        let (slashes, bare, merged) = (ways & 1 != 0, ways & 2 != 0, ways & 4 != 0);
        // What changes nothing has been read already.
        if (slashes && !text.contains('\\')) || (bare && !text.contains(';')) {
            return None;
        }
        let text = match slashes {
            true => Cow::from(text.replace('\\', "/")),
            false => Cow::from(text),
        };
        let mut out = String::with_capacity(text.len());
        let mut segments = text.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            let last = segments.peek().is_none();
            let segment = match bare {
                true => segment.split(';').next().unwrap_or(segment),
                false => segment,
            };
            if merged && segment.is_empty() && !last {
                continue;
            }
            out.push('/');
            out.push_str(segment);
        }
        Some(remove_dot_segments(&out))
    })
}

/// Whether a segment of the decoded path is, to any origin, the one it stands
/// in or the one above. Some drop dots and blanks at the end of a name.
fn has_dot_segment(decoded: &str) -> bool {
    decoded
        .split(['/', '\\'])
        .filter_map(|segment| segment.split(';').next())
        .any(|name| name.contains('.') && name.bytes().all(|b| b == b'.' || b == b' '))
}

/// Whether origins may differ in where segments begin and end.
fn is_uncertain(raw: &str) -> bool {
    let bytes = raw.as_bytes();
    let escaped = |pair: &[u8]| {
        [&b"2f"[..], b"5c", b"3b", b"25"]
            .iter()
            .any(|known| pair.eq_ignore_ascii_case(known))
    };
    bytes.iter().any(|b| matches!(b, b'\\' | b';'))
        || bytes.windows(2).any(|pair| pair == b"//")
        || bytes
            .windows(3)
            .any(|escape| escape[0] == b'%' && escaped(&escape[1..]))
}

/// RFC 3986 section 5.2.4. What climbs above the root stays at the root.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// A pattern over paths: literal segments, `*` for any run of characters
/// within one segment, `**` as a whole segment for any number of segments,
/// none included (`/v1/**` matches `/v1` too).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathGlob {
    raw: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Literal(String),
    /// The pieces between stars; at least two.
    Pieces(Vec<String>),
    AnyDepth,
}

/// Why a string is not a path pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathGlobError {
    /// Does not begin with a slash.
    #[error("a path pattern begins with a slash: write \"/{0}\"")]
    NotAbsolute(String),
    /// `**` beside other characters in one segment.
    #[error("`**` stands alone between slashes, as in \"/v1/**\"")]
    AnyDepth,
    /// A query, a fragment or an unprintable character.
    #[error("a path pattern has no query, fragment, space or byte outside ASCII")]
    InvalidCharacter,
    /// Dot segments, escapes of plain characters, `//`: never equal to a path
    /// in the form compared.
    #[error("no request is compared in this form: write \"{0}\"")]
    NotNormal(String),
}

impl PathGlob {
    /// Parses a pattern.
    ///
    /// # Errors
    /// [`PathGlobError`], which says what to write instead.
    pub fn parse(raw: &str) -> Result<Self, PathGlobError> {
        if !raw.starts_with('/') {
            return Err(PathGlobError::NotAbsolute(raw.to_owned()));
        }
        if !raw
            .bytes()
            .all(|b| (0x21..=0x7e).contains(&b) && !b"?#\\".contains(&b))
        {
            return Err(PathGlobError::InvalidCharacter);
        }
        match decode_unreserved(raw).map(|decoded| remove_dot_segments(&decoded)) {
            Ok(normal) if normal == raw => {}
            Ok(normal) => return Err(PathGlobError::NotNormal(normal)),
            Err(_) => return Err(PathGlobError::InvalidCharacter),
        }
        let mut segments = Vec::new();
        for segment in raw.split('/').skip(1) {
            segments.push(match segment {
                "**" => Segment::AnyDepth,
                other if other.contains("**") => return Err(PathGlobError::AnyDepth),
                other if other.contains('*') => {
                    Segment::Pieces(other.split('*').map(str::to_owned).collect())
                }
                other => Segment::Literal(other.to_owned()),
            });
        }
        Ok(Self {
            raw: raw.to_owned(),
            segments,
        })
    }

    /// Whether every view of the path matches: what an allow rule asks.
    #[must_use]
    pub fn matches_all(&self, path: &RequestPath) -> bool {
        let every = || self.segments == [Segment::AnyDepth];
        (!path.unclear || every()) && path.views().all(|view| self.matches_view(view))
    }

    /// Whether any view of the path matches: what a deny rule asks.
    #[must_use]
    pub fn matches_any(&self, path: &RequestPath) -> bool {
        path.unclear || path.views().any(|view| self.matches_view(view))
    }

    /// Greedy with one point of return, the last `**`: time is at most the
    /// product of both lengths, whatever the pattern.
    fn matches_view(&self, view: &str) -> bool {
        let path: Vec<&str> = view.split('/').skip(1).collect();
        let (mut at, mut seg) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match self.segments.get(seg) {
                Some(Segment::AnyDepth) => {
                    retry = Some((at, seg));
                    seg += 1;
                    continue;
                }
                Some(segment) if at < path.len() && segment.matches(path[at]) => {
                    at += 1;
                    seg += 1;
                    continue;
                }
                None if at == path.len() => return true,
                _ => {}
            }
            match retry {
                Some((from, any)) if from < path.len() => {
                    at = from + 1;
                    seg = any + 1;
                    retry = Some((at, any));
                }
                _ => return false,
            }
        }
    }
}

impl Segment {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == text,
            Self::AnyDepth => true,
            Self::Pieces(pieces) => {
                let (Some((first, rest)), true) = (pieces.split_first(), pieces.len() > 1) else {
                    return false;
                };
                let Some(mut left) = text.strip_prefix(first.as_str()) else {
                    return false;
                };
                let Some((last, middle)) = rest.split_last() else {
                    return false;
                };
                for piece in middle {
                    match left.find(piece.as_str()) {
                        Some(found) => left = &left[found + piece.len()..],
                        None => return false,
                    }
                }
                left.ends_with(last.as_str())
            }
        }
    }
}

impl fmt::Display for PathGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

impl FromStr for PathGlob {
    type Err = PathGlobError;
    fn from_str(raw: &str) -> Result<Self, PathGlobError> {
        Self::parse(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(raw: &str) -> Vec<String> {
        RequestPath::parse(raw)
            .expect(raw)
            .views()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn every_reading_of_a_path_is_a_view() {
        for (raw, expected) in [
            ("/", vec!["/"]),
            ("/a/b", vec!["/a/b"]),
            ("/a/../b", vec!["/b"]),
            ("/a/./b/", vec!["/a/b/"]),
            ("/../../a", vec!["/a"]),
            ("/a/..", vec!["/"]),
            ("/a/b/..", vec!["/a/"]),
            ("/%61", vec!["/a"]),
            ("/a/%2e%2e/b", vec!["/b"]),
            ("/a/%2E%2e/b", vec!["/b"]),
            ("/a//b", vec!["/a//b", "/a/b"]),
            ("//a", vec!["//a", "/a"]),
            ("/@s%2fname", vec!["/@s%2Fname", "/@s/name"]),
            ("/a;v=1", vec!["/a;v=1", "/a"]),
            ("/a\\b", vec!["/a\\b", "/a/b"]),
            ("/a%20b", vec!["/a%20b", "/a b"]),
            // Each of what an origin may do, without the others.
            ("/z//a;b", vec!["/z//a;b", "/z//a", "/z/a;b", "/z/a"]),
            ("/a%252fb", vec!["/a%252fb", "/a%2fb", "/a/b"]),
            (
                "/z//a%2fb",
                vec!["/z//a%2Fb", "/z/a%2Fb", "/z//a/b", "/z/a/b"],
            ),
        ] {
            assert_eq!(views(raw), expected, "{raw}");
        }
    }

    #[test]
    fn broken_paths_are_refused() {
        for (raw, error) in [
            ("a", PathError::NotAbsolute),
            ("", PathError::NotAbsolute),
            ("/a b", PathError::InvalidCharacter),
            ("/\u{e4}", PathError::InvalidCharacter),
            ("/a\0", PathError::InvalidCharacter),
            ("/%", PathError::InvalidEscape),
            ("/%2", PathError::InvalidEscape),
            ("/%zz", PathError::InvalidEscape),
            ("/%00", PathError::EscapedControl),
            ("/%0d%0a", PathError::EscapedControl),
            ("/%2500", PathError::EscapedControl),
        ] {
            assert_eq!(RequestPath::parse(raw), Err(error), "{raw:?}");
        }
    }

    #[test]
    fn globs() {
        for (glob, path, expected) in [
            ("/v1/**", "/v1", true),
            ("/v1/**", "/v1/", true),
            ("/v1/**", "/v1/a/b", true),
            ("/v1/**", "/v2/a", false),
            ("/v1/**", "/v1a", false),
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/v1/*", "/v1/a", true),
            ("/v1/*", "/v1/a/b", false),
            ("/v1/*", "/v1/", true),
            ("/v1/*/c", "/v1/b/c", true),
            ("/**/c", "/a/b/c", true),
            ("/**/c/**/e", "/a/c/c/d/e", true),
            ("/**/c/**/e", "/a/d/e", false),
            ("/a-*-z", "/a-b-z", true),
            ("/a-*-z", "/a-z", false),
            ("/*a*b*", "/xaybz", true),
            ("/*a*b*", "/xbya", false),
            ("/a", "/A", false),
        ] {
            let glob = PathGlob::parse(glob).expect(glob);
            let parsed = RequestPath::parse(path).expect(path);
            assert_eq!(glob.matches_all(&parsed), expected, "{glob} {path}");
        }
    }

    #[test]
    fn allow_needs_every_view_and_deny_needs_one() {
        let public = PathGlob::parse("/public/**").expect("glob");
        let admin = PathGlob::parse("/admin/**").expect("glob");
        for sneaky in [
            "/public/../admin",
            "/%61dmin",
            "//admin",
            "/admin;x",
            "/admin%2fx",
        ] {
            let path = RequestPath::parse(sneaky).expect(sneaky);
            assert!(!public.matches_all(&path), "{sneaky}");
            assert!(admin.matches_any(&path), "{sneaky}");
        }
        for mixed in ["/public/a%2fb", "/public//a;b%5cc", "/public/%2561"] {
            let path = RequestPath::parse(mixed).expect(mixed);
            assert!(public.matches_all(&path), "{mixed}");
        }
        let (everything, other) = (PathGlob::parse("/**"), PathGlob::parse("/x/*"));
        let (everything, other) = (everything.expect("glob"), other.expect("glob"));
        for unclear in [
            "/public/..%2fadmin",
            "/public/..%2Fadmin",
            "/public/%2e%2e%2fadmin",
            "/public/..%5cadmin/x",
            "/public/..\\admin",
            "/public/..;/admin",
            "/public/..%3bx/admin",
            "/public/%252e%252e/admin",
            "/public/.//../../admin",
            "/public/./b;c",
            "/public/..%20/admin%2fx",
            // What one origin climbs out of, another climbs back into.
            "/public/..%2fadmin/secret/..;/..;/public/x",
            "/public/..%2fadmin/x/%252e%252e/%252e%252e/public/y",
            "/public/..;x/admin/secret/..%3b/..%3b/public/x",
            "/public/;/..%2fadmin/secret",
            "/public/\\/..%2fadmin/x",
        ] {
            let path = RequestPath::parse(unclear).expect(unclear);
            assert!(path.is_unclear(), "{unclear}");
            assert!(!public.matches_all(&path), "{unclear}");
            assert!(everything.matches_all(&path), "{unclear}");
            for denied in [&admin, &public, &other] {
                assert!(denied.matches_any(&path), "{unclear}");
            }
        }
        for clear in ["/a/../b", "/.../a", "/a/.b%2fc", "/..a/b;c", "/a%2fb/c.d"] {
            let path = RequestPath::parse(clear).expect(clear);
            assert!(!path.is_unclear(), "{clear}");
        }
        let starred = PathGlob::parse("/z/a*b").expect("glob");
        let path = RequestPath::parse("/z//a;b").expect("a path");
        assert!(starred.matches_any(&path), "merged, with its parameter");
    }

    #[test]
    fn patterns_that_could_never_match_say_so() {
        assert_eq!(
            PathGlob::parse("v1"),
            Err(PathGlobError::NotAbsolute("v1".into()))
        );
        assert_eq!(PathGlob::parse("/a**"), Err(PathGlobError::AnyDepth));
        assert_eq!(
            PathGlob::parse("/a?b"),
            Err(PathGlobError::InvalidCharacter)
        );
        assert_eq!(
            PathGlob::parse("/a/../b"),
            Err(PathGlobError::NotNormal("/b".into()))
        );
        assert_eq!(
            PathGlob::parse("/%61"),
            Err(PathGlobError::NotNormal("/a".into()))
        );
    }
}
