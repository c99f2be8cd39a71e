//! From a directory to an archive.
use std::io::Write;
use std::os::fd::BorrowedFd;

use super::{PackOptions, Packed};
use crate::error::{Error, Result};

/// Writes the directory `root` to `out` as a tar archive.
pub(crate) fn pack(_root: BorrowedFd<'_>, _out: impl Write, _options: &PackOptions) -> Result<Packed> {
    Err(Error::unsupported("not built yet"))
}
