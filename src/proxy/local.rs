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
    let mut header = ResponseHeader::build(page.status, Some(4))?;
    header.insert_header("Content-Type", page.media_type)?;
    header.insert_header("Cache-Control", "no-store")?;
    header.insert_header("Content-Length", page.body.len().to_string())?;
    let head_only = session.req_header().method == http::Method::HEAD;
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
