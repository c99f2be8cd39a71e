//! The library's only `unsafe`: one file per kernel interface that nix lacks.
//!
//! # Safety
//! Each function passes to the kernel either plain numbers or the address of a
//! live local variable with its true size, and turns a descriptor that the
//! kernel has just made into an [`OwnedFd`](std::os::fd::OwnedFd) exactly once.

#![allow(unsafe_code)]

pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod socket;
