//! What the gateway itself answers on the egress listener: health and public
//! keys, and nothing else.

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

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
