//! A policy becomes a program, once.

use std::sync::{Arc, Mutex};

use super::bpf::{self, Instruction, Rule, Verdict};
use super::{SyscallPolicy, Syscalls, presets, table};
use crate::error::{Error, Result};

/// A compiled policy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) program: Vec<Instruction>,
    /// SECCOMP_FILTER_FLAG_ of seccomp(2).
    pub(crate) flags: u32,
    /// Some calls end the run, and are told to a listener.
    pub(crate) listens: bool,
    /// Kernel keyrings can't be reached, whatever the arguments.
    pub(crate) closes_keyrings: bool,
    /// There's a way to a socket.
    pub(crate) sockets: bool,
    /// But only to such as our own presets allow.
    pub(crate) plain_sockets: bool,
    /// Descriptors can be passed on by a socket.
    pub(crate) passes_descriptors: bool,
    /// There's a way to semaphores, shared memory or queues of an IPC namespace.
    pub(crate) queues: bool,
    /// It lets through what a process needs that waits for its command under it.
    pub(crate) lets_wait: bool,
    /// A call that must pass for the command to be started, and doesn't.
    pub(crate) hinders: Option<&'static str>,
}

/// What the command's process calls between the filter and its own first instruction:
/// waits for the host's look, looks at the clock, executes and, if that fails, looks for
/// the reason and ends.
const NEEDED: [&str; 5] = ["read", "clock_gettime", "execve", "statx", "exit_group"];

/// What a filter depends on besides its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Circumstances {
    /// Nothing of the host's can be written, so files may be made set-user-ID.
    pub(crate) keep_set_id: bool,
    /// Capabilities of the command: profiles have conditions on them.
    pub(crate) capabilities: u64,
    /// The workload may make sandboxes of its own.
    pub(crate) nesting: bool,
}

/// A compiled filter with what it was compiled for.
type Compiled = Mutex<Option<(Circumstances, Arc<Filter>)>>;

/// Filters that were compiled already: each policy needs one or two.
#[derive(Debug, Default)]
pub(crate) struct Cache([Compiled; 2]);

impl Cache {
    pub(crate) const fn new() -> Cache {
        Cache([const { Mutex::new(None) }; 2])
    }

    fn get(&self, circumstances: Circumstances, compile: impl Fn() -> Result<Filter>) -> Result<Arc<Filter>> {
        // Nobody waits here: the lock may be another thread's from before a fork, which
        // nothing will ever release. (A OnceLock would wait.)
        let Ok(mut place) = self.0[usize::from(circumstances.keep_set_id)].try_lock() else { return compile().map(Arc::new) };
        match &*place {
            Some((for_these, filter)) if *for_these == circumstances => Ok(filter.clone()),
            _ => {
                let filter = Arc::new(compile()?);
                *place = Some((circumstances, filter.clone()));
                Ok(filter)
            }
        }
    }
}

/// The filter of a policy; `None` where there's none.
pub(crate) fn of(policy: &SyscallPolicy, circumstances: Circumstances) -> Result<Option<Arc<Filter>>> {
    // Those of plain presets are the same for all recipes.
    static DEFAULT: Cache = Cache::new();
    static STRICT: Cache = Cache::new();
    let cache = match policy.base {
        Syscalls::Unfiltered if policy.changes.is_empty() => return Ok(None),
        Syscalls::Default if policy.changes.is_empty() => &DEFAULT,
        Syscalls::Strict if policy.changes.is_empty() => &STRICT,
        _ => &policy.cache,
    };
    let circumstances = match policy.base {
        Syscalls::Profile(_) => circumstances,
        _ => Circumstances { capabilities: 0, ..circumstances },
    };
    cache.get(circumstances, || compile(policy, circumstances)).map(Some)
}

