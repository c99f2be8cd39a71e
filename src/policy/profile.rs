//! Profiles as Docker, Podman and OCI runtimes have them: JSON.
//!
//! The format is that of Docker's default profile (`profiles/seccomp` of moby) and, what
//! is a part of it, of `linux.seccomp` in the OCI runtime-spec. Reading is strict: a
//! member or a word that isn't known is an error, because a rule that is silently left
//! out may be the one that mattered.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::bpf::{Check, Comparison, Rule, Verdict};
use super::table::{self, Named};
use crate::capability;
use crate::error::{Error, Result};

/// The largest profile that is read, bytes; Docker's default one has 16 KiB.
const MOST_BYTES: usize = 1 << 20;
/// The most names in all entries together, and the most entries.
const MOST_NAMES: usize = 1 << 14;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: (&str, &str) = ("SCMP_ARCH_X86_64", "amd64");
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: (&str, &str) = ("SCMP_ARCH_AARCH64", "arm64");

/// A seccomp profile in the JSON format of Docker and the OCI runtime-spec.
///
/// Actions, argument rules, conditions on capabilities, architectures and kernel
/// versions mean what they mean to `runc`, with these differences:
///
/// * `SCMP_ACT_KILL` and `SCMP_ACT_KILL_THREAD` end the whole run, as
///   `SCMP_ACT_KILL_PROCESS` does: a program that loses one thread hangs.
/// * `SCMP_ACT_NOTIFY` is refused: nobody would answer.
/// * Other ABIs (i386, x32) always end the process, whatever `architectures` says; but
///   this machine's own must be in that list, or in `archMap`.
/// * Two entries that say different things about the same call, both without
///   arguments, are an error.
/// * A name that no known system call has is an error where the entry refuses it, and
///   harmless where it allows it.
///
/// Calls newer than this library answer `ENOSYS`, unless the default action lets them
/// pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyscallProfile(Arc<Profile>);

#[derive(Debug, PartialEq, Eq)]
struct Profile {
    rest: Verdict,
    entries: Vec<Entry>,
    flags: u32,
}

/// One entry, for this architecture and kernel.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    names: Vec<String>,
    verdict: Verdict,
    /// Alternatives; none means "whatever the arguments".
    rules: Vec<Vec<Check>>,
    /// Capabilities that the command must all have, and of which it may have none.
    with: u64,
    without: u64,
}

impl SyscallProfile {
    /// Reads a profile. An error says what is wrong and, for JSON, in which line.
    pub fn parse(json: impl AsRef<[u8]>) -> Result<SyscallProfile> {
        let json = json.as_ref();
        if json.len() > MOST_BYTES {
            return Err(Error::invalid(format!("cannot read the seccomp profile: it has {} bytes (1 MiB is the most)", json.len())));
        }
        let file: File = serde_json::from_slice(json).map_err(|e| Error::invalid(format!("cannot read the seccomp profile: {e}")))?;
        file.profile()
            .map(|profile| SyscallProfile(Arc::new(profile)))
            .map_err(|why| Error::invalid(format!("cannot use the seccomp profile: {why}")))
    }

    /// Reads a profile from a file.
    pub fn open(path: impl AsRef<Path>) -> Result<SyscallProfile> {
        use std::io::Read;
        let path = path.as_ref();
        let name = path.to_string_lossy();
        let file = std::fs::File::open(path).map_err(|e| Error::io("open", &name, e))?;
        let mut json = Vec::new();
        file.take(MOST_BYTES as u64 + 1).read_to_end(&mut json).map_err(|e| Error::io("read", &name, e))?;
        SyscallProfile::parse(json)
    }

    /// What happens to calls that no entry names.
    pub(super) fn rest(&self) -> Verdict {
        self.0.rest.clone()
    }

    /// What happens to calls that nobody knows here.
    pub(super) fn unknown(&self) -> Verdict {
        if self.0.rest.can_pass() { self.rest() } else { Verdict::ENOSYS }
    }

    pub(super) fn flags(&self) -> u32 {
        self.0.flags
    }

    /// What the entries say about each call that they name, for a command with these
    /// capabilities.
    pub(super) fn verdicts(&self, capabilities: u64) -> Vec<(String, Verdict)> {
        let counts = |entry: &&Entry| capabilities & entry.with == entry.with && capabilities & entry.without == 0;
        let mut all: BTreeMap<&str, Verdict> = BTreeMap::new();
        for entry in self.0.entries.iter().filter(counts) {
            for name in &entry.names {
                let rules = entry.rules.iter().map(|checks| Rule { checks: checks.clone(), verdict: entry.verdict.clone() });
                match all.get_mut(name.as_str()) {
                    // An entry without arguments has decided, as with libseccomp.
                    Some(verdict) if !matches!(verdict, Verdict::Rules(..)) => {}
                    Some(Verdict::Rules(present, _)) if !entry.rules.is_empty() => present.extend(rules),
                    _ if entry.rules.is_empty() => drop(all.insert(name, entry.verdict.clone())),
                    _ => drop(all.insert(name, Verdict::Rules(rules.collect(), Box::new(self.rest())))),
                }
            }
        }
        all.into_iter().map(|(name, verdict)| (name.to_string(), verdict)).collect()
    }
}

