#![doc = include_str!("../README.md")]

mod capability;
mod cgroup;
mod changes;
mod checkpoint;
mod child;
mod command;
mod compress;
mod cpu;
mod error;
mod ids;
mod image;
mod instance;
mod interaction;
#[doc(hidden)]
pub mod internals;
mod launch;
mod layer;
mod limits;
mod net;
mod outcome;
mod plan;
mod policy;
mod pool;
mod probe;
mod pty;
mod remedy;
mod sandbox;
mod store;
mod subordinate;
mod supervise;
mod sys;
mod tar;
#[cfg(feature = "tokio")]
pub mod tokio;
mod trace;
mod volume;

#[doc = include_str!("../THREATS.md")]
pub mod threats {}

pub use capability::Capability;
pub use changes::CommitOptions;
pub use checkpoint::Checkpoint;
pub use child::{Child, Killer};
pub use command::{Command, Stdio};
pub use cpu::Speculation;
pub use error::{Error, ErrorKind, Result};
pub use image::{Image, ImageConfig, ImageFormat, ImageOptions, Platform, Progress};
pub use instance::{Entry, EntryKind, Instance};
pub use interaction::{Conversation, Interaction, Message, Party, PartyHome, PipeEnd, Talk, TalkKiller, Verdict, Wait, WaitReason};
pub use launch::quiesce;
pub use layer::{Change, ChangeKind};
pub use limits::Resource;
pub use net::Network;
pub use outcome::{Exit, Limit, Line, Output, Phases, Source, StreamEnd, Usage, signal_name};
pub use plan::explain::Explanation;
pub use policy::{SyscallPolicy, SyscallProfile, Syscalls, SystemCall};
pub use pool::{InstancePool, Pool, PoolStats};
pub use probe::{Layer, LayerState, Report};
pub use pty::Pty;
pub use sandbox::Sandbox;
pub use store::{Pruned, Store, StoredImage};
pub use volume::Volume;

/// 1,024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1,024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1,024 MiB.
pub const GIB: u64 = 1 << 30;
