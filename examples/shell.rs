//! An interactive shell with a terminal, in a throwaway copy of an image.
//!
//! ```text
//! cargo run --example shell [ROOT]
//! ```
//!
//! ROOT is a directory with a root file system; by default it's the host's `/usr`. What
//! is changed there is gone with the shell.

#[path = "common/terminal.rs"]
mod terminal;

use cofferdam::{Command, Image, Sandbox};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::args_os().nth(1).map_or_else(Image::host, Image::dir);
    let (rows, columns) = terminal::size();
    let shell = Command::new("sh").arg("-i").env("TERM", terminal::kind()).current_dir("/").pty(rows, columns);
    let mut child = Sandbox::new().rootfs(root).spawn(shell)?;
    terminal::join(child.pty.take().ok_or("no terminal")?)?;
    let exit = child.wait()?;
    eprintln!("the shell ended with {exit}");
    std::process::exit(exit.code().unwrap_or(1));
}
