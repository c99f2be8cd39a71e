//! Plans with a fence taken out: for tests, which must fail without it.

use super::Draft;
use super::wire::Kind;
use crate::error::{Error, Result};

/// A change to all steps whose purpose, as [`Explanation`](crate::Explanation) prints it,
/// is this text.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// They aren't taken.
    Drop(String),
    /// Bits that are cleared in an argument or, if that's a structure, in its first word.
    Clear(String, usize, u64),
    /// The step of this number fails: in its place stands a call that no kernel has.
    Fail(usize),
}

/// ENOSYS everywhere: numbers of system calls are below a thousand.
const NO_CALL: u32 = 0xfff0;

/// Tells the changes to a plan of so many steps from those to the plan of its commands:
/// numbers of steps go on in that.
pub(crate) fn split(changes: &[Change], steps: usize) -> (Vec<Change>, Vec<Change>) {
    let (later, now): (Vec<&Change>, Vec<&Change>) =
        changes.iter().partition(|change| matches!(change, Change::Fail(number) if *number >= steps));
    let shifted = later.into_iter().map(|change| match change {
        Change::Fail(number) => Change::Fail(number - steps),
        other => other.clone(),
    });
    let for_both = now.iter().filter(|change| !matches!(change, Change::Fail(_))).map(|change| (*change).clone());
    let for_commands = for_both.chain(shifted).collect();
    (now.into_iter().cloned().collect(), for_commands)
}

impl Draft {
    /// Makes the changes; one that concerns no step is an error, so that no test goes on
    /// without meaning anything.
    pub(crate) fn change(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let purpose = match change {
                Change::Drop(purpose) | Change::Clear(purpose, ..) => purpose,
                Change::Fail(i) => {
                    let missing = || Error::invalid(format!("the plan has no step {i}"));
                    let step = self.steps.get_mut(*i).ok_or_else(missing)?;
                    (step.op, step.kinds, step.args) = (NO_CALL, [Kind::Value; 6], [0; 6]);
                    continue;
                }
            };
            let places: Vec<usize> = (0..self.steps.len()).rev().filter(|i| self.notes[*i].purpose() == *purpose).collect();
            if places.is_empty() {
                return Err(Error::invalid(format!("the plan has no step `{purpose}`")));
            }
            for i in places {
                match change {
                    Change::Drop(_) => {
                        self.steps.remove(i);
                        self.notes.remove(i);
                    }
                    Change::Clear(_, argument, bits) if self.steps[i].kinds[*argument] == Kind::Blob => {
                        let at = self.steps[i].args[*argument] as usize;
                        let word: [u8; 8] = std::array::from_fn(|j| self.blobs[at + j]);
                        let cleared = u64::from_le_bytes(word) & !bits;
                        self.blobs[at..at + 8].copy_from_slice(&cleared.to_le_bytes());
                    }
                    Change::Fail(_) => {}
                    Change::Clear(_, argument, bits) => self.steps[i].args[*argument] &= !bits,
                }
            }
        }
        Ok(())
    }
}
