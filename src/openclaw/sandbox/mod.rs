//! Runs skills that are programs, behind walls: the agent's side.
//!
//! The agent re-executes itself. `sandbox-exec` makes the namespaces and
//! `sandbox-init`, as the first process inside them, builds the walls and
//! becomes the skill ([`inside`]). A Unix socket in place of standard input
//! carries the [`Spec`] in, and a pipe and a listener out.

pub(in crate::openclaw) mod inside;
mod root;
mod walls;

use std::fs::DirBuilder;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};

use crate::openclaw::egress::Bridge;
use crate::openclaw::own_arguments;
use crate::openclaw::trace::random_number;

/// The most bytes a skill may write to either of its outputs.
pub(in crate::openclaw) const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Where a skill finds the gateway in its namespace.
const BRIDGE_ADDRESS: &str = "127.0.0.1:3128";
/// How long the walls may take to stand.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Where a skill's programs are looked for.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What must be had for a skill to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::openclaw) enum Mode {
    /// Namespaces of its own, or nothing.
    Strict,
    /// Where namespaces are not to be had: Landlock and seccomp alone, and no
    /// network at all. Where these are not to be had either: nothing.
    BestEffort,
}

/// What `sandbox-init` is told. It holds no secret: the token never crosses.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Empty to only try the walls.
    command: Vec<String>,
    /// The directory of the manifest, under each name it goes by; the first is
    /// the skill's working directory.
    directories: Vec<PathBuf>,
    environment: Vec<(String, String)>,
    cpu_seconds: u64,
    memory_bytes: u64,
    /// Open a listener for the bridge.
    gateway: bool,
    /// The private directory, where there is no mount namespace to make one in.
    scratch: Option<PathBuf>,
}

/// What `sandbox-init` answers, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The walls stand. With it come the write end of the skill's standard
    /// input and, where it was asked for, the bridge's listener.
    Ready {
        /// Whether Landlock is among them.
        landlock: bool,
    },
    /// They do not, or the program could not be started.
    Failed(String),
}

/// Why a skill did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(in crate::openclaw) enum SandboxError {
    /// A wall is not to be had.
    #[error("the sandbox cannot be made: {0}")]
    Unavailable(String),
    /// The program cannot be started.
    #[error("the skill cannot be started: {0}")]
    Start(String),
    /// It ran too long and was killed.
    #[error("the skill ran longer than {} ms and was killed", .0.as_millis())]
    TimedOut(Duration),
    /// It wrote too much and was killed.
    #[error("the skill wrote more than 1 MiB and was killed")]
    OutputTooLong,
    /// The pipes to it broke.
    #[error("the skill was lost: {0}")]
    Lost(#[from] std::io::Error),
}

/// The walls that are to be had here.
#[derive(Clone, Debug)]
pub(in crate::openclaw) struct Sandbox {
    namespaces: bool,
    landlock: bool,
    directories: Vec<PathBuf>,
}

/// One run.
pub(in crate::openclaw) struct Job<'a> {
    /// The program and its arguments.
    pub(in crate::openclaw) command: &'a [String],
    /// Its standard input.
    pub(in crate::openclaw) input: Vec<u8>,
    /// How long it may take.
    pub(in crate::openclaw) timeout: Duration,
    /// Address space, in bytes.
    pub(in crate::openclaw) memory_bytes: u64,
    /// Its way to the gateway, where it has one.
    pub(in crate::openclaw) bridge: Option<&'a Bridge>,
    /// To join its own records to ours.
    pub(in crate::openclaw) traceparent: String,
}

/// How it ended.
#[derive(Debug)]
pub(in crate::openclaw) struct Finished {
    /// As a shell counts: 128 and the signal where one ended it.
    pub(in crate::openclaw) exit_code: i32,
    /// All that it wrote.
    pub(in crate::openclaw) stdout: Vec<u8>,
    /// The first 1 MiB.
    pub(in crate::openclaw) stderr: Vec<u8>,
}

impl Sandbox {
    /// Tries the walls once, with nothing behind them.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`], with what to do about it.
    pub(in crate::openclaw) async fn prepare(
        mode: Mode,
        directories: Vec<PathBuf>,
    ) -> Result<Self, SandboxError> {
        let mut sandbox = Self {
            namespaces: true,
            landlock: false,
            directories,
        };
        let strict = match sandbox.probe().await {
            Ok(landlock) => {
                sandbox.landlock = landlock;
                return Ok(sandbox);
            }
            Err(error) => error,
        };
        if mode == Mode::Strict {
            return Err(SandboxError::Unavailable(format!(
                "{strict}; allow user namespaces to this process, or run with \
                 --sandbox best-effort, which leaves process skills Landlock, seccomp and no network"
            )));
        }
        tracing::warn!(
            event = "sandbox_without_namespaces",
            error = %strict,
            "process skills have Landlock and seccomp, and no network"
        );
        sandbox.namespaces = false;
        sandbox.landlock = sandbox.probe().await?;
        Ok(sandbox)
    }

