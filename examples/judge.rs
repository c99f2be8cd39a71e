//! Judges submissions to one problem: read two numbers, print their sum.
//!
//! ```text
//! cargo run --release --example judge [DIRECTORY]
//! ```
//!
//! Every source of the directory (by default `examples/judge`) is compiled once, with the
//! host's own compilers; each test runs in a fresh copy of the sandbox that this leaves, and
//! the verdicts are printed as a table. The submissions are hostile: endless loops, memory
//! hogs, a fork bomb, one that snoops, one that leaves answers for the next test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam::{Command, Exit, MIB, Sandbox};

#[path = "judge/problem.rs"]
mod problem;
use problem::{LANGUAGES, Language, TESTS, limits, verdict};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args_os().nth(1).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/judge"), PathBuf::from);
    let entries = std::fs::read_dir(&directory).map_err(|error| format!("cannot read {}: {error}", directory.display()))?;
    let mut submissions: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    submissions.sort();
    println!("{:<16} {:<24} {:>9} {:>11}", "submission", "verdict", "CPU time", "memory");
    for submission in submissions {
        let name = submission.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = submission.extension().unwrap_or_default();
        let Some(language) = LANGUAGES.iter().find(|l| extension == l.extension) else { continue };
        let (verdict, time, memory) = judge(language, &name, std::fs::read(&submission)?)?;
        let memory = memory.map_or_else(String::new, |bytes| format!("{} KiB", bytes / 1024));
        println!("{name:<16} {verdict:<24} {:>6} ms {memory:>11}", time.as_millis());
    }
    Ok(())
}

/// The verdict, and the most time and memory that a test took.
fn judge(language: &Language, name: &str, source: Vec<u8>) -> cofferdam::Result<(String, Duration, Option<u64>)> {
    let (mut time, mut memory) = (Duration::ZERO, None);
    let shell = |script: &str| Command::new("sh").args(["-c", script, name]).current_dir("/work");
    let recipe = Sandbox::new().user(1000, 1000).file(format!("/work/{name}"), source);
    let compiler = recipe.wall_time(Duration::from_secs(30)).output(16 * MIB).start()?;
    match compiler.run(shell(language.compile))?.status {
        Exit::Code(0) => {}
        Exit::Code(127) => return Ok(("no compiler here".into(), time, memory)),
        Exit::Code(_) => return Ok(("compile error".into(), time, memory)),
        other => return Ok((format!("compiler: {other}"), time, memory)),
    }
    let sandbox = limits(compiler.into_checkpoint()?.sandbox());
    for (input, expected) in TESTS {
        let out = sandbox.run(shell(language.run).stdin(input))?;
        (time, memory) = (time.max(out.usage.cpu()), memory.max(out.usage.peak_memory));
        if let Some(verdict) = verdict(&out, expected) {
            return Ok((verdict, time, memory));
        }
    }
    Ok(("accepted".into(), time, memory))
}
