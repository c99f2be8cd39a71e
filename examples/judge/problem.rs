//! The problem that the judge judges: its tests, its limits, its languages, and what is
//! wrong.

use std::time::Duration;

use cofferdam::{Exit, Layer, MIB, Output, Resource, Sandbox};

/// Inputs and what a right program prints.
pub(crate) const TESTS: [(&str, &str); 5] =
    [("1 2\n", "3\n"), ("2000000000 2000000000\n", "4000000000\n"), ("-5 5\n", "0\n"), ("0 0\n", "0\n"), ("-7 -8\n", "-15\n")];

/// How a language is compiled and run: shell commands in the directory of the source,
/// whose name they are given as `$0`.
pub(crate) struct Language {
    pub(crate) extension: &'static str,
    /// Interpreters only show that they are there.
    pub(crate) compile: &'static str,
    pub(crate) run: &'static str,
}

pub(crate) const LANGUAGES: [Language; 5] = [
    Language { extension: "c", compile: "gcc -O2 -o program $0", run: "exec ./program" },
    Language { extension: "cpp", compile: "g++ -O2 -o program $0", run: "exec ./program" },
    Language { extension: "java", compile: "javac $0", run: "exec java -XX:+UseSerialGC ${0%.java}" },
    Language { extension: "py", compile: "python3 -V", run: "exec python3 $0" },
    Language { extension: "js", compile: "node -v", run: "exec node $0" },
];

/// The limits of the problem. An ordinary user without a control group of their own
/// can't have all of them: what is preferred is then done as well as it goes, with a
/// limit on each process's data for that on memory.
pub(crate) fn limits(sandbox: Sandbox) -> Sandbox {
    sandbox
        .cpu_time(Duration::from_secs(1))
        .wall_time(Duration::from_secs(5))
        .memory(256 * MIB)
        .processes(64)
        .output(MIB)
        .prefer(Layer::MemoryLimit)
        .prefer(Layer::CpuAccount)
        .rlimit(Resource::Data, 1024 * MIB, 1024 * MIB)
}

/// What's wrong with this run, if anything is.
pub(crate) fn verdict(out: &Output, expected: &str) -> Option<String> {
    match out.status {
        Exit::Code(0) if out.text() == expected => None,
        Exit::Code(0) => Some("wrong answer".into()),
        Exit::Limit(limit) => Some(limit.to_string()),
        other => Some(format!("runtime error: {other}")),
    }
}
