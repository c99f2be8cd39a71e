//! An interactive problem, "guess my number": a judge that asks and solutions that
//! answer, each in a sandbox of its own, and what the judge made of them.
//!
//! ```text
//! cargo run --example interactive [SCRIPT]
//! ```
//!
//! SCRIPT is the text of a solution for `sh`; by default it's good and bad ones of our own.

use std::time::Duration;

use cofferdam::{Interaction, MIB, Sandbox, Verdict};

/// Exit code 0 accepts, 1 rejects; any other would be the judge's own fault.
const JUDGE: &str = "
    for turn in 1 2 3 4 5 6 7 8 9 10; do
        read guess || exit 1
        if [ $guess = 617 ]; then echo found; exit 0; fi
        if [ $guess -lt 617 ]; then echo higher; else echo lower; fi
    done
    exit 1";

const SOLUTIONS: [(&str, &str); 5] = [
    (
        "bisects",
        "low=1; high=1000; answer=
        while [ \"$answer\" != found ]; do
            guess=$(((low + high) / 2)); echo $guess; read answer
            case $answer in higher) low=$((guess + 1)) ;; lower) high=$((guess - 1)) ;; esac
        done",
    ),
    ("counts", "n=1; while echo $n; read answer; do n=$((n + 1)); done"),
    ("crashes", "echo 500; read answer; kill -SEGV $$"),
    ("gives up", "echo 500; read answer"),
    ("waits", "read answer; echo 500"),
];

fn main() -> cofferdam::Result<()> {
    let sandbox = Sandbox::new().wall_time(Duration::from_secs(10)).output(MIB);
    let own = std::env::args().nth(1);
    let solutions = own.as_deref().map_or(SOLUTIONS.to_vec(), |script| vec![("yours", script)]);
    for (name, script) in solutions {
        let mut talk = Interaction::new();
        let judge = talk.judge(&sandbox, ["sh", "-c", JUDGE]);
        let player = talk.player(&sandbox, ["sh", "-c", script]);
        talk.connect(judge, player).transcript(4096);
        let outcome = talk.run()?;

        println!("{name}: {}", outcome.verdict);
        for message in &outcome.transcript {
            println!("    {:>10}: {}", message.from.to_string(), String::from_utf8_lossy(&message.bytes).trim_end());
        }
        if outcome.verdict == Verdict::Idle {
            outcome.waits.iter().for_each(|wait| println!("    {wait}"));
        }
    }
    Ok(())
}
