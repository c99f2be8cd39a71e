//! Content digests (OCI image-spec, "Descriptors").
//!
//! Digests come from images and end up in the names of files (CVE-2024-3727), so a
//! [`Digest`] can only be made by checking one, or by computing it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};
use sha2::{Digest as _, Sha256, Sha512};

/// `sha256:` or `sha512:` and lower-case hexadecimal digits, nothing else.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest {
    text: Box<str>,
}

const ALGORITHMS: [(&str, usize); 2] = [("sha256", 64), ("sha512", 128)];

impl Digest {
    /// Checks a digest as an image gives it.
    pub(crate) fn parse(text: &str) -> Option<Digest> {
        let (algorithm, hex) = text.split_once(':')?;
        let (_, length) = ALGORITHMS.iter().find(|(name, _)| *name == algorithm)?;
        (hex.len() == *length && is_hex(hex)).then(|| Digest { text: text.into() })
    }

    /// The SHA-256 of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// `sha256` or `sha512`.
    pub(crate) fn algorithm(&self) -> &str {
        self.text.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The digits.
    pub(crate) fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// A file name: the digits of a SHA-256; others have their algorithm in front.
    pub(crate) fn file_name(&self) -> String {
        if self.algorithm() == "sha256" { self.hex().to_string() } else { format!("{}-{}", self.algorithm(), self.hex()) }
    }

    /// The digest that [`file_name`](Self::file_name) stands for.
    pub(crate) fn from_file_name(name: &str) -> Option<Digest> {
        let text = match name.split_once('-') {
            Some((algorithm, hex)) => format!("{algorithm}:{hex}"),
            None => format!("sha256:{name}"),
        };
        Digest::parse(&text).filter(|digest| digest.file_name() == name)
    }

    /// A hasher of the same algorithm.
    pub(crate) fn hasher(&self) -> Hasher {
        if self.algorithm() == "sha512" { Hasher::Sha512(Sha512::new()) } else { Hasher::sha256() }
    }
}

/// Hexadecimal digits in lower case.
pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            D::Error::custom(format_args!("{shown:?} is no digest (sha256: and 64 hexadecimal digits)"))
        })
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Computes a digest.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn sha256() -> Hasher {
        Hasher::Sha256(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        use std::fmt::Write as _;
        let (name, bytes) = match self {
            Hasher::Sha256(hasher) => ("sha256", hasher.finalize().to_vec()),
            Hasher::Sha512(hasher) => ("sha512", hasher.finalize().to_vec()),
        };
        let mut text = format!("{name}:");
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Digest { text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_pass() {
        let good = format!("sha256:{}", "0a".repeat(32));
        let digest = Digest::parse(&good).expect("a digest");
        assert_eq!((digest.algorithm(), digest.hex().len()), ("sha256", 64));
        assert_eq!(Digest::from_file_name(&digest.file_name()), Some(digest));
        let long = Digest::parse(&format!("sha512:{}", "0b".repeat(64))).expect("a digest");
        assert_eq!(Digest::from_file_name(&long.file_name()), Some(long));
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            &good[..70],
            &format!("{good}0"),
            &good.to_uppercase(),
            &good.replace("0a", "0A"),
            &format!("md5:{}", "0".repeat(32)),
            &format!("sha256:{}", "g".repeat(64)),
            &good.replace("sha256", "sha512"),
            &format!("{}/", &good[..70]),
        ] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn digests_are_those_that_other_programs_compute() {
        // printf '' | sha256sum
        assert_eq!(Digest::of(b"").as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
