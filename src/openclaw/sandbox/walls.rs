//! Limits, capabilities, Landlock and seccomp: what holds a process whatever it
//! executes, and cannot be taken back.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{Spec, root};

/// The biggest file a skill may write.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// The newest Landlock that is asked for; an older kernel enforces what it has.
const LANDLOCK: ABI = ABI::V6;

/// Time, memory, files and processes (setrlimit(2)).
pub(super) fn limit(spec: &Spec, namespaces: bool) -> Result<(), String> {
    umask(Mode::from_bits_truncate(0o077));
    // Inside its user namespace only the skill's own processes count; without
    // one, all of the agent's user do.
    let processes = if namespaces { 64 } else { 256 };
    for (resource, most) in [
        (Resource::RLIMIT_CPU, spec.cpu_seconds),
        (Resource::RLIMIT_AS, spec.memory_bytes),
        (Resource::RLIMIT_FSIZE, MAX_FILE_BYTES),
        (Resource::RLIMIT_NPROC, processes),
        (Resource::RLIMIT_NOFILE, 256),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        // Where the operator has set a lower limit already, that one holds.
        let (_, hard) = nix::sys::resource::getrlimit(resource)
            .map_err(|e| format!("{resource:?} cannot be read: {e}"))?;
        let most = most.min(hard);
        setrlimit(resource, most, most).map_err(|e| format!("{resource:?} cannot be set: {e}"))?;
    }
    Ok(())
}

/// No program that the skill executes can gain a capability, of its own
/// namespace neither.
pub(super) fn drop_capabilities() -> Result<(), String> {
    set_no_new_privs().map_err(|e| format!("no_new_privs: {e}"))?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last capability that this kernel has.
            Err(rustix::io::Errno::INVAL) => break,
            // Not ours to drop, and so not ours to have: without a user
            // namespace the agent runs without privileges.
            Err(rustix::io::Errno::PERM) => break,
            Err(e) => return Err(format!("the capabilities cannot be dropped: {e}")),
        }
    }
    Ok(())
}

/// Landlock (landlock(7)): reads where the system and the skill are, writes in
/// the private directory. Returns whether the kernel has it.
///
/// # Errors
/// Where it is the only wall and the kernel has none.
pub(super) fn confine_files(spec: &Spec, private_root: bool) -> Result<bool, String> {
    let read = AccessFs::from_read(LANDLOCK);
    let all = AccessFs::from_all(LANDLOCK);
    let readable: Vec<&Path> = if private_root {
        vec![Path::new("/")]
    } else {
        root::SYSTEM
            .iter()
            .map(Path::new)
            .chain(spec.directories.iter().map(AsRef::as_ref))
            .collect()
    };
    let scratch = spec.scratch.as_deref().unwrap_or(Path::new("/tmp"));
    let build = || {
        let mut ruleset = Ruleset::default()
            .handle_access(all)?
            .scope(Scope::from_all(LANDLOCK))?;
        if !spec.gateway {
            ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?;
        }
        ruleset
            .create()?
            .add_rules(path_beneath_rules(readable, read))?
            .add_rules(path_beneath_rules([scratch], all))?
            .add_rules(path_beneath_rules(
                root::DEVICES,
                AccessFs::ReadFile | AccessFs::WriteFile,
            ))?
            .restrict_self()
    };
    let status = build().map_err(|e: landlock::RulesetError| format!("Landlock: {e}"))?;
    let enforced = status.ruleset != RulesetStatus::NotEnforced;
    if !enforced && !private_root {
        return Err("this kernel has no Landlock, which is the only wall around files here".into());
    }
    Ok(enforced)
}

/// Seccomp (seccomp(2)): the calls by which a process reaches for the kernel,
/// for other processes or for another network.
pub(super) fn confine_calls(internet: bool, own_processes: bool) -> Result<(), String> {
    let filters = [
        (libc::EPERM, forbidden(own_processes)),
        // A program that is told there is none falls back to the older call,
        // whose flags a filter can see.
        (libc::ENOSYS, [(libc::SYS_clone3, vec![])].into()),
        (libc::EAFNOSUPPORT, sockets(internet)?),
        (libc::EPERM, flagged(own_processes)?),
    ];
    for (errno, rules) in filters {
        let filter = compile(errno, rules).map_err(|e| format!("seccomp: {e}"))?;
        seccompiler::apply_filter(&filter).map_err(|e| format!("seccomp: {e}"))?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(errno: i32, rules: Rules) -> Result<BpfProgram, String> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| format!("no filter for {}", std::env::consts::ARCH))?;
    let errno = u32::try_from(errno).map_err(|e| e.to_string())?;
    SeccompFilter::new(
        with_x32(rules),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        arch,
    )
    .and_then(TryInto::try_into)
    .map_err(|e| e.to_string())
}

