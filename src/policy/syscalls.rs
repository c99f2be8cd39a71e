//! The table of the default filter.
//!
//! Everything up to [`LAST`] is allowed but for what is listed, everything newer
//! answers ENOSYS: so the table is closed, although it's written by its
//! exceptions. The base is what Docker documents for its default profile.

use std::sync::{Arc, Mutex};

use super::bpf::{Check, Instruction, Rule, Verdict, compile};

/// The newest system call that this table was written for: mseal(2), Linux 6.10.
const LAST: u32 = 462;

/// `CLONE_NEW*` of clone(2): new namespaces.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// CLONE_NEWTIME shares its bit with the exit signal of clone(2), where it means nothing.
const SET_ID_BITS: u32 = 0o6000;
// Of setpriority(2); C libraries disagree about their type.
const PRIO_PROCESS: u32 = 0;
const PRIO_USER: u32 = 2;

/// Refused with EPERM, on every architecture.
const REFUSED: &[i64] = &[
    // The machine
    libc::SYS_acct,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_adjtimex,
    // Mounts and namespaces
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // What namespaces don't cover, and what has had many bugs
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_userfaultfd,
    // statmount(2) and listmount(2), which libc doesn't name yet
    457,
    458,
];

/// Refused with EPERM where they exist.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] = &[
    libc::SYS__sysctl,
    174, // create_module(2), gone from the kernel
    177, // get_kernel_syms(2), gone
    libc::SYS_ioperm,
    libc::SYS_iopl,
    178, // query_module(2), gone
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

fn any_of(checks: &[Check], errno: i32) -> Verdict {
    let rules = checks.iter().map(|check| Rule { checks: vec![*check], verdict: Verdict::Errno(errno as u16) });
    Verdict::Rules(rules.collect(), Box::new(Verdict::Allow))
}

/// The calls that are decided by their arguments.
fn by_argument(keep_set_id: bool) -> Vec<(i64, Verdict)> {
    let allow = |checks: Vec<Check>| Rule { checks, verdict: Verdict::Allow };
    let refuse = |checks: Vec<Check>| Rule { checks, verdict: Verdict::Errno(libc::EPERM as u16) };
    let sockets = Verdict::Rules(
        vec![
            allow(vec![Check::Is(0, libc::AF_UNIX as u32)]),
            allow(vec![Check::Is(0, libc::AF_INET as u32)]),
            allow(vec![Check::Is(0, libc::AF_INET6 as u32)]),
            allow(vec![Check::Is(0, libc::AF_NETLINK as u32), Check::Is(2, libc::NETLINK_ROUTE as u32)]),
        ],
        Box::new(Verdict::Errno(libc::EAFNOSUPPORT as u16)),
    );
    let personalities = [0, 0x0008, 0x2_0000, 0x2_0008, u32::MAX].map(|p| allow(vec![Check::Is(0, p)]));
    let mut table = vec![
        // Namespaces can only be asked for in clone3's memory, which a filter
        // can't read: ENOSYS makes C libraries take clone.
        (libc::SYS_clone, any_of(&[Check::Has(0, NAMESPACES)], libc::EPERM)),
        (libc::SYS_clone3, Verdict::Errno(libc::ENOSYS as u16)),
        // Input injected into a terminal would be read by the host's shell (CVE-2017-5226).
        (libc::SYS_ioctl, any_of(&[Check::Is(1, libc::TIOCSTI as u32), Check::Is(1, libc::TIOCLINUX as u32)], libc::EPERM)),
        (libc::SYS_socket, sockets.clone()),
        (libc::SYS_socketpair, sockets),
        // PID 1 keeps the limits on time. It may have the workload's own ids, which is
        // all that prlimit asks for, and slowing it down takes CAP_SYS_NICE only.
        (libc::SYS_prlimit64, any_of(&[Check::Is(0, 1)], libc::EPERM)),
        (libc::SYS_sched_setaffinity, any_of(&[Check::Is(0, 1)], libc::EPERM)),
        (libc::SYS_sched_setattr, any_of(&[Check::Is(0, 1)], libc::EPERM)),
        (libc::SYS_sched_setparam, any_of(&[Check::Is(0, 1)], libc::EPERM)),
        (libc::SYS_sched_setscheduler, any_of(&[Check::Is(0, 1)], libc::EPERM)),
        (
            libc::SYS_setpriority,
            Verdict::Rules(
                vec![refuse(vec![Check::Is(0, PRIO_PROCESS), Check::Is(1, 1)]), refuse(vec![Check::Is(0, PRIO_USER)])],
                Box::new(Verdict::Allow),
            ),
        ),
        (libc::SYS_personality, Verdict::Rules(personalities.to_vec(), Box::new(Verdict::Errno(libc::EPERM as u16)))),
    ];
    if !keep_set_id {
        let mode_at = |i| any_of(&[Check::Has(i, SET_ID_BITS)], libc::EPERM);
        table.extend([
            (libc::SYS_fchmod, mode_at(1)),
            (libc::SYS_fchmodat, mode_at(2)),
            // fchmodat2(2), Linux 6.6
            (452, mode_at(2)),
            (libc::SYS_mknodat, mode_at(2)),
            (libc::SYS_openat, mode_at(3)),
            // Its mode is in memory.
            (libc::SYS_openat2, Verdict::Errno(libc::ENOSYS as u16)),
        ]);
        #[cfg(target_arch = "x86_64")]
        table.extend([
            (libc::SYS_chmod, mode_at(1)),
            (libc::SYS_creat, mode_at(1)),
            (libc::SYS_mknod, mode_at(1)),
            (libc::SYS_open, mode_at(2)),
        ]);
    }
    table
}

