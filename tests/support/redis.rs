//! A real redis-server, as a process of its own on a port of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{ports, wait_for};

/// A Redis that runs until it is killed or dropped, and can be started again
/// on the same port with nothing in it.
pub(crate) struct RedisServer {
    child: Option<Child>,
    folder: tempfile::TempDir,
    port: u16,
    password: Option<&'static str>,
    tls: bool,
}

impl RedisServer {
    /// One in clear text, without a password.
    pub(crate) fn start() -> Self {
        Self::with(None, false)
    }

    /// One over TLS, whose certificate is signed by [`RedisServer::ca`] and
    /// names 127.0.0.1, with a password.
    pub(crate) fn start_tls(password: &'static str) -> Self {
        Self::with(Some(password), true)
    }

    fn with(password: Option<&'static str>, tls: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        if tls {
            write_certificates(folder.path());
        }
        let mut server = Self {
            child: None,
            folder,
            // redis-server takes no 0.
            port: ports::free(),
            password,
            tls,
        };
        server.revive();
        server
    }

    /// Starts it again after [`RedisServer::kill`].
    pub(crate) fn revive(&mut self) {
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        let (clear, tls) = if self.tls {
            ("0", &*port)
        } else {
            (&*port, "0")
        };
        command
            .args(["--port", clear, "--tls-port", tls])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(self.folder.path());
        if self.tls {
            for (flag, name) in [
                ("--tls-cert-file", "redis.pem"),
                ("--tls-key-file", "redis.key"),
                ("--tls-ca-cert-file", "ca.pem"),
            ] {
                command.arg(flag).arg(self.folder.path().join(name));
            }
            command.args(["--tls-auth-clients", "no"]);
        }
        if let Some(password) = self.password {
            command.args(["--requirepass", password]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed: tests/setup does it");
        self.child = Some(child);
        let address = self.address();
        wait_for("redis-server to listen", || {
            TcpStream::connect(address).ok()
        });
    }

    /// Ends it at once, as a machine that fails does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it holds at this moment, as a dump.
    pub(crate) fn dump(&self) -> Vec<u8> {
        assert_eq!(self.ask(&["SAVE"]), "+OK");
        std::fs::read(self.dump_file()).expect("a dump")
    }

    /// Fails, and comes back with what a dump held, as a replica that lagged
    /// does, or a backup.
    pub(crate) fn come_back_with(&mut self, dump: &[u8]) {
        self.kill();
        std::fs::write(self.dump_file(), dump).expect("written");
        self.revive();
        let lost = wait_for("the dump to be loaded", || {
            Some(self.ask(&["DBSIZE"])).filter(|answer| !answer.starts_with("-LOADING"))
        });
        assert_ne!(lost, ":0", "the dump was not loaded");
    }

    fn dump_file(&self) -> PathBuf {
        self.folder.path().join("dump.rdb")
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}/0", self.port)
    }

    /// The certificate that its own is signed by.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Sends one command in clear, and gives the first line of the answer.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(self.address()).expect("it listens");
        let mut out = format!("*{}\r\n", words.len());
        for word in words {
            out.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(out.as_bytes()).expect("it reads");
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte).expect("it answers");
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write_certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("a CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, key()).expect("a CA");
    let own = key();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("a certificate")
        .signed_by(&own, &ca)
        .expect("a certificate");
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).expect("written");
    };
    write("ca.pem", ca.pem());
    write("redis.pem", leaf.pem());
    write("redis.key", own.serialize_pem());
}
