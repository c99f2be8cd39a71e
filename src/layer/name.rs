//! Names in a layer's archive: where they lead, and which of them are whiteouts.

use super::Limits;

/// What an entry of a layer stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The root directory: `./` or `/`.
    Root,
    /// Something at this path.
    Plain(Vec<u8>),
    /// `.wh.NAME`: what is at this path in lower layers is hidden.
    Whiteout(Vec<u8>),
    /// `.wh..wh..opq`: what is in this directory in lower layers is hidden.
    Opaque(Vec<u8>),
    /// Book-keeping of AUFS, which old images have: `.wh..wh.plnk` and the like.
    Skip,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Everything else that begins so is for AUFS itself.
const AUFS: &[u8] = b".wh..wh.";

/// What a path in an archive names. Names are bytes, in no particular encoding.
pub(super) fn parse(path: &[u8], limits: &Limits) -> Result<Name, &'static str> {
    let clean = clean(path, limits)?;
    let (parent, last) = split(&clean);
    if components(&clean).any(|component| component.starts_with(AUFS) && component != OPAQUE) {
        return Ok(Name::Skip);
    }
    if components(parent).any(|component| component.starts_with(WHITEOUT)) {
        // containerd makes a directory of that name.
        return Err("it's inside of a whiteout");
    }
    Ok(match last.strip_prefix(WHITEOUT) {
        _ if clean.is_empty() => Name::Root,
        _ if last == OPAQUE => Name::Opaque(parent.to_vec()),
        None => Name::Plain(clean),
        // `.wh...` would remove the parent.
        Some(b"" | b"." | b"..") => return Err("it's a whiteout of nothing"),
        Some(name) if parent.is_empty() => Name::Whiteout(name.to_vec()),
        Some(name) => Name::Whiteout([parent, b"/", name].concat()),
    })
}

/// The path below the root, without `.`, `//` and slashes at the ends; empty for the root.
pub(crate) fn clean(path: &[u8], limits: &Limits) -> Result<Vec<u8>, &'static str> {
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            // Tools disagree whether a link before it counts.
            b".." => return Err("its name has `..` in it"),
            _ if component.len() > 255 => return Err("a component of its name is longer than 255 bytes"),
            _ => {}
        }
        if depth > 0 {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
        depth += 1;
    }
    if clean.len() > limits.path {
        return Err("its name is too long");
    }
    if depth > limits.depth {
        return Err("it's below too many directories");
    }
    Ok(clean)
}

/// The parent's path and the last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The components of a path that needn't be clean.
pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<Name, &'static str> {
        super::parse(path.as_bytes(), &Limits::default())
    }

    #[test]
    fn names_are_cleaned() {
        for path in ["a/b", "./a/b", "/a/b", "//a//b/", "./a/./b/."] {
            assert_eq!(parse(path), Ok(Name::Plain(b"a/b".to_vec())), "{path}");
        }
        for path in [".", "./", "/", "//", "./."] {
            assert_eq!(parse(path), Ok(Name::Root), "{path}");
        }
        for path in ["..", "../a", "a/..", "a/../b", "/..", "./../a"] {
            assert!(parse(path).is_err(), "{path}");
        }
        assert_eq!(super::parse(b"a\xff\n", &Limits::default()), Ok(Name::Plain(b"a\xff\n".to_vec())));
    }

    #[test]
    fn lengths_and_depth_are_limited() {
        assert!(parse(&"n".repeat(255)).is_ok());
        assert!(parse(&"n".repeat(256)).is_err());
        assert!(parse(&"d/".repeat(255)).is_ok());
        assert!(parse(&"d/".repeat(256)).is_err());
        assert!(parse(&vec!["n".repeat(200); 20].join("/")).is_ok());
        assert!(parse(&vec!["n".repeat(200); 21].join("/")).is_err());
    }

    #[test]
    fn whiteouts_are_told_from_names_that_look_like_them() {
        assert_eq!(parse("a/.wh.b"), Ok(Name::Whiteout(b"a/b".to_vec())));
        assert_eq!(parse(".wh.b"), Ok(Name::Whiteout(b"b".to_vec())));
        assert_eq!(parse("a/.wh..wh..opq"), Ok(Name::Opaque(b"a".to_vec())));
        assert_eq!(parse(".wh..wh..opq"), Ok(Name::Opaque(b"".to_vec())));
        for path in ["a/.whx", ".wh", "x.wh.y", "a/.w"] {
            assert!(matches!(parse(path), Ok(Name::Plain(_))), "{path}");
        }
        for path in [".wh.", "a/.wh.", ".wh..", "a/.wh...", ".wh.etc/file", "a/.wh..wh..opq/b"] {
            assert!(parse(path).is_err(), "{path}");
        }
        for path in [".wh..wh.aufs", ".wh..wh.plnk/12.34", "a/.wh..wh.orph"] {
            assert_eq!(parse(path), Ok(Name::Skip), "{path}");
        }
    }
}
