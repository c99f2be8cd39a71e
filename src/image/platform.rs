//! Platforms: which manifest of an index fits a machine.
//!
//! Names are Go's (OCI image-spec, "Image Index": `GOOS`, `GOARCH`). Variants are
//! versions of an instruction set, of which a machine runs its own and the lower
//! ones, as containerd's platforms package has them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Operating system, architecture and perhaps variant of an image: `linux/amd64`,
/// `linux/arm/v7`. It's parsed from such a text; [`host`](Self::host) is this machine's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// Of this machine.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Platform::of("linux", architecture, variant)
    }

    /// As an image's JSON has it. Names that mean the same become one.
    pub(crate) fn of(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let variant = variant.filter(|v| !v.is_empty()).map(str::to_ascii_lowercase);
        let architecture = architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64", _) => ("amd64", variant),
            ("aarch64", _) => ("arm64", variant),
            ("armhf" | "armel", _) => ("arm", variant),
            ("i386" | "i686", _) => ("386", None),
            ("arm64", Some("8")) => ("arm64", Some("v8".into())),
            ("arm", Some("5" | "6" | "7" | "8")) => ("arm", variant.map(|v| format!("v{v}"))),
            (other, _) => (other, variant),
        };
        // The first versions need no name.
        let variant = match (architecture, variant.as_deref()) {
            ("amd64", Some("v1")) | ("arm64", Some("v8")) => None,
            ("arm", None) => Some("v7".into()),
            _ => variant,
        };
        Platform { os: os.to_ascii_lowercase(), architecture: architecture.to_string(), variant }
    }

    /// Go's name of the operating system.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Go's name of the architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant, unless it's the architecture's first.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How well an image for `offered` runs where `self` is wanted: less is better.
    pub(crate) fn distance(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let version = |platform: &Platform| -> Option<u32> {
            let lowest = match platform.architecture.as_str() {
                "arm64" => "v8",
                _ => "v1",
            };
            platform.variant.as_deref().unwrap_or(lowest).strip_prefix('v')?.split('.').next()?.parse().ok()
        };
        match (version(self), version(offered)) {
            _ if self.variant == offered.variant => Some(0),
            (Some(ours), Some(theirs)) => ours.checked_sub(theirs),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(Platform::of(os, architecture, None)),
            [os, architecture, variant] if parts.iter().all(|p| !p.is_empty()) => Ok(Platform::of(os, architecture, Some(variant))),
            _ => Err(Error::invalid(format!("{text:?} is no platform: OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/amd64"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn a_machine_runs_its_own_variant_and_lower_ones() {
        let cases = [
            ("linux/arm/v7", "linux/arm/v7", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v7", "linux/arm", Some(0)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/amd64", "linux/x86_64", Some(0)),
            ("linux/amd64", "linux/amd64/v1", Some(0)),
            ("linux/amd64", "linux/amd64/v2", None),
            ("linux/amd64/v3", "linux/amd64", Some(2)),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm64", "linux/aarch64", Some(0)),
            ("linux/amd64", "linux/arm64", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64", "unknown/unknown", None),
            ("linux/mips64", "linux/mips64/softfloat", None),
        ];
        for (wanted, offered, distance) in cases {
            assert_eq!(parse(wanted).distance(&parse(offered)), distance, "{offered} where {wanted} is wanted");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/", "a/b/c/d"] {
            assert_eq!(text.parse::<Platform>().unwrap_err().kind(), crate::ErrorKind::Invalid, "{text}");
        }
        assert_eq!(parse("Linux/x86_64").to_string(), "linux/amd64");
    }
}