    /// Whether a skill can have its own network, and so a bridge.
    pub(in crate::openclaw) fn has_namespaces(&self) -> bool {
        self.namespaces
    }

    /// Whether Landlock is among the walls.
    pub(in crate::openclaw) fn has_landlock(&self) -> bool {
        self.landlock
    }

    async fn probe(&self) -> Result<bool, SandboxError> {
        let scratch = self.scratch()?;
        let spec = self.spec(
            &[],
            u64::MAX,
            Duration::from_secs(1),
            false,
            scratch.as_ref(),
        );
        let mut started = self.start(&spec).await?;
        started.child.wait().await?;
        Ok(started.landlock)
    }

    /// Runs one skill to its end. Dropping the future kills it.
    ///
    /// # Errors
    /// [`SandboxError`]. An exit code other than zero is none.
    pub(in crate::openclaw) async fn run(&self, job: Job<'_>) -> Result<Finished, SandboxError> {
        if job.bridge.is_some() && !self.namespaces {
            return Err(SandboxError::Unavailable(
                "a skill with network: \"gateway\" needs a network namespace of its own".to_owned(),
            ));
        }
        let scratch = self.scratch()?;
        let mut spec = self.spec(
            job.command,
            job.memory_bytes,
            job.timeout,
            job.bridge.is_some(),
            scratch.as_ref(),
        );
        spec.environment
            .push(("TRACEPARENT".to_owned(), job.traceparent.clone()));
        let work = async {
            let started = self.start(&spec).await?;
            started.serve(job.input, job.bridge, self.namespaces).await
        };
        match tokio::time::timeout(job.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(SandboxError::TimedOut(job.timeout)),
        }
    }

    fn scratch(&self) -> Result<Option<Scratch>, SandboxError> {
        if self.namespaces {
            return Ok(None);
        }
        Ok(Some(Scratch::new()?))
    }

    fn spec(
        &self,
        command: &[String],
        memory_bytes: u64,
        timeout: Duration,
        gateway: bool,
        scratch: Option<&Scratch>,
    ) -> Spec {
        let scratch = scratch.map(|scratch| scratch.0.clone());
        let home = scratch
            .as_deref()
            .unwrap_or(Path::new("/tmp"))
            .display()
            .to_string();
        let mut environment = vec![
            ("PATH".to_owned(), SEARCH_PATH.to_owned()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("HOME".to_owned(), home.clone()),
            ("TMPDIR".to_owned(), home),
        ];
        if gateway {
            let url = format!("http://{BRIDGE_ADDRESS}");
            for name in [
                "AGENTPORT_URL",
                "HTTP_PROXY",
                "HTTPS_PROXY",
                "http_proxy",
                "https_proxy",
            ] {
                environment.push((name.to_owned(), url.clone()));
            }
            environment.push(("NODE_USE_ENV_PROXY".to_owned(), "1".to_owned()));
        }
        Spec {
            command: command.to_vec(),
            directories: self.directories.clone(),
            environment,
            // A second more, so that the wall clock speaks first.
            cpu_seconds: timeout.as_secs() + 2,
            memory_bytes,
            gateway,
            scratch,
        }
    }

    async fn start(&self, spec: &Spec) -> Result<Started, SandboxError> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args(own_arguments(if self.namespaces {
                "sandbox-exec"
            } else {
                "sandbox-init"
            }))
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn()?;
        // The other end of the socket lives on in `command` until here.
        drop(command);
        let mut started = Started {
            group: Group(child.id()),
            child,
            control: control(ours, spec)?,
            input: None,
            listener: None,
            landlock: false,
        };
        match tokio::time::timeout(START_TIMEOUT, started.await_ready()).await {
            Ok(Ok(())) => Ok(started),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SandboxError::Unavailable(
                "the walls did not stand within 10 s".to_owned(),
            )),
        }
    }
}

/// Sends the spec: four bytes of length, then JSON.
fn control(mut ours: StdUnixStream, spec: &Spec) -> Result<UnixStream, SandboxError> {
    let spec = serde_json::to_vec(spec).map_err(std::io::Error::other)?;
    let length = u32::try_from(spec.len()).map_err(std::io::Error::other)?;
    let sent = [&length.to_be_bytes()[..], &spec].concat();
    // A few kilobytes at most, which the socket's buffer takes at once. A first
    // process that is gone already has left its reason to read.
    match ours.write_all(&sent) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    ours.set_nonblocking(true)?;
    Ok(UnixStream::from_std(ours)?)
}

/// A process behind its walls.
struct Started {
    group: Group,
    child: Child,
    control: UnixStream,
    input: Option<pipe::Sender>,
    listener: Option<TcpListener>,
    landlock: bool,
}

