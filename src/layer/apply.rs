//! From an archive to a directory.
use std::io::BufRead;
use std::os::fd::BorrowedFd;

use super::{Applied, Options};
use crate::error::{Error, Result};

/// Unpacks the layer `tar` (not compressed) into the directory `root`, and reads the
/// stream to its end.
pub(crate) fn apply(_tar: impl BufRead, _root: BorrowedFd<'_>, _options: &Options) -> Result<Applied> {
    Err(Error::unsupported("not built yet"))
}
