//! Named routes from the configuration or a file of their own, with the
//! certificates that they trust; kept up with while the gateway serves.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::certificates;
use crate::adapters::watch::Watch;
use crate::admin::Readiness;
use crate::config::{
    self, AuthorizationOwner, Config, NamedRoute as WrittenRoute, UpstreamHttp2 as Written,
};
use crate::proxy::{NamedRoute, UpstreamHttp2, UpstreamRoots, Wire};

use super::load;

/// The routes as they are written, each with its bundle.
#[derive(PartialEq, Eq)]
pub struct Read {
    written: Vec<WrittenRoute>,
    bundles: Vec<Option<Vec<Vec<u8>>>>,
}

/// Reads the routes and their bundles.
///
/// # Errors
/// With the route and the file that cannot be used, and why.
pub fn read(config: &Config) -> anyhow::Result<Read> {
    let (written, list) = match &config.routes_file {
        None => (config.routes.clone(), "routes"),
        Some(file) => {
            let text = load::read_text(file).map_err(anyhow::Error::msg);
            let text = text.context("routes_file")?;
            let read = config::parse_routes(&file.display().to_string(), &text);
            let read = read.map_err(|errors| {
                let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                anyhow::anyhow!("routes_file: {}", errors.join("\n"))
            });
            (read?, "routes_file: routes")
        }
    };
    let mut bundles = Vec::with_capacity(written.len());
    for (at, route) in written.iter().enumerate() {
        let Some(file) = &route.ca else {
            bundles.push(None);
            continue;
        };
        let place = || format!("{list}[{at}].ca");
        let found = certificates::in_file(file)
            .map_err(anyhow::Error::msg)
            .with_context(place)?;
        let certificates: Vec<_> = found.iter().map(|der| der.to_vec()).collect();
        // What is no good is said here, with its place.
        UpstreamRoots::new(certificates.clone())
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{list}[{at}].ca: {}", file.display()))?;
        bundles.push(Some(certificates));
    }
    Ok(Read { written, bundles })
}

impl Read {
    /// As the wire wants them.
    ///
    /// # Errors
    /// None that [`read`] has not found.
    pub(super) fn routes(&self) -> anyhow::Result<Vec<NamedRoute>> {
        let each = self.written.iter().zip(&self.bundles);
        let routes = each.map(|(written, bundle)| {
            let roots = bundle.clone().map(UpstreamRoots::new).transpose();
            Ok(NamedRoute {
                route: written.route.clone(),
                roots: roots.map_err(anyhow::Error::msg)?,
                http2: match written.http2 {
                    Written::Auto => UpstreamHttp2::Auto,
                    Written::Off => UpstreamHttp2::Off,
                    Written::Only => UpstreamHttp2::Only,
                },
                authorization_is_origins: written.authorization == AuthorizationOwner::Origin,
            })
        });
        routes.collect()
    }

    fn files(&self, config: &Config) -> Vec<PathBuf> {
        let bundles = self.written.iter().filter_map(|route| route.ca.as_ref());
        config.routes_file.iter().chain(bundles).cloned().collect()
    }
}

/// Keeps the routes up with their files.
pub(super) struct RouteKeeper {
    pub(super) config: Arc<Config>,
    pub(super) in_force: Read,
    pub(super) wire: Arc<Wire>,
    pub(super) readiness: Arc<Readiness>,
}

impl RouteKeeper {
    /// Reloads when a file changes and on SIGHUP, for ever.
    ///
    /// # Errors
    /// Where the files cannot be watched.
    pub(super) fn run(mut self) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let mut files = self.in_force.files(&self.config);
        let mut watch = Watch::start(files.clone()).context("cannot watch the routes")?;
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            loop {
                // What has changed before it was watched is read once more.
                self.reload().await;
                let now = self.in_force.files(&self.config);
                if files != now {
                    match Watch::start(now.clone()) {
                        Ok(started) => {
                            (watch, files) = (started, now);
                            continue;
                        }
                        Err(error) => {
                            tracing::error!(%error, "cannot watch the files of the new routes: reload by SIGHUP");
                        }
                    }
                }
                tokio::select! {
                    Some(()) = watch.changed() => {}
                    Some(()) = hangup.recv() => {}
                    else => std::future::pending().await,
                }
            }
        })
    }

    async fn reload(&mut self) {
        let config = Arc::clone(&self.config);
        let found = tokio::task::spawn_blocking(move || read(&config)).await;
        let found = found.unwrap_or_else(|error| Err(error.into()));
        let outcome = match found {
            Ok(found) if found == self.in_force => Ok(()),
            Ok(found) => found.routes().map(|routes| {
                self.wire.replace_routes(&routes);
                self.in_force = found;
                tracing::info!(routes = routes.len(), "new routes are in force");
            }),
            Err(error) => Err(error),
        };
        if let Err(error) = &outcome {
            tracing::error!(error = %format!("{error:#}"), "the new routes are refused; the old ones stay in force");
        }
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        self.readiness.routes_are(outcome);
    }
}
