//! Everything that a command has started.
//!
//! With a control group of its own that's the members of the group, wherever they
//! went. Without one it's what can be told from /proc: the session that the command
//! leads, and the descendants of its members. A process that has made a session of its
//! own and whose parent has died then belongs to nobody; it's found when the last
//! command ends, because then everybody but PID 1 is left over.

use crate::arch::nr;
use crate::sys::*;

/// A command's processes.
#[derive(Clone, Copy)]
pub struct Tree {
    /// The main process, which leads the session.
    pub session: i32,
    /// Directory of the control group, and its `cgroup.kill`; -1 for none.
    pub group: i32,
    pub kill: i32,
    /// PID 1's /proc.
    pub proc: i32,
}

/// The most processes that one look at /proc takes in.
const MOST: usize = 1024;
/// How often one kill looks for those that were born meanwhile.
const ROUNDS: usize = 16;

#[derive(Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// Hundredths of a second of CPU time, its dead children's included.
    ticks: u64,
    ours: bool,
}

/// Big, and used by one look at a time.
static mut PROCESSES: [Process; MOST] = [Process { pid: 0, parent: 0, session: 0, ticks: 0, ours: false }; MOST];

impl Tree {
    pub const NONE: Tree = Tree { session: 0, group: -1, kill: -1, proc: -1 };

    /// Whether anybody is left.
    pub fn alive(&self) -> bool {
        let mut found = false;
        self.each(|_| found = true);
        found
    }

    /// Kills all of them, or as many as can be seen in a bounded time.
    pub fn kill(&self) {
        if self.kill >= 0 && call(nr::WRITE, [self.kill as usize, c"1".as_ptr() as usize, 1, 0, 0, 0]).is_ok() {
            return;
        }
        for _ in 0..ROUNDS {
            let mut found = false;
            self.each(|pid| found |= kill(pid, SIGKILL).is_ok());
            if !found {
                break;
            }
        }
    }

    /// CPU time of all of them, nanoseconds, without a group: the living, and the dead
    /// that their parents have waited for.
    pub fn ticks(&self) -> u64 {
        const TICK: u64 = 10_000_000;
        self.look().iter().filter(|p| p.ours).fold(0u64, |sum, p| sum.saturating_add(p.ticks)).saturating_mul(TICK)
    }

    fn each(&self, mut action: impl FnMut(i32)) {
        if self.group >= 0 {
            members(self.group, action);
        } else {
            self.look().iter().filter(|p| p.ours).for_each(|p| action(p.pid));
        }
    }

    /// All processes, with ours marked. Zombies don't count.
    fn look(&self) -> &'static [Process] {
        let place = &raw mut PROCESSES;
        // SAFETY: this program has no threads, and no caller keeps the slice over
        // another look.
        let processes = unsafe { &mut *place };
        let count = self.list(processes);
        let processes = &mut processes[..count];
        for process in processes.iter_mut() {
            process.ours = process.pid == self.session || process.session == self.session;
        }
        loop {
            let mut more = false;
            for i in 0..count {
                let Process { parent, ours, .. } = processes[i];
                if !ours && processes.iter().any(|p| p.ours && p.pid == parent) {
                    processes[i].ours = true;
                    more = true;
                }
            }
            if !more {
                return processes;
            }
        }
    }

    fn list(&self, processes: &mut [Process]) -> usize {
        let mut count = 0;
        let _ = call(nr::LSEEK, [self.proc as usize, 0, 0, 0, 0, 0]);
        let _ = each_name(self.proc, &mut [0u64; 512], |name| {
            if name.first().is_some_and(u8::is_ascii_digit)
                && let Some(process) = self.process(name)
                && let Some(place) = processes.get_mut(count)
            {
                *place = process;
                count += 1;
            }
            Ok(())
        });
        count
    }

    /// /proc/<pid>/stat (proc_pid_stat(5)).
    fn process(&self, name: &[u8]) -> Option<Process> {
        let digits = name.iter().position(|b| !b.is_ascii_digit())?;
        let mut path = [0u8; 32];
        path.get_mut(..digits)?.copy_from_slice(&name[..digits]);
        path.get_mut(digits..digits + 5)?.copy_from_slice(b"/stat");
        let fd = call(nr::OPENAT, [self.proc as usize, path.as_ptr() as usize, O_RDONLY | O_CLOEXEC, 0, 0, 0]).ok()?;
        let mut text = [0u8; 512];
        let length = call(nr::READ, [fd, text.as_mut_ptr() as usize, text.len(), 0, 0, 0]);
        close(fd as i32);
        let text = &text[..length.ok()?];
        // The name may hold anything; nothing behind it holds a parenthesis.
        let rest = &text[text.iter().rposition(|b| *b == b')')? + 2..];
        let mut fields = rest.split(|b| *b == b' ');
        let state = fields.next()?;
        let mut number = |skip: usize| fields.nth(skip).map_or(0, decimal);
        let (parent, session) = (number(0), number(1));
        // Fields 14 to 17: utime, stime, cutime, cstime.
        let ticks = number(7) + number(0) + number(0) + number(0);
        let pid = decimal(&name[..digits]) as i32;
        (pid != 1 && state != b"Z" && state != b"X").then_some(Process {
            pid,
            parent: parent as i32,
            session: session as i32,
            ticks,
            ours: false,
        })
    }
}

fn decimal(digits: &[u8]) -> u64 {
    digits.iter().filter(|b| b.is_ascii_digit()).fold(0u64, |n, b| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0')))
}

/// The processes of a control group, in our numbers. Opened anew each time: on v1 an
/// open list is kept as it was for a second.
fn members(group: i32, mut action: impl FnMut(i32)) {
    let Ok(fd) = call(nr::OPENAT, [group as usize, c"cgroup.procs".as_ptr() as usize, O_RDONLY | O_CLOEXEC, 0, 0, 0]) else { return };
    let mut text = [0u8; 4096];
    let mut pid = 0i32;
    while let Ok(length @ 1..) = call(nr::READ, [fd, text.as_mut_ptr() as usize, text.len(), 0, 0, 0]) {
        for byte in &text[..length] {
            if byte.is_ascii_digit() {
                pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
            } else {
                // 0 is a process that isn't in our namespace, and kill(0) would be us.
                if pid > 1 {
                    action(pid);
                }
                pid = 0;
            }
        }
    }
    close(fd as i32);
}
