//! One token for another (RFC 8693): narrower, for less time, and perhaps with
//! an actor. What comes out never allows more than what went in.

use std::time::Duration;

use super::delegation::{first_new_word, first_outside, meet};
use super::descent::Descent;
use super::grant::{GrantError, Terms, TokenRequest, lifetime};
use super::issue::IssueRequest;
use super::principal::Principal;
use super::service_account::ServiceAccount;
use crate::egress::Destination;

/// What is granted for a token that held at `now`, in seconds since 1970.
///
/// The new token is the subject's: its agent, its tenant, and nothing that it
/// does not have. An actor is put before those who acted already. A service
/// account, where the client has shown that it is one, narrows it further;
/// without one the holder of a token can hand on what it holds, and no more.
/// What it descends from goes with it, so that whatever revokes that reaches it,
/// and so does whom the subject's token was for: of a tenant's documents it gets
/// the same one as that, whatever its own `aud` says.
///
/// # Errors
/// [`GrantError`], the first thing that may not be had. `subject` and `actor`
/// have been verified; where they were not, the answer is
/// [`GrantError::InvalidRequest`] (RFC 8693, 2.2.2).
pub fn exchange(
    account: Option<&ServiceAccount>,
    request: &TokenRequest,
    subject: &Principal,
    actor: Option<&Principal>,
    terms: &Terms,
    (now, jti): (u64, u128),
) -> Result<(IssueRequest, Descent), GrantError> {
    same("agent_id", request.agent.as_ref(), Some(subject.agent()))?;
    same("tenant", request.tenant.as_ref(), subject.tenant())?;
    if let Some(account) = account {
        account.permits_agent(subject.agent())?;
        account.permits_tenant(subject.tenant())?;
    }
    let audience = match account {
        Some(account) => account.audience(request.audience.as_deref(), terms)?,
        None => own_audience(request, terms)?,
    };
    let granted = IssueRequest {
        agent: subject.agent().clone(),
        tenant: subject.tenant().cloned(),
        destinations: destinations(account, request, subject)?,
        lifetime: lives(account, request, subject, actor, terms, now)?,
        audience,
        jti,
        actors: actors(subject, actor, terms)?,
        scope: scope(account, request, subject)?,
        // A token of nobody's dies with the account that its parent was
        // issued to.
        client: account
            .map(|account| account.id().to_string())
            .or_else(|| subject.client().map(ToString::to_string)),
    };
    Ok((granted, Descent::from(subject, actor)?))
}

/// A parameter that the subject token fixes.
fn same<T: PartialEq>(name: &str, asked: Option<&T>, has: Option<&T>) -> Result<(), GrantError> {
    if asked.is_none() || asked == has {
        return Ok(());
    }
    Err(GrantError::request(format!(
        "{name} is the subject token's: leave it out"
    )))
}

fn own_audience(request: &TokenRequest, terms: &Terms) -> Result<Option<String>, GrantError> {
    match &request.audience {
        Some(asked) if *asked != terms.audience => Err(GrantError::InvalidTarget(format!(
            "audience: write {}, or leave it out",
            terms.audience
        ))),
        _ => Ok(None),
    }
}

/// Within the subject's, within the account's, and as asked for.
fn destinations(
    account: Option<&ServiceAccount>,
    request: &TokenRequest,
    subject: &Principal,
) -> Result<Option<Vec<Destination>>, GrantError> {
    let bound = account.and_then(|account| account.bounds.destinations.as_deref());
    let parents = subject.destinations();
    if let Some(asked) = &request.destinations {
        for (whose, list) in [("subject token", parents), ("service account", bound)] {
            if let Some(outside) = list.and_then(|list| first_outside(list, asked)) {
                return Err(GrantError::InvalidTarget(format!(
                    "allowed_destinations: {outside} is not within the destinations of the {whose}"
                )));
            }
        }
        return Ok(Some(asked.clone()));
    }
    match (parents, bound) {
        (Some(parents), Some(bound)) => {
            let both = meet(parents, bound);
            if both.is_empty() && !parents.is_empty() {
                return Err(GrantError::InvalidTarget(
                    "the subject token and the service account have no destination in common"
                        .to_owned(),
                ));
            }
            Ok(Some(both))
        }
        (one, other) => Ok(one.or(other).map(<[_]>::to_vec)),
    }
}

/// As asked for, and never past the end of either token.
fn lives(
    account: Option<&ServiceAccount>,
    request: &TokenRequest,
    subject: &Principal,
    actor: Option<&Principal>,
    terms: &Terms,
    now: u64,
) -> Result<Duration, GrantError> {
    let asked = match account {
        Some(account) => account.lifetime(request.ttl, terms)?,
        None => lifetime(request.ttl, terms, terms.max_ttl)?,
    };
    let end = actor
        .map_or(u64::MAX, Principal::expires_at)
        .min(subject.expires_at());
    // The leeway for clocks is for those who use a token, not for its heirs.
    match end.checked_sub(now) {
        None | Some(0) => Err(GrantError::request(
            "the subject token or the actor token has expired: get a new one",
        )),
        Some(left) => Ok(asked.min(Duration::from_secs(left))),
    }
}

fn actors(
    subject: &Principal,
    actor: Option<&Principal>,
    terms: &Terms,
) -> Result<Vec<String>, GrantError> {
    let mut chain = Vec::new();
    if let Some(actor) = actor {
        if actor.tenant() != subject.tenant() {
            return Err(GrantError::request(
                "the actor token is of another tenant than the subject token",
            ));
        }
        if actor.act().is_some() {
            return Err(GrantError::request(
                "the actor token is a delegated one: send the actor's own",
            ));
        }
        chain.push(actor.agent().to_string());
    }
    chain.extend(
        subject
            .act()
            .into_iter()
            .flat_map(|act| act.iter().cloned()),
    );
    if chain.len() > terms.max_actors {
        return Err(GrantError::request(format!(
            "the chain of actors would have {}, and {} is the most (identity.max_delegation)",
            chain.len(),
            terms.max_actors
        )));
    }
    Ok(chain)
}

/// What is asked for, or else all that both have.
fn scope(
    account: Option<&ServiceAccount>,
    request: &TokenRequest,
    subject: &Principal,
) -> Result<Option<String>, GrantError> {
    let parents = subject.scope().map(|scope| &**scope);
    let Some(asked) = &request.scope else {
        let held = |word: &&str| account.is_none_or(|account| account.permits_scope(word).is_ok());
        let words: Vec<&str> = parents
            .into_iter()
            .flat_map(|scope| scope.split(' '))
            .filter(held)
            .collect();
        return Ok((!words.is_empty()).then(|| words.join(" ")));
    };
    if let Some(account) = account {
        account.permits_scope(asked)?;
    }
    match first_new_word(parents, asked) {
        None => Ok(Some(asked.clone())),
        Some(word) => Err(GrantError::InvalidScope(format!(
            "scope: {word} is not in the scope of the subject token"
        ))),
    }
}