impl Started {
    async fn await_ready(&mut self) -> Result<(), SandboxError> {
        let (text, descriptors) = self.receive().await?;
        let mut lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        match lines.next().map(serde_json::from_slice) {
            Some(Ok(Answer::Ready { landlock })) => self.landlock = landlock,
            Some(Ok(Answer::Failed(why))) => return Err(SandboxError::Unavailable(why)),
            Some(Err(_)) | None => {
                let mut stderr = Vec::new();
                if let Some(pipe) = self.child.stderr.take() {
                    pipe.take(4096).read_to_end(&mut stderr).await?;
                }
                return Err(SandboxError::Unavailable(format!(
                    "its first process ended without a word: {}",
                    String::from_utf8_lossy(&stderr).trim()
                )));
            }
        }
        let mut descriptors = descriptors.into_iter();
        if let Some(input) = descriptors.next() {
            self.input = Some(pipe::Sender::from_owned_fd(input)?);
        }
        if let Some(listener) = descriptors.next() {
            let listener = std::net::TcpListener::from(listener);
            listener.set_nonblocking(true)?;
            self.listener = Some(TcpListener::from_std(listener)?);
        }
        // The answer to exec may have come in the same breath.
        match lines.next().map(serde_json::from_slice) {
            Some(Ok(Answer::Failed(why))) => Err(SandboxError::Start(why)),
            Some(_) | None => Ok(()),
        }
    }

    async fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), SandboxError> {
        loop {
            self.control.readable().await?;
            let received = self.control.try_io(Interest::READABLE, || {
                let mut text = [0; 4096];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let message = rustix::net::recvmsg(
                    &self.control,
                    &mut [IoSliceMut::new(&mut text)],
                    &mut ancillary,
                    RecvFlags::CMSG_CLOEXEC,
                )?;
                let mut descriptors = Vec::new();
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        descriptors.extend(rights);
                    }
                }
                Ok((text[..message.bytes].to_vec(), descriptors))
            });
            match received {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                other => return Ok(other?),
            }
        }
    }

    /// Feeds the skill, reads it, serves its bridge and waits for its end.
    async fn serve(
        mut self,
        input: Vec<u8>,
        bridge: Option<&Bridge>,
        namespaces: bool,
    ) -> Result<Finished, SandboxError> {
        // Only a failed exec says anything here; a skill that starts closes it.
        let mut refusal = Vec::new();
        (&mut self.control)
            .take(4096)
            .read_to_end(&mut refusal)
            .await?;
        if let Ok(Answer::Failed(why)) = serde_json::from_slice(&refusal) {
            return Err(SandboxError::Start(why));
        }
        let Self {
            mut group,
            mut child,
            input: pipe,
            listener,
            ..
        } = self;
        let feed = async move {
            if let Some(mut pipe) = pipe {
                // A skill may well end without reading its input.
                pipe.write_all(&input).await.ok();
            }
            Ok(())
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let wait = async move {
            let status = child.wait().await?;
            // Whoever it left behind must not keep its pipes open. With a PID
            // namespace the kernel has seen to that.
            if !namespaces {
                group.kill();
            }
            group.disarm();
            Ok(status)
        };
        let run = async {
            let ((), stdout, stderr, status) =
                tokio::try_join!(feed, read_all(stdout), read_some(stderr), wait)?;
            Ok(Finished {
                exit_code: exit_code(status),
                stdout,
                stderr,
            })
        };
        let serve = async {
            match (bridge, listener) {
                (Some(bridge), Some(listener)) => bridge.serve(listener).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            finished = run => finished,
            () = serve => Err(SandboxError::Lost(std::io::Error::other("the bridge ended"))),
        }
    }
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, SandboxError> {
    let mut out = Vec::new();
    if let Some(pipe) = pipe {
        let most = u64::try_from(MAX_OUTPUT_BYTES).unwrap_or(u64::MAX);
        pipe.take(most + 1).read_to_end(&mut out).await?;
    }
    if out.len() > MAX_OUTPUT_BYTES {
        return Err(SandboxError::OutputTooLong);
    }
    Ok(out)
}

/// The first 1 MiB; the rest is read and thrown away, so that a talkative skill
/// is not held up.
async fn read_some(pipe: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, SandboxError> {
    let mut out = Vec::new();
    if let Some(mut pipe) = pipe {
        let most = u64::try_from(MAX_OUTPUT_BYTES).unwrap_or(u64::MAX);
        (&mut pipe).take(most).read_to_end(&mut out).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(out)
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// The process group of a run, killed as a whole unless it ended by itself.
struct Group(Option<u32>);

impl Group {
    fn kill(&self) {
        if let Some(leader) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // Already gone is as good as killed.
            killpg(Pid::from_raw(leader), Signal::SIGKILL).ok();
        }
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A directory for one run, removed after it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, SandboxError> {
        let path = std::env::temp_dir().join(format!("openclaw-{}", random_number()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(event = "scratch_not_removed", path = %self.0.display(), error = %error);
        }
    }
}
