//! Removal of trees.
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};

/// Removes `name` in the directory `parent` and everything below it. Nothing there is fine.
pub(crate) fn remove_tree(_parent: BorrowedFd<'_>, _name: &OsStr) -> Result<()> {
    Err(Error::unsupported("not built yet"))
}
