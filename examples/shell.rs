//! An interactive shell with a terminal, in a throwaway copy of an image.
//!
//! ```text
//! cargo run --example shell [ROOT]
//! ```
//!
//! ROOT is a directory with a root file system; by default it's the host's `/usr`. What
//! is changed there is gone with the shell.

use std::io::{self, Read, Write};
use std::process::{Command as Host, Stdio};
use std::thread;

use cofferdam::{Command, Image, Sandbox};

/// `stty` on our own terminal, if we have one.
fn stty(arguments: &[&str]) -> Option<String> {
    let output = Host::new("stty").args(arguments).stdin(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::args_os().nth(1).map_or_else(Image::host, Image::dir);
    let size = stty(&["size"]).unwrap_or_default();
    let mut numbers = size.split(' ').filter_map(|n| n.parse().ok());
    let (rows, columns) = (numbers.next().unwrap_or(24), numbers.next().unwrap_or(80));

    let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".into());
    let shell = Command::new("sh").arg("-i").env("TERM", term).current_dir("/").pty(rows, columns);
    let mut child = Sandbox::new().rootfs(root).spawn(shell)?;
    let mut screen = child.pty.take().ok_or("no terminal")?;
    let mut keyboard = screen.try_clone()?;

    // The sandbox's terminal does what ours would: echo, lines, Ctrl-C.
    let before = stty(&["-g"]);
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
    if let Some(before) = before {
        let _ = stty(&[&before]);
    }
    let exit = child.wait()?;
    eprintln!("the shell ended with {exit}");
    std::process::exit(exit.code().unwrap_or(1));
}
