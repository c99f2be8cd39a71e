//! What a recipe says of limits.

use std::time::Duration;

use super::{MAX_SCRATCH, Sandbox, too_large};
use crate::MIB;
use crate::cgroup::CpuSet;
use crate::limits::Resource;
use crate::plan::limits::Rlimit;
use crate::supervise::capture::Keep;

impl Sandbox {
    /// Ends the run after this much real time, counted from exec, as
    /// [`Limit::WallTime`](crate::Limit::WallTime). Default: no limit. It holds whether
    /// anybody waits for the run or not; if the sandbox's first process can't keep it,
    /// because somebody has stopped that, it's kept from outside a second later.
    pub fn wall_time(mut self, limit: Duration) -> Sandbox {
        self.check_that(!limit.is_zero(), || "a wall time of 0 ends a run before it starts; the smallest is 1 ns".into());
        self.wall_time = Some(limit);
        self
    }

    /// Ends the run, as [`Limit::Output`](crate::Limit::Output), when standard
    /// output or standard error grows beyond this many bytes; each stream counts
    /// for itself. It holds for captured and relayed streams.
    ///
    /// Without this limit a run may print as much as it likes: see
    /// [`keep_output`](Self::keep_output).
    pub fn output(mut self, bytes: u64) -> Sandbox {
        self.output = Some(bytes);
        self
    }

    /// How many bytes of each captured stream are kept for [`Output`](crate::Output) when there's no
    /// [limit](Self::output); the rest is counted and discarded, and the run goes on.
    /// Default: 16 MiB.
    pub fn keep_output(mut self, bytes: u64) -> Sandbox {
        self.keep_output = bytes;
        self
    }

    /// Of what is [beyond what is kept](Self::keep_output) of a stream, the last so many
    /// bytes are kept too, in [`Output::stdout_tail`](crate::Output::stdout_tail) and [`Output::stderr_tail`](crate::Output::stderr_tail).
    /// Default: none.
    pub fn keep_tail(mut self, bytes: u64) -> Sandbox {
        self.keep_tail = bytes;
        self
    }

    pub(crate) fn keep(&self) -> Keep {
        Keep { head: self.keep_output, tail: self.keep_tail }
    }

    /// The most memory that all processes of the run together may hold, page cache and
    /// files in the scratch layer included; there's no swap beyond it. When it's not
    /// enough everything in the sandbox is killed at once, as
    /// [`Limit::Memory`](crate::Limit::Memory). Default: no limit.
    ///
    /// It needs a control group: see [`Layer::MemoryLimit`](crate::Layer::MemoryLimit). At least 1 MiB, which the
    /// kernel needs to execute anything. [`check`](Self::check) notes it when the scratch
    /// layer may hold more.
    pub fn memory(mut self, bytes: u64) -> Sandbox {
        let small = || match bytes {
            0 => "a memory limit of 0 bytes; the smallest is 1 MiB".to_string(),
            1..4096 => format!("a memory limit of {bytes} bytes; did you mean {bytes} * MIB?"),
            _ => format!("a memory limit of {bytes} bytes is too small for exec; the smallest is 1 MiB"),
        };
        self.check_that(bytes >= MIB, small);
        self.check_that(bytes <= MAX_SCRATCH, too_large("a memory limit", bytes));
        self.limits.memory = Some(bytes);
        self
    }

    /// With this, running out of [`memory`](Self::memory) ends only the process that
    /// the kernel picks, and the others go on. The verdict is the memory limit all the
    /// same.
    pub fn spare_others_on_memory_limit(mut self) -> Sandbox {
        self.limits.spare_others = true;
        self
    }

    /// The most processes and threads at a time, at least 1. Beyond them fork fails
    /// with `EAGAIN`, which is no verdict. Where there's no control group for it, it's
    /// RLIMIT_NPROC, which counts by user; with capabilities that isn't enough and an
    /// error.
    pub fn processes(mut self, most: u32) -> Sandbox {
        self.check_that(most >= 1, || "a run of 0 processes can't start; the smallest limit is 1".into());
        self.check_that(most <= 1 << 22, || {
            format!("{most} processes are more than the kernel has ids for; the largest limit is 4,194,304")
        });
        self.limits.processes = Some(most);
        self
    }

