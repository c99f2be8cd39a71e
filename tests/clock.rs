//! Steps of the machine's clock: no limit and no duration goes by it. Only where the clock
//! is nobody else's, in the virtual machine of tests/vm.

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cofferdam::{Exit, Layer, LayerState, Limit, Output, Sandbox};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use support::{Need, patience, shell};

const HOUR: Duration = Duration::from_secs(3600);

fn now(clock: ClockId) -> Duration {
    clock_gettime(clock).expect("a time").into()
}

/// Steps the clock by an hour there and back again, ever again, while something is done;
/// then it goes on as if nothing had been.
fn while_the_clock_steps<T>(body: impl FnOnce() -> T) -> T {
    static CLOCK: Mutex<()> = Mutex::new(());
    let _only = CLOCK.lock().unwrap_or_else(|e| e.into_inner());
    let offset = now(ClockId::CLOCK_REALTIME) - now(ClockId::CLOCK_MONOTONIC);
    let set = |offset: Duration| {
        let time = now(ClockId::CLOCK_MONOTONIC) + offset;
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)).expect("root sets the clock");
    };
    let done = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            for offset in [offset + HOUR, offset - HOUR].into_iter().cycle() {
                set(offset);
                if done.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        let result = body();
        done.store(true, Ordering::Relaxed);
        result
    });
    set(offset);
    result
}

/// It took so long, and not an hour more or less.
#[track_caller]
fn took(out: &Output, least: Duration) {
    let (most, phases) = (least + patience(Duration::from_secs(5)), out.phases());
    assert!(out.usage.wall >= least && out.usage.wall < most, "{out}: {:?}", out.usage);
    assert!(phases.run >= least && phases.total() < most + patience(Duration::from_secs(5)), "{out}: {phases:?}");
}

fn limits_go_by_no_clock_that_can_be_set() {
    let long = Duration::from_secs(2);
    let counted = *Sandbox::new().cpu_time(long).check().expect("a report").state(Layer::CpuAccount) == LayerState::Works;
    while_the_clock_steps(|| {
        let out = Sandbox::new().wall_time(long).run(["sleep", "100000"]).expect("it runs");
        assert_eq!(out.status, Exit::Limit(Limit::WallTime));
        took(&out, long);
        let out = Sandbox::new().wall_time(HOUR / 2).run(shell("sleep 2; exit 3")).expect("it runs");
        assert_eq!(out.status, Exit::Code(3), "half an hour isn't over");
        took(&out, long);
        if counted {
            let out = Sandbox::new().idle_time(long).run(["sleep", "100000"]).expect("it runs");
            assert_eq!(out.status, Exit::Limit(Limit::IdleTime));
            took(&out, long);
            let out = Sandbox::new().cpu_time(long).run(shell("while :; do :; done")).expect("it runs");
            assert_eq!(out.status, Exit::Limit(Limit::CpuTime));
            assert!(out.usage.cpu() < HOUR / 2, "{:?}", out.usage);
        }
    });
}

fn lines_are_told_in_the_order_of_their_times() {
    while_the_clock_steps(|| {
        let mut times = Vec::new();
        let script = shell("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done");
        let out = Sandbox::new().run_lines(script, |line| times.push(line.at)).expect("it runs");
        assert!(out.success() && times.len() == 8, "{out}: {times:?}");
        assert!(times.is_sorted() && times[7] >= Duration::from_millis(1400) && times[7] < HOUR / 2, "{times:?}");
        took(&out, Duration::from_millis(1600));
    });
}

fn a_child_is_waited_for_as_long_as_was_said() {
    while_the_clock_steps(|| {
        let mut child = Sandbox::new().wall_time(HOUR).spawn(["sleep", "100000"]).expect("it starts");
        let before = now(ClockId::CLOCK_MONOTONIC);
        assert_eq!(child.wait_timeout(Duration::from_secs(1)).expect("an answer"), None);
        let waited = now(ClockId::CLOCK_MONOTONIC) - before;
        assert!(waited >= Duration::from_secs(1) && waited < patience(Duration::from_secs(10)), "{waited:?}");
        // SIGTERM is ignored by nobody here, but the grace is a time too.
        child.stop(Duration::from_secs(1)).expect("told");
        assert_eq!(child.wait().expect("a verdict"), Exit::Signal(15));
    });
}

fn main() {
    support::main(vec![
        test!(limits_go_by_no_clock_that_can_be_set, root, Need::OwnClock),
        test!(lines_are_told_in_the_order_of_their_times, root, Need::OwnClock),
        test!(a_child_is_waited_for_as_long_as_was_said, root, Need::OwnClock),
    ])
}
