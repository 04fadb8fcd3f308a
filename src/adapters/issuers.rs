//! The keys of other issuers, fetched over TLS and kept.
//!
//! Each issuer is asked at the start and then every few minutes, and once more
//! where a token names a key that is not known, at a bounded rate. Its keys are
//! kept for a stated time while it does not answer, and then go. What it
//! answers is bounded in time and size, and its server must be where an agent
//! could be admitted to go: at a public address, or one that the operator
//! names. Which issuers there are may change while they are asked.

mod fetch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::{KeySource, OtherIssuer};
use crate::gate::ports::{BoxFuture, IssuerKeys, KeyNews};
use crate::identity::{CachedVerifier, KeySet, TrustedIssuer, VerifyingKey, VerifyingKeys};

use super::figures::Figures;
use super::way_out::WayOut;

/// How often tokens that name unknown keys may make an issuer be asked.
const BETWEEN_UNKNOWN: Duration = Duration::from_secs(10);
/// How many requests may wait for one issuer.
const WAITING: usize = 64;
/// The first pause after a failure, which doubles up to the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// All keys in force: AgentPort's own and files', which are read elsewhere,
/// and those that are fetched here.
pub struct Issuers {
    inner: Arc<Inner>,
}

/// What is known of an issuer, for operators.
#[derive(Clone, Debug)]
pub struct IssuerState {
    /// Its `iss`.
    pub issuer: String,
    /// How many of its keys are in force.
    pub keys: usize,
    /// How long ago it gave them.
    pub age: Option<Duration>,
    /// What went wrong the last time it was asked.
    pub problem: Option<String>,
}

struct Inner {
    tokens: Arc<CachedVerifier>,
    /// Held while keys are put in force, so that none overtakes another.
    own: Mutex<VerifyingKeys>,
    /// What an issuer's tokens carry as `aud` where it names none.
    audience: String,
    remotes: ArcSwap<Vec<Arc<Remote>>>,
    /// Wakes those who ask, when there are other issuers.
    listed: Notify,
    way: Arc<WayOut>,
    figures: Arc<Figures>,
    changed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct Remote {
    settings: OtherIssuer,
    trusted: TrustedIssuer,
    state: Mutex<State>,
    /// Held while it is asked: when that ended last, and when it last was for
    /// the sake of an unknown key.
    asking: tokio::sync::Mutex<Asked>,
    waiting: Semaphore,
}

#[derive(Clone, Default)]
struct State {
    keys: Vec<VerifyingKey>,
    /// The JWK Set that they come from.
    text: Vec<u8>,
    fetched: Option<Instant>,
    problem: Option<String>,
}

#[derive(Default)]
struct Asked {
    ended: Option<Instant>,
    for_unknown: Option<Instant>,
}

/// What makes an issuer be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Due,
    UnknownKey,
}

impl Issuers {
    /// Issuers that have not been asked yet; those with their keys in files
    /// are passed over. `own` are the keys that are in force already, and
    /// `audience` is for issuers that name none.
    #[must_use]
    pub fn new(
        settings: &[OtherIssuer],
        audience: &str,
        own: VerifyingKeys,
        tokens: Arc<CachedVerifier>,
        way: Arc<WayOut>,
        figures: Arc<Figures>,
    ) -> Self {
        let remotes = fetched(settings)
            .map(|issuer| Arc::new(Remote::new(issuer, audience, State::default())))
            .collect();
        Self {
            inner: Arc::new(Inner {
                tokens,
                own: Mutex::new(own),
                audience: audience.to_owned(),
                remotes: ArcSwap::from_pointee(remotes),
                listed: Notify::new(),
                way,
                figures,
                changed: OnceLock::new(),
            }),
        }
    }

    /// Puts other keys of our own and of files in force, and asks these issuers
    /// from now on and no others. Whoever is asked at the same place as before
    /// keeps the keys that it gave. What is open is the caller's to judge.
    pub fn replace(&self, keys: VerifyingKeys, settings: &[OtherIssuer]) {
        let before = self.inner.remotes.load_full();
        let now: Vec<Arc<Remote>> = fetched(settings)
            .map(|issuer| {
                let known = before.iter().find(|remote| remote.gives_keys_of(issuer));
                match known {
                    Some(known) if known.settings == *issuer => Arc::clone(known),
                    known => {
                        let state = known.map(|known| known.state().clone());
                        let state = state.unwrap_or_default();
                        Arc::new(Remote::new(issuer, &self.inner.audience, state))
                    }
                }
            })
            .collect();
        let stays = |name: &str| now.iter().any(|remote| remote.settings.issuer == name);
        let names = before.iter().map(|remote| remote.settings.issuer.as_str());
        for gone in names.filter(|name| !stays(name)) {
            self.inner.figures.issuer_gone(gone);
        }
        {
            let mut own = self.inner.own();
            *own = keys;
            self.inner.remotes.store(Arc::new(now));
        }
        self.inner.publish();
        self.inner.listed.notify_one();
    }

