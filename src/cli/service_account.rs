//! `agentport service-account`: who may have tokens issued over HTTP.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::adapters::service_accounts as file;
use crate::config::Purpose;
use crate::identity::{
    AccountDocument, AccountsDocument, Any, AnyOrList, KeySet, NewKey, VerifyingKey, is_account_id,
    is_key_id, key_parts, parse_lifetime, public_jwks,
};

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum ServiceAccountCommand {
    /// Make an account, and print its key: it is shown once
    Create(Box<CreateArgs>),
    /// Make another key for an account, and print it; the old ones stay
    AddKey {
        /// The account
        id: String,
        /// How long the key lives, such as 90d [default: until it is revoked]
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        #[command(flatten)]
        file: FileArgs,
    },
    /// Print the accounts, their keys and their bounds
    List {
        #[command(flatten)]
        file: FileArgs,
    },
    /// Revoke an account, or one of its keys; what it was issued lives on until it expires
    Revoke {
        /// The account
        id: String,
        /// Only this key, by the id that `list` shows or whole
        #[arg(long, value_name = "KEY_ID")]
        key: Option<String>,
        #[command(flatten)]
        file: FileArgs,
    },
}

#[derive(Args)]
pub(super) struct FileArgs {
    /// The file of accounts [default: identity.service_accounts]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct CreateArgs {
    /// Its name: lower-case letters, digits and hyphens
    id: String,
    /// An agent that it may have tokens for: a name, ci-*, or any; may be given again
    #[arg(long, value_name = "NAME", required = true, value_delimiter = ',')]
    agent: Vec<String>,
    /// A tenant, as agents; may be given again [default: tokens without a tenant]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    tenant: Vec<String>,
    /// A host, *.suffix or range that its tokens may allow, or any; may be given again
    #[arg(
        long,
        value_name = "DESTINATION",
        required = true,
        value_delimiter = ','
    )]
    allow: Vec<String>,
    /// A word that a token's scope may have; may be given again
    #[arg(long, value_name = "WORD", value_delimiter = ' ')]
    scope: Vec<String>,
    /// An audience beside the gateway's own; may be given again
    #[arg(long, value_name = "NAME")]
    audience: Vec<String>,
    /// The longest life of its tokens, such as 1h [default: identity.max_token_ttl]
    #[arg(long, value_name = "TIME")]
    max_ttl: Option<String>,
    /// How many tokens in how long, such as 60/m [default: no limit]
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// How long its key lives, such as 90d [default: until it is revoked]
    #[arg(long, value_name = "TIME", conflicts_with = "public_key")]
    expires: Option<String>,
    /// Make no key: the account signs assertions with the private half of this one (PEM, JWK or JWKS)
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    #[command(flatten)]
    file: FileArgs,
}