/// Runs of numbers with their verdicts, as [`compile`] wants them.
fn runs(keep_set_id: bool) -> Vec<(u32, Verdict)> {
    let mut table = vec![Verdict::Allow; LAST as usize + 1];
    for number in REFUSED.iter().chain(REFUSED_HERE) {
        table[*number as usize] = Verdict::Errno(libc::EPERM as u16);
    }
    for (number, verdict) in by_argument(keep_set_id) {
        table[number as usize] = verdict;
    }
    let mut runs: Vec<(u32, Verdict)> = Vec::new();
    for (number, verdict) in table.into_iter().enumerate() {
        if runs.last().is_none_or(|(_, last)| *last != verdict) {
            runs.push((number as u32, verdict));
        }
    }
    runs.push((LAST + 1, Verdict::Errno(libc::ENOSYS as u16)));
    runs
}

/// The default filter's program. Files may be made set-user-ID only where
/// nothing of the host's can be written. There are only the two, so each is compiled
/// once.
pub(crate) fn default_filter(keep_set_id: bool) -> Arc<[Instruction]> {
    static FILTERS: [Mutex<Option<Arc<[Instruction]>>>; 2] = [const { Mutex::new(None) }; 2];
    // Nobody waits here: the lock may be another thread's from before a fork, which
    // nothing will ever release. (A OnceLock would wait.)
    let Ok(mut filter) = FILTERS[usize::from(keep_set_id)].try_lock() else { return compile(&runs(keep_set_id)).into() };
    filter.get_or_insert_with(|| compile(&runs(keep_set_id)).into()).clone()
}

#[cfg(test)]
mod tests {
    use super::super::bpf::{AUDIT_ARCH, interpret};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const fn errno(errno: i32) -> u32 {
        0x0005_0000 | errno as u32
    }

    fn decide(number: i64, args: [u64; 6]) -> u32 {
        interpret(&default_filter(false), AUDIT_ARCH, number as u32, args)
    }

    #[test]
    fn the_table_says_what_the_documentation_says() {
        let none = [0; 6];
        assert_eq!(decide(libc::SYS_read, none), ALLOW);
        assert_eq!(decide(libc::SYS_mount, none), errno(libc::EPERM));
        assert_eq!(decide(libc::SYS_clone3, none), errno(libc::ENOSYS));
        assert_eq!(decide(9999, none), errno(libc::ENOSYS));
        assert_eq!(decide(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(decide(libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), errno(libc::EPERM));
        assert_eq!(decide(libc::SYS_socket, [libc::AF_INET as u64, 1, 0, 0, 0, 0]), ALLOW);
        assert_eq!(decide(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0, 0, 0, 0]), ALLOW);
        assert_eq!(decide(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 9, 0, 0, 0]), errno(libc::EAFNOSUPPORT));
        assert_eq!(decide(libc::SYS_socket, [libc::AF_VSOCK as u64, 1, 0, 0, 0, 0]), errno(libc::EAFNOSUPPORT));
    }