    /// Takes keys of our own out of force that have ended at `now`, in seconds
    /// since 1970, and gives their number. What is open is the caller's to judge.
    pub fn retire_own(&self, now: u64) -> usize {
        let ended = {
            let mut own = self.inner.own();
            let left = own.without_ended(now);
            let ended = own.iter().count() - left.iter().count();
            *own = left;
            ended
        };
        self.inner.publish();
        ended
    }

    /// Whether there is an issuer to ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.remotes.load().is_empty()
    }

    /// What is known of each.
    #[must_use]
    pub fn states(&self) -> Vec<IssuerState> {
        let of = |remote: &Remote| {
            let state = remote.state();
            IssuerState {
                issuer: remote.settings.issuer.clone(),
                keys: state.keys.len(),
                age: state.fetched.map(|at| at.elapsed()),
                problem: state.problem.clone(),
            }
        };
        let remotes = self.inner.remotes.load();
        remotes.iter().map(|remote| of(remote)).collect()
    }

    /// Asks every issuer when it is time to, for ever. `changed` is called
    /// whenever other keys have come into force, to judge what is open.
    pub async fn run(self: Arc<Self>, changed: impl Fn() + Send + Sync + 'static) {
        let _ = self.inner.changed.set(Box::new(changed));
        let mut asking = JoinSet::new();
        let mut asked = HashMap::new();
        loop {
            let remotes = self.inner.remotes.load_full();
            asked.retain(
                |_, (remote, task): &mut (Arc<Remote>, tokio::task::AbortHandle)| {
                    let stays = remotes.iter().any(|now| Arc::ptr_eq(now, remote));
                    if !stays {
                        task.abort();
                    }
                    stays
                },
            );
            for remote in remotes.iter() {
                asked
                    .entry(Arc::as_ptr(remote) as usize)
                    .or_insert_with(|| {
                        let task = asking.spawn(Arc::clone(&self.inner).keep(Arc::clone(remote)));
                        (Arc::clone(remote), task)
                    });
            }
            self.inner.listed.notified().await;
            // Those that were ended above, so that they do not pile up.
            while asking.try_join_next().is_some() {}
        }
    }
}

impl IssuerKeys for Issuers {
    fn unknown_key<'a>(&'a self, issuer: &'a str) -> BoxFuture<'a, KeyNews> {
        Box::pin(async move {
            let remotes = self.inner.remotes.load_full();
            let mut remotes = remotes.iter();
            let Some(remote) = remotes.find(|remote| remote.settings.issuer == issuer) else {
                return KeyNews::None;
            };
            let asked = match remote.waiting.try_acquire() {
                Err(_) => false,
                Ok(_place) => {
                    // In a task of its own: a client that goes away must not
                    // end what others are waiting for.
                    let (inner, remote) = (Arc::clone(&self.inner), Arc::clone(remote));
                    let asking =
                        tokio::spawn(async move { inner.ask(&remote, Why::UnknownKey).await });
                    asking.await.unwrap_or(false)
                }
            };
            if remote.state().keys.is_empty() {
                KeyNews::Unavailable
            } else if asked {
                KeyNews::Asked
            } else {
                KeyNews::None
            }
        })
    }
}

impl Inner {
    /// Keeps one issuer's keys fresh.
    async fn keep(self: Arc<Self>, remote: Arc<Remote>) {
        let remote = &*remote;
        let mut pause = PAUSE.0;
        loop {
            self.ask(remote, Why::Due).await;
            let failed = remote.state().problem.is_some();
            let wait = if failed {
                let wait = pause.min(remote.settings.refresh);
                pause = (pause * 2).min(PAUSE.1);
                remote.until_stale().map_or(wait, |left| wait.min(left))
            } else {
                pause = PAUSE.0;
                remote.settings.refresh
            };
            tokio::time::sleep(wait.max(Duration::from_millis(100))).await;
            self.withdraw_stale(remote);
        }
    }

