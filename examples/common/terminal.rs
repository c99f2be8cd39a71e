//! Our own terminal, joined with a sandbox's: for the examples that have one.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use cofferdam::Pty;

/// `stty` on our own terminal, if we have one.
fn stty(arguments: &[&str]) -> Option<String> {
    let output = Command::new("stty").args(arguments).stdin(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Rows and columns of ours, or usual ones.
pub(crate) fn size() -> (u16, u16) {
    let size = stty(&["size"]).unwrap_or_default();
    let mut numbers = size.split(' ').filter_map(|n| n.parse().ok());
    (numbers.next().unwrap_or(24), numbers.next().unwrap_or(80))
}

/// Our kind of terminal, for TERM.
pub(crate) fn kind() -> String {
    std::env::var("TERM").unwrap_or_else(|_| "dumb".into())
}

/// Gives our terminal its settings back.
struct Restore(Option<String>);

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = stty(&[before]);
        }
    }
}

/// Passes on what is typed, and prints what comes, until the sandbox's side is closed.
pub(crate) fn join(mut screen: Pty) -> io::Result<()> {
    let mut keyboard = screen.try_clone().map_err(io::Error::other)?;
    let _restore = Restore(stty(&["-g"]));
    // The sandbox's terminal does what ours would: echo, lines, Ctrl-C.
    let _ = stty(&["raw", "-echo"]);
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut keyboard);
        // Ctrl-D, for a standard input that isn't a terminal.
        let _ = keyboard.write_all(&[4]);
    });
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = screen.read(&mut buffer) {
        io::stdout().write_all(&buffer[..n])?;
        io::stdout().flush()?;
    }
    Ok(())
}