/// The file as it's written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
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
    fn profile(self) -> std::result::Result<Profile, String> {
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

impl Profile {
    fn contradictions(&self) -> std::result::Result<(), String> {
        let mut plain: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.rules.is_empty()) {
            for name in &entry.names {
                let others = plain.entry(name).or_default();
                // Both count for some set of capabilities.
                let meets = |other: &&&Entry| entry.with & other.without == 0 && other.with & entry.without == 0;
                if others.iter().filter(meets).any(|other| other.verdict != entry.verdict) {
                    return Err(format!("two entries say different things about `{name}`"));
                }
                others.push(entry);
            }
        }
        Ok(())
    }
}

impl Call {
    /// The entry, or none if it's for another architecture or kernel.
    fn entry(self) -> std::result::Result<Option<Entry>, String> {
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
        let checks = self.args.unwrap_or_default().iter().map(Argument::check).collect::<std::result::Result<Vec<_>, _>>()?;
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
    fn check(&self) -> std::result::Result<Check, String> {
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

fn action(name: &str, errno: Option<u32>) -> std::result::Result<Verdict, String> {
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

fn flag(name: &str) -> std::result::Result<u32, String> {
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

fn capabilities(condition: &Condition) -> std::result::Result<u64, String> {
    let names = condition.caps.as_deref().unwrap_or_default();
    names.iter().try_fold(0, |set, name| match capability::number_of(name) {
        Some(number) => Ok(set | 1 << number),
        None => Err(format!("there's no capability `{name}`")),
    })
}

/// Whether this kernel is at least `major.minor`.
fn kernel_is(least: &str) -> std::result::Result<bool, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        SyscallProfile::parse(json).expect_err(json).to_string()
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let cases = [
            ("", "EOF"),
            ("[]", "invalid"),
            ("{}", "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "no action `SCMP_ACT_MAYBE`"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "sysalls": []}"#, "unknown field `sysalls`"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "nobody would answer"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#, "nobody would answer"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_MIPS"]}"#, "isn't for this machine"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}"#, "no flag `X`"),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}"#, "4095"),
        ];
        for (json, word) in cases {
            assert!(refused(json).contains(word), "{json}: {}", refused(json));
        }
        let entries = [
            (r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#, "entry 1 of syscalls: it names no system call"),
            (r#"{"names": ["mout"], "action": "SCMP_ACT_ERRNO"}"#, "no system call is called `mout`"),
            (r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#, "argument 6"),
            (r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 0, "op": "EQ"}]}"#, "no comparison `EQ`"),
            (r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": -1, "op": "SCMP_CMP_EQ"}]}"#, "u64"),
            (r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_NONE"]}}"#, "no capability `CAP_NONE`"),
            (r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}"#, "minKernel"),
            (r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "EINVAL"}"#, "errnoRet"),
            (
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, {"names": ["read"], "action": "SCMP_ACT_ERRNO"}"#,
                "different things about `read`",
            ),
        ];
        for (entry, word) in entries {
            let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{entry}]}}"#);
            assert!(refused(&json).contains(word), "{json}: {}", refused(&json));
        }
        assert!(refused(&" ".repeat(MOST_BYTES + 1)).contains("1 MiB"));
        assert!(refused(&"[".repeat(100_000)).contains("invalid"), "no recursion without end");
    }

    fn verdict(profile: &SyscallProfile, name: &str, capabilities: u64) -> Option<Verdict> {
        profile.verdicts(capabilities).into_iter().find(|(n, _)| n == name).map(|(_, verdict)| verdict)
    }

    #[test]
    fn conditions_choose_entries() {
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "archMap": [{{"architecture": "{}", "subArchitectures": null}}],
            "syscalls": [
              {{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {{"caps": ["CAP_SYS_ADMIN"]}}, "comment": "x", "args": null}},
              {{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {{"caps": ["CAP_SYS_ADMIN"]}}}},
              {{"names": ["read", "no_such_call_yet"], "action": "SCMP_ACT_ALLOW", "includes": {{"arches": ["{}"], "minKernel": "4.8"}}}},
              {{"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {{"arches": ["s390x"]}}}},
              {{"name": "close", "action": "SCMP_ACT_ALLOW", "excludes": {{"minKernel": "4.8"}}}}
            ]}}"#,
            ARCHITECTURE.0, ARCHITECTURE.1
        );
        let profile = SyscallProfile::parse(json).expect("a profile");
        assert_eq!(verdict(&profile, "mount", 0), Some(Verdict::Errno(1)));
        assert_eq!(verdict(&profile, "mount", 1 << 21), Some(Verdict::Allow));
        assert_eq!(verdict(&profile, "read", 0), Some(Verdict::Allow));
        assert_eq!(verdict(&profile, "write", 0), None);
        assert_eq!(verdict(&profile, "close", 0), None);
        assert_eq!(profile.rest(), Verdict::Errno(38));
    }

    #[test]
    fn arguments_are_rules_before_the_default() {
        let json = r#"{"defaultAction": "SCMP_ACT_KILL", "syscalls": [
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 3, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]}
        ]}"#;
        let profile = SyscallProfile::parse(json).expect("a profile");
        let rules = |name| match verdict(&profile, name, 0) {
            Some(Verdict::Rules(rules, last)) => (rules.iter().map(|r| r.checks.len()).collect::<Vec<_>>(), *last),
            other => panic!("{other:?}"),
        };
        assert_eq!(rules("personality"), (vec![1, 1], Verdict::End), "two entries are alternatives");
        assert_eq!(rules("fcntl"), (vec![1, 1], Verdict::End), "so are two tests of one argument");
        assert_eq!(rules("socket"), (vec![2], Verdict::End), "tests of two arguments both count");
        assert_eq!(rules("clone"), (vec![1], Verdict::End));
    }
}