fn compile(policy: &SyscallPolicy, circumstances: Circumstances) -> Result<Filter> {
    let verdicts = verdicts(policy, circumstances);
    let listens = verdicts.known.iter().flatten().any(Verdict::can_end) || verdicts.unknown.can_end();
    let program = bpf::compile(&runs(&verdicts), listens);
    if program.len() > bpf::MOST {
        return Err(Error::invalid(format!(
            "the system call policy is too long: {} instructions (the kernel takes {}; use fewer argument rules)",
            program.len(),
            bpf::MOST
        )));
    }
    let flags = match &policy.base {
        Syscalls::Profile(profile) => profile.flags(),
        _ => 0,
    };
    let passes = |name| match table::number(name) {
        table::Named::Number(n) => verdicts.known[n as usize].as_ref().is_none_or(Verdict::can_pass),
        _ => false,
    };
    let closes_keyrings = !["keyctl", "add_key", "request_key"].into_iter().any(passes);
    let plain = |name: &str| match table::number(name) {
        table::Named::Number(n) => matches!(verdicts.known[n as usize], Some(Verdict::Allow | Verdict::Log)),
        _ => false,
    };
    const WAITING: [&str; 9] = ["recvmsg", "mmap", "munmap", "statx", "fcntl", "close_range", "dup3", "chdir", "clock_gettime"];
    let lets_wait = !listens && WAITING.into_iter().all(plain);
    let hinders = NEEDED.into_iter().find(|name| !plain(name));
    let sockets = ["socket", "socketpair", "io_uring_setup"].into_iter().any(passes);
    let as_ours = |name| matches!(table::number(name), table::Named::Number(n) if verdicts.known[n as usize] == Some(presets::sockets()));
    let plain_sockets = ["socket", "socketpair"].into_iter().all(as_ours) && !passes("io_uring_setup");
    let passes_descriptors = ["sendmsg", "sendmmsg"].into_iter().any(passes);
    let queues = ["semget", "shmget", "msgget", "mq_open"].into_iter().any(passes);
    Ok(Filter { program, flags, listens, closes_keyrings, sockets, plain_sockets, passes_descriptors, queues, lets_wait, hinders })
}

/// What a policy says about every number.
pub(crate) struct Verdicts {
    /// By number; `None` for one that is no call.
    known: Vec<Option<Verdict>>,
    /// All other numbers.
    unknown: Verdict,
}

fn verdicts(policy: &SyscallPolicy, circumstances: Circumstances) -> Verdicts {
    let most = table::numbers().max().unwrap_or(0) as usize;
    let mut known: Vec<Option<Verdict>> = vec![None; most + 1];
    let mut unknown = Verdict::ENOSYS;
    let mut set = |name: &str, verdict: Verdict| {
        if let table::Named::Number(number) = table::number(name) {
            known[number as usize] = Some(verdict);
        }
    };
    let refusal = match &policy.base {
        Syscalls::Default | Syscalls::Strict => {
            let preset = if policy.base == Syscalls::Strict { presets::strict() } else { presets::default() };
            for name in preset.allowed.iter().copied().flatten() {
                set(name, Verdict::Allow);
            }
            for (name, verdict) in preset.special {
                set(name, verdict);
            }
            for number in table::numbers() {
                known[number as usize].get_or_insert_with(|| preset.rest.clone());
            }
            preset.rest
        }
        Syscalls::Unfiltered => {
            unknown = Verdict::Allow;
            known.fill(Some(Verdict::Allow));
            Verdict::EPERM
        }
        Syscalls::Profile(profile) => {
            unknown = profile.unknown();
            for number in table::numbers() {
                known[number as usize] = Some(profile.rest());
            }
            for (name, verdict) in profile.verdicts(circumstances.capabilities) {
                if let table::Named::Number(number) = table::number(&name) {
                    known[number as usize] = Some(verdict);
                }
            }
            if profile.rest().can_pass() { Verdict::EPERM } else { profile.rest() }
        }
    };
    if circumstances.nesting {
        for name in presets::NESTING {
            if let table::Named::Number(number) = table::number(name) {
                known[number as usize] = Some(Verdict::Allow);
            }
        }
    }
    for (name, allowed) in &policy.changes {
        if let table::Named::Number(number) = table::number(name) {
            known[number as usize] = Some(if *allowed { Verdict::Allow } else { refusal.clone() });
        }
    }
    for (name, rules) in presets::guards(circumstances.keep_set_id) {
        if let table::Named::Number(number) = table::number(name)
            && let Some(verdict) = known[number as usize].take()
        {
            known[number as usize] = Some(guarded(rules, verdict));
        }
    }
    Verdicts { known, unknown }
}

/// A verdict with rules before it, where it lets anything pass.
fn guarded(mut rules: Vec<Rule>, verdict: Verdict) -> Verdict {
    if !verdict.can_pass() {
        return verdict;
    }
    if let [Rule { checks, verdict }] = rules.as_slice()
        && checks.is_empty()
    {
        return verdict.clone();
    }
    match verdict {
        Verdict::Rules(own, last) => {
            rules.extend(own);
            Verdict::Rules(rules, last)
        }
        last => Verdict::Rules(rules, Box::new(last)),
    }
}

