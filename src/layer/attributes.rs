//! Which extended attributes layers have, both ways.

use std::ffi::CString;
use std::io;

/// Whether an attribute is part of a layer.
///
/// What the kernel or a container engine would act on isn't: with overlayfs' own, an
/// image would make directories opaque or reach into closed ones, and the overrides
/// of rootless engines decide owner and mode. Labels of a security module and
/// signatures belong to the machine they were made on.
pub(super) fn kept(name: &[u8]) -> bool {
    const NOT: [&[u8]; 5] =
        [b"user.overlay.", b"trusted.overlay.", b"user.containers.", b"user.rootlesscontainers", b"user.fuseoverlayfs."];
    if NOT.iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    // POSIX ACLs and NFS4's name users of the machine, and aren't bytes of an image.
    name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"trusted.")
}

/// Names as listxattr(2) returns them, those of them that count.
pub(super) fn kept_of(names: &[u8]) -> impl Iterator<Item = CString> {
    names.split(|byte| *byte == 0).filter(|name| kept(name)).map(|name| CString::new(name).expect("split at NUL"))
}

/// What it means that an attribute can't be set; an error that isn't about its kind is none
/// of these.
pub(super) fn unsettable(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EOPNOTSUPP => Some("this file system has no such extended attributes"),
        libc::EPERM => Some("this user may not set such extended attributes"),
        _ => None,
    }
}

/// The capability of a file as an archive has it: version 2, without the user
/// namespace's root that the kernel adds to one set in there (version 3).
pub(super) fn capability(value: Vec<u8>) -> Vec<u8> {
    // struct vfs_ns_cap_data: magic and flags, two pairs of words, the root's id.
    match <[u8; 24]>::try_from(value.as_slice()) {
        Ok(bytes) if bytes[3] == 3 => {
            let mut plain = bytes[..20].to_vec();
            plain[3] = 2;
            plain
        }
        _ => value,
    }
}
