//! A small CI: the steps of a build, one after another in the same sandbox, with their
//! output line by line as it comes, and a cache that outlives it.
//!
//! ```text
//! cargo run --example ci [STORE]
//! ```
//!
//! STORE is where the cache is kept; by default it's the user's own store.

use std::process::ExitCode;
use std::time::Duration;

use cofferdam::{Command, GIB, MIB, Sandbox, Source, Store};

const MINUTE: Duration = Duration::from_secs(60);

/// In a real one they would come from a file of the project's.
const STEPS: [(&str, &str); 4] = [
    ("fetch", "if [ -f $CACHE/words ]; then echo cached; else echo downloading; seq 50000 > $CACHE/words; fi"),
    ("build", "echo compiling; sort -r $CACHE/words > program; echo warning: no compiler >&2"),
    ("test", "head -1 program; test $(wc -l < program) = 50000"),
    ("publish", "echo pretending to publish"),
];

fn main() -> cofferdam::Result<ExitCode> {
    let store = std::env::args_os().nth(1).map_or_else(Store::open_default, Store::open)?;
    // A second build waits for its turn rather than to see a half-written cache.
    let cache = store.volume("ci-cache")?.exclusive(5 * MINUTE);
    let build = Sandbox::new().volume(&cache, "/cache").writable(GIB).wall_time(10 * MINUTE).keep_output(MIB).start()?;
    for (name, script) in STEPS {
        let step = Command::new("sh").args(["-euc", script]).env("CACHE", "/cache").current_dir("/tmp");
        let out = build.run_lines(step, |line| {
            let mark = if line.source == Source::Stderr { '!' } else { ' ' };
            println!("{name:>8} {:7.3}s {mark} {}", line.at.as_secs_f64(), line.text().trim_end());
        })?;
        if !out.success() {
            println!("{name:>8} failed: {out}");
            return Ok(ExitCode::FAILURE);
        }
        println!("{name:>8} done in {:.3} s of CPU time", out.usage.cpu().as_secs_f64());
    }
    Ok(ExitCode::SUCCESS)
}