/// Runs of numbers with their verdicts, as [`bpf::compile`] wants them.
fn runs(verdicts: &Verdicts) -> Vec<(u32, Verdict)> {
    let mut runs: Vec<(u32, Verdict)> = Vec::new();
    let all = verdicts.known.iter().map(|verdict| verdict.as_ref().unwrap_or(&verdicts.unknown));
    for (number, verdict) in all.chain([&verdicts.unknown]).enumerate() {
        if runs.last().is_none_or(|(_, last)| last != verdict) {
            runs.push((number as u32, verdict.clone()));
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::super::SyscallProfile;
    use super::super::bpf::{AUDIT_ARCH, Check, Comparison, Instruction, interpret};
    use super::*;
    use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

    const ALLOW: u32 = 0x7fff_0000;
    const END: u32 = 0x7fc0_0000;
    const FREE: Circumstances = Circumstances { keep_set_id: true, capabilities: 0, nesting: false };
    const WRITING: Circumstances = Circumstances { keep_set_id: false, capabilities: 0, nesting: false };

    const fn errno(errno: i32) -> u32 {
        0x0005_0000 | errno as u32
    }

    fn decide(policy: impl Into<SyscallPolicy>, circumstances: Circumstances, name: &str, args: [u64; 6]) -> u32 {
        let filter = policy.into().filter(circumstances).expect("it compiles").expect("a filter");
        let table::Named::Number(number) = table::number(name) else { panic!("{name}") };
        interpret(&filter.program, AUDIT_ARCH, number, args)
    }

    #[test]
    fn presets_say_what_the_documentation_says() {
        let default = |name, args| decide(Syscalls::Default, WRITING, name, args);
        let none = [0; 6];
        let at = |i: usize, value: u64| core::array::from_fn(|j| if i == j { value } else { 0 });
        assert_eq!(default("read", none), ALLOW);
        for name in ["mount", "bpf", "keyctl", "io_uring_setup", "userfaultfd", "perf_event_open", "setns", "unshare", "reboot", "kcmp"] {
            assert_eq!(default(name, none), errno(libc::EPERM), "{name}");
        }
        assert_eq!(default("clone3", none), errno(libc::ENOSYS));
        assert_eq!(default("clone", at(0, libc::SIGCHLD as u64)), ALLOW);
        assert_eq!(default("clone", at(0, libc::CLONE_NEWUSER as u64)), errno(libc::EPERM));
        assert_eq!(default("socket", at(0, libc::AF_INET as u64)), ALLOW);
        assert_eq!(default("socket", at(0, libc::AF_NETLINK as u64)), ALLOW);
        assert_eq!(default("socket", [libc::AF_NETLINK as u64, 3, 9, 0, 0, 0]), errno(libc::EAFNOSUPPORT));
        assert_eq!(default("socket", at(0, libc::AF_VSOCK as u64)), errno(libc::EAFNOSUPPORT));
        assert_eq!(default("prlimit64", at(0, 1)), errno(libc::EPERM), "PID 1's limits");
        for upper in [0, 1 << 32, u64::MAX << 32] {
            assert_eq!(default("ioctl", at(1, upper | libc::TIOCSTI)), errno(libc::EPERM), "whatever the upper half says");
        }
        assert_eq!(default("ioctl", at(1, libc::TCGETS)), ALLOW);
        let nesting = Circumstances { nesting: true, ..FREE };
        assert_eq!(decide(Syscalls::Default, nesting, "clone", at(0, libc::CLONE_NEWUSER as u64)), ALLOW);
        assert_eq!(decide(Syscalls::Default.deny("mount"), nesting, "mount", none), errno(libc::EPERM));

        let strict = |name, args| decide(Syscalls::Strict, FREE, name, args);
        for name in
            ["read", "mmap", "futex", "execve", "fork", "openat"].iter().filter(|name| table::number(name) != table::Named::Elsewhere)
        {
            assert_eq!(strict(name, none), ALLOW, "{name}");
        }
        for name in ["socket", "connect", "ptrace", "mount", "process_vm_readv", "setuid", "shmget"] {
            assert_eq!(strict(name, none), END, "{name}");
        }
        assert_eq!(strict("socket", at(0, libc::AF_UNIX as u64)), errno(libc::EAFNOSUPPORT));
        assert_eq!(strict("clone", at(0, libc::CLONE_NEWUSER as u64)), END);
    }

    /// What [`Pool::reusing`](crate::Pool::reusing) rests on.
    #[test]
    fn presets_refuse_what_outlives_processes_without_being_a_file() {
        let names = "add_key keyctl request_key io_uring_setup bpf perf_event_open userfaultfd mount umount2 move_mount open_tree \
            fsopen fsconfig fsmount fspick mount_setattr pivot_root chroot setns unshare sethostname setdomainname swapon quotactl acct \
            fanotify_init clock_settime settimeofday";
        for policy in [Syscalls::Default, Syscalls::Strict] {
            for name in names.split_whitespace() {
                assert_ne!(decide(policy.clone(), FREE, name, [0; 6]), ALLOW, "{policy:?}: {name}");
            }
            let filter = SyscallPolicy::from(policy.clone()).filter(FREE).expect("it compiles").expect("a filter");
            assert_eq!(filter.queues, policy == Syscalls::Default);
        }
    }

    #[test]
    fn set_id_bits_pass_only_where_nothing_of_the_host_can_be_written() {
        let chmod = |circumstances| decide(Syscalls::Default, circumstances, "fchmodat", [0, 0, 0o4755, 0, 0, 0]);
        assert_eq!(chmod(WRITING), errno(libc::EPERM));
        assert_eq!(chmod(FREE), ALLOW);
        assert_eq!(decide(Syscalls::Default, WRITING, "openat2", [0; 6]), errno(libc::ENOSYS));
        let allowed = Syscalls::Default.allow("fchmodat").allow("openat2");
        assert_eq!(decide(allowed.clone(), WRITING, "fchmodat", [0, 0, 0o4755, 0, 0, 0]), errno(libc::EPERM), "nobody can allow that");
        assert_eq!(decide(allowed, WRITING, "openat2", [0; 6]), errno(libc::ENOSYS));
    }

    #[test]
    fn single_calls_are_changed_and_the_last_word_counts() {
        let none = [0; 6];
        assert_eq!(decide(Syscalls::Default.allow("bpf"), FREE, "bpf", none), ALLOW);
        assert_eq!(decide(Syscalls::Default.deny("ptrace"), FREE, "ptrace", none), errno(libc::EPERM));
        assert_eq!(decide(Syscalls::Default.deny("bpf").allow("bpf"), FREE, "bpf", none), ALLOW);
        assert_eq!(decide(Syscalls::Strict.deny("fchdir"), FREE, "fchdir", none), END);
        assert_eq!(decide(Syscalls::Strict.allow("socket"), FREE, "socket", none), ALLOW);
        assert_eq!(decide(Syscalls::Unfiltered.deny("ptrace"), FREE, "ptrace", none), errno(libc::EPERM));
        assert_eq!(decide(Syscalls::Unfiltered.deny("ptrace"), FREE, "mount", none), ALLOW);
        assert!(Syscalls::Default.deny("ptraze").problem().expect("a problem").contains("`ptraze`"));
        let refused = SyscallPolicy::from(Syscalls::Default).deny("execve").filter(FREE).expect_err("it can't start");
        assert!(refused.to_string().contains("execve"), "{refused}");
    }

    #[test]
    fn a_policy_is_compiled_once() {
        let policy = Syscalls::Default.deny("ptrace");
        let first = policy.filter(FREE).expect("compiles").expect("a filter");
        assert!(Arc::ptr_eq(&first, &policy.clone().filter(FREE).expect("compiles").expect("a filter")));
        assert_ne!(Some(&first), policy.filter(WRITING).expect("compiles").as_ref());
        assert_ne!(Some(&first), policy.allow("ptrace").filter(FREE).expect("compiles").as_ref());
    }

    /// Each command waits for the installation, whose time is one of the length.
    #[test]
    fn presets_are_short() {
        for policy in [Syscalls::Default, Syscalls::Strict] {
            for circumstances in [FREE, WRITING] {
                let filter = SyscallPolicy::from(policy.clone()).filter(circumstances).expect("it compiles").expect("a filter");
                assert!(filter.program.len() <= 135, "{policy:?}, {circumstances:?}: {}", filter.program.len());
            }
        }
    }

    #[test]
    fn preset_tables_name_real_calls_once() {
        for preset in [presets::default(), presets::strict()] {
            let mut names: Vec<&str> = preset.allowed.iter().copied().flatten().copied().collect();
            names.extend(preset.special.iter().map(|(name, _)| *name));
            for name in &names {
                assert_ne!(table::number(name), table::Named::Unknown, "{name}");
            }
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count);
        }
        for (name, _) in presets::guards(false) {
            assert_ne!(table::number(name), table::Named::Unknown, "{name}");
        }
    }

    #[test]
    fn too_many_rules_are_an_error() {
        let entries: Vec<String> = (0..4000)
            .map(|i| {
                format!(
                    r#"{{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{{"index": 1, "value": {i}, "op": "SCMP_CMP_EQ"}}]}}"#
                )
            })
            .collect();
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{}]}}"#, entries.join(","));
        let policy = SyscallPolicy::from(SyscallProfile::parse(json).expect("a profile"));
        assert!(policy.filter(FREE).expect_err("too long").to_string().contains("4096"));
    }

    /// A profile of the kind that the wild has, with every comparison.
    const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read", "write", "execve", "exit_group", "mmap"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 4, "op": "SCMP_CMP_LT"}]},
        {"names": ["lseek"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 4294967296, "op": "SCMP_CMP_GE"}, {"index": 2, "value": 1, "op": "SCMP_CMP_LE"}]},
        {"names": ["mprotect"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 2, "value": 4, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
        {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GT"}]}]}"#;

    /// seccompiler compiles the same verdicts; both programs must say the same for every
    /// number and for arguments around every value that a rule names. It knows two
    /// actions per filter, so each action is a filter.
    #[test]
    fn seccompiler_agrees_on_every_number() {
        let profile = SyscallProfile::parse(PROFILE).expect("a profile");
        let policies = [Syscalls::Default.into(), Syscalls::Strict.into(), Syscalls::Default.allow("bpf").deny("read"), profile.into()];
        for policy in &policies {
            for circumstances in [FREE, WRITING] {
                let verdicts = verdicts(policy, circumstances);
                let listens = runs(&verdicts).iter().any(|(_, verdict)| verdict.can_end());
                let ours = bpf::compile(&runs(&verdicts), listens);
                for wanted in [Verdict::Allow, Verdict::EPERM, Verdict::ENOSYS, Verdict::Errno(libc::EAFNOSUPPORT as u16), Verdict::End] {
                    agree(&verdicts, &ours, listens, &wanted);
                }
            }
        }
    }

    fn agree(verdicts: &Verdicts, ours: &[Instruction], listens: bool, wanted: &Verdict) {
        let arch = if cfg!(target_arch = "x86_64") { TargetArch::x86_64 } else { TargetArch::aarch64 };
        let mut rules = std::collections::BTreeMap::new();
        let most = verdicts.known.len() as u32 + 20;
        let of = |number: u32| verdicts.known.get(number as usize).and_then(Option::as_ref).unwrap_or(&verdicts.unknown);
        for number in 0..most {
            if let Some(alternatives) = alternatives(of(number), wanted) {
                rules.insert(i64::from(number), alternatives);
            }
        }
        if rules.is_empty() {
            return;
        }
        let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, arch).expect("valid");
        let program: seccompiler::BpfProgram = filter.try_into().expect("compiles");
        let theirs: Vec<Instruction> = program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
        let expected = match wanted {
            Verdict::Allow => ALLOW,
            Verdict::Errno(number) => errno((*number).into()),
            _ => {
                if listens {
                    END
                } else {
                    0x8000_0000
                }
            }
        };
        let mut compared = 0;
        for number in 0..most {
            for args in samples(of(number)) {
                let ours = interpret(ours, AUDIT_ARCH, number, args) == expected;
                let theirs = interpret(&theirs, AUDIT_ARCH, number, args) == ALLOW;
                assert_eq!(ours, theirs, "{number} ({:?}), {args:x?}, {wanted:?}", table::name(number));
                compared += 1;
            }
        }
        assert!(compared >= most);
    }

    /// The rules under which a verdict is `wanted`, as seccompiler has them: alternatives
    /// of conjunctions. `None` is never, an empty list is always.
    fn alternatives(verdict: &Verdict, wanted: &Verdict) -> Option<Vec<SeccompRule>> {
        let Verdict::Rules(rules, last) = verdict else { return (verdict == wanted).then(Vec::new) };
        // "None of the earlier rules, but this one": a rule that fails does so by any one
        // of its checks.
        let mut found: Vec<Vec<Check>> = Vec::new();
        let mut open: Vec<Vec<Check>> = vec![Vec::new()];
        for rule in rules {
            if rule.verdict == *wanted {
                for checks in split(&rule.checks) {
                    found.extend(open.iter().map(|before| [before.as_slice(), &checks].concat()));
                }
            }
            open = open
                .iter()
                .flat_map(|before| rule.checks.iter().flat_map(|c| negated(*c)).map(|c| [before.as_slice(), &[c]].concat()))
                .collect();
        }
        if **last == *wanted {
            found.extend(open);
        }
        let rules: Vec<SeccompRule> =
            found.iter().map(|checks| SeccompRule::new(checks.iter().map(condition).collect()).expect("a rule")).collect();
        (!rules.is_empty()).then_some(rules)
    }

    /// "Any of these bits" as alternatives of one bit each.
    fn split(checks: &[Check]) -> Vec<Vec<Check>> {
        checks.iter().fold(vec![Vec::new()], |all, check| {
            let each: Vec<Check> = match *check {
                Check::Has(i, bits) => (0..32).map(|bit| bits & 1 << bit).filter(|bit| *bit != 0).map(|bit| Check::Has(i, bit)).collect(),
                other => vec![other],
            };
            all.iter().flat_map(|before| each.iter().map(|check| [before.as_slice(), &[*check]].concat())).collect()
        })
    }

    /// Checks of which one holds where this one doesn't.
    fn negated(check: Check) -> Vec<Check> {
        use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Masked, NotEqual};
        match check {
            // In seccompiler's terms, see `condition`: Has of nothing is "none of these".
            Check::Is(i, value) => vec![Check::Wide(i, Masked(NOT_32), value.into())],
            Check::Has(i, bits) => vec![Check::Wide(i, Masked(bits.into()), 0)],
            Check::Wide(i, comparison, value) => {
                let opposite = match comparison {
                    Equal => NotEqual,
                    NotEqual => Equal,
                    Less => GreaterOrEqual,
                    LessOrEqual => Greater,
                    Greater => LessOrEqual,
                    GreaterOrEqual => Less,
                    Masked(mask) if mask.is_power_of_two() => return vec![Check::Wide(i, Masked(mask), value ^ mask)],
                    Masked(_) => panic!("seccompiler can't say that"),
                };
                vec![Check::Wide(i, opposite, value)]
            }
        }
    }

    /// Marks a 32-bit "isn't", which our own checks lack.
    const NOT_32: u64 = 0xdead_beef_0000_0001;

    fn condition(check: &Check) -> SeccompCondition {
        use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Masked, NotEqual};
        let (length, op, i, value) = match *check {
            Check::Is(i, value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, i, value.into()),
            Check::Has(i, bits) => {
                assert!(bits.is_power_of_two(), "split before");
                (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits.into()), i, bits.into())
            }
            Check::Wide(i, Masked(NOT_32), value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, i, value),
            Check::Wide(i, comparison, value) => {
                let op = match comparison {
                    Equal => SeccompCmpOp::Eq,
                    NotEqual => SeccompCmpOp::Ne,
                    Less => SeccompCmpOp::Lt,
                    LessOrEqual => SeccompCmpOp::Le,
                    Greater => SeccompCmpOp::Gt,
                    GreaterOrEqual => SeccompCmpOp::Ge,
                    Masked(mask) => SeccompCmpOp::MaskedEq(mask),
                };
                (SeccompCmpArgLen::Qword, op, i, value)
            }
        };
        SeccompCondition::new(i, length, op, value).expect("a condition")
    }

    /// Arguments around every value that a verdict's rules name.
    fn samples(verdict: &Verdict) -> Vec<[u64; 6]> {
        let mut samples = vec![[0; 6], [u64::MAX; 6]];
        let Verdict::Rules(rules, _) = verdict else { return samples };
        let mut values: Vec<(usize, u64)> = Vec::new();
        for check in rules.iter().flat_map(|rule| &rule.checks) {
            let (i, value) = match *check {
                Check::Is(i, value) | Check::Has(i, value) => (i, value.into()),
                Check::Wide(i, Comparison::Masked(mask), value) => (i, mask | value),
                Check::Wide(i, _, value) => (i, value),
            };
            let near =
                [value, value.wrapping_add(1), value.wrapping_sub(1), value | 1 << 32, value | 1 << 63, value & value.wrapping_neg()];
            values.extend(near.map(|value| (usize::from(i), value)));
        }
        for (i, value) in &values {
            for (j, other) in &values {
                let mut args = [0; 6];
                args[*i] = *value;
                args[*j] = *other;
                samples.push(args);
            }
        }
        samples
    }
}
