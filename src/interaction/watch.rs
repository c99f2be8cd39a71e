//! Whether a party waits, and for what, as /proc tells it (proc(5)).
//!
//! CPU time that doesn't grow proves nothing on a busy machine: a process may have no
//! time to run for seconds. The state of its tasks does: one that could run is `R`.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::sys::pidfd;

/// A party with more tasks isn't looked into; its own limits have to do.
const MOST: usize = 256;

/// What all tasks of a party do at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Each of them sleeps.
    pub(super) asleep: bool,
    /// And each waits in a pipe or for a child, where no clock wakes it.
    pub(super) for_good: bool,
    /// One of them waits for input.
    pub(super) reads: bool,
    /// One of them waits for room.
    pub(super) writes: bool,
    /// How often they have been switched to and fro: the same number twice means that
    /// none of them has run in between.
    pub(super) switches: u64,
}

/// Looks at the tasks of a command's sandbox: the children of the first process in it,
/// their children, and so on. `None` if there's no
/// /proc to tell.
pub(super) fn look(main: BorrowedFd<'_>) -> Option<Look> {
    // Who is dead, and perhaps reaped, doesn't sleep: its end is about to be reported.
    let Some(main) = pidfd::number(main).ok().flatten().map(u64::from) else { return proc_is_there() };
    let Ok(status) = fs::read_to_string(format!("/proc/{main}/status")) else { return proc_is_there() };
    // Out of sight (in another PID namespace) it's the command's own process with its
    // children.
    let all = field(&status, "PPid:").filter(|first| *first > 1).and_then(|first| children(first, first));
    Some(walk(main, all.filter(|all| all.contains(&main)).unwrap_or_else(|| vec![main])))
}

fn walk(main: u64, mut processes: Vec<u64>) -> Look {
    let mut look = Look { asleep: true, for_good: true, ..Look::default() };
    let mut tasks = 0;
    while let Some(process) = processes.pop() {
        // What has ended meanwhile has run meanwhile.
        let Ok(entries) = fs::read_dir(format!("/proc/{process}/task")) else { return awake(look) };
        let before = tasks;
        for task in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            tasks += 1;
            if tasks > MOST || !look.task(process, task, process == main) {
                return awake(look);
            }
            processes.extend(children(process, task).unwrap_or_default());
        }
        // Of one that has died since it was opened the list is empty.
        if tasks == before {
            return awake(look);
        }
    }
    look
}

fn proc_is_there() -> Option<Look> {
    Path::new("/proc/self/status").exists().then(Look::default)
}

fn awake(look: Look) -> Look {
    Look { asleep: false, for_good: false, ..look }
}

impl Look {
    /// Adds a task; false if it's awake.
    fn task(&mut self, process: u64, task: u64, main: bool) -> bool {
        let place = format!("/proc/{process}/task/{task}");
        let Ok(status) = fs::read_to_string(format!("{place}/status")) else { return false };
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("").trim_start();
        match state.chars().next() {
            // Dead, and not the one whose end is everybody's.
            Some('Z' | 'X') if !main => return true,
            Some('S' | 'T' | 't') => {}
            _ => return false,
        }
        self.switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        self.switches += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        // The kernel's own names, with prefixes and suffixes that change.
        let place = fs::read_to_string(format!("{place}/wchan")).unwrap_or_default();
        let (reads, writes) = (place.contains("pipe_read"), place.contains("pipe_write"));
        self.for_good &= state.starts_with('S') && (reads || writes || place == "do_wait");
        (self.reads, self.writes) = (self.reads | reads, self.writes | writes);
        true
    }
}

fn children(process: u64, task: u64) -> Option<Vec<u64>> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{task}/children")).ok()?;
    Some(list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn eventually(script: &str, wanted: impl Fn(Look) -> bool) {
        let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().expect("it starts");
        let pidfd = pidfd::of(child.id()).expect("a pidfd");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            // A child of ours and not of a sandbox's: so are those of other tests.
            let look = look_at(u64::from(pidfd::number(pidfd.as_fd()).expect("seen").expect("it lives")));
            if wanted(look) {
                break;
            }
            assert!(Instant::now() < deadline, "{script}: {look:?}");
        }
        child.stdin.take().expect("piped").write_all(b"x\n").expect("room");
        child.kill().expect("a signal");
        child.wait().expect("its end");
    }

    fn look_at(main: u64) -> Look {
        walk(main, vec![main])
    }

    #[test]
    fn it_tells_those_who_wait_for_good_from_those_who_do_not() {
        eventually("read x", |look| look.asleep && look.for_good && look.reads && !look.writes);
        eventually("cat >/dev/null; :", |look| look.for_good && look.reads);
        eventually("sleep 100; :", |look| look.asleep && !look.for_good);
        eventually("while :; do :; done", |look| !look.asleep);
    }
}
