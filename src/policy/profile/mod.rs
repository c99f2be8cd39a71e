//! Profiles as Docker, Podman and OCI runtimes have them: JSON.
//!
//! The format is that of Docker's default profile (`profiles/seccomp` of moby) and, what
//! is a part of it, of `linux.seccomp` in the OCI runtime-spec. Reading is strict: a
//! member or a word that isn't known is an error, because a rule that is silently left
//! out may be the one that mattered.

mod file;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::bpf::{Check, Rule, Verdict};
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
        let file: file::File = serde_json::from_slice(json).map_err(|e| Error::invalid(format!("cannot read the seccomp profile: {e}")))?;
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
