//! What a start reads beside the policy's documents: one list of it, for the
//! start itself, which so tells every mistake at once, and for
//! `agentport config check`, which is asked before a start and must not know
//! better.
//!
//! Nothing here binds a socket, writes a file or asks anybody.

use std::sync::Arc;

use anyhow::Context;

use crate::adapters::clock::SystemClock;
use crate::adapters::figures::Figures;
use crate::adapters::parent;
use crate::config::Config;
use crate::gate::ports::Clock;

use super::load::{self, LoadError};
use super::{agent_keys, certificates, peers, refusals, revocation, routes, tokens};

/// Reads everything that a start reads, and the policy.
///
/// A start takes a policy in which the document of one tenant has a mistake,
/// and refuses that tenant; this does not.
///
/// # Errors
/// Every mistake, each with its place and what to write.
pub fn everything(config: &Config) -> Result<(), LoadError> {
    let policy = load::policy(config).err();
    let policy = policy.map(|error| format!("the policy is not valid: {error}"));
    let mut mistakes: Vec<_> = policy.into_iter().collect();
    mistakes.extend(files(config));
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(LoadError(mistakes))
    }
}

/// Every mistake in the files that the configuration names, but for those of
/// the policy. An empty list where a start may go on.
pub(super) fn files(config: &Config) -> Vec<String> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // Those that count are told of what is put in force.
    let figures = Figures::new(env!("CARGO_PKG_VERSION"));
    let mut mistakes = Vec::new();
    let mut note = |outcome: anyhow::Result<()>| {
        if let Err(error) = outcome {
            let error = in_words(&error);
            if !mistakes.contains(&error) {
                mistakes.push(error);
            }
        }
    };
    let keys = load::every_key(config);
    let signs = keys.is_ok();
    note(keys.map(drop));
    note(super::check_bundle(config));
    note(certificates::of_egress(config, &figures, &*clock).map(drop));
    note(refusals::open(config, &figures, &clock).map(drop));
    note(peers::open(config, &figures, &*clock).map(drop));
    note(routes::read(config).map(drop));
    if let Some(written) = &config.upstream_proxy {
        note(
            parent::access(written)
                .map(drop)
                .map_err(anyhow::Error::msg),
        );
    }
    note(agent_keys::read(config).map(drop));
    note(tokens::accounts(config).map(drop));
    // A key that is no good has been told of.
    if signs && config.identity.service_accounts.is_some() {
        note(tokens::signer(config).map(drop));
    }
    note(revocation::check(config));
    note(admin_secret(config));
    note(super::resolver(config, &clock).map(drop));
    mistakes
}

/// It is read for each request, so that it may be rotated; where it is no good
/// from the start, nobody could revoke anything.
fn admin_secret(config: &Config) -> anyhow::Result<()> {
    match &config.listen.admin_secret_file {
        None => Ok(()),
        Some(file) => crate::admin::revocation::check_secret(file)
            .map_err(anyhow::Error::msg)
            .context("listen.admin_secret_file"),
    }
}

/// An error with its causes. Many an error says its cause in its own words, and
/// is not made to say it twice.
#[must_use]
pub fn in_words(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if said.is_empty() {
            said = cause;
        } else if !said.ends_with(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let io = || std::io::Error::other("k.pem: no such file");
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Said(#[from] std::io::Error);
        for (case, error, words) in [
            ("one", anyhow::anyhow!("a"), "a"),
            ("two", anyhow::anyhow!("b").context("a"), "a: b"),
            (
                "one that says its cause",
                anyhow::Error::from(Said(io())).context("identity"),
                "identity: k.pem: no such file",
            ),
            (
                "a cause that is a word of what it caused",
                anyhow::anyhow!("b").context("b or a"),
                "b or a: b",
            ),
        ] {
            assert_eq!(in_words(&error), words, "{case}");
        }
    }
}
