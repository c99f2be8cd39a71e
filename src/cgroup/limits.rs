//! What a group enforces, and which controllers of its hierarchies that needs.

use crate::probe::Layer;

/// What a hierarchy can do, as bits.
pub(crate) mod controller {
    pub(crate) const MEMORY: u8 = 1;
    pub(crate) const PIDS: u8 = 2;
    pub(crate) const CPU: u8 = 4;
    /// Counts CPU time: every v2 group does, on v1 it's a controller.
    pub(crate) const ACCOUNT: u8 = 8;
    pub(crate) const CPUSET: u8 = 16;
    pub(crate) const ALL: [u8; 5] = [MEMORY, PIDS, CPU, ACCOUNT, CPUSET];
}

/// Limits that a group enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    pub(crate) memory: Option<u64>,
    /// Only the process that the kernel picks dies when memory runs out.
    pub(crate) spare_others: bool,
    pub(crate) processes: Option<u32>,
    pub(crate) cpus: Option<f64>,
    pub(crate) cpuset: Option<CpuSet>,
    /// A limit on CPU time needs the counter.
    pub(crate) cpu_account: bool,
    /// Only a group can limit processes: the workload may change its user.
    pub(crate) strict_processes: bool,
    /// The workload may mount what shows its group.
    pub(crate) in_reach: bool,
}

/// A set of CPUs by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuSet([u64; CpuSet::WORDS]);

impl CpuSet {
    const WORDS: usize = 32;
    /// One more than the highest CPU number that can be given.
    pub(crate) const MOST: u32 = 64 * CpuSet::WORDS as u32;

    /// Adds a CPU; false if no kernel has so many.
    pub(crate) fn insert(&mut self, cpu: u32) -> bool {
        let fits = cpu < CpuSet::MOST;
        if fits {
            self.0[(cpu / 64) as usize] |= 1 << (cpu % 64);
        }
        fits
    }

    pub(crate) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// As the kernel writes it (cpuset(7), "List format"): `0-3,8`.
    pub(crate) fn list(&self) -> String {
        let has = |cpu: u32| cpu < CpuSet::MOST && self.0[(cpu / 64) as usize] >> (cpu % 64) & 1 == 1;
        let mut ranges = Vec::new();
        let mut cpu = 0;
        while cpu < CpuSet::MOST {
            if has(cpu) {
                let first = cpu;
                while has(cpu + 1) {
                    cpu += 1;
                }
                ranges.push(if first == cpu { first.to_string() } else { format!("{first}-{cpu}") });
            }
            cpu += 1;
        }
        ranges.join(",")
    }
}

/// Quota and period, in microseconds, of a CPU bandwidth. The period is short, so that
/// a run is slowed evenly instead of being stopped for most of the kernel's default of
/// 100 ms; but a quota is at least 1 ms.
pub(crate) fn bandwidth(cpus: f64) -> (u64, u64) {
    let period = if cpus < 0.1 { 100_000 } else { 10_000 };
    ((cpus * period as f64).round() as u64, period)
}

impl Limits {
    /// Which controllers they need, each with the layer that is missing without it.
    pub(super) fn needs(&self) -> Vec<(u8, Layer)> {
        let mut needs = Vec::new();
        if self.memory.is_some() {
            needs.push((controller::MEMORY, Layer::MemoryLimit));
        }
        if self.processes.is_some() && self.strict_processes {
            needs.push((controller::PIDS, Layer::ProcessLimit));
        }
        if self.cpuset.is_some() {
            needs.push((controller::CPUSET, Layer::CpuPinning));
        }
        if self.cpu_account {
            needs.push((controller::ACCOUNT, Layer::CpuAccount));
        }
        if self.cpus.is_some() {
            needs.push((controller::CPU, Layer::CpuBandwidth));
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_listed_as_the_kernel_lists_them() {
        let mut set = CpuSet::default();
        for cpu in [0, 1, 2, 8, 63, 64, 2047] {
            assert!(set.insert(cpu));
        }
        assert_eq!((set.list().as_str(), set.len()), ("0-2,8,63-64,2047", 7));
        assert!(!set.insert(CpuSet::MOST));
    }
}
