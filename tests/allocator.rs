//! A host whose allocator takes a lock that other threads hold most of the time.
//!
//! A library that allocates between fork and exec hangs here: the child has a copy
//! of the lock, held, and nobody to release it.

#![allow(unsafe_code, reason = "an allocator is unsafe by nature")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::{black_box, spin_loop};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use cofferdam::{Command, ErrorKind, Exit, Sandbox};
use support::host;

struct Locked(Mutex<()>);

#[global_allocator]
static ALLOCATOR: Locked = Locked(Mutex::new(()));
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator, under a lock that itself allocates nothing.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _guard = self.0.lock();
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // Held for longer than the allocation takes.
        (0..200).for_each(|_| spin_loop());
        // SAFETY: the caller's promises are the system allocator's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _guard = self.0.lock();
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

fn a_lock_taking_allocator_under_load_does_not_hang_a_start() {
    host::alone("a_lock_taking_allocator_under_load_does_not_hang_a_start", || {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for size in [16, 1000, 30_000] {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        black_box(Vec::<u8>::with_capacity(size));
                    }
                });
            }
            let sandbox = Sandbox::new().wall_time(Duration::from_secs(30));
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for i in 0..40 {
                let script = format!("exit {i}");
                let out = sandbox.run(Command::new("sh").args(["-c", &script])).expect("it runs");
                assert_eq!(out.status, Exit::Code(i));
                assert_eq!(sandbox.run("no-such-program").expect_err("not there").kind(), ErrorKind::NotFound);
                // init's start is where a process of the host's own is made.
                if i % 4 == 0 {
                    let init = support::processes::inits(std::process::id()).remove(0);
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init.pid as i32), nix::sys::signal::SIGKILL).expect("a signal");
                    support::processes::eventually(Duration::from_secs(20), "init is gone", || {
                        support::processes::find(init.pid).is_none()
                    });
                }
            }
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            stop.store(true, Ordering::Relaxed);
            assert!(allocations > 50_000, "only {allocations} allocations were made meanwhile: no load");
        });
    });
}

fn main() {
    support::main(vec![test!(a_lock_taking_allocator_under_load_does_not_hang_a_start)])
}
