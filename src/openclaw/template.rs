//! Text with inputs in it: `https://api.example.com/users/{user}`.
//!
//! What an input may not do is move the request: it never reaches scheme, host
//! or port, is percent-encoded in a URL, and becomes no dot segment.

use crate::egress::{Authority, RequestTarget, Scheme};
use http::{HeaderValue, Uri};
use serde_json::{Map, Value};

/// Text with the names of inputs in braces; `{{` and `}}` stand for braces.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::openclaw) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Input(String),
}

/// Why a text is no template, or a template gives no URL or header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::openclaw) enum TemplateError {
    /// A brace without its partner.
    #[error("a brace stands alone; write {{{{ and }}}} for braces themselves")]
    Brace,
    /// The URL's scheme, host or port is not fixed.
    #[error("inputs may stand only in path and query; write the scheme and host plainly")]
    Authority,
    /// The URL is none.
    #[error("{0}")]
    Url(String),
    /// An input would change which path is meant.
    #[error("the input \"{0}\" is empty or a dot segment, which no path may have here")]
    Segment(String),
    /// A control character in a header.
    #[error("the input \"{0}\" has a character that no header may have")]
    Header(String),
}

impl Template {
    /// Splits a text into its pieces.
    ///
    /// # Errors
    /// [`TemplateError::Brace`].
    pub(in crate::openclaw) fn parse(raw: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = raw;
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let from = &rest[at..];
            if let Some(after) = from.strip_prefix("{{") {
                text.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                text.push('}');
                rest = after;
            } else {
                let inner = from.strip_prefix('{').ok_or(TemplateError::Brace)?;
                let (name, after) = inner.split_once('}').ok_or(TemplateError::Brace)?;
                if name.is_empty() || name.contains('{') {
                    return Err(TemplateError::Brace);
                }
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Input(name.to_owned()));
                rest = after;
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(Self(pieces))
    }

    /// The inputs it names, in order.
    pub(in crate::openclaw) fn inputs(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Input(name) => Some(name.as_str()),
        })
    }

    /// The one input that it is, where it is nothing else.
    fn only_input(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Input(name)] => Some(name),
            _ => None,
        }
    }

    /// With the inputs as they are.
    fn render(&self, inputs: &Map<String, Value>) -> String {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Input(name) => as_text(inputs.get(name)),
            })
            .collect()
    }

    /// As the value of a header.
    ///
    /// # Errors
    /// [`TemplateError::Header`].
    pub(in crate::openclaw) fn header(
        &self,
        inputs: &Map<String, Value>,
    ) -> Result<HeaderValue, TemplateError> {
        HeaderValue::try_from(self.render(inputs))
            .map_err(|_| TemplateError::Header(self.inputs().collect::<Vec<_>>().join(", ")))
    }
}

/// An absolute URL whose scheme and authority are fixed.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::openclaw) struct UrlTemplate {
    scheme: Scheme,
    authority: Authority,
    path: Template,
    query: Option<Template>,
}

impl UrlTemplate {
    /// Parses and checks a URL with inputs in its path and query.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub(in crate::openclaw) fn parse(raw: &str) -> Result<Self, TemplateError> {
        let authority_end = raw.find("://").map_or(0, |at| {
            let from = at + "://".len();
            raw[from..]
                .find(['/', '?'])
                .map_or(raw.len(), |end| from + end)
        });
        if raw[..authority_end].contains(['{', '}']) {
            return Err(TemplateError::Authority);
        }
        let (path, query) = match raw[authority_end..].split_once('?') {
            Some((path, query)) => (path, Some(Template::parse(query)?)),
            None => (&raw[authority_end..], None),
        };
        let path = Template::parse(if path.is_empty() { "/" } else { path })?;
        // Judged with a letter for each input: what is wrong with the rest of
        // the URL is said when the manifest is read, not at the first call.
        let specimen = |template: &Template| -> String {
            let piece = |piece: &Piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Input(_) => "x".to_owned(),
            };
            template.0.iter().map(piece).collect()
        };
        let mut url = format!("{}{}", &raw[..authority_end], specimen(&path));
        if let Some(query) = &query {
            url.push('?');
            url.push_str(&specimen(query));
        }
        match RequestTarget::parse("GET", &url).map_err(|e| TemplateError::Url(e.to_string()))? {
            RequestTarget::Absolute {
                scheme, authority, ..
            } => Ok(Self {
                scheme,
                authority,
                path,
                query,
            }),
            RequestTarget::Origin { .. }
            | RequestTarget::Authority(_)
            | RequestTarget::Asterisk => Err(TemplateError::Url(
                "write an absolute URL: https://host/path".to_owned(),
            )),
        }
    }

    /// The inputs it names.
    pub(in crate::openclaw) fn inputs(&self) -> impl Iterator<Item = &str> {
        self.path
            .inputs()
            .chain(self.query.iter().flat_map(Template::inputs))
    }

    /// The URL for these inputs.
    ///
    /// # Errors
    /// [`TemplateError`], where an input would change which path is meant.
    pub(in crate::openclaw) fn render(
        &self,
        inputs: &Map<String, Value>,
    ) -> Result<Uri, TemplateError> {
        let mut path = String::new();
        for piece in &self.path.0 {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Input(name) => {
                    let text = as_text(inputs.get(name));
                    if text.is_empty() {
                        return Err(TemplateError::Segment(name.clone()));
                    }
                    path.push_str(&percent_encode(&text));
                }
            }
        }
        if path.split('/').any(|segment| matches!(segment, "." | "..")) {
            let names: Vec<_> = self.path.inputs().collect();
            return Err(TemplateError::Segment(names.join(", ")));
        }
        if let Some(query) = &self.query {
            path.push('?');
            for piece in &query.0 {
                match piece {
                    Piece::Text(text) => path.push_str(text),
                    Piece::Input(name) => {
                        path.push_str(&percent_encode(&as_text(inputs.get(name))));
                    }
                }
            }
        }
        let url = format!("{}://{}{path}", self.scheme, self.authority);
        RequestTarget::parse("GET", &url).map_err(|e| TemplateError::Url(e.to_string()))?;
        url.parse()
            .map_err(|e: http::uri::InvalidUri| TemplateError::Url(e.to_string()))
    }
}

