//! Where agent keys are kept, hashed: a file that gateways share.

use std::io;
use std::path::{Path, PathBuf};

use crate::identity::{AgentKey, AgentKeyError, AgentKeys};

use super::shared_file;

/// The hashes open nothing, but who has which key is nobody's to read.
const MODE: u32 = 0o640;

/// Why a list of agent keys cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is none.
    #[error("{0}: there is no such file; `agentport agent-key create` makes it")]
    Missing(String),
    /// What the system answered, with the path.
    #[error(transparent)]
    System(#[from] io::Error),
    /// It cannot be understood.
    #[error("{place}: {error}")]
    Content {
        /// The file.
        place: String,
        /// What is wrong with it.
        error: AgentKeyError,
    },
}

/// A list of agent keys in a file: one JSON object in each line.
#[derive(Clone, Debug)]
pub struct AgentKeyFile {
    path: PathBuf,
}

impl AgentKeyFile {
    /// The list in this file.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every key, ended ones included.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn list(&self) -> Result<Vec<AgentKey>, KeyFileError> {
        match shared_file::read(&self.path)? {
            Some(text) => self.parse(&text),
            None => Err(KeyFileError::Missing(self.path.display().to_string())),
        }
    }

    /// The table of every key.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn table(&self) -> Result<AgentKeys, KeyFileError> {
        let keys = self.list()?;
        AgentKeys::new(&keys).map_err(|error| self.content(error))
    }

    /// Adds a key.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn add(&self, key: AgentKey) -> Result<(), KeyFileError> {
        shared_file::change(&self.path, MODE, |text| {
            let mut keys = self.parse(&text.unwrap_or_default())?;
            keys.push(key);
            AgentKeys::new(&keys).map_err(|error| self.content(error))?;
            Ok((Some(lines(&keys)), ()))
        })
    }

    /// Takes a key out, by its id. Says whether there was one.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn remove(&self, id: &str) -> Result<bool, KeyFileError> {
        shared_file::change(&self.path, MODE, |text| {
            let mut keys = self.parse(&text.unwrap_or_default())?;
            let before = keys.len();
            keys.retain(|key| key.id != id);
            let found = keys.len() < before;
            Ok((found.then(|| lines(&keys)), found))
        })
    }

    fn parse(&self, text: &str) -> Result<Vec<AgentKey>, KeyFileError> {
        AgentKey::parse_list(text).map_err(|error| self.content(error))
    }

    fn content(&self, error: AgentKeyError) -> KeyFileError {
        KeyFileError::Content {
            place: self.path.display().to_string(),
            error,
        }
    }
}

fn lines(keys: &[AgentKey]) -> String {
    keys.iter().map(|key| key.line() + "\n").collect()
}
