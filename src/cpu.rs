//! What sandboxes on one machine can tell of each other through its processors.

use std::io;

use crate::error::{Error, Result};
use crate::sys;

/// Speculative execution of the workload, where it can be controlled for single
/// processes (PR_SET_SPECULATION_CTRL of prctl(2)).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Speculation {
    /// As the kernel does it for everybody.
    #[default]
    Kernel,
    /// Without store bypass and without indirect branch prediction, for good: threads of
    /// one program, a JIT and what it runs, can't spy on each other either. It costs some
    /// speed. On a machine that is vulnerable and whose mitigations are switched off it's
    /// an error.
    Restricted,
    /// Unrestricted even by the system call filter, whose installation restricts both
    /// before Linux 5.16. For workloads that one trusts not to spy.
    Unrestricted,
}

/// PR_SPEC_STORE_BYPASS and PR_SPEC_INDIRECT_BRANCH, with their names.
const KINDS: [(u32, &str); 2] = [(0, "speculative store bypass"), (1, "indirect branch speculation")];

/// What can be known of this machine, asked once.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Whether cores have to be kept to one sandbox at a time; why that can't be had.
    pub(crate) cores: std::result::Result<bool, String>,
    /// State of each kind of speculation, as the kernel tells it.
    speculation: [Option<i32>; 2],
}

impl Facts {
    pub(crate) fn gather() -> Facts {
        Facts { cores: cores(sys::prctl::core_scheduling()), speculation: KINDS.map(|(kind, _)| sys::prctl::speculation(kind).ok()) }
    }

    /// The kinds of speculation that a restricted process has to switch off.
    pub(crate) fn restrictable(&self) -> Result<Vec<(u32, &'static str)>> {
        const CONTROLLED: i32 = 1;
        const VULNERABLE: i32 = 2;
        let mut kinds = Vec::new();
        for ((kind, name), state) in KINDS.into_iter().zip(self.speculation) {
            match state {
                Some(state) if state & CONTROLLED != 0 => kinds.push((kind, name)),
                Some(VULNERABLE) => {
                    return Err(Error::unsupported(format!(
                        "cannot restrict {name}: the kernel's mitigations are switched off (boot it without mitigations=off)"
                    )));
                }
                // Not affected, restricted for everybody, or no such thing here.
                _ => {}
            }
        }
        Ok(kinds)
    }

    /// Facts for tests of plans.
    #[cfg(test)]
    pub(crate) fn all() -> Facts {
        Facts { cores: Ok(true), speculation: [Some(3), Some(3)] }
    }
}

fn cores(asked: io::Result<()>) -> std::result::Result<bool, String> {
    let error = match asked {
        Ok(()) => return Ok(true),
        Err(error) => error,
    };
    let single = std::fs::read_to_string("/sys/devices/system/cpu/smt/active").is_ok_and(|text| text.trim() == "0");
    match error.raw_os_error() {
        Some(libc::ENODEV) => Ok(false),
        _ if single => Ok(false),
        Some(libc::EINVAL) => Err("this kernel was built without CONFIG_SCHED_CORE (Linux 5.14)".into()),
        _ => Err(format!("core scheduling can't be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speculation_is_restricted_where_it_can_be_or_refused() {
        let kinds = |states| Facts { cores: Ok(false), speculation: states }.restrictable();
        assert_eq!(kinds([Some(3), Some(0)]).expect("fine"), [KINDS[0]], "one under control, one not affected");
        assert_eq!(kinds([Some(4), None]).expect("fine"), [], "restricted for everybody; unknown to this processor");
        assert!(kinds([Some(3), Some(2)]).expect_err("vulnerable").to_string().contains("indirect branch"));
    }

    #[test]
    fn cores_with_one_thread_need_no_scheduling() {
        assert_eq!(cores(Err(io::Error::from_raw_os_error(libc::ENODEV))), Ok(false));
        assert_eq!(cores(Ok(())), Ok(true));
    }
}