/// A JSON value whose strings are templates.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::openclaw) enum JsonTemplate {
    /// Text with inputs; alone, an input keeps its type.
    Text(Template),
    /// Anything without text.
    Plain(Value),
    /// A list.
    List(Vec<JsonTemplate>),
    /// An object.
    Object(Vec<(String, JsonTemplate)>),
}

impl JsonTemplate {
    /// Reads a value.
    ///
    /// # Errors
    /// [`TemplateError::Brace`].
    pub(in crate::openclaw) fn parse(raw: &Value) -> Result<Self, TemplateError> {
        Ok(match raw {
            Value::String(text) => Self::Text(Template::parse(text)?),
            Value::Array(items) => {
                Self::List(items.iter().map(Self::parse).collect::<Result<_, _>>()?)
            }
            Value::Object(members) => Self::Object(
                members
                    .iter()
                    .map(|(name, value)| Ok((name.clone(), Self::parse(value)?)))
                    .collect::<Result<_, TemplateError>>()?,
            ),
            plain => Self::Plain(plain.clone()),
        })
    }

    /// Every input named, and whether it stands alone, so that it may be of any
    /// type and be left out.
    pub(in crate::openclaw) fn inputs(&self) -> Vec<(&str, bool)> {
        match self {
            Self::Plain(_) => Vec::new(),
            Self::Text(template) => {
                let alone = template.only_input().is_some();
                template.inputs().map(|name| (name, alone)).collect()
            }
            Self::List(items) => items.iter().flat_map(Self::inputs).collect(),
            Self::Object(members) => members.iter().flat_map(|(_, m)| m.inputs()).collect(),
        }
    }

    /// The value for these inputs. A member or item that is one input which was
    /// not given is left out; `None` where the whole is.
    pub(in crate::openclaw) fn render(&self, inputs: &Map<String, Value>) -> Option<Value> {
        match self {
            Self::Plain(value) => Some(value.clone()),
            Self::Text(template) => match template.only_input() {
                Some(name) => inputs.get(name).cloned(),
                None => Some(template.render(inputs).into()),
            },
            Self::List(items) => Some(items.iter().filter_map(|i| i.render(inputs)).collect()),
            Self::Object(members) => Some(Value::Object(
                members
                    .iter()
                    .filter_map(|(name, m)| Some((name.clone(), m.render(inputs)?)))
                    .collect(),
            )),
        }
    }
}

fn as_text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// All but the unreserved characters (RFC 3986, 2.3).
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn inputs(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn an_input_never_moves_the_request() {
        let url = UrlTemplate::parse("https://api.example.com/u/{user}/x?q={q}").expect("good");
        for (case, user, q, rendered) in [
            (
                "plain",
                json!("a"),
                json!("b"),
                Ok("https://api.example.com:443/u/a/x?q=b"),
            ),
            (
                "everything is encoded",
                json!("a/../b?#@"),
                json!("1&r=2#"),
                Ok("https://api.example.com:443/u/a%2F..%2Fb%3F%23%40/x?q=1%26r%3D2%23"),
            ),
            (
                "numbers",
                json!(7),
                json!(true),
                Ok("https://api.example.com:443/u/7/x?q=true"),
            ),
            ("a dot segment", json!(".."), json!(""), Err(())),
            ("nothing", json!(""), json!(""), Err(())),
            ("a control character", json!("\u{0}"), json!(""), Err(())),
        ] {
            let got = url.render(&inputs(json!({"user": user, "q": q})));
            assert_eq!(
                got.map(|u| u.to_string()).map_err(drop),
                rendered.map(str::to_owned),
                "{case}"
            );
        }
    }

    #[test]
    fn which_urls_are_refused() {
        for (case, raw) in [
            ("an input as host", "https://{host}/"),
            ("an input in the port", "https://example.com:{port}/"),
            ("an input as scheme", "{scheme}://example.com/"),
            ("an input as all", "{url}"),
            ("no scheme", "example.com/"),
            ("another scheme", "ftp://example.com/"),
            ("userinfo", "https://u:p@example.com/"),
            ("a lonely brace", "https://example.com/{a"),
            ("a fragment", "https://example.com/#a"),
            ("a path only", "/a"),
        ] {
            assert!(UrlTemplate::parse(raw).is_err(), "{case}");
        }
    }

    #[test]
    fn a_body_keeps_types_and_leaves_out_what_is_not_given() {
        let raw =
            json!({"n": "{n}", "text": "n is {n}, {{braces}}", "gone": "{o}", "l": ["{o}", 1]});
        let template = JsonTemplate::parse(&raw).expect("good");
        assert_eq!(
            template.render(&inputs(json!({"n": 3}))),
            Some(json!({"n": 3, "text": "n is 3, {braces}", "l": [1]}))
        );
    }

    #[test]
    fn a_header_takes_no_line_break() {
        let template = Template::parse("id {x}").expect("good");
        assert!(template.header(&inputs(json!({"x": "a\r\nb: c"}))).is_err());
        assert_eq!(
            template.header(&inputs(json!({"x": "a"}))).expect("good"),
            "id a"
        );
    }
}
