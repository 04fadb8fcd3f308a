//! The sandbox from inside: two short-lived processes, both this program, that
//! turn themselves step by step into a skill behind walls. Neither has threads,
//! and each step that fails ends the process before anything of the skill runs.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stdin, getegid, geteuid, pipe};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

use super::{Answer, BRIDGE_ADDRESS, Spec, root, walls};
use crate::openclaw::own_arguments;

/// The most bytes a [`Spec`] may have.
const MAX_SPEC_BYTES: u32 = 1024 * 1024;

/// A step that failed, and what the kernel said.
type Step<T> = Result<T, String>;

/// `sandbox-exec`: makes the namespaces, starts `sandbox-init` in them, and ends
/// as the skill does.
pub(in crate::openclaw) fn make_namespaces() -> ExitCode {
    let started = (|| {
        let flags = CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        let (user, group) = (geteuid(), getegid());
        unshare(flags).map_err(|e| format!("no namespaces: {e}"))?;
        // After unshare: a change of credentials would clear it.
        die_with_parent()?;
        write_map("/proc/self/setgroups", "deny")?;
        write_map("/proc/self/uid_map", &format!("0 {user} 1"))?;
        write_map("/proc/self/gid_map", &format!("0 {group} 1"))?;
        Command::new("/proc/self/exe")
            .args(own_arguments("sandbox-init"))
            .arg("--namespaces")
            .env_clear()
            .spawn()
            .map_err(|e| format!("no process in the namespaces: {e}"))
    })();
    let mut child = match started {
        Ok(child) => child,
        Err(why) => return fail(std::io::stdin().as_fd(), why),
    };
    // The socket must end with the process inside, not with this one.
    let released = fs::File::open("/dev/null")
        .map_err(|e| e.to_string())
        .and_then(|null| dup2_stdin(null).map_err(|e| e.to_string()));
    if let Err(why) = released {
        return fail(std::io::stdin().as_fd(), format!("/dev/null: {why}"));
    }
    match child.wait() {
        Ok(status) => {
            let code = status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal));
            ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// `sandbox-init`: builds the walls and becomes the skill.
pub(in crate::openclaw) fn become_skill(namespaces: bool) -> ExitCode {
    let control = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(control) => UnixStream::from(control),
        Err(_) => return ExitCode::FAILURE,
    };
    let spec = match prepare(&control, namespaces) {
        Ok(spec) => spec,
        Err(why) => return fail(control.as_fd(), why),
    };
    let [program, arguments @ ..] = spec.command.as_slice() else {
        return ExitCode::SUCCESS;
    };
    let error = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(spec.environment.iter().map(|(k, v)| (k, v)))
        .current_dir(spec.directories.first().map_or(Path::new("/"), |d| d))
        .exec();
    fail(
        control.as_fd(),
        format!(
            "{program}: {error}; programs are looked for in /usr/local/bin, /usr/bin, /bin and the manifest's directory"
        ),
    )
}

fn prepare(control: &UnixStream, namespaces: bool) -> Step<Spec> {
    die_with_parent()?;
    let spec = read_spec(control)?;
    let (input, write_end) = pipe().map_err(|e| format!("no pipe: {e}"))?;
    let mut handed_over = vec![write_end];
    if namespaces {
        raise_loopback()?;
    }
    if spec.gateway {
        if !namespaces {
            return Err("a bridge to the gateway needs a network namespace".to_owned());
        }
        let listener = TcpListener::bind(BRIDGE_ADDRESS)
            .map_err(|e| format!("no listener for the bridge: {e}"))?;
        handed_over.push(OwnedFd::from(listener));
    }
    if namespaces {
        root::change_to_private(&spec.directories)?;
    }
    dup2_stdin(&input).map_err(|e| format!("no standard input: {e}"))?;
    drop(input);
    walls::limit(&spec, namespaces)?;
    // From here on nothing can be mounted, opened or raised any more.
    walls::drop_capabilities()?;
    let landlock = walls::confine_files(&spec, namespaces)?;
    walls::confine_calls(spec.gateway, namespaces)?;
    hand_over(control, landlock, &handed_over)?;
    Ok(spec)
}

/// A skill must not outlive the agent that answers for it.
fn die_with_parent() -> Step<()> {
    set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("no parent-death signal: {e}"))
}

fn write_map(path: &str, text: &str) -> Step<()> {
    fs::write(path, text).map_err(|e| format!("{path}: {e}"))
}

fn read_spec(mut control: &UnixStream) -> Step<Spec> {
    let mut length = [0; 4];
    control
        .read_exact(&mut length)
        .map_err(|e| format!("no instructions: {e}"))?;
    let length = u32::from_be_bytes(length);
    if length > MAX_SPEC_BYTES {
        return Err("the instructions are too long".to_owned());
    }
    let mut text = Vec::new();
    control
        .take(length.into())
        .read_to_end(&mut text)
        .map_err(|e| format!("no instructions: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("unreadable instructions: {e}"))
}

/// Sends [`Answer::Ready`] with the descriptors (SCM_RIGHTS, unix(7)).
fn hand_over(control: &UnixStream, landlock: bool, descriptors: &[OwnedFd]) -> Step<()> {
    let text = line(&Answer::Ready { landlock });
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err("too many descriptors".to_owned());
    }
    rustix::net::sendmsg(
        control,
        &[IoSlice::new(&text)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(|e| format!("the agent is gone: {e}"))
}

fn fail(control: std::os::fd::BorrowedFd<'_>, why: String) -> ExitCode {
    if let Ok(control) = control.try_clone_to_owned() {
        // Where the agent is gone there is nobody left to tell.
        UnixStream::from(control)
            .write_all(&line(&Answer::Failed(why)))
            .ok();
    }
    ExitCode::FAILURE
}

fn line(answer: &Answer) -> Vec<u8> {
    let mut text = serde_json::to_vec(answer).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Brings `lo` up (rtnetlink(7), RTM_NEWLINK): a new network namespace has it
/// down, and the bridge's listener needs it.
fn raise_loopback() -> Step<()> {
    let failed = |e: &dyn std::fmt::Display| format!("no loopback: {e}");
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 is NETLINK_ROUTE.
        None,
    )
    .map_err(|e| failed(&e))?;
    rustix::net::send(&socket, &loopback_up(), SendFlags::empty()).map_err(|e| failed(&e))?;
    let mut reply = [MaybeUninit::<u8>::uninit(); 1024];
    let ((reply, _), _) =
        rustix::net::recv(&socket, &mut reply[..], RecvFlags::empty()).map_err(|e| failed(&e))?;
    // nlmsghdr is 16 bytes; NLMSG_ERROR begins with the error, zero for none.
    match reply.get(16..20).and_then(|code| code.try_into().ok()) {
        Some(code) if i32::from_ne_bytes(code) == 0 => Ok(()),
        Some(code) => Err(failed(&std::io::Error::from_raw_os_error(
            -i32::from_ne_bytes(code),
        ))),
        None => Err(failed(&"a short answer")),
    }
}

/// One `nlmsghdr` and one `ifinfomsg`.
fn loopback_up() -> Vec<u8> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const NLM_F_ACK: u16 = 4;
    const IFF_UP: u32 = 1;
    const LOOPBACK_INDEX: i32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    // Family, padding and type: any. Then index, flags, and which flags change.
    message.extend([0; 4]);
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}
