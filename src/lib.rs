#![doc = include_str!("../README.md")]

mod capability;
mod cgroup;
mod child;
mod command;
#[allow(dead_code, reason = "images are being built on top of it")]
mod compress;
mod cpu;
mod error;
mod ids;
mod image;
#[doc(hidden)]
pub mod internals;
mod launch;
#[allow(dead_code, unused_imports, reason = "images are being built on top of it")]
mod layer;
mod limits;
mod net;
mod outcome;
mod plan;
mod policy;
mod probe;
mod remedy;
mod sandbox;
mod supervise;
mod sys;
#[allow(dead_code, unused_imports, reason = "images are being built on top of it")]
mod tar;

#[doc = include_str!("../THREATS.md")]
pub mod threats {}

pub use capability::Capability;
pub use child::{Child, Killer};
pub use command::{Command, Stdio};
pub use cpu::Speculation;
pub use error::{Error, ErrorKind, Result};
pub use image::Image;
pub use launch::quiesce;
pub use layer::{Change, ChangeKind};
pub use limits::Resource;
pub use net::Network;
pub use outcome::{Exit, Limit, Output, StreamEnd, Usage, signal_name};
pub use plan::explain::Explanation;
pub use policy::{SyscallPolicy, SyscallProfile, Syscalls, SystemCall};
pub use probe::{Layer, LayerState, Report};
pub use sandbox::Sandbox;

/// 1,024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1,024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1,024 MiB.
pub const GIB: u64 = 1 << 30;
