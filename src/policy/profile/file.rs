//! The file of a profile as it's written, and what its words mean.

use serde::Deserialize;

use super::{ARCHITECTURE, Entry, MOST_NAMES, Profile};
use crate::capability;
use crate::policy::bpf::{Check, Comparison, Verdict};
use crate::policy::table::{self, Named};

/// The file as it's written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    /// Podman's name for `defaultErrnoRet`, which stands beside it.
    #[serde(rename = "defaultErrno")]
    _default_errno: Option<String>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architecture>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    #[serde(rename = "listenerMetadata")]
    _listener_metadata: Option<String>,
    syscalls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(rename = "subArchitectures")]
    _sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Call {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl File {
    pub(super) fn profile(self) -> Result<Profile, String> {
        let listed = |name: &String| name == ARCHITECTURE.0;
        let foreign = match (&self.architectures, &self.arch_map) {
            (Some(list), _) if !list.is_empty() => !list.iter().any(listed),
            (_, Some(map)) if !map.is_empty() => !map.iter().map(|a| &a.architecture).any(listed),
            _ => false,
        };
        if foreign {
            return Err(format!("it isn't for this machine ({} is missing in its architectures)", ARCHITECTURE.0));
        }
        if self.listener_path.is_some_and(|path| !path.is_empty()) {
            return Err("listenerPath: nobody would answer".into());
        }
        let flags = self.flags.unwrap_or_default().iter().try_fold(0, |all, name| Ok::<u32, String>(all | flag(name)?))?;
        let rest = action(&self.default_action, self.default_errno_ret)?;
        let calls = self.syscalls.unwrap_or_default();
        if calls.len() > MOST_NAMES || calls.iter().flat_map(|call| &call.names).map(Vec::len).sum::<usize>() > MOST_NAMES {
            return Err(format!("more than {MOST_NAMES} names"));
        }
        let mut profile = Profile { rest, entries: Vec::new(), flags };
        for (i, call) in calls.into_iter().enumerate() {
            let entry = call.entry().map_err(|why| format!("entry {} of syscalls: {why}", i + 1))?;
            profile.entries.extend(entry);
        }
        profile.contradictions()?;
        Ok(profile)
    }
}

impl Call {
    /// The entry, or none if it's for another architecture or kernel.
    fn entry(self) -> Result<Option<Entry>, String> {
        let verdict = action(&self.action, self.errno_ret)?;
        if self.errno.is_some() && self.errno_ret.is_none() {
            return Err("`errno` is only read beside `errnoRet`, its number".into());
        }
        let mut names = self.names.unwrap_or_default();
        names.extend(self.name);
        if names.is_empty() {
            return Err("it names no system call".into());
        }
        if let Some(name) = names.iter().find(|name| !verdict.can_pass() && table::number(name) == Named::Unknown && !foreign(name)) {
            return Err(format!("no system call is called `{name}`, so it can't be refused"));
        }
        let checks = self.args.unwrap_or_default().iter().map(Argument::check).collect::<Result<Vec<_>, _>>()?;
        // runc takes several tests of one argument for alternatives: see matchCall in
        // its libcontainer/seccomp.
        let index = |check: &Check| match *check {
            Check::Is(i, _) | Check::Has(i, _) | Check::Wide(i, ..) => i,
        };
        let repeated = checks.iter().enumerate().any(|(i, check)| checks[..i].iter().any(|other| index(other) == index(check)));
        let rules = match checks.len() {
            0 => vec![],
            _ if repeated => checks.into_iter().map(|check| vec![check]).collect(),
            _ => vec![checks],
        };
        let (includes, excludes) = (self.includes.unwrap_or_default(), self.excludes.unwrap_or_default());
        let (with, without) = (capabilities(&includes)?, capabilities(&excludes)?);
        let here = |condition: &Condition| condition.arches.as_deref().map(|list| list.iter().any(|name| name == ARCHITECTURE.1));
        let recent = |condition: &Condition| condition.min_kernel.as_deref().map(kernel_is).transpose();
        let applies = here(&includes) != Some(false)
            && recent(&includes)? != Some(false)
            && here(&excludes) != Some(true)
            && recent(&excludes)? != Some(true);
        Ok(applies.then_some(Entry { names, verdict, rules, with, without }))
    }
}

impl Argument {
    fn check(&self) -> Result<Check, String> {
        let index =
            u8::try_from(self.index).ok().filter(|i| *i < 6).ok_or_else(|| format!("argument {} (they go from 0 to 5)", self.index))?;
        let (comparison, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (Comparison::NotEqual, self.value),
            "SCMP_CMP_LT" => (Comparison::Less, self.value),
            "SCMP_CMP_LE" => (Comparison::LessOrEqual, self.value),
            "SCMP_CMP_EQ" => (Comparison::Equal, self.value),
            "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, self.value),
            "SCMP_CMP_GT" => (Comparison::Greater, self.value),
            "SCMP_CMP_MASKED_EQ" => (Comparison::Masked(self.value), self.value_two),
            other => return Err(format!("there's no comparison `{other}`")),
        };
        Ok(Check::Wide(index, comparison, value))
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<Verdict, String> {
    // The kernel takes no errno above this (MAX_ERRNO).
    let errno = |default: i32| match errno.unwrap_or(default as u32) {
        errno @ 0..=4095 => Ok(errno as u16),
        other => Err(format!("errno {other} (4095 is the highest)")),
    };
    Ok(match name {
        "SCMP_ACT_ALLOW" => Verdict::Allow,
        "SCMP_ACT_LOG" => Verdict::Log,
        "SCMP_ACT_ERRNO" => Verdict::Errno(errno(libc::EPERM)?),
        "SCMP_ACT_TRAP" => Verdict::Trap,
        "SCMP_ACT_TRACE" => Verdict::Trace(errno(libc::EPERM)?),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" | "SCMP_ACT_KILL_PROCESS" => Verdict::End,
        "SCMP_ACT_NOTIFY" => return Err("SCMP_ACT_NOTIFY: nobody would answer".into()),
        other => return Err(format!("there's no action `{other}`")),
    })
}

fn flag(name: &str) -> Result<u32, String> {
    Ok(match name {
        // There's only one thread when the filter is installed.
        "SECCOMP_FILTER_FLAG_TSYNC" => 0,
        "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG as u32,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
        // For listeners that answer.
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
        other => return Err(format!("there's no flag `{other}`")),
    })
}

fn capabilities(condition: &Condition) -> Result<u64, String> {
    let names = condition.caps.as_deref().unwrap_or_default();
    names.iter().try_fold(0, |set, name| match capability::number_of(name) {
        Some(number) => Ok(set | 1 << number),
        None => Err(format!("there's no capability `{name}`")),
    })
}

/// Whether this kernel is at least `major.minor`.
fn kernel_is(least: &str) -> Result<bool, String> {
    let version = |text: &str| {
        let mut numbers = text.split(['.', '-']).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let least = version(least).ok_or_else(|| format!("minKernel is like 4.8, not `{least}`"))?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Without /proc nothing works anyway; the conditions of real profiles are old ones.
    Ok(version(&release).is_none_or(|own| own >= least))
}

/// Calls of other architectures than ours that profiles name: 32-bit variants, and
/// those that start with an architecture's name.
fn foreign(name: &str) -> bool {
    const PREFIXES: &[&str] = &["arm_", "s390_", "riscv_", "sys_debug_setcontext", "ppc_", "spu_", "cacheflush", "breakpoint"];
    const OLD: &[&str] = &[
        "_llseek",
        "_newselect",
        "bdflush",
        "break",
        "fadvise64_64",
        "fstatat64",
        "ftime",
        "get_tls",
        "idle",
        "ipc",
        "lock",
        "mmap2",
        "mpx",
        "multiplexer",
        "nice",
        "oldfstat",
        "oldlstat",
        "oldolduname",
        "oldstat",
        "olduname",
        "osf_",
        "pciconfig_iobase",
        "pciconfig_read",
        "pciconfig_write",
        "prof",
        "profil",
        "readdir",
        "recv",
        "rtas",
        "send",
        "set_tls",
        "sgetmask",
        "sigaction",
        "signal",
        "sigpending",
        "sigprocmask",
        "sigreturn",
        "sigsuspend",
        "socketcall",
        "ssetmask",
        "stime",
        "stty",
        "gtty",
        "subpage_prot",
        "swapcontext",
        "switch_endian",
        "sync_file_range2",
        "sysmips",
        "ulimit",
        "umount",
        "usr26",
        "usr32",
        "utimensat_time64",
        "vm86",
        "vm86old",
        "waitpid",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || OLD.contains(&name)
        || ["32", "64", "_time64"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix).is_some_and(|plain| table::number(plain) != Named::Unknown))
}
