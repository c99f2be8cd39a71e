//! Ways in for fuzz targets and tests; not part of the API.

use crate::plan::{start, wire};
use crate::policy::bpf::{self, Check, Comparison, Rule, Verdict};
use crate::policy::filter::Circumstances;
use crate::{Result, Sandbox, SyscallPolicy, SyscallProfile};

pub use crate::layer::internals as layers;

/// From here on no tmpfs can be idmapped for this process's live sandboxes, as before
/// Linux 6.3.
pub fn without_idmapped_tmpfs() {
    crate::supervise::session::WITHOUT_IDMAPPED_TMPFS.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// How many runs of this process had a sandbox that was made ahead.
pub fn runs_with_next() -> u64 {
    crate::supervise::next::SERVED.load(std::sync::atomic::Ordering::Relaxed)
}

/// An instruction of a filter, as `struct sock_filter` has it: code, jt, jf, k.
pub type Instruction = (u16, u8, u8, u32);

/// The plan decoder that init uses. The bytes are taken as a plan, and as places and
/// values with which a right one is damaged.
pub fn plan(bytes: &[u8]) {
    stays_inside(bytes);
    let mut plan = start::start_plan(start::Start::Subordinate).encode();
    for edit in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % plan.len();
        plan[at] = edit[2];
    }
    stays_inside(&plan);
}

/// The readers of what images say of themselves.
pub fn image(bytes: &[u8]) {
    crate::image::fuzz(bytes);
}

/// What the decoder accepts names nothing outside of its own bytes.
fn stays_inside(bytes: &[u8]) {
    let Some(plan) = wire::Plan::parse(bytes) else { return };
    let blob = (bytes.len() - plan.blob_start()) as u64;
    for i in 0..plan.len() {
        let step = plan.step(i).expect("a checked plan has all its steps");
        for (kind, arg) in step.kinds.iter().zip(step.args) {
            assert!(*kind != wire::Kind::Blob || arg < blob);
        }
    }
    for i in 0..plan.relocations() {
        assert!(plan.relocation(i) + 8 <= blob);
    }
}

/// A profile in JSON: it's refused, or becomes a filter that the kernel's checker takes.
pub fn profile(json: &[u8]) {
    let Ok(profile) = SyscallProfile::parse(json) else { return };
    for capabilities in [0, u64::MAX] {
        let circumstances = Circumstances { keep_set_id: capabilities == 0, capabilities, nesting: false };
        if let Ok(Some(filter)) = SyscallPolicy::from(profile.clone()).filter(circumstances) {
            assert!(bpf::is_well_formed(&filter.program));
        }
    }
}

/// Compiles a recipe, as for a run; the bytes of its plan.
pub fn compiled(sandbox: &Sandbox) -> Result<usize> {
    Ok(crate::supervise::compiled(sandbox)?.encode().len())
}

/// The filter of a policy for a run that writes nothing of the host's.
pub fn filter(policy: impl Into<SyscallPolicy>) -> Vec<Instruction> {
    let circumstances = Circumstances { keep_set_id: true, capabilities: 0, nesting: false };
    let filter = policy.into().filter(circumstances).ok().flatten();
    filter.map_or_else(Vec::new, |filter| plain(&filter.program))
}

/// Comparisons as libseccomp orders them, and the index of an argument and a value; the
/// last one is a mask with the value.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// The argument isn't the value.
    NotEqual(u8, u64),
    /// It's less.
    Less(u8, u64),
    /// It's at most the value.
    LessOrEqual(u8, u64),
    /// It's the value.
    Equal(u8, u64),
    /// It's at least the value.
    GreaterOrEqual(u8, u64),
    /// It's greater.
    Greater(u8, u64),
    /// It's the value under a mask.
    Masked(u8, u64, u64),
}

/// Compiles a table of our own making: for each number, in order, alternatives of
/// conjunctions under which it's allowed; every other call answers EPERM.
pub fn compile(table: &[(u32, Vec<Vec<Test>>)]) -> Vec<Instruction> {
    let check = |test: &Test| match *test {
        Test::NotEqual(i, value) => Check::Wide(i, Comparison::NotEqual, value),
        Test::Less(i, value) => Check::Wide(i, Comparison::Less, value),
        Test::LessOrEqual(i, value) => Check::Wide(i, Comparison::LessOrEqual, value),
        Test::Equal(i, value) => Check::Wide(i, Comparison::Equal, value),
        Test::GreaterOrEqual(i, value) => Check::Wide(i, Comparison::GreaterOrEqual, value),
        Test::Greater(i, value) => Check::Wide(i, Comparison::Greater, value),
        Test::Masked(i, mask, value) => Check::Wide(i, Comparison::Masked(mask), value & mask),
    };
    let mut runs = vec![(0, Verdict::EPERM)];
    for (number, alternatives) in table {
        let rule = |checks: &Vec<Test>| Rule { checks: checks.iter().map(check).collect(), verdict: Verdict::Allow };
        let verdict = if alternatives.is_empty() {
            Verdict::Allow
        } else {
            Verdict::Rules(alternatives.iter().map(rule).collect(), Box::new(Verdict::EPERM))
        };
        runs.retain(|(start, _)| start < number);
        runs.push((*number, verdict));
        runs.push((number + 1, Verdict::EPERM));
    }
    let program = bpf::compile(&runs, false);
    assert!(program.len() > bpf::MOST || bpf::is_well_formed(&program));
    plain(&program)
}

fn plain(program: &[bpf::Instruction]) -> Vec<Instruction> {
    program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}