    #[test]
    fn terminal_injection_is_refused_whatever_the_upper_half_says() {
        for upper in [0, 1 << 32, u64::MAX << 32] {
            assert_eq!(decide(libc::SYS_ioctl, [0, upper | libc::TIOCSTI, 0, 0, 0, 0]), errno(libc::EPERM));
        }
        assert_eq!(decide(libc::SYS_ioctl, [0, libc::TCGETS, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn set_id_bits_pass_only_where_nothing_of_the_host_can_be_written() {
        let chmod = |keep| interpret(&default_filter(keep), AUDIT_ARCH, libc::SYS_fchmodat as u32, [0, 0, 0o4755, 0, 0, 0]);
        assert_eq!(chmod(false), errno(libc::EPERM));
        assert_eq!(chmod(true), ALLOW);
    }

    /// seccompiler compiles the same table; both programs must say the same for
    /// every number. It knows one errno per filter, so each errno is a filter.
    #[test]
    fn seccompiler_agrees_on_every_number() {
        use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};
        let arch = if cfg!(target_arch = "x86_64") { TargetArch::x86_64 } else { TargetArch::aarch64 };
        let ours = default_filter(false);
        for wanted in [libc::EPERM as u16, libc::ENOSYS as u16, libc::EAFNOSUPPORT as u16] {
            let mut rules = std::collections::BTreeMap::new();
            let table = runs(false);
            for (i, (start, verdict)) in table.iter().enumerate() {
                let end = table.get(i + 1).map_or(LAST + 1, |next| next.0);
                for number in *start..end {
                    let conditions: Option<Vec<SeccompRule>> = match verdict {
                        Verdict::Errno(errno) => (*errno == wanted).then(Vec::new),
                        Verdict::Rules(rules, last) if **last == Verdict::Allow => Some(
                            rules
                                .iter()
                                .filter(|rule| rule.verdict == Verdict::Errno(wanted))
                                .map(|rule| {
                                    let conditions = rule.checks.iter().flat_map(|check| match *check {
                                        Check::Is(i, v) => vec![
                                            SeccompCondition::new(i, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, v.into()).expect("valid"),
                                        ],
                                        // "any bit" is "not (masked equals 0)", which seccompiler lacks: one rule a bit below.
                                        Check::Has(..) => vec![],
                                    });
                                    SeccompRule::new(conditions.collect())
                                })
                                .filter_map(Result::ok)
                                .collect(),
                        )
                        .filter(|rules: &Vec<SeccompRule>| !rules.is_empty()),
                        _ => None,
                    };
                    if let Some(conditions) = conditions {
                        rules.insert(i64::from(number), conditions);
                    }
                }
            }
            let filter = SeccompFilter::new(rules.clone(), SeccompAction::Allow, SeccompAction::Errno(wanted.into()), arch).expect("valid");
            let program: seccompiler::BpfProgram = filter.try_into().expect("compiles");
            let theirs: Vec<Instruction> = program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
            for number in 0..=LAST {
                let plain = matches!(verdict_of(number), Verdict::Allow | Verdict::Errno(_));
                let mut samples = vec![[0u64; 6]];
                if number == libc::SYS_ioctl as u32 {
                    samples = vec![[0, libc::TIOCSTI, 0, 0, 0, 0], [0, libc::TCGETS, 0, 0, 0, 0]];
                } else if !plain {
                    continue;
                }
                for args in samples {
                    let (a, b) = (interpret(&ours, AUDIT_ARCH, number, args), interpret(&theirs, AUDIT_ARCH, number, args));
                    assert_eq!(a == errno(wanted.into()), b == errno(wanted.into()), "number {number}: {a:#x} and {b:#x}");
                }
            }
        }

        fn verdict_of(number: u32) -> Verdict {
            runs(false).into_iter().rev().find(|(start, _)| *start <= number).expect("a run").1
        }
    }
}
