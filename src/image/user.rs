//! Users and groups by the image's own `/etc/passwd` and `/etc/group`.
//!
//! Parsed here and not by the C library, which would read the host's and load the
//! host's modules for it, or the image's (CVE-2019-14271).

use serde::{Deserialize, Serialize};

/// The most bytes of a passwd or group file that are read (CVE-2026-47262).
pub(crate) const MAX_FILE: u64 = 1 << 20;

/// Whom an image's configuration runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups; of who names a group, as in `web:staff`, none.
    #[serde(default)]
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

impl User {
    #[cfg(test)]
    pub(crate) fn root() -> User {
        User { uid: 0, gid: 0, groups: Vec::new(), home: None }
    }

    /// Finds `user`, `user:group`, each a name or a number, in the contents of the two
    /// files. A number counts as itself even if no line has it.
    pub(crate) fn find(text: &str, passwd: &[u8], group: &[u8]) -> Result<User, String> {
        let (user, wanted_group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let shown = || user.chars().take(100).collect::<String>();
        let line = records(passwd)
            .find(|fields| fields.len() >= 4 && (fields[0] == user || (number(user).is_some() && number(fields[2]) == number(user))));
        let uid = match &line {
            Some(fields) => number(fields[2]),
            None => number(user),
        };
        let uid = uid.ok_or_else(|| format!("the image's user {:?} isn't in its /etc/passwd", shown()))?;
        let gid = match wanted_group.filter(|g| !g.is_empty()) {
            Some(wanted) => {
                let line = records(group).find(|fields| fields.len() >= 3 && fields[0] == wanted);
                let id = line.map_or_else(|| number(wanted), |fields| number(fields[2]));
                id.ok_or_else(|| format!("the image's group {:?} isn't in its /etc/group", wanted.chars().take(100).collect::<String>()))?
            }
            None => line.as_ref().and_then(|fields| number(fields[3])).unwrap_or(0),
        };
        let groups = match (&line, wanted_group) {
            (Some(fields), None) => memberships(group, fields[0], gid),
            _ => Vec::new(),
        };
        let home = line.and_then(|fields| fields.get(5).copied()).filter(|home| home.starts_with('/') && !home.contains('\0'));
        Ok(User { uid, gid, groups, home: home.map(String::from) })
    }
}

/// The most groups that are kept: a plan has room for them, and no user so many.
const MAX_GROUPS: usize = 1024;

/// The groups that list a user, but for its own one (group(5)).
fn memberships(group: &[u8], name: &str, own: u32) -> Vec<u32> {
    let lists = |fields: &Vec<&str>| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name));
    let mut ids: Vec<u32> = records(group).filter(lists).filter_map(|fields| number(fields[2])).filter(|id| *id != own).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.truncate(MAX_GROUPS);
    ids
}

/// The lines of a file, in fields. What isn't UTF-8 names nobody.
fn records(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    file.split(|b| *b == b'\n').filter_map(|line| Some(std::str::from_utf8(line).ok()?.split(':').collect()))
}

/// An id: digits, at most 2^32 - 2, because -1 means "unchanged" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/false\nbroken:x\nbad:x:-1:0::/:\n\xff:x:5:5::/:\nhuge:x:4294967295:0::/:\n12:x:99:98::/n:\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:web\nwww:x:34:web\nmore:x:60:root,web,daemon\nbad:x:-1:web\nshort:x\nnot:x:70:webb\n";

    #[test]
    fn names_and_numbers_are_found() {
        let find = |text| User::find(text, PASSWD, GROUP);
        let user = |uid, gid, home: Option<&str>| {
            let groups = match uid {
                0 => vec![60],
                33 => vec![50, 60],
                _ => Vec::new(),
            };
            Ok(User { uid, gid, groups, home: home.map(String::from) })
        };
        let alone = |user: Result<User, String>| user.map(|user| User { groups: Vec::new(), ..user });
        assert_eq!(find(""), user(0, 0, Some("/root")));
        assert_eq!(find("web"), user(33, 34, Some("/var/www")));
        assert_eq!(find("web:staff"), alone(user(33, 50, Some("/var/www"))), "who names a group has that one");
        assert_eq!(find("33"), user(33, 34, Some("/var/www")));
        assert_eq!(find("1000"), user(1000, 0, None));
        assert_eq!(find("1000:1001"), user(1000, 1001, None));
        assert_eq!(find(":staff"), alone(user(0, 50, Some("/root"))));
        // A name of digits is a name first.
        assert_eq!(find("12"), user(99, 98, Some("/n")));
    }

    #[test]
    fn who_is_not_there_is_an_error() {
        for text in ["nobody", "web:nobody", "broken", "bad", "huge", "-1", "4294967295", "99999999999", "web:-1"] {
            assert!(User::find(text, PASSWD, GROUP).is_err(), "{text}");
        }
        assert_eq!(User::find("0", b"", b""), Ok(User::root()));
    }
}
