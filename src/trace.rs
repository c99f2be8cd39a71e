//! Spans of runs, for those who have asked for them: feature `tracing`.
//!
//! The target is `cofferdam`, the level INFO for what the caller asked for and DEBUG for its
//! phases. README.md names the spans and their fields.

#[cfg(feature = "tracing")]
pub(crate) use spans::Trace;

#[cfg(not(feature = "tracing"))]
pub(crate) use nothing::Trace;

#[cfg(feature = "tracing")]
mod spans {
    use std::time::Duration;

    use tracing::field::{Empty, display};
    use tracing::{Span, debug_span, info_span};

    use crate::command::Command;
    use crate::error::Error;
    use crate::outcome::Facts;
    use crate::sandbox::Sandbox;

    /// The spans of a run, or of a live sandbox. They tell what happened and aren't entered:
    /// a run belongs to no thread.
    #[derive(Debug)]
    pub(crate) struct Trace {
        /// Closed before the whole.
        phase: Span,
        whole: Span,
        failed: bool,
    }

    fn millis(time: Option<Duration>) -> Option<u64> {
        time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    fn micros(time: Duration) -> u64 {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    }

    impl Trace {
        /// A command is asked for: in a sandbox of its own, or in a live one, whose spans
        /// are given then. Arguments and environment may be secret.
        pub(crate) fn of_command(instance: Option<&Trace>, recipe: &Sandbox, command: &Command) -> Trace {
            let _within = instance.map(|instance| instance.whole.enter());
            let limits = recipe.limit_values();
            let whole = info_span!(
                target: "cofferdam",
                "run",
                program = %command.program().to_string_lossy(),
                limit.memory = limits.memory,
                limit.processes = recipe.limits.processes,
                limit.cpus = recipe.limits.cpus,
                limit.output = limits.output,
                limit.cpu_time_ms = millis(limits.cpu_time),
                limit.wall_time_ms = millis(limits.wall_time),
                limit.idle_time_ms = millis(limits.idle_time),
                outcome = Empty,
                error = Empty,
                setup_us = Empty,
                run_us = Empty,
                teardown_us = Empty,
                cpu_us = Empty,
                peak_memory = Empty,
            );
            Trace::in_setup(whole)
        }

        /// A live sandbox is asked for.
        pub(crate) fn of_instance(recipe: &Sandbox) -> Trace {
            let whole = info_span!(
                target: "cofferdam",
                "instance",
                limit.memory = recipe.limits.memory,
                limit.processes = recipe.limits.processes,
                limit.cpus = recipe.limits.cpus,
                error = Empty,
            );
            Trace::in_setup(whole)
        }

        /// There's no command yet.
        pub(crate) fn of_nothing() -> Trace {
            Trace { phase: Span::none(), whole: Span::none(), failed: false }
        }

        fn in_setup(whole: Span) -> Trace {
            let phase = debug_span!(target: "cofferdam", parent: &whole, "setup");
            Trace { phase, whole, failed: false }
        }

        /// It stands, or the program has been executed.
        pub(crate) fn started(&mut self) {
            self.phase = debug_span!(target: "cofferdam", parent: &self.whole, "execution");
        }

        /// Everything is dead, or is to be.
        pub(crate) fn ended(&mut self) {
            self.phase = debug_span!(target: "cofferdam", parent: &self.whole, "teardown");
        }

        pub(crate) fn failed(&mut self, error: &Error) {
            self.failed = true;
            self.whole.record("error", display(error));
        }

        /// What came of it, if it wasn't dropped before its end.
        pub(crate) fn outcome(&self, facts: Option<&Facts>) {
            if self.whole.is_disabled() {
                return;
            }
            let Some(facts) = facts else {
                if !self.failed {
                    self.whole.record("outcome", "dropped");
                }
                return;
            };
            let (phases, usage) = (facts.phases(), facts.usage());
            self.whole.record("outcome", display(facts.verdict()));
            self.whole.record("setup_us", micros(phases.setup));
            self.whole.record("run_us", micros(phases.run));
            self.whole.record("teardown_us", micros(phases.teardown));
            self.whole.record("cpu_us", micros(usage.cpu()));
            self.whole.record("peak_memory", usage.peak_memory);
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod nothing {
    use crate::command::Command;
    use crate::error::Error;
    use crate::outcome::Facts;
    use crate::sandbox::Sandbox;

    /// Nothing, and so what's told to it costs nothing.
    #[derive(Debug)]
    pub(crate) struct Trace;

    impl Trace {
        pub(crate) fn of_command(_: Option<&Trace>, _: &Sandbox, _: &Command) -> Trace {
            Trace
        }
        pub(crate) fn of_instance(_: &Sandbox) -> Trace {
            Trace
        }
        pub(crate) fn of_nothing() -> Trace {
            Trace
        }
        pub(crate) fn started(&mut self) {}
        pub(crate) fn ended(&mut self) {}
        pub(crate) fn failed(&mut self, _: &Error) {}
        pub(crate) fn outcome(&self, _: Option<&Facts>) {}
    }
}
