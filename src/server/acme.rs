//! Keeps the certificate that comes by ACME: serves the one that is there,
//! orders another when it is due, and takes up what a replica has ordered. On a
//! failure the last good one stays.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::acme::{self, AcmeFolder, Attempts, Http01, Ordered};
use crate::adapters::figures::Figures;
use crate::adapters::host;
use crate::adapters::watch::Watch;
use crate::adapters::way_out::WayOut;
use crate::admin::Readiness;
use crate::audit::Rfc3339;
use crate::config::{Acme, AcmeChallenge, Config};
use crate::gate::ports::Clock;
use crate::proxy::ListenerTls;

/// How soon to look again while another process orders, or files cannot be
/// read. A change that is noticed comes first.
const SOON: Duration = Duration::from_secs(5);
/// The longest that nothing is looked at, for clocks that are set.
const LONGEST: Duration = Duration::from_secs(3600);
/// How soon and how late a server is asked again when to renew.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(24 * 3600));
/// How soon where it did not answer.
const ASK_AFTER_FAILURE: Duration = Duration::from_secs(6 * 3600);

/// The certificate by ACME.
pub(super) struct AcmeKeeper {
    settings: Acme,
    folder: AcmeFolder,
    http: Option<Http01>,
    tls: Arc<ListenerTls>,
    figures: Arc<Figures>,
    clock: Arc<dyn Clock>,
    in_force: Option<Ordered>,
    /// Where in a window of renewal this replica stands, from 0 to 1.
    spread: f64,
    window: Option<(SystemTime, SystemTime)>,
    ask_window: SystemTime,
}

impl AcmeKeeper {
    /// Opens the directory, binds what answers challenges, and serves the
    /// certificate that is there. Where there is none, handshakes fail until
    /// the first one has come.
    ///
    /// # Errors
    /// A directory or an address that cannot be used, or a certificate in it
    /// that cannot be read.
    pub(super) async fn open(
        config: &Config,
        tls: Option<&Arc<ListenerTls>>,
        figures: &Arc<Figures>,
        clock: &Arc<dyn Clock>,
    ) -> anyhow::Result<Option<Self>> {
        let (Some(settings), Some(tls)) = (&config.tls.acme, tls) else {
            return Ok(None);
        };
        let folder = AcmeFolder::open(&settings.dir).context("tls.acme.dir")?;
        let http = match settings.challenge {
            AcmeChallenge::Http01 => {
                Some(Http01::bind(settings.http_listen, folder.clone()).await?)
            }
            AcmeChallenge::TlsAlpn01 => None,
        };
        let mut keeper = Self {
            settings: settings.clone(),
            folder,
            http,
            tls: Arc::clone(tls),
            figures: Arc::clone(figures),
            clock: Arc::clone(clock),
            in_force: None,
            spread: 0.0,
            window: None,
            ask_window: SystemTime::UNIX_EPOCH,
        };
        keeper
            .take_in()
            .map_err(anyhow::Error::msg)
            .context("tls.acme")?;
        Ok(Some(keeper))
    }

