//! The records of a PAX extended header.

use super::number::{decimal, id, time};
use super::sparse::PaxSparse;
use super::{Time, Wrong};

/// What an extended header says about the entry after it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    /// A later record of the same key replaces an earlier one.
    pub(super) fn parse(bytes: &[u8]) -> Result<Pax, Wrong> {
        let mut pax = Pax::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (key, value, after) = record(rest)?;
            pax.take(key, value)?;
            rest = after;
        }
        // One sort for all of them, so that many attributes aren't looked up one by one.
        // It's stable: of equal names the last one stays.
        pax.xattrs.reverse();
        pax.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        pax.xattrs.dedup_by(|later, kept| later.0 == kept.0);
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Wrong> {
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.link = Some(name(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(owner(value)?),
            b"gid" => self.gid = Some(owner(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((attribute_name(attribute)?, value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                }
                // Everything else: times that aren't restored, names of owners, comments,
                // libarchive's copies of the attributes.
            }
        }
        Ok(())
    }
}

/// Key, value, and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// `<length> <key>=<value>\n`. The length counts all of it and is what ends the record:
/// a value may hold newlines, and capabilities do.
fn record(bytes: &[u8]) -> Result<Record<'_>, Wrong> {
    const MALFORMED: Wrong = "a record of an extended header is malformed";
    let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or(MALFORMED)?;
    let length = usize::try_from(decimal(&bytes[..space]).map_err(|_| MALFORMED)?).map_err(|_| MALFORMED)?;
    if length > bytes.len() || length < space + 3 {
        return Err(MALFORMED);
    }
    let (record, rest) = bytes.split_at(length);
    let text = record[space + 1..].strip_suffix(b"\n").ok_or(MALFORMED)?;
    let equals = text.iter().position(|b| *b == b'=').ok_or(MALFORMED)?;
    let (key, value) = (&text[..equals], &text[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(MALFORMED);
    }
    Ok((key, value, rest))
}

/// A path. An empty one would delete the header's own, where some readers keep it.
pub(super) fn name(value: &[u8]) -> Result<Vec<u8>, Wrong> {
    match value {
        [] => Err("a name in an extended header is empty"),
        value if value.contains(&0) => Err("a name holds a NUL byte"),
        value => Ok(value.to_vec()),
    }
}

fn owner(value: &[u8]) -> Result<u32, Wrong> {
    id(i64::try_from(decimal(value)?).map_err(|_| "an owner's id is out of range")?)
}

/// GNU tar writes `=` and `%` in names as `%3D` and `%25`.
fn attribute_name(name: &[u8]) -> Result<Vec<u8>, Wrong> {
    if name.is_empty() {
        return Err("an extended attribute has no name");
    }
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let (byte, after) = match rest {
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            _ => (*first, after),
        };
        plain.push(byte);
        rest = after;
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::tar::writer::record(&mut bytes, key.as_bytes(), value);
        bytes
    }

    #[test]
    fn a_newline_in_a_value_starts_no_record() {
        let evil = one("SCHILY.xattr.user.a", b"x\n20 path=/etc/passwd\n\0=\n");
        let pax = Pax::parse(&evil).expect("one record");
        assert_eq!(pax.path, None);
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\n20 path=/etc/passwd\n\0=\n".to_vec())]);
    }

    #[test]
    fn the_last_of_equal_records_counts() {
        let bytes = [one("path", b"a"), one("SCHILY.xattr.user.x", b"1"), one("path", b"b"), one("SCHILY.xattr.user.x", b"2")].concat();
        let pax = Pax::parse(&bytes).expect("records");
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"2".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"9 path=a\nx"[..],
            b"11 path=a\n",
            b"8 path=a\n",
            b"path=a\n",
            b"0 \n",
            b"3 \n",
            b"5 =a\n",
            b"18446744073709551616 path=a\n",
            b"99999999999999999999999999 path=a\n",
            b"-9 path=a\n",
            b"9 path a\n",
            b"8 path=\n",
            b"11 path=a\0b\n",
            b"09 mtime=\n",
        ] {
            assert!(Pax::parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert!(Pax::parse(b"9 path=a\n").is_ok());
        assert!(Pax::parse(b"").is_ok());
    }

    #[test]
    fn ids_that_chown_takes_for_none_are_refused() {
        assert!(Pax::parse(&one("uid", b"4294967294")).is_ok());
        assert!(Pax::parse(&one("uid", b"4294967295")).is_err());
        assert!(Pax::parse(&one("gid", b"18446744073709551615")).is_err());
    }
}
