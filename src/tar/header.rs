//! The fields of a header block.

use super::number::{field, id};
use super::{BLOCK, Segment, Time, Wrong};

/// Which of the old formats a header is in; they share the first 257 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    V7,
    /// POSIX, with a prefix of the name; PAX builds on it.
    Ustar,
    /// ustar with a shorter prefix and more times after it.
    Star,
    /// GNU tar's own: other things stand where the prefix would be.
    Gnu,
}

/// A header block whose checksum is right.
#[derive(Debug)]
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    format: Format,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Header<'a>, Wrong> {
        let sum = field(&block[148..156]).map_err(|_| "a header's checksum is no number")?;
        // The checksum's own field counts as spaces. Ancient tools added signed bytes.
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if sum != unsigned && sum != signed {
            return Err("a header's checksum is wrong");
        }
        let format = match &block[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") && block[508..] == *b"tar\0" => Format::Star,
            magic if magic.starts_with(b"ustar\0") => Format::Ustar,
            _ => Format::V7,
        };
        Ok(Header { block, format })
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn is_gnu(&self) -> bool {
        self.format == Format::Gnu
    }

    /// The name, with its prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.format {
            Format::Ustar => text(&self.block[345..500]),
            Format::Star => text(&self.block[345..476]),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, Wrong> {
        // Some writers put all of st_mode there. What is more than that GNU tar can't read
        // and gives to everybody.
        match field(&self.block[100..108])? {
            mode @ 0..=0o177_777 => Ok((mode & 0o7777) as u32),
            _ => Err("its mode is out of range"),
        }
    }

    pub(super) fn uid(&self) -> Result<u32, Wrong> {
        id(field(&self.block[108..116])?)
    }

    pub(super) fn gid(&self) -> Result<u32, Wrong> {
        id(field(&self.block[116..124])?)
    }

    pub(super) fn size(&self) -> Result<u64, Wrong> {
        size(&self.block[124..136])
    }

    pub(super) fn mtime(&self) -> Result<Time, Wrong> {
        Ok(Time { seconds: field(&self.block[136..148])?, nanoseconds: 0 })
    }

    pub(super) fn device(&self) -> Result<(u32, u32), Wrong> {
        if self.format == Format::V7 {
            return Err("a device has no number");
        }
        let number = |bytes| u32::try_from(field(bytes)?).map_err(|_| "a device's number is out of range");
        Ok((number(&self.block[329..337])?, number(&self.block[337..345])?))
    }

    /// The map of an old GNU sparse file: what stands in the header, and whether a
    /// block with more follows.
    pub(super) fn sparse(&self, map: &mut Vec<Segment>) -> Result<bool, Wrong> {
        segments(&self.block[386..482], map)?;
        Ok(self.block[482] != 0)
    }

    /// The length of such a file, holes included.
    pub(super) fn sparse_size(&self) -> Result<u64, Wrong> {
        size(&self.block[483..495])
    }
}

/// A further block of such a map; whether one more follows.
pub(super) fn more_sparse(block: &[u8; BLOCK], map: &mut Vec<Segment>) -> Result<bool, Wrong> {
    segments(&block[..504], map)?;
    Ok(block[504] != 0)
}

fn segments(bytes: &[u8], map: &mut Vec<Segment>) -> Result<(), Wrong> {
    for pair in bytes.chunks_exact(24) {
        // The first that isn't used ends the list.
        if pair[0] == 0 {
            break;
        }
        map.push(Segment { offset: size(&pair[..12])?, length: size(&pair[12..])? });
    }
    Ok(())
}

fn size(bytes: &[u8]) -> Result<u64, Wrong> {
    u64::try_from(field(bytes)?).map_err(|_| "a size is negative")
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}
