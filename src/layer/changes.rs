//! What a writable layer changes.
use std::os::fd::BorrowedFd;

use super::{Change, IdRange};
use crate::error::{Error, Result};

/// What the upper layer `upper` changes of the layers `lower`, uppermost first; sorted by path.
/// Ids of `upper` are mapped by `ids`; those of `lower` are taken as they are.
pub(crate) fn changes(_upper: BorrowedFd<'_>, _lower: &[BorrowedFd<'_>], _ids: &[IdRange]) -> Result<Vec<Change>> {
    Err(Error::unsupported("not built yet"))
}
