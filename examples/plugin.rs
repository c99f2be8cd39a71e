//! A plugin host: a worker in a sandbox answers calls over a socket, each within a
//! deadline. One that hangs, babbles or dies is killed and started again.
//!
//! ```text
//! cargo run --example plugin
//! ```

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cofferdam::{Child, Command, Instance, Sandbox};

/// Squares numbers; some calls never come back, and some answers never end.
const PLUGIN: &str =
    "while read -r n; do case $n in hang) sleep 1000 ;; babble) yes | tr -d '\\n' ;; *) echo $((n * n)) ;; esac; done <&3 >&3";

/// A worker and our end of its socket.
struct Worker {
    process: Child,
    socket: UnixStream,
}

impl Worker {
    fn start(instance: &Instance) -> Result<Worker, Box<dyn std::error::Error>> {
        let (socket, theirs) = UnixStream::pair()?;
        Ok(Worker { process: instance.spawn(Command::new("sh").args(["-c", PLUGIN]).socket(3, theirs))?, socket })
    }

    /// The line that it answers, if it does in time: it's trusted with neither our time, so
    /// the limit is one for all bytes, nor our memory.
    fn call(&mut self, argument: &str, limit: Duration) -> Option<String> {
        let (deadline, mut answer, mut some) = (Instant::now() + limit, Vec::new(), [0; 256]);
        self.socket.set_write_timeout(Some(limit)).ok()?;
        writeln!(self.socket, "{argument}").ok()?;
        while !answer.ends_with(b"\n") && answer.len() < 4096 {
            // No time left is an error too.
            self.socket.set_read_timeout(Some(deadline.saturating_duration_since(Instant::now()))).ok()?;
            let count = self.socket.read(&mut some).ok().filter(|count| *count > 0)?;
            answer.extend_from_slice(&some[..count]);
        }
        String::from_utf8(answer).ok()?.strip_suffix('\n').map(String::from)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = Sandbox::new().start()?;
    let mut worker = Worker::start(&instance)?;
    for argument in ["7", "12", "hang", "babble", "9"] {
        if let Some(answer) = worker.call(argument, Duration::from_secs(2)) {
            println!("{argument}: {answer}");
            continue;
        }
        worker.process.kill()?;
        println!("{argument}: no answer, {}", worker.process.wait()?);
        worker = Worker::start(&instance)?;
    }
    Ok(())
}