/// On x86-64 each call has a second number, of the x32 ABI, under the same
/// architecture; a list without them would have a back door.
fn with_x32(rules: Rules) -> Rules {
    if !cfg!(target_arch = "x86_64") {
        return rules;
    }
    const X32: i64 = 0x4000_0000;
    let doubles: Vec<_> = rules
        .iter()
        .map(|(call, rules)| (call | X32, rules.clone()))
        .collect();
    // Those that x32 numbers anew are of no use to any program that runs here.
    let anew = (512..=547).map(|call| (call | X32, vec![]));
    rules.into_iter().chain(doubles).chain(anew).collect()
}

/// Calls that no skill makes, whatever their arguments.
fn forbidden(own_processes: bool) -> Rules {
    let mut calls = vec![
        // Other processes.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_pidfd_getfd,
        // File systems and namespaces.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_quotactl,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_fanotify_init,
        // The kernel's larger surfaces.
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_personality,
        libc::SYS_syslog,
        libc::SYS_acct,
        libc::SYS_reboot,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_vhangup,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        libc::SYS_kexec_file_load,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_modify_ldt,
        libc::SYS_uselib,
        libc::SYS_ustat,
        libc::SYS_sysfs,
    ]);
    if !own_processes {
        // Without a PID namespace the process group is what holds a skill's
        // processes together, and the agent is among those it could signal.
        calls.extend([
            libc::SYS_setsid,
            libc::SYS_setpgid,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_pidfd_send_signal,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
        ]);
    }
    calls.into_iter().map(|call| (call, vec![])).collect()
}

/// Sockets: none, or those of the internet protocols, whose network is a
/// loopback with the bridge on it. Never Unix sockets by name, since Docker's
/// or the journal's would be as good as a way out; a connected pair stays
/// allowed, but not of datagrams, which can be sent to a name.
fn sockets(internet: bool) -> Result<Rules, String> {
    let no_internet = |family: i32| condition(0, SeccompCmpOp::Ne, family);
    let socket = if internet {
        vec![rule(vec![
            no_internet(libc::AF_INET)?,
            no_internet(libc::AF_INET6)?,
        ])?]
    } else {
        vec![]
    };
    let datagrams = rule(vec![condition(
        1,
        SeccompCmpOp::MaskedEq(0xf),
        libc::SOCK_DGRAM,
    )?])?;
    Ok([
        (libc::SYS_socket, socket),
        (libc::SYS_socketpair, vec![datagrams]),
    ]
    .into())
}

/// Calls that are refused for some arguments only.
fn flagged(own_processes: bool) -> Result<Rules, String> {
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let clone = namespaces
        .into_iter()
        .map(|flag| {
            let mask = u64::from(flag.cast_unsigned());
            rule(vec![condition(0, SeccompCmpOp::MaskedEq(mask), flag)?])
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Typing into a terminal that the agent may have been started from.
    const TIOCSTI: i32 = 0x5412;
    const TIOCLINUX: i32 = 0x541c;
    let terminal = [TIOCSTI, TIOCLINUX]
        .into_iter()
        .map(|request| rule(vec![condition(1, SeccompCmpOp::Eq, request)?]))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rules: Rules = [(libc::SYS_clone, clone), (libc::SYS_ioctl, terminal)].into();
    if !own_processes {
        let others = rule(vec![condition(0, SeccompCmpOp::Ne, 0)?])?;
        rules.insert(libc::SYS_prlimit64, vec![others]);
    }
    Ok(rules)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, String> {
    SeccompRule::new(conditions).map_err(|e| format!("seccomp: {e}"))
}

/// The kernel reads these arguments as 32 bits, and so must the filter.
fn condition(argument: u8, operator: SeccompCmpOp, value: i32) -> Result<SeccompCondition, String> {
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .map_err(|e| format!("seccomp: {e}"))
}
