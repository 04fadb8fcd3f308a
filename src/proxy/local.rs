//! What the gateway itself answers on the egress listener: health and public
//! keys to anybody, and to an agent what it may reach; nothing else.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use serde::Serialize;

use crate::audit::Rfc3339;
use crate::identity::Principal;
use crate::policy::Reach;

/// A page of the gateway's own.
#[derive(Clone, Debug)]
pub struct Page {
    /// The status.
    pub status: u16,
    /// The media type.
    pub media_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// The value of `Cache-Control`.
    pub cache_control: &'static str,
    /// The value of `ETag`, quotes included, where the page has one.
    pub etag: Option<String>,
}

impl Page {
    /// A page that nobody may keep.
    #[must_use]
    pub fn new(status: u16, media_type: &'static str, body: Vec<u8>) -> Self {
        Self {
            status,
            media_type,
            body,
            cache_control: "no-store",
            etag: None,
        }
    }

    /// The same for a client that has this in `If-None-Match` (RFC 9110,
    /// 13.1.2): where it has the page, the answer is 304 and no body.
    #[must_use]
    pub fn unless_known(mut self, if_none_match: Option<&[u8]>) -> Self {
        let known = |value: &[u8]| {
            let tags = std::str::from_utf8(value).unwrap_or_default().split(',');
            let mut tags = tags.map(|tag| tag.trim().trim_start_matches("W/"));
            self.etag
                .as_deref()
                .is_some_and(|etag| tags.any(|tag| tag == etag || tag == "*"))
        };
        if if_none_match.is_some_and(known) {
            self.status = 304;
            self.body.clear();
        }
        self
    }
}

/// The gateway's own pages, by path.
pub trait LocalPages: Send + Sync {
    /// The page at this path, of those that anybody may see on the egress
    /// listener.
    fn page(&self, path: &str) -> Option<Page>;
}

/// What an agent may reach, and until when its credential holds: as Markdown where
/// `accept` prefers text to JSON, which is what there is otherwise.
pub(super) fn policy_page(reach: &Reach, who: &Principal, accept: Option<&str>) -> Page {
    #[derive(Serialize)]
    struct Told<'a> {
        #[serde(flatten)]
        reach: &'a Reach,
        expires_at: String,
    }
    let ends = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(who.expires_at()));
    let ends = ends.map_or_else(String::new, |ends| Rfc3339(ends).to_string());
    let media_type = media_type(accept.unwrap_or_default());
    let mut body = match media_type {
        "application/json" => {
            let told = Told {
                reach,
                expires_at: ends,
            };
            // Texts, lists and numbers: they cannot fail to be written.
            serde_json::to_vec(&told).unwrap_or_default()
        }
        _ => format!("{reach}The credential holds until {ends}.").into_bytes(),
    };
    body.push(b'\n');
    Page::new(200, media_type, body)
}

/// The first of the media types in an `Accept` field (RFC 9110 section 12.5.1)
/// that there is. Weights are not looked at: whoever wants text names it first.
fn media_type(accept: &str) -> &'static str {
    accept
        .split(',')
        .find_map(|entry| {
            let name = entry.split(';').next().unwrap_or(entry).trim();
            match () {
                () if name.eq_ignore_ascii_case("text/markdown") => {
                    Some("text/markdown; charset=utf-8")
                }
                () if name.eq_ignore_ascii_case("text/plain") => Some("text/plain; charset=utf-8"),
                () if name.eq_ignore_ascii_case("text/*") => Some("text/markdown; charset=utf-8"),
                () if name.eq_ignore_ascii_case("application/json") => Some("application/json"),
                () => None,
            }
        })
        .unwrap_or("application/json")
}

/// Writes a page.
///
/// # Errors
/// Pingora's, when the client is gone.
pub(super) async fn write(session: &mut Session, page: Page) -> pingora::Result<()> {
    let unchanged = page.status == 304;
    let mut header = ResponseHeader::build(page.status, Some(5))?;
    header.insert_header("Cache-Control", page.cache_control)?;
    if let Some(etag) = &page.etag {
        header.insert_header("ETag", etag)?;
    }
    if !unchanged {
        header.insert_header("Content-Type", page.media_type)?;
        header.insert_header("Content-Length", page.body.len().to_string())?;
    }
    let head_only = unchanged || session.req_header().method == http::Method::HEAD;
    session
        .write_response_header(Box::new(header), head_only)
        .await?;
    if !head_only {
        session
            .write_response_body(Some(Bytes::from(page.body)), true)
            .await?;
    }
    Ok(())
}
