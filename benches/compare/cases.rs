//! A hundred test cases of a compiled C++ program, as a judge runs them: one after another,
//! each in a sandbox of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cofferdam::{Command, MIB, Pool, Sandbox};

use crate::figures::{Figures, Goal, Line};
use crate::launchers::which;

const SOURCE: &str = "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << '\\n'; }\n";
const ROUNDS: usize = 10;
const CASES: usize = 10;

/// What a case costs on a checkpoint, in a copy that's made when it's wanted or ahead,
/// beside a fresh sandbox with the program bound in, all on the host's own root.
pub(crate) fn cases(lines: &mut Vec<Line>) {
    if which("g++").is_none() {
        eprintln!("skipped: there's no g++");
        return;
    }
    let compiler = Sandbox::new().file("/work/sum.cpp", SOURCE).start().expect("it starts");
    let compile = Command::new("g++").args(["-O2", "-o", "/work/sum", "/work/sum.cpp"]);
    compiler.run(compile).and_then(|out| out.exit_ok().map(drop)).expect("it compiles");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = directory.path().join("sum");
    fs::write(&program, compiler.read("/work/sum", 16 * MIB).expect("a program")).expect("a copy");
    for path in [directory.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let limits = |sandbox: Sandbox| sandbox.memory(256 * MIB).processes(64).cpu_time(Duration::from_secs(10));
    let fresh = limits(Sandbox::new().bind(directory.path(), "/work"));
    let copies = limits(compiler.into_checkpoint().expect("a checkpoint").sandbox());
    let pool = Pool::new(copies.clone(), 2).expect("a pool");
    let mut times = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for i in 0..times.len() {
            let which = (i + round) % times.len();
            assert!(pool.wait_full(Duration::from_secs(10)).expect("prepared"), "the pool isn't full");
            std::thread::sleep(Duration::from_millis(10));
            for case in 0..CASES {
                let command = Command::new("/work/sum").stdin(format!("{round} {case}"));
                let begin = Instant::now();
                let out = match which {
                    0 => fresh.run(command),
                    1 => copies.run(command),
                    _ => pool.run(command),
                };
                times[which].push(begin.elapsed());
                assert_eq!(out.expect("it runs").text().trim(), (round + case).to_string());
            }
        }
    }
    let [fresh, copied, pooled] = times.map(|times| Figures::of(&times));
    lines.push(Line::ratio("100 cases on a checkpoint / fresh sandboxes", copied, fresh, Goal::None));
    lines.push(Line::ratio("100 cases on a checkpoint, with a pool of two / fresh sandboxes", pooled, fresh, Goal::AtMost(1.0)));
}
