//! The metadata of an OpenID provider, as far as it leads to keys (OpenID
//! Connect Discovery 1.0, 3 and 4.3; RFC 8414).

use serde_json::Value;

use super::json;
use crate::egress::{HttpsUrl, UrlError};

/// Why metadata leads to no keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// It cannot be read.
    #[error("the metadata {0}")]
    Json(String),
    /// A member that must be there is not.
    #[error("the metadata has no {0}")]
    Missing(&'static str),
    /// It is another issuer's, who must not speak for this one.
    #[error("the metadata is of the issuer {0:?}")]
    OtherIssuer(String),
    /// `jwks_uri` is no URL of use.
    #[error("jwks_uri: {0}")]
    Url(UrlError),
}

/// Where the keys of this issuer are, by its metadata.
///
/// # Errors
/// [`DiscoveryError`], above all where the metadata names another issuer.
pub fn discovered_keys(metadata: &[u8], issuer: &str) -> Result<HttpsUrl, DiscoveryError> {
    let members =
        json::object(metadata).map_err(|error| DiscoveryError::Json(error.to_string()))?;
    let text = |name: &'static str| {
        let value = members.get(name).and_then(Value::as_str);
        value.ok_or(DiscoveryError::Missing(name))
    };
    let found = text("issuer")?;
    if found != issuer {
        return Err(DiscoveryError::OtherIssuer(found.to_owned()));
    }
    HttpsUrl::parse(text("jwks_uri")?).map_err(DiscoveryError::Url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_leads_to_keys() {
        const ISSUER: &str = "https://id.example";
        #[rustfmt::skip]
        let cases = [
            ("as it should be", r#"{"issuer":"https://id.example","jwks_uri":"https://keys.example/k"}"#,
             Ok("https://keys.example:443/k")),
            ("another issuer", r#"{"issuer":"https://id.example/","jwks_uri":"https://keys.example/k"}"#,
             Err(r#"the metadata is of the issuer "https://id.example/""#)),
            ("no issuer", r#"{"jwks_uri":"https://keys.example/k"}"#, Err("the metadata has no issuer")),
            ("two issuers", r#"{"issuer":"https://id.example","issuer":"https://evil.example"}"#,
             Err("the metadata has a member twice")),
            ("no keys", r#"{"issuer":"https://id.example"}"#, Err("the metadata has no jwks_uri")),
            ("keys in clear", r#"{"issuer":"https://id.example","jwks_uri":"http://keys.example/k"}"#,
             Err("jwks_uri: write a URL that begins with https://")),
            ("no JSON", "<html>", Err("the metadata is not valid JSON")),
        ];
        for (case, metadata, expected) in cases {
            let found = discovered_keys(metadata.as_bytes(), ISSUER);
            let found = found
                .map(|url| url.to_string())
                .map_err(|error| error.to_string());
            assert_eq!(
                found,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{case}"
            );
        }
    }
}