pub(super) fn run(
    settings: &SettingsArgs,
    command: &ServiceAccountCommand,
) -> anyhow::Result<ExitCode> {
    match command {
        ServiceAccountCommand::Create(args) => create(settings, args)?,
        ServiceAccountCommand::AddKey { id, expires, file } => {
            add_key(settings, id, expires.as_deref(), file)?;
        }
        ServiceAccountCommand::List { file } => list(settings, file)?,
        ServiceAccountCommand::Revoke { id, key, file } => {
            revoke(settings, id, key.as_deref(), file)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn create(settings: &SettingsArgs, args: &CreateArgs) -> anyhow::Result<()> {
    let path = path(settings, &args.file)?;
    // Before the file is touched or a key is made.
    if !is_account_id(&args.id) {
        bail!(
            "{:?}: write 1 to 64 lower-case letters, digits and hyphens, not a hyphen first",
            args.id
        );
    }
    let key = match &args.public_key {
        Some(_) => None,
        None => Some(new_key(&args.id, args.expires.as_deref())?),
    };
    let jwks = args.public_key.as_ref().map(read_public_key).transpose()?;
    let list = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let account = AccountDocument {
        id: args.id.clone(),
        description: args.description.clone(),
        revoked: false,
        keys: key.iter().map(|key| key.document.clone()).collect(),
        jwks,
        agents: any_or_list(&args.agent),
        tenants: (!args.tenant.is_empty()).then(|| any_or_list(&args.tenant)),
        destinations: any_or_list(&args.allow),
        scopes: list(&args.scope),
        audiences: list(&args.audience),
        max_ttl: args.max_ttl.clone(),
        rate: args.rate.clone(),
    };
    file::edit(&path, true, |document| {
        if let Some(known) = document.accounts.iter().find(|known| known.id == args.id) {
            let hint = if known.revoked {
                "it is revoked; take another name, so that its records stay its own"
            } else {
                "`agentport service-account add-key` gives it another key"
            };
            return Err(format!(
                "{}: the account {} is there: {hint}",
                path.display(),
                args.id
            ));
        }
        document.accounts.push(account);
        Ok(())
    })
    .map_err(anyhow::Error::msg)?;
    if let Some(key) = key {
        super::give(&format!("{}\n", key.secret));
    }
    Ok(())
}

fn add_key(
    settings: &SettingsArgs,
    id: &str,
    expires: Option<&str>,
    file: &FileArgs,
) -> anyhow::Result<()> {
    let path = path(settings, file)?;
    let key = new_key(id, expires)?;
    let written = key.document.clone();
    file::edit(&path, false, |document| {
        let account = account(document, id)?;
        if account.revoked {
            return Err(format!("{id}: the account is revoked: create another"));
        }
        account.keys.push(written);
        Ok(())
    })
    .map_err(anyhow::Error::msg)?;
    super::give(&format!("{}\n", key.secret));
    Ok(())
}

fn revoke(
    settings: &SettingsArgs,
    id: &str,
    key: Option<&str>,
    file: &FileArgs,
) -> anyhow::Result<()> {
    let path = path(settings, file)?;
    file::edit(&path, false, |document| {
        let account = account(document, id)?;
        let Some(key) = key else {
            account.revoked = true;
            account.keys.clear();
            account.jwks = None;
            return Ok(());
        };
        // Whoever has the key whole may give it so; it is not shown again.
        let key = match key_parts(key) {
            Some((owner, key)) if owner == id => key,
            Some(_) => return Err(format!("{id}: this is the key of another account")),
            None => key,
        };
        let before = account.keys.len();
        account.keys.retain(|known| known.id != key);
        if account.keys.len() == before {
            // What is no id may be a secret with a mistake in it.
            let key = if is_key_id(key) { key } else { "of this id" };
            return Err(format!(
                "{id}: it has no key {key}; `agentport service-account list` shows the ids, of 8 hexadecimal digits"
            ));
        }
        // The last key is the account's end, and that is said by its name.
        if account.keys.is_empty() && account.jwks.is_none() {
            return Err(format!(
                "{id}: {key} is its only key: add another first, or revoke the account without --key"
            ));
        }
        Ok(())
    })
    .map_err(anyhow::Error::msg)
}

fn list(settings: &SettingsArgs, file: &FileArgs) -> anyhow::Result<()> {
    let path = path(settings, file)?;
    let document = file::document(&path).map_err(anyhow::Error::msg)?;
    // What is wrong with it is said, and not listed as if it held.
    file::read(&path).map_err(anyhow::Error::msg)?;
    let mut out = String::new();
    for account in &document.accounts {
        let state = if account.revoked { " (revoked)" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}{state}", account.id);
        let tenants = account.tenants.as_ref().map(shown);
        for (name, value) in [
            ("description", account.description.clone()),
            ("agents", Some(shown(&account.agents))),
            ("tenants", tenants),
            ("destinations", Some(shown(&account.destinations))),
            ("scopes", account.scopes.as_ref().map(|list| list.join(" "))),
            (
                "audiences",
                account.audiences.as_ref().map(|list| list.join(" ")),
            ),
            ("max_ttl", account.max_ttl.clone()),
            ("rate", account.rate.clone()),
            (
                "jwks",
                account
                    .jwks
                    .as_ref()
                    .map(|_| "signed assertions".to_owned()),
            ),
        ] {
            if let Some(value) = value {
                let _ = writeln!(out, "  {name}: {value}");
            }
        }
        for key in &account.keys {
            let end = key.expires.as_deref().unwrap_or("never");
            let made = key.created.as_deref().unwrap_or("-");
            let _ = writeln!(out, "  key {}: created {made}, expires {end}", key.id);
        }
    }
    super::give(&out);
    Ok(())
}

fn path(settings: &SettingsArgs, file: &FileArgs) -> anyhow::Result<PathBuf> {
    if let Some(file) = &file.file {
        return Ok(file.clone());
    }
    super::load(settings, Purpose::Command)?
        .identity
        .service_accounts
        .context("which file? write --file FILE, or set identity.service_accounts")
}

fn account<'d>(
    document: &'d mut AccountsDocument,
    id: &str,
) -> Result<&'d mut AccountDocument, String> {
    let found = document
        .accounts
        .iter_mut()
        .find(|account| account.id == id);
    found.ok_or_else(|| {
        format!("{id}: there is no such account; `agentport service-account list` shows them")
    })
}

fn new_key(id: &str, expires: Option<&str>) -> anyhow::Result<NewKey> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let expires = expires
        .map(|text| {
            parse_lifetime(text).map_err(|error| anyhow::anyhow!("--expires {text}: {error}"))
        })
        .transpose()?
        .map(|lifetime| now + lifetime.as_secs());
    Ok(NewKey::generate(id, now, expires)?)
}

/// The public halves in a file, as a JWK Set.
fn read_public_key(file: &PathBuf) -> anyhow::Result<yaml_serde::Value> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let keys = if text.trim_start().starts_with('{') {
        KeySet::parse(&text)
            .map(|set| set.keys)
            .or_else(|_| VerifyingKey::from_jwk(&text).map(|key| vec![key]))
    } else {
        VerifyingKey::from_pem(&text).map(|key| vec![key])
    };
    let keys = keys.with_context(|| format!("{}", file.display()))?;
    if keys.iter().any(|key| key.algorithm().is_symmetric()) {
        bail!("{}: a shared secret is no public key", file.display());
    }
    yaml_serde::from_str(&public_jwks(&keys)).context("the keys cannot be written down")
}

fn any_or_list(list: &[String]) -> AnyOrList {
    match list {
        [only] if only == "any" => AnyOrList::Any(Any::Any),
        list => AnyOrList::Listed(list.to_vec()),
    }
}

fn shown(list: &AnyOrList) -> String {
    match list {
        AnyOrList::Any(_) => "any".to_owned(),
        AnyOrList::Listed(list) => list.join(" "),
    }
}
