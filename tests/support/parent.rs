//! Parent proxies: real Squid and tinyproxy, each a process of its own, and one
//! made by hand that answers whatever a test wants.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::conn::{Conn, Head};
use super::origin::Origin;
use super::{ports, wait_for};

/// A parent made by hand, which keeps what it was asked.
pub(crate) struct ByHand {
    pub(crate) front: Origin,
    asked: Arc<Mutex<Vec<Head>>>,
}

impl ByHand {
    /// One that carries every tunnel to the port that is asked for, on this
    /// machine.
    pub(crate) fn relaying() -> Self {
        Self::answering(|mut conn, head| {
            let (_, target) = head.asks();
            let (_, port) = target.rsplit_once(':').expect("a port");
            let port = port.parse().expect("a port");
            let Ok(there) = TcpStream::connect(("127.0.0.1", port)) else {
                conn.send_lossy("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
                return;
            };
            conn.send("HTTP/1.1 200 Connection established\r\nVia: 1.1 parent\r\n\r\n");
            carry(conn, there);
        })
    }

    /// One that answers every request with these bytes and closes.
    pub(crate) fn saying(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::answering(move |mut conn, _| conn.send_lossy(answer.as_ref()))
    }

    pub(crate) fn answering(answer: impl Fn(Conn, &Head) + Send + Sync + 'static) -> Self {
        let asked: Arc<Mutex<Vec<Head>>> = Arc::default();
        let kept = Arc::clone(&asked);
        let front = Origin::serve(move |mut conn, _| {
            let Some(head) = conn.head() else { return };
            kept.lock().expect("kept").push(head.clone());
            answer(conn, &head);
        });
        Self { front, asked }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.front.address()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// What it was asked for, in order.
    pub(crate) fn targets(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("kept");
        let targets = asked.iter().map(|head| {
            let (method, target) = head.asks();
            assert_eq!(method, "CONNECT");
            assert_eq!(head.field("host"), Some(target));
            target.to_owned()
        });
        targets.collect()
    }

    pub(crate) fn last(&self) -> Head {
        self.asked
            .lock()
            .expect("kept")
            .last()
            .expect("it was asked")
            .clone()
    }
}

/// Bytes both ways until both sides have closed.
pub(crate) fn carry(conn: Conn, there: TcpStream) {
    let (unread, here) = conn.into_parts();
    std::io::Write::write_all(&mut &there, &unread).expect("the origin reads");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut &here, &mut &there);
            let _ = there.shutdown(std::net::Shutdown::Write);
        });
        let _ = std::io::copy(&mut &there, &mut &here);
        let _ = here.shutdown(std::net::Shutdown::Write);
    });
}

/// A real proxy, as a process of its own on a port of its own.
pub(crate) struct RealParent {
    child: Child,
    folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl RealParent {
    /// Squid that wants `gateway:hunter2` of everybody.
    pub(crate) fn squid() -> Self {
        Self::start(|folder, port| {
            let hash = Command::new("openssl")
                .args(["passwd", "-apr1", "hunter2"])
                .output()
                .expect("openssl runs");
            let line = format!("gateway:{}", String::from_utf8_lossy(&hash.stdout));
            std::fs::write(folder.join("users"), line).expect("written");
            let shown = folder.display();
            let config = format!(
                "http_port 127.0.0.1:{port}\n\
                 auth_param basic program /usr/lib/squid/basic_ncsa_auth {shown}/users\n\
                 acl known proxy_auth REQUIRED\n\
                 http_access allow known\n\
                 http_access deny all\n\
                 cache deny all\n\
                 access_log stdio:{shown}/access.log\n\
                 cache_store_log none\n\
                 cache_log {shown}/cache.log\n\
                 pid_filename {shown}/squid.pid\n\
                 coredump_dir {shown}\n\
                 netdb_filename none\n\
                 pinger_enable off\n\
                 visible_hostname parent\n\
                 max_filedescriptors 1024\n\
                 shutdown_lifetime 0 seconds\n"
            );
            std::fs::write(folder.join("squid.conf"), config).expect("written");
            let mut command = Command::new("squid");
            command
                .args([
                    "-N",
                    "-n",
                    &format!("test{}p{port}", std::process::id()),
                    "-f",
                ])
                .arg(folder.join("squid.conf"));
            command
        })
    }

    /// tinyproxy, which answers CONNECT in HTTP/1.0.
    pub(crate) fn tinyproxy() -> Self {
        Self::start(|folder, port| {
            let config = format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nLogFile \"{}\"\n",
                folder.join("access.log").display()
            );
            std::fs::write(folder.join("tinyproxy.conf"), config).expect("written");
            let mut command = Command::new("tinyproxy");
            command
                .args(["-d", "-c"])
                .arg(folder.join("tinyproxy.conf"));
            command
        })
    }

    fn start(command: impl FnOnce(&Path, u16) -> Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Squid goes on as a user of its own, and writes its logs as that.
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).expect("set");
        // Neither of them takes 0.
        let port = ports::free();
        let mut child = command(folder.path(), port)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it is installed: tests/setup does it");
        wait_for("the parent proxy to listen", || {
            assert!(
                child.try_wait().expect("a child").is_none(),
                "the parent proxy ended: {}",
                std::fs::read_to_string(folder.path().join("cache.log")).unwrap_or_default()
            );
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self {
            child,
            folder,
            port,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The lines of its log with this in them, once there are so many.
    pub(crate) fn logged(&self, count: usize, what: &str) -> Vec<String> {
        wait_for(&format!("{what} in the parent's log"), || {
            let log = std::fs::read_to_string(self.folder.path().join("access.log"));
            let log = log.unwrap_or_default();
            let lines: Vec<_> = log.lines().filter(|line| line.contains(what)).collect();
            (lines.len() >= count).then(|| lines.into_iter().map(str::to_owned).collect())
        })
    }
}

impl Drop for RealParent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file with these credentials, for its owner alone.
pub(crate) fn credentials(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("credentials");
    std::fs::write(&file, text).expect("written");
    let owners = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&file, owners).expect("set");
    file
}
