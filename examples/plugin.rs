//! A plugin host: a worker in a sandbox answers calls over a socket, each within a
//! deadline. One that hangs is killed and started again, and the next call works.
//!
//! ```text
//! cargo run --example plugin
//! ```

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cofferdam::{Child, Command, Instance, Sandbox};

/// Squares numbers; some calls never come back.
const PLUGIN: &str = "while read -r n; do case $n in hang) sleep 1000 ;; *) echo $((n * n)) ;; esac; done <&3 >&3";

/// A worker and our end of its socket.
struct Worker {
    process: Child,
    socket: BufReader<UnixStream>,
}

impl Worker {
    fn start(instance: &Instance) -> Result<Worker, Box<dyn std::error::Error>> {
        let (ours, theirs) = UnixStream::pair()?;
        let command = Command::new("sh").args(["-c", PLUGIN]).socket(3, theirs);
        Ok(Worker { process: instance.spawn(command)?, socket: BufReader::new(ours) })
    }

    /// `None` when the deadline passes.
    fn call(&mut self, argument: &str, deadline: Duration) -> std::io::Result<Option<String>> {
        self.socket.get_ref().set_read_timeout(Some(deadline))?;
        writeln!(self.socket.get_mut(), "{argument}")?;
        let mut answer = String::new();
        match self.socket.read_line(&mut answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Ok(_) if answer.ends_with('\n') => Ok(Some(answer.trim_end().to_string())),
            // It has ended, and its socket with it.
            other => other.map(|_| None),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = Sandbox::new().start()?;
    let mut worker = Worker::start(&instance)?;
    for argument in ["7", "12", "hang", "9"] {
        match worker.call(argument, Duration::from_secs(2))? {
            Some(answer) => println!("{argument}: {answer}"),
            None => {
                worker.process.kill()?;
                println!("{argument}: no answer in time, {}", worker.process.wait()?);
                worker = Worker::start(&instance)?;
            }
        }
    }
    Ok(())
}
