#![doc = include_str!("../README.md")]

mod capability;
mod cgroup;
mod child;
mod command;
#[allow(dead_code, reason = "images are being built on top of it")]
mod compress;
mod error;
mod ids;
mod image;
mod launch;
#[allow(dead_code, unused_imports, reason = "images are being built on top of it")]
mod layer;
mod limits;
mod net;
mod outcome;
mod plan;
mod policy;
mod probe;
mod sandbox;
mod supervise;
mod sys;
#[allow(dead_code, unused_imports, reason = "images are being built on top of it")]
mod tar;

pub use capability::Capability;
pub use child::{Child, Killer};
pub use command::{Command, Stdio};
pub use error::{Error, ErrorKind, Result};
pub use image::Image;
pub use launch::quiesce;
pub use layer::{Change, ChangeKind};
pub use limits::Resource;
pub use net::Network;
pub use outcome::{Exit, Limit, Output, StreamEnd, Usage, signal_name};
pub use plan::explain::Explanation;
pub use policy::Syscalls;
pub use probe::{Layer, LayerState, Report};
pub use sandbox::Sandbox;

/// 1,024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1,024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1,024 MiB.
pub const GIB: u64 = 1 << 30;

/// The plan decoder that init uses, for fuzzing; not part of the API. The bytes are
/// taken as a plan, and as places and values with which a right one is damaged.
#[doc(hidden)]
pub fn fuzz_plan(bytes: &[u8]) {
    stays_inside(bytes);
    let mut plan = plan::start::start_plan(plan::start::Start::Subordinate).encode();
    for edit in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % plan.len();
        plan[at] = edit[2];
    }
    stays_inside(&plan);
}

/// What the decoder accepts names nothing outside of its own bytes.
fn stays_inside(bytes: &[u8]) {
    let Some(plan) = plan::wire::Plan::parse(bytes) else { return };
    let blob = (bytes.len() - plan.blob_start()) as u64;
    for i in 0..plan.len() {
        let step = plan.step(i).expect("a checked plan has all its steps");
        for (kind, arg) in step.kinds.iter().zip(step.args) {
            assert!(*kind != plan::wire::Kind::Blob || arg < blob);
        }
    }
    for i in 0..plan.relocations() {
        assert!(plan.relocation(i) + 8 <= blob);
    }
}