    /// How many CPUs' worth of time the run may use at once: 0.5 is half of one.
    /// Default: all. It needs a control group: see [`Layer::CpuBandwidth`](crate::Layer::CpuBandwidth).
    pub fn cpus(mut self, cpus: f64) -> Sandbox {
        self.check_that((0.01..=4096.0).contains(&cpus), || format!("{cpus} CPUs: a run can have 0.01 to 4,096"));
        self.limits.cpus = Some(cpus);
        self
    }

    /// Pins the run to these CPUs, by number from 0. Default: those of the host program.
    /// It needs a control group: see [`Layer::CpuPinning`](crate::Layer::CpuPinning).
    pub fn cpuset(mut self, cpus: impl IntoIterator<Item = u32>) -> Sandbox {
        let mut set = CpuSet::default();
        for cpu in cpus {
            let fits = set.insert(cpu);
            self.check_that(fits, || format!("CPU {cpu}: the highest number that can be is {}", CpuSet::MOST - 1));
        }
        self.check_that(set.len() > 0, || "a run can't be pinned to no CPU; give at least one".into());
        self.limits.cpuset = Some(set);
        self
    }

    /// Ends the run after this much CPU time, user and system together, of all its
    /// processes and threads, as [`Limit::CpuTime`](crate::Limit::CpuTime). Default: no
    /// limit. The verdict goes by the final count, also of a run that ended by itself.
    pub fn cpu_time(mut self, limit: Duration) -> Sandbox {
        self.check_that(limit >= Duration::from_millis(1), || {
            format!("a CPU time of {limit:?} is less than a program's start takes; the smallest is 1 ms")
        });
        self.cpu_time = Some(limit);
        self
    }

    /// Ends a run that has used no CPU time for this long, as
    /// [`Limit::IdleTime`](crate::Limit::IdleTime): it waits for something that doesn't
    /// come. It's noticed up to an eighth later. Default: no limit.
    pub fn idle_time(mut self, limit: Duration) -> Sandbox {
        self.check_that(limit >= Duration::from_millis(50), || {
            format!("an idle time of {limit:?} would end runs that are busy; the smallest is 50 ms")
        });
        self.idle_time = Some(limit);
        self
    }

    /// The highest number of open descriptors of a process (RLIMIT_NOFILE); at least 8.
    pub fn open_files(mut self, most: u32) -> Sandbox {
        let least = Rlimit::LEAST_FILES;
        self.check_that(most >= least, || format!("with {most} open files no program starts; the smallest limit is {least}"));
        self.rlimit(Resource::OpenFiles, most.into(), most.into())
    }

    /// Bytes of stack (RLIMIT_STACK); `u64::MAX` for no limit.
    pub fn stack(mut self, bytes: u64) -> Sandbox {
        self.check_that(bytes >= 128 * 1024, || format!("a stack of {bytes} bytes is too small for exec; the smallest is 128 KiB"));
        self.rlimit(Resource::Stack, bytes, bytes)
    }

    /// Bytes of any one file (RLIMIT_FSIZE).
    pub fn file_size(self, bytes: u64) -> Sandbox {
        self.rlimit(Resource::FileSize, bytes, bytes)
    }

    /// A resource limit of each process, in the kernel's own terms; `u64::MAX` is
    /// "unlimited". One above the host program's own hard limit is an error when
    /// the run starts.
    pub fn rlimit(mut self, resource: Resource, soft: u64, hard: u64) -> Sandbox {
        self.check_that(soft <= hard, || format!("the soft limit of {} is above its hard limit", resource.kernel_name()));
        self.rlimits.retain(|l| l.resource != resource);
        self.rlimits.push(Rlimit { resource, soft, hard });
        self
    }

    /// Takes over another recipe's limits, but for resource limits.
    pub(crate) fn take_limits(&mut self, other: &Sandbox) {
        self.limits = other.limits;
        (self.cpu_time, self.idle_time, self.wall_time) = (other.cpu_time, other.idle_time, other.wall_time);
        (self.output, self.keep_output, self.keep_tail) = (other.output, other.keep_output, other.keep_tail);
    }
}
