//! New images on top of old ones.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::Store;
use super::import::{Import, Imported};
use crate::error::{Error, Result};
use crate::image::json::{ConfigDocument, MAX_LAYERS, refused};
use crate::image::{Archive, Digest, Files, Hasher, LayerSource, Source};
use crate::layer::Limits;

/// An image that's to be made: `base` with one layer more.
pub(crate) struct Commit<'a> {
    pub(crate) base: &'a Imported,
    pub(crate) created: SystemTime,
    pub(crate) name: Option<&'a str>,
    pub(crate) comment: Option<&'a str>,
}

/// A file that hashes what is written to it.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Commit<'_> {
    /// Makes it; `pack` writes the new layer's archive.
    pub(crate) fn write(&self, pack: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Arc<Imported>> {
        let store: &Store = &self.base.store;
        if self.base.diff_ids.len() >= MAX_LAYERS {
            return Err(refused(format!("the image has {MAX_LAYERS} layers already, the most that are possible")));
        }
        // Without a name: if we end here nothing is left.
        let file = store.scratch_file()?;
        let failed = |e| Error::io("write", "the new layer", e);
        let copy = file.try_clone().map_err(failed)?;
        // gzip at its usual level, which everybody reads, and the same bytes each time.
        let gzip = GzEncoder::new(BufWriter::new(copy), Compression::default());
        let mut out = Hashed { inner: gzip, hasher: Hasher::sha256() };
        pack(&mut out)?;
        let diff_id = out.hasher.finish();
        out.inner.finish().and_then(|mut buffered| buffered.flush()).map_err(failed)?;

        let config = self.config(&diff_id)?.to_string().into_bytes();
        let document = ConfigDocument::parse(&config)?;
        let layer = |diff_id: &Digest| LayerSource { diff_id: diff_id.clone(), blob: None, path: String::new(), foreign: false };
        let layers = document.diff_ids().iter().map(layer).collect();
        let source = Source {
            // Only the new layer is missing in the store, so it's the only one that is opened.
            files: Files::Archive(Archive::of_one(file)?),
            id: Digest::of(&config),
            config,
            document,
            layers,
            name: self.name.map(String::from),
        };
        let limits = Limits::default();
        Import { store, limits: &limits, progress: None }.image(&source)
    }

    /// The old configuration with the new layer in it.
    fn config(&self, diff_id: &Digest) -> Result<Value> {
        let mut config: Value =
            serde_json::from_slice(&self.base.config_bytes()?).map_err(|e| refused(format!("its configuration is damaged: {e}")))?;
        let created = rfc3339(self.created);
        config["created"] = created.clone().into();
        match config["rootfs"]["diff_ids"].as_array_mut() {
            Some(ids) => ids.push(diff_id.as_str().into()),
            None => config["rootfs"] = json!({"type": "layers", "diff_ids": [diff_id.as_str()]}),
        }
        let mut entry = json!({"created": created, "created_by": concat!("cofferdam ", env!("CARGO_PKG_VERSION"))});
        if let Some(comment) = self.comment {
            entry["comment"] = comment.into();
        }
        match config["history"].as_array_mut() {
            Some(history) => history.push(entry),
            // Entries stand for layers, so ones of their own are needed for those before.
            None => {
                let before = vec![json!({}); self.base.diff_ids.len()];
                config["history"] = before.into_iter().chain([entry]).collect();
            }
        }
        Ok(config)
    }
}

/// A time as JSON has it (RFC 3339), in whole seconds. Before 1970 it's 1970.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days since 1970 to a date: Howard Hinnant, "chrono-Compatible Low-Level Date
    // Algorithms", civil_from_days. Years begin in March, so that a leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

impl Store {
    /// A file of this store's file system without a name.
    pub(super) fn scratch_file(&self) -> Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path().join("tmp");
        let file = File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_EXCL).open(&path);
        file.map_err(|e| Error::io("make a file in", &path.to_string_lossy(), e))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // date -u -d @N +%FT%TZ
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