    /// Where challenges are answered.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(Http01::address)
    }

    /// Keeps it, for ever.
    pub(super) fn run(
        mut self,
        way: Arc<WayOut>,
        readiness: Arc<Readiness>,
    ) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let paths = self.folder.watched();
        let mut watch = Watch::start(paths).context("cannot watch tls.acme.dir")?;
        let mut hangup = signal(SignalKind::hangup())?;
        let http = self.http.take();
        Ok(async move {
            let answering = async {
                match http {
                    Some(http) => http.serve().await,
                    None => std::future::pending().await,
                }
            };
            let keeping = async {
                loop {
                    let wait = self.step(&way, &readiness).await.unwrap_or_else(|error| {
                        tracing::error!(%error, "the certificate by ACME cannot be kept");
                        readiness.acme_is(json!({ "error": error }));
                        SOON
                    });
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        Some(()) = watch.changed() => {}
                        Some(()) = hangup.recv() => {}
                    }
                }
            };
            tokio::join!(answering, keeping);
        })
    }

    /// Does what is due, and gives how long there is nothing to do.
    async fn step(&mut self, way: &Arc<WayOut>, readiness: &Readiness) -> Result<Duration, String> {
        self.take_in()?;
        self.ask_window(way).await;
        let (due, attempts) = self.due()?;
        self.show(readiness, due, &attempts);
        let now = self.clock.wall();
        if let Ok(left) = due.duration_since(now)
            && !left.is_zero()
        {
            let ask = self.ask_window.duration_since(now).unwrap_or(LONGEST);
            return Ok(left.min(ask).min(LONGEST).max(Duration::from_millis(10)));
        }
        let lock = self.folder.lock().map_err(|error| error.to_string())?;
        let Some(lock) = lock else { return Ok(SOON) };
        // Whoever held it before may have ordered.
        self.take_in()?;
        if self.due()?.0 > now {
            return Ok(Duration::ZERO);
        }
        if self.folder.is_asked() {
            self.folder.take_up().map_err(|error| error.to_string())?;
        }
        self.order(now, way).await?;
        drop(lock);
        Ok(Duration::ZERO)
    }

    async fn order(&mut self, now: SystemTime, way: &Arc<WayOut>) -> Result<(), String> {
        let domains = self.settings.domains.len();
        tracing::info!(
            directory = self.settings.directory,
            domains,
            "ordering a certificate"
        );
        let (tls, folder) = (Arc::clone(&self.tls), self.folder.clone());
        let names = self.settings.domains.clone();
        let answer = move || tls.answer_challenges(folder.tls_alpn01(&names));
        let attempts = self.folder.attempts()?;
        // A server that refused this before may not like what it is to replace.
        let replaces = self
            .in_force
            .as_ref()
            .filter(|_| self.window.is_some() && attempts.failures == 0);
        let ordered =
            acme::order(&self.settings, &self.folder, (replaces, now), &answer, way).await;
        let now = self.clock.wall();
        let attempts = match &ordered {
            Ok(()) => AcmeFolder::succeeded(now),
            Err(failure) => attempts.failed(failure, now),
        };
        let kept = self.folder.keep_attempts(&attempts);
        self.figures.acme_order(ordered.is_ok());
        match ordered {
            Ok(()) => self.take_in()?,
            Err(failure) => {
                let again = written(attempts.not_before());
                tracing::error!(error = %failure, again, "no certificate came; the last one stays");
            }
        }
        // Without it, every step would be an attempt.
        kept.map_err(|error| error.to_string())
    }

    /// Puts in force what the directory has.
    fn take_in(&mut self) -> Result<(), String> {
        let answers = self.folder.tls_alpn01(&self.settings.domains);
        self.tls.answer_challenges(answers);
        let Some(ordered) = self.folder.certificate()? else {
            return Ok(());
        };
        let der = |ordered: &Ordered| ordered.key.cert.first().cloned();
        if self.in_force.as_ref().and_then(der) == der(&ordered) {
            return Ok(());
        }
        self.tls.serve_ordered(vec![Arc::clone(&ordered.key)]);
        let name = self.folder.certificate_path().display().to_string();
        self.figures.certificate_expires(&name, ordered.until);
        let until = written(ordered.until);
        tracing::info!(file = name, until, "the certificate by ACME is in force");
        self.in_force = Some(ordered);
        self.spread = spread();
        self.window = None;
        self.ask_window = SystemTime::UNIX_EPOCH;
        Ok(())
    }

    /// Asks the server when to renew, where it is time to ask that.
    async fn ask_window(&mut self, way: &Arc<WayOut>) {
        let now = self.clock.wall();
        let Some(ordered) = self.in_force.as_ref().filter(|_| now >= self.ask_window) else {
            return;
        };
        let again = match acme::suggested_window(&self.settings, ordered, way).await {
            Ok(Some((window, again))) => {
                self.window = Some(window);
                again.clamp(ASK_AGAIN.0, ASK_AGAIN.1)
            }
            Ok(None) => ASK_AGAIN.1,
            Err(error) => {
                // What it said last counts still, else two thirds.
                tracing::debug!(%error, "the ACME server does not say when to renew");
                ASK_AFTER_FAILURE
            }
        };
        self.ask_window = now + again;
    }

    /// When to order.
    fn due(&self) -> Result<(SystemTime, Attempts), String> {
        let attempts = self.folder.attempts()?;
        if self.folder.is_asked() {
            return Ok((SystemTime::UNIX_EPOCH, attempts));
        }
        let domains = &self.settings.domains;
        let fits = self.in_force.as_ref().filter(|one| one.covers(domains));
        let due = match fits {
            Some(ordered) if !attempts.asked => ordered.due(self.window, self.spread),
            _ => SystemTime::UNIX_EPOCH,
        };
        Ok((due.max(attempts.not_before()), attempts))
    }

    fn show(&self, readiness: &Readiness, due: SystemTime, attempts: &Attempts) {
        readiness.acme_is(json!({
            "until": self.in_force.as_ref().map(|one| written(one.until)),
            "next_order": written(due),
            "renewal_window": self.window.map(|(start, end)| [written(start), written(end)]),
            "failures": attempts.failures,
            "error": attempts.error,
        }));
    }
}

fn spread() -> f64 {
    let bits = u32::try_from(host::random_bits() >> 96).unwrap_or(0);
    f64::from(bits) / f64::from(u32::MAX)
}

fn written(time: SystemTime) -> String {
    Rfc3339(time).to_string()
}
