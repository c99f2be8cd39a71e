//! Judges submissions to one problem: read two numbers, print their sum.
//!
//! ```text
//! cargo run --release --example judge [DIRECTORY]
//! ```
//!
//! Every file of the directory (by default `examples/judge`) is compiled once, with the
//! host's own compilers; each test runs in a fresh copy of the sandbox that this leaves,
//! and the verdicts are printed as a table. The submissions are hostile: endless loops,
//! memory hogs, a fork bomb, one that looks for what is none of its business, one that
//! leaves answers for the next test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam::{Command, Exit, Layer, MIB, Output, Resource, Sandbox};

/// Inputs and what a right program prints.
const TESTS: [(&str, &str); 5] =
    [("1 2\n", "3\n"), ("2000000000 2000000000\n", "4000000000\n"), ("-5 5\n", "0\n"), ("0 0\n", "0\n"), ("-7 -8\n", "-15\n")];

/// How a language is compiled and run: shell commands in the directory of the source,
/// whose name they are given as `$0`.
struct Language {
    extension: &'static str,
    /// Interpreters only show that they are there.
    compile: &'static str,
    run: &'static str,
}

const LANGUAGES: [Language; 5] = [
    Language { extension: "c", compile: "gcc -O2 -o program $0", run: "exec ./program" },
    Language { extension: "cpp", compile: "g++ -O2 -o program $0", run: "exec ./program" },
    Language { extension: "java", compile: "javac $0", run: "exec java -XX:+UseSerialGC ${0%.java}" },
    Language { extension: "py", compile: "python3 -V", run: "exec python3 $0" },
    Language { extension: "js", compile: "node -v", run: "exec node $0" },
];

/// A line of the table.
struct Row {
    verdict: String,
    time: Duration,
    memory: Option<u64>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args_os().nth(1).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/judge"), PathBuf::from);
    let mut submissions: Vec<PathBuf> = std::fs::read_dir(&directory)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    submissions.sort();
    println!("{:<16} {:<24} {:>9} {:>11}", "submission", "verdict", "CPU time", "memory");
    for submission in submissions {
        let name = submission.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = submission.extension().unwrap_or_default();
        let Some(language) = LANGUAGES.iter().find(|l| extension == l.extension) else { continue };
        let row = judge(language, &name, std::fs::read(&submission)?)?;
        let memory = row.memory.map_or_else(String::new, |bytes| format!("{} KiB", bytes / 1024));
        println!("{name:<16} {:<24} {:>6} ms {memory:>11}", row.verdict, row.time.as_millis());
    }
    Ok(())
}

fn judge(language: &Language, name: &str, source: Vec<u8>) -> cofferdam::Result<Row> {
    let plain = |verdict: String| Row { verdict, time: Duration::ZERO, memory: None };
    let shell = |script: &str| Command::new("sh").args(["-c", script, name]).current_dir("/work");
    let recipe = Sandbox::new().user(1000, 1000).file(format!("/work/{name}"), source);
    let compiler = recipe.wall_time(Duration::from_secs(30)).output(16 * MIB).start()?;
    match compiler.run(shell(language.compile))?.status {
        Exit::Code(0) => {}
        Exit::Code(127) => return Ok(plain("no compiler here".into())),
        Exit::Code(_) => return Ok(plain("compile error".into())),
        other => return Ok(plain(format!("compiler: {other}"))),
    }
    let sandbox = limits(compiler.into_checkpoint()?.sandbox());
    let mut row = plain("accepted".into());
    for (input, expected) in TESTS {
        let out = sandbox.run(shell(language.run).stdin(input))?;
        row.time = row.time.max(out.usage.cpu());
        row.memory = row.memory.max(out.usage.peak_memory);
        if let Some(verdict) = verdict(&out, expected) {
            row.verdict = verdict;
            break;
        }
    }
    Ok(row)
}

/// The limits of the problem. An ordinary user without a control group of their own
/// can't have all of them: what is preferred is then done as well as it goes, with a
/// limit on each process's data for that on memory.
fn limits(sandbox: Sandbox) -> Sandbox {
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
fn verdict(out: &Output, expected: &str) -> Option<String> {
    match out.status {
        Exit::Code(0) if out.text() == expected => None,
        Exit::Code(0) => Some("wrong answer".into()),
        Exit::Limit(limit) => Some(limit.to_string()),
        other => Some(format!("runtime error: {other}")),
    }
}
