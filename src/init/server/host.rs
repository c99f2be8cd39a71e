//! What init has from its host and doesn't keep.

use crate::arch::nr;
use crate::sys::*;

/// What sets the host above others would set its workloads above others too: an OOM
/// score that spares them (one of -1000 even from their own memory limit), a negative
/// nice value, a real-time policy. What sets it below others stays.
pub fn give_up_precedence() {
    const POLICY: usize = 0xffff;
    const OTHER: usize = 0;
    const PRIO_PROCESS: usize = 0;
    // SCHED_FIFO, SCHED_RR, SCHED_DEADLINE
    if let Ok(policy) = call(nr::SCHED_GETSCHEDULER, [0; 6])
        && matches!(policy & POLICY, 1 | 2 | 6)
    {
        let priority = 0u64;
        let _ = call(nr::SCHED_SETSCHEDULER, [0, OTHER, &raw const priority as usize, 0, 0, 0]);
    }
    // The system call answers 20 minus the nice value.
    if call(nr::GETPRIORITY, [PRIO_PROCESS, 0, 0, 0, 0, 0]).is_ok_and(|value| value > 20) {
        let _ = call(nr::SETPRIORITY, [PRIO_PROCESS, 0, 0, 0, 0, 0]);
    }
    let path = c"/proc/self/oom_score_adj".as_ptr() as usize;
    let Ok(fd) = call(nr::OPENAT, [AT_FDCWD as usize, path, O_RDWR | O_CLOEXEC, 0, 0, 0]) else { return };
    let mut first = 0u8;
    if call(nr::READ, [fd, &raw mut first as usize, 1, 0, 0, 0]).is_ok() && first == b'-' {
        let _ = call(nr::PWRITE64, [fd, c"0".as_ptr() as usize, 1, 0, 0, 0]);
    }
    close(fd as i32);
}

pub fn reset_signals() {
    let default = [0usize; 4];
    for signal in 1..=64 {
        let _ = call(nr::RT_SIGACTION, [signal, default.as_ptr() as usize, 0, 8, 0, 0]);
    }
    const SIG_SETMASK: usize = 2;
    let all = u64::MAX;
    let _ = call(nr::RT_SIGPROCMASK, [SIG_SETMASK, &raw const all as usize, 0, 8, 0, 0]);
}
