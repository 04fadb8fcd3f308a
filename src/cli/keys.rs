//! `agentport keys`: signing keys in files, one by one or in a folder that
//! knows which of them signs.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::adapters::keyring::Keyring;
use crate::audit::Rfc3339;
use crate::config::{Config, Purpose};
use crate::identity::{KeyState, SigningKey, generate_ed25519, public_jwks};

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum KeysCommand {
    /// Make a new Ed25519 signing key, in a file of its own or as the first of a folder
    Generate(GenerateArgs),
    /// Show the keys of a folder: which signs, and until when the others verify
    List(FolderArgs),
    /// Put a new key into a folder: it signs, and those before it verify for the overlap
    Rotate(RotateArgs),
    /// End a key of a folder at once; what it has signed is refused from then on
    Retire(RetireArgs),
    /// Print the public halves as a JWK Set
    Export(ExportArgs),
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct GenerateArgs {
    /// Write one key here (PKCS#8 PEM, mode 0600); an existing file is never replaced
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Make a folder for keys that are rotated (identity.signing_keys)
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct FolderArgs {
    /// The folder [default: identity.signing_keys]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// How long the keys before it still verify, counted from when the new one signs
    #[arg(long, value_name = "TIME", default_value = "24h")]
    overlap: String,
    /// How long the new key is only published before it signs: the time until every replica has seen the folder's change
    #[arg(long, value_name = "TIME", default_value = "10s")]
    activate_after: String,
}

#[derive(Args)]
pub(super) struct RetireArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// The key's id, as `list` shows it
    #[arg(value_name = "KID", allow_hyphen_values = true)]
    kid: String,
}

#[derive(Args)]
pub(super) struct ExportArgs {
    /// A signing key
    #[arg(long, short, value_name = "FILE", conflicts_with = "folder")]
    key: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
}

pub(super) fn run(settings: &SettingsArgs, command: &KeysCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeysCommand::Generate(args) => match (&args.out, &args.folder) {
            (Some(out), _) => generate(out)?,
            (None, Some(folder)) => {
                let kid = Keyring::create(folder, now())?;
                super::say(&format!("the key {kid} signs from now on"));
            }
            (None, None) => bail!("write --out FILE or --folder FOLDER"),
        },
        KeysCommand::List(args) => list(&folder(settings, args)?)?,
        KeysCommand::Rotate(args) => rotate(settings, args)?,
        KeysCommand::Retire(args) => {
            Keyring::retire(&folder(settings, &args.folder)?, &args.kid, now())?;
            super::say(&format!("the key {} has ended", args.kid));
        }
        KeysCommand::Export(args) => export(settings, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a new key for its owner's eyes only.
pub(super) fn generate(out: &Path) -> anyhow::Result<()> {
    let pem = generate_ed25519().context("cannot make a key")?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .with_context(|| format!("cannot create {}", out.display()))?;
    file.write_all(pem.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", out.display()))
}

/// One line per key, the oldest first: its id, what it does, and its times.
fn list(folder: &Path) -> anyhow::Result<()> {
    let ring = Keyring::read(folder)?;
    let now = now();
    let mut out = String::new();
    for key in ring.manifest().keys() {
        let does = match ring.manifest().state(key, now) {
            KeyState::Signs => "signs".to_owned(),
            KeyState::Waits => format!("signs from {}", date(key.signs_from)),
            KeyState::Verifies => "verifies".to_owned(),
            KeyState::Ended => "ended".to_owned(),
        };
        let until = match key.verifies_until {
            Some(until) => format!("  until {}", date(until)),
            None => String::new(),
        };
        let made = date(key.created);
        out.push_str(&format!("{}  {does}{until}  made {made}\n", key.kid));
    }
    super::give(&out);
    Ok(())
}

fn rotate(settings: &SettingsArgs, args: &RotateArgs) -> anyhow::Result<()> {
    let time = |flag: &str, text: &str| {
        crate::config::parse_duration(text)
            .map_err(|error| anyhow::anyhow!("--{flag} {text}: {error}"))
    };
    let overlap = time("overlap", &args.overlap)?;
    let publish_first = time("activate-after", &args.activate_after)?;
    let config = settings_of(settings)?;
    let folder = the_folder(&config, &args.folder)?;
    let now = now();
    let kid = Keyring::rotate(&folder, now, publish_first, overlap)?;
    let from = now.saturating_add(publish_first.as_secs());
    let until = from.saturating_add(overlap.as_secs());
    super::say(&format!(
        "the key {kid} signs from {}; those before it verify until {}",
        date(from),
        date(until)
    ));
    // Said, not refused: a key that has leaked must go whatever it signed.
    if overlap < config.identity.max_token_ttl {
        super::say(&format!(
            "note: tokens may live for {} (identity.max_token_ttl), and those that outlive the \
             overlap are refused then",
            seconds(config.identity.max_token_ttl)
        ));
    }
    Ok(())
}

fn export(settings: &SettingsArgs, args: &ExportArgs) -> anyhow::Result<()> {
    let set = match &args.key {
        Some(key) => {
            let text = std::fs::read_to_string(key)
                .with_context(|| format!("cannot read {}", key.display()))?;
            let key = SigningKey::from_pem(&text).with_context(|| format!("{}", key.display()))?;
            public_jwks([key.verifying_key()])
        }
        None => {
            let ring = Keyring::read(&folder(settings, &args.folder)?)?;
            public_jwks(&ring.verifying(now())?)
        }
    };
    super::give(&format!("{set}\n"));
    Ok(())
}

fn settings_of(settings: &SettingsArgs) -> anyhow::Result<Config> {
    super::load(settings, Purpose::Command)
}

fn folder(settings: &SettingsArgs, args: &FolderArgs) -> anyhow::Result<PathBuf> {
    match &args.folder {
        Some(folder) => Ok(folder.clone()),
        None => the_folder(&settings_of(settings)?, args),
    }
}

fn the_folder(config: &Config, args: &FolderArgs) -> anyhow::Result<PathBuf> {
    let configured = config.identity.signing_keys.clone();
    args.folder
        .clone()
        .or(configured)
        .context("there is no folder of keys: write --folder FOLDER, or set identity.signing_keys")
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn date(seconds: u64) -> String {
    let text = Rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
    // Whole seconds are all there is.
    text.replace(".000000Z", "Z")
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        whole if whole.is_multiple_of(3600) => format!("{}h", whole / 3600),
        whole => format!("{whole}s"),
    }
}
