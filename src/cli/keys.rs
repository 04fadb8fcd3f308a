//! `agentport keys`: signing keys in files.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

use crate::identity::{SigningKey, generate_ed25519, public_jwks};

#[derive(Subcommand)]
pub(super) enum KeysCommand {
    /// Write a new Ed25519 signing key (PKCS#8 PEM, mode 0600); an existing file is never replaced
    Generate {
        /// Where to
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public half of a signing key as a JWK Set
    Export {
        /// The signing key
        #[arg(long, short, value_name = "FILE")]
        key: PathBuf,
    },
}

pub(super) fn run(command: &KeysCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeysCommand::Generate { out } => generate(out)?,
        KeysCommand::Export { key } => {
            let text = std::fs::read_to_string(key)
                .with_context(|| format!("cannot read {}", key.display()))?;
            let key = SigningKey::from_pem(&text).with_context(|| format!("{}", key.display()))?;
            super::give(&format!("{}\n", public_jwks([key.verifying_key()])));
        }
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
