//! What the gateway shows its parent proxy, and what it trusts of it: the
//! files that `upstream_proxy` names.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::UpstreamProxy;
use crate::proxy::ParentAccess;

use super::trust;
use super::watch::read_stable;

/// The longest credentials.
const MAX_CREDENTIALS: usize = 1024;

/// The files that a change is to be noticed of.
#[must_use]
pub fn files(written: &UpstreamProxy) -> Vec<PathBuf> {
    let files = [&written.credentials_file, &written.ca];
    files.into_iter().flatten().cloned().collect()
}

/// Reads all of it.
///
/// # Errors
/// The key, the file and what is wrong with it; never what stands in it.
pub fn access(written: &UpstreamProxy) -> Result<ParentAccess, String> {
    let authorization = match &written.credentials_file {
        None => None,
        Some(file) => Some(
            authorization(file)
                .map_err(|error| format!("upstream_proxy.credentials_file: {error}"))?,
        ),
    };
    let tls = match written.url.tls {
        false => None,
        true => Some(
            trust::client(written.ca.as_deref())
                .map_err(|error| format!("upstream_proxy.ca: {error}"))?,
        ),
    };
    Ok(ParentAccess { authorization, tls })
}

/// Whether others than the file's owner and group may read it, which is worth
/// saying of a secret.
#[must_use]
pub fn is_open_to_all(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|file| file.mode() & 0o004 != 0)
}

/// `Basic` (RFC 7617) with what stands in the file.
fn authorization(file: &Path) -> Result<String, String> {
    let shown = file.display();
    let bytes = read_stable(file).map_err(|error| error.to_string())?;
    let mode = std::fs::metadata(file).map_or(0, |file| file.mode());
    if mode & 0o002 != 0 {
        return Err(format!(
            "{shown}: everybody may write it (mode {:o}): run chmod 0600",
            mode & 0o777
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown}: the file is not UTF-8"))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let has_user = line
        .split_once(':')
        .is_some_and(|(user, _)| !user.is_empty());
    if !has_user || line.len() > MAX_CREDENTIALS || line.chars().any(char::is_control) {
        return Err(format!(
            "{shown}: write one line with user:password, of at most {MAX_CREDENTIALS} bytes"
        ));
    }
    Ok(format!("Basic {}", STANDARD.encode(line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AskFor, ProxyUrl};
    use crate::egress::NoProxy;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn credentials_are_one_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("credentials");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            authorization(&file)
        };
        for (text, expected) in [
            // RFC 7617 section 2.
            ("Aladdin:open sesame", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
            (
                "Aladdin:open sesame\n",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
            ("a:b:c\r\n", "Basic YTpiOmM="),
            ("a:", "Basic YTo="),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text:?}");
        }
        for text in [
            "",
            "\n",
            "hunter2",
            ":hunter2",
            "a:hunter2\n\n",
            "a:b\nc:hunter2",
            "a:\0hunter2",
        ] {
            let error = read(text).expect_err(text);
            assert!(
                error.contains("user:password") && !error.contains("hunter2"),
                "{error}"
            );
        }
        let long = format!("a:{}", "b".repeat(MAX_CREDENTIALS));
        assert!(read(&long).is_err());
        assert!(authorization(&folder.path().join("none")).is_err());
    }

    #[test]
    fn a_file_that_everybody_may_write_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("credentials");
        std::fs::write(&file, "a:b").expect("written");
        for (mode, open, refused) in [
            (0o600, false, false),
            (0o644, true, false),
            (0o602, false, true),
        ] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&file, permissions).expect("set");
            assert_eq!(is_open_to_all(&file), open, "{mode:o}");
            assert_eq!(authorization(&file).is_err(), refused, "{mode:o}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_bundle_names_its_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, "nothing").expect("written");
        let authority = "proxy.example:3128".parse().expect("an authority");
        let mut written = UpstreamProxy {
            url: ProxyUrl {
                tls: true,
                authority,
            },
            credentials_file: None,
            ca: Some(file),
            address: AskFor::Resolved,
            no_proxy: NoProxy::default(),
        };
        let error = access(&written).err().expect("no bundle");
        assert!(
            error.contains("upstream_proxy.ca") && error.contains("no PEM"),
            "{error}"
        );
        written.ca = None;
        assert!(access(&written).is_ok_and(|access| access.tls.is_some()));
    }
}
