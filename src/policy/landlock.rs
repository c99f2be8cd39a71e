//! Landlock: which rights there are in which version of it (landlock(7)).
//!
//! Made by hand and not with the `landlock` crate: rules on an overlay, or on anything
//! that is mounted in the sandbox, count only if their descriptors were opened inside
//! it, after mounting. There's no crate in init, so rulesets are steps of the plan; what
//! is left are the constants of linux/landlock.h and the versions that brought them.

/// Sets of LANDLOCK_ACCESS_FS_ rights.
pub(crate) mod right {
    const WRITE_FILE: u64 = 1 << 1;
    const REMOVE_DIR: u64 = 1 << 4;
    const REMOVE_FILE: u64 = 1 << 5;
    /// MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM.
    const MAKE: u64 = 0x7f << 6;
    /// Version 2.
    pub(super) const REFER: u64 = 1 << 13;
    /// Version 3.
    pub(super) const TRUNCATE: u64 = 1 << 14;

    /// To change what files hold.
    pub(crate) const CONTENTS: u64 = WRITE_FILE | TRUNCATE;
    /// To change anything.
    pub(crate) const WRITE: u64 = CONTENTS | REMOVE_DIR | REMOVE_FILE | MAKE | REFER;
}

/// Version 4: LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP.
const TCP: u64 = 3;
/// Version 6: LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL.
const SCOPES: u64 = 3;

/// The least version that is of use: the first one refuses every rename from one
/// directory to another, whatever its rules.
pub(crate) const LEAST: u32 = 2;

/// What a ruleset forbids, but for its rules: struct landlock_ruleset_attr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handled {
    pub(crate) files: u64,
    pub(crate) tcp: u64,
    pub(crate) scopes: u64,
}

impl Handled {
    pub(crate) const NOTHING: Handled = Handled { files: 0, tcp: 0, scopes: 0 };

    /// All that a version knows of what we want: no writing, no signals and abstract
    /// sockets beyond the sandbox and, for a workload without sockets, no TCP.
    pub(crate) fn by(abi: u32, sockets: bool) -> Handled {
        let mut files = right::WRITE;
        if abi < 3 {
            files &= !right::TRUNCATE;
        }
        let from = |least: u32, set: u64| if abi >= least { set } else { 0 };
        Handled { files, tcp: if sockets { 0 } else { from(4, TCP) }, scopes: from(6, SCOPES) }
    }
}

/// What a version lacks of it; the text goes into a report.
pub(crate) fn lacks(abi: u32) -> Option<&'static str> {
    match abi {
        0..3 => Some("files; truncation comes with Linux 6.2, TCP with 6.7, signals and abstract sockets with 6.12"),
        3 => Some("files; TCP comes with Linux 6.7, signals and abstract sockets with 6.12"),
        4..6 => Some("files and TCP; signals and abstract sockets come with Linux 6.12"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_version_is_asked_for_what_it_does_not_know() {
        // LANDLOCK_LAST_ACCESS_FS of versions 2 to 4 (5 adds a right that we leave alone).
        for (abi, last) in [(2, 13), (3, 14), (4, 14), (5, 15), (6, 15), (7, 15)] {
            let handled = Handled::by(abi, false);
            assert!(handled.files < 1 << (last + 1), "{abi}");
            assert_eq!(handled.tcp != 0, abi >= 4);
            assert_eq!(handled.scopes != 0, abi >= 6);
            assert_ne!(handled.files & right::REFER, 0, "else no rename between directories is possible");
        }
        assert_eq!(Handled::by(7, true).tcp, 0);
        assert!(lacks(2).is_some() && lacks(6).is_none());
    }
}
