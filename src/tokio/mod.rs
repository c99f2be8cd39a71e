//! Sandboxes for programs that run on [tokio](https://docs.rs/tokio): feature `tokio`.
//!
//! What waits for a workload, for a set-up or for a stream is a future here; everything
//! else is as in the synchronous API, and so are recipes, commands, outcomes and errors.
//!
//! * [`run`], [`run_lines`] and [`spawn`] stand for the methods of [`Sandbox`] with these
//!   names, [`Instance::start`] for [`Sandbox::start`], [`Talk::start`] for
//!   [`Interaction::start`](crate::Interaction::start), and [`Pool`] and [`InstancePool`] for
//!   those of the same names.
//! * **Dropping** a future or a [`Child`] kills its command, with all that it has started, and
//!   dropping an [`Instance`] everything in it. No drop waits: locks of volumes and ids are
//!   kept by a task of the runtime until every process is dead. When the runtime itself is
//!   shut down, locks of volumes whose sandbox hasn't ended by then stay until the program
//!   ends; and an [`Instance`] that's dropped after its runtime waits as a synchronous one.
//! * **Time limits** are those of the recipe, which end with a verdict. Around a future
//!   that's dropped, such as by `tokio::time::timeout`, they work too, without one.
//!   [`Child::wait`] may be dropped and called again: nothing is lost.
//! * Nothing here blocks a runtime's thread for longer than some hundred microseconds: that
//!   much the preparation of a sandbox takes in the host. What may take longer (starting
//!   init before the first sandbox, locks of volumes, files) is done by the runtime's blocking
//!   threads. Images, and [`Output::commit`], are work on files and nothing else: for them
//!   there's `tokio::task::spawn_blocking`.
//! * The runtime must have its I/O and time drivers enabled, as with `#[tokio::main]`; outside of
//!   one these functions panic, as tokio's own do. Tokio's traits `AsyncRead` and
//!   `AsyncWrite` are the only thing of another crate in this API.
//!
//! ```
//! use cofferdam::{Sandbox, Stdio};
//! use std::time::Duration;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sandbox = Sandbox::new();
//! let (one, two) = tokio::join!(
//!     cofferdam::tokio::run(&sandbox, ["echo", "one"]),
//!     cofferdam::tokio::run(&sandbox, ["echo", "two"]),
//! );
//! assert_eq!((one?.text().as_ref(), two?.text().as_ref()), ("one\n", "two\n"));
//!
//! let cat = cofferdam::Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped());
//! let mut child = cofferdam::tokio::spawn(&sandbox, cat).await?;
//! child.stdin.take().unwrap().write_all(b"hello").await?;
//! let mut text = String::new();
//! child.stdout.take().unwrap().read_to_string(&mut text).await?;
//! assert_eq!(text, "hello");
//! assert!(child.wait().await?.success());
//!
//! // Dropped, and so killed, after 50 ms.
//! let sleeper = cofferdam::tokio::run(&sandbox, ["sleep", "1000"]);
//! assert!(tokio::time::timeout(Duration::from_millis(50), sleeper).await.is_err());
//! # Ok(())
//! # }
//! ```

mod archive;
mod child;
mod connect;
mod files;
mod instance;
mod pool;
mod run;
mod streams;
mod talk;
mod watch;

use std::panic::resume_unwind;

use ::tokio::sync::Mutex;
use ::tokio::task::{JoinError, spawn_blocking};

pub use child::Child;
pub use instance::Instance;
pub use pool::{InstancePool, Pool};
pub use streams::{PipeReader, PipeWriter, Pty};
pub use talk::Talk;

use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::launch;
use crate::outcome::{Line, Output};
use crate::plan::wire::NOTIFY_START;
use crate::sandbox::Sandbox;
use crate::supervise::{Pipes, Prepared, refuse_piped};
use run::Run;

/// Runs a command in a fresh sandbox and waits for its end: [`Sandbox::run`].
///
/// If the future is dropped before, the command is killed with all that it has started.
pub async fn run(sandbox: &Sandbox, command: impl Into<Command>) -> Result<Output> {
    let command = command.into();
    refuse_piped(&command)?;
    let (run, _) = begin(sandbox, command).await?;
    run.into_output().await
}

/// Like [`run`], with each line of captured output told as soon as it's there:
/// [`Sandbox::run_lines`]. The callback runs in the task; as long as it does, nothing is
/// read.
pub async fn run_lines(sandbox: &Sandbox, command: impl Into<Command>, on_line: impl FnMut(Line<'_>)) -> Result<Output> {
    let command = command.into();
    refuse_piped(&command)?;
    let (run, _) = begin(sandbox, command).await?;
    run.into_output_with_lines(on_line).await
}

/// Starts a command in a fresh sandbox: [`Sandbox::spawn`]. It's there when the program has been
/// executed; what keeps it from that is an `Err`.
pub async fn spawn(sandbox: &Sandbox, command: impl Into<Command>) -> Result<Child> {
    let (run, pipes) = begin(sandbox, command.into()).await?;
    Child::started(run, pipes).await
}

/// Asks for a sandbox with a command in it.
async fn begin(sandbox: &Sandbox, command: Command) -> Result<(Run, Pipes)> {
    let prepared = Prepared::new(sandbox, command)?;
    let volumes = if prepared.sandbox.has_volumes() {
        let recipe = prepared.sandbox.clone();
        blocking(move || recipe.hold_volumes()).await?
    } else {
        prepared.sandbox.hold_volumes()?
    };
    have_init().await?;
    let (live, pipes) = prepared.start(volumes, NOTIFY_START)?;
    Ok((Run::new(live)?, pipes))
}

/// Has init started, which takes some milliseconds, and with subordinate ids two programs.
async fn have_init() -> Result<()> {
    /// Or a thousand tasks would begin with a thousand threads that wait for one of them.
    static STARTING: Mutex<()> = Mutex::const_new(());
    if launch::is_running() {
        return Ok(());
    }
    let _one = STARTING.lock().await;
    if launch::is_running() {
        return Ok(());
    }
    blocking(|| launch::init().map(drop)).await
}

/// Does something in a thread where it may wait. When the future is dropped it's done all
/// the same, and what came of it is dropped there.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    joined(spawn_blocking(work).await)
}

fn joined<T>(ended: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    match ended {
        Ok(result) => result,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => Err(Error::new(ErrorKind::Lost, "the runtime is being shut down")),
    }
}