    /// Asks one issuer, unless it has been asked since this began, or may not
    /// be. Says whether it was.
    async fn ask(&self, remote: &Remote, why: Why) -> bool {
        let began = Instant::now();
        let mut asked = remote.asking.lock().await;
        if asked.ended.is_some_and(|ended| ended >= began) {
            return true;
        }
        if why == Why::UnknownKey {
            let last = asked.for_unknown;
            if last.is_some_and(|last| last.elapsed() < BETWEEN_UNKNOWN) {
                return false;
            }
            asked.for_unknown = Some(began);
        }
        let given = fetch::key_set(&remote.settings, &self.way).await;
        let issuer = &remote.settings.issuer;
        match given.and_then(|text| remote.take(text)) {
            Ok(changed) => {
                self.figures.issuer_answered(issuer, SystemTime::now());
                if changed {
                    tracing::info!(
                        issuer,
                        keys = remote.state().keys.len(),
                        "the issuer has given other keys"
                    );
                    self.publish_and_judge();
                }
            }
            Err(problem) => {
                self.figures.issuer_failed(issuer);
                tracing::warn!(issuer, problem, "the issuer's keys cannot be had");
                remote.state().problem = Some(problem);
                self.withdraw_stale(remote);
            }
        }
        asked.ended = Some(Instant::now());
        true
    }

    fn withdraw_stale(&self, remote: &Remote) {
        if remote.until_stale() != Some(Duration::ZERO) {
            return;
        }
        {
            let mut state = remote.state();
            state.keys.clear();
            state.text.clear();
            state.fetched = None;
        }
        let issuer = &remote.settings.issuer;
        tracing::error!(
            issuer,
            "the issuer has not answered for too long; its keys are out of force"
        );
        self.publish_and_judge();
    }

    /// Puts the keys of this moment in force.
    fn publish(&self) {
        let own = self.own();
        let mut keys = VerifyingKeys::clone(&own);
        for remote in self.remotes.load().iter() {
            let theirs = remote.state().keys.clone();
            if theirs.is_empty() {
                continue;
            }
            match keys.clone().with(remote.trusted.clone(), theirs) {
                Ok(more) => keys = more,
                Err(error) => {
                    let issuer = &remote.settings.issuer;
                    tracing::error!(issuer, %error, "the issuer's keys are refused beside the others");
                    remote.state().problem = Some(error.to_string());
                }
            }
        }
        self.tokens.replace_keys(keys);
    }

    /// The same, and has what is open judged by them.
    fn publish_and_judge(&self) {
        self.publish();
        if let Some(changed) = self.changed.get() {
            changed();
        }
    }

    fn own(&self) -> MutexGuard<'_, VerifyingKeys> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The issuers whose keys are not in files.
fn fetched(settings: &[OtherIssuer]) -> impl Iterator<Item = &OtherIssuer> {
    settings
        .iter()
        .filter(|issuer| !matches!(issuer.source, KeySource::File(_)))
}

impl Remote {
    fn new(settings: &OtherIssuer, audience: &str, state: State) -> Self {
        Self {
            trusted: settings.trusted(audience),
            settings: settings.clone(),
            state: Mutex::new(state),
            asking: tokio::sync::Mutex::default(),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// Whether its keys are those of this issuer too: from the same place, with
    /// the same trust, for the same algorithms.
    fn gives_keys_of(&self, other: &OtherIssuer) -> bool {
        let of = |settings: &OtherIssuer| {
            let OtherIssuer {
                issuer,
                source,
                ca,
                addresses,
                algorithms,
                ..
            } = settings.clone();
            (issuer, source, ca, addresses, algorithms)
        };
        of(&self.settings) == of(other)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the issuer has given; says whether it is something else
    /// than before.
    fn take(&self, text: Vec<u8>) -> Result<bool, String> {
        if self.state().text == text {
            let mut state = self.state();
            state.fetched = Some(Instant::now());
            state.problem = None;
            return Ok(false);
        }
        let set = std::str::from_utf8(&text).map_err(|_| "the JWKS is not UTF-8".to_owned())?;
        let mut set = KeySet::parse_foreign(set).map_err(|error| error.to_string())?;
        for skipped in &set.skipped {
            tracing::warn!(
                issuer = self.settings.issuer,
                skipped,
                "a key of the issuer is passed over"
            );
        }
        set.keys.retain(|key| self.settings.allows(key.algorithm()));
        if set.keys.is_empty() {
            return Err("the JWKS has no key for an algorithm that is allowed".to_owned());
        }
        let mut state = self.state();
        state.keys = set.keys;
        state.text = text;
        state.fetched = Some(Instant::now());
        state.problem = None;
        Ok(true)
    }

    /// How long its keys are still good without an answer; `None` where there
    /// are none.
    fn until_stale(&self) -> Option<Duration> {
        let kept = self.settings.refresh + self.settings.stale_for;
        let fetched = self.state().fetched?;
        Some(kept.saturating_sub(fetched.elapsed()))
    }
}
