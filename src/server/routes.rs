//! Named routes from the configuration, with the certificates that they trust.

use anyhow::Context;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::{AuthorizationOwner, Config, UpstreamHttp2 as Written};
use crate::proxy::{NamedRoute, UpstreamHttp2, UpstreamRoots};

/// Reads the routes and their bundles.
///
/// # Errors
/// With the route and the file that cannot be used, and why.
pub(super) fn read(config: &Config) -> anyhow::Result<Vec<NamedRoute>> {
    let mut routes = Vec::with_capacity(config.routes.len());
    for (at, written) in config.routes.iter().enumerate() {
        let roots = match &written.ca {
            None => None,
            Some(file) => {
                let place = || format!("routes[{at}].ca: {}", file.display());
                let pem = std::fs::read(file).with_context(place)?;
                let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
                    .map(|found| found.map(|der| der.to_vec()))
                    .collect::<Result<_, _>>()
                    .with_context(place)?;
                let roots = UpstreamRoots::new(certificates).map_err(anyhow::Error::msg);
                Some(roots.with_context(place)?)
            }
        };
        routes.push(NamedRoute {
            route: written.route.clone(),
            roots,
            http2: match written.http2 {
                Written::Auto => UpstreamHttp2::Auto,
                Written::Off => UpstreamHttp2::Off,
                Written::Only => UpstreamHttp2::Only,
            },
            authorization_is_origins: written.authorization == AuthorizationOwner::Origin,
        });
    }
    Ok(routes)
}
