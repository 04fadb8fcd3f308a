//! Audit logs, line by line and never whole in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::policy::MAX_RECORD_BYTES;

/// A file and a line in it.
pub(super) struct Place<'a> {
    file: &'a Path,
    line: u64,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Reads every line of these logs; `-` is standard input. Of a line that is
/// longer than a record can be, only the beginning is given.
pub(super) fn lines(
    files: &[PathBuf],
    mut see: impl FnMut(&Place<'_>, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for file in files {
        let mut from: Box<dyn BufRead> = match file.as_os_str() == "-" {
            true => Box::new(io::stdin().lock()),
            false => {
                let opened =
                    File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
                Box::new(BufReader::with_capacity(256 * 1024, opened))
            }
        };
        let mut line = Vec::new();
        for number in 1.. {
            let more = next(&mut from, &mut line)
                .with_context(|| format!("cannot read {}", file.display()))?;
            if !more {
                break;
            }
            if number == 1 && line.starts_with(&[0x1f, 0x8b]) {
                anyhow::bail!(
                    "{} is compressed; write zcat {} | agentport policy … -",
                    file.display(),
                    file.display()
                );
            }
            see(&Place { file, line: number }, &line)?;
        }
    }
    Ok(())
}

/// The next line without its line feed; `false` at the end.
fn next(from: &mut Box<dyn BufRead>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let most = MAX_RECORD_BYTES as u64 + 1;
    from.by_ref().take(most).read_until(b'\n', line)?;
    if line.is_empty() {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 == most {
        from.skip_until(b'\n')?;
    }
    Ok(true)
}
