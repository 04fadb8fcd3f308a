//! A real ACME server, pebble, as a process of its own on ports of its own.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::pki::{Issued, Pki};
use super::{ports, wait_for};

/// A pebble that runs until it is killed or dropped, and can be started again
/// on the same port, with nothing in it.
pub(crate) struct Pebble {
    child: Option<Child>,
    folder: tempfile::TempDir,
    pki: Pki,
    own: Issued,
    port: u16,
    /// Where it looks for challenges.
    http: u16,
    tls: u16,
    names: SocketAddr,
    refused_nonces: u8,
    bound: bool,
}

/// The key that pebble knows as `kid-1`.
pub(crate) const EXTERNAL_KEY: &str =
    "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

impl Pebble {
    /// One that looks for challenges at these ports, of names that this server
    /// knows.
    pub(crate) fn start(http: u16, tls: u16, names: SocketAddr) -> Self {
        Self::with(http, tls, names, 0, false)
    }

    /// One that refuses so many of a hundred nonces, and may want an external
    /// account.
    pub(crate) fn with(
        http: u16,
        tls: u16,
        names: SocketAddr,
        refused_nonces: u8,
        bound: bool,
    ) -> Self {
        let pki = Pki::new("pebble's own CA");
        let mut pebble = Self {
            child: None,
            folder: tempfile::tempdir().expect("a folder"),
            own: pki.server("pebble", &["127.0.0.1", "acme.test"]),
            pki,
            port: ports::free(),
            http,
            tls,
            names,
            refused_nonces,
            bound,
        };
        pebble.revive();
        pebble
    }

    /// Starts it again after [`Pebble::kill`].
    pub(crate) fn revive(&mut self) {
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", ports::free()),
            "certificate": self.own.certificate,
            "privateKey": self.own.key,
            "httpPort": self.http,
            "tlsPort": self.tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": self.bound,
            "externalAccountMACKeys": { "kid-1": EXTERNAL_KEY },
        }});
        let path = self.folder.path().join("pebble.json");
        std::fs::write(&path, config.to_string()).expect("written");
        let log = std::fs::File::create(self.log_path()).expect("a log");
        let child = Command::new("pebble")
            .arg("-config")
            .arg(path)
            .args(["-dnsserver", &self.names.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", self.refused_nonces.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("pebble is installed: tests/setup does it");
        self.child = Some(child);
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        wait_for("pebble to listen", || TcpStream::connect(address).ok());
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The URL of its directory.
    pub(crate) fn directory(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.port)
    }

    /// The same by a name, `acme.test`, which its other URLs then have too.
    pub(crate) fn directory_by_name(&self) -> String {
        format!("https://acme.test:{}/dir", self.port)
    }

    /// Where it listens, on this machine.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The CA of its own certificate.
    pub(crate) fn ca(&self) -> &Path {
        self.pki.ca()
    }

    /// How many certificates it has issued since it was started.
    pub(crate) fn issued(&self) -> usize {
        self.log().matches("Issued certificate serial").count()
    }

    /// How many orders it has taken since it was started.
    pub(crate) fn orders(&self) -> usize {
        self.log().matches("Added order ").count()
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).expect("a log")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("pebble.log")
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.kill();
    }
}
