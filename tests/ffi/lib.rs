//! The crate behind a C function, for hosts in other languages.

use std::ffi::{CStr, c_char, c_int};
use std::time::Duration;

use cofferdam::{Command, Exit, Sandbox, Stdio};

fn run(command: &CStr, dress: impl FnOnce(Command) -> Command) -> c_int {
    let sandbox = Sandbox::new().wall_time(Duration::from_secs(30));
    let script = command.to_string_lossy();
    match sandbox.run(dress(Command::new("sh").args(["-c", &script]))) {
        Ok(out) => match out.status {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 1000 + signal,
            _ => 2000,
        },
        Err(error) => {
            eprintln!("{error}");
            -1
        }
    }
}

/// Runs a shell command with a megabyte of input; its exit code, 1000 + signal,
/// or -1 for an error.
///
/// # Safety
/// `command` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cofferdam_test_run(command: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    run(unsafe { CStr::from_ptr(command) }, |c| c.stdin(vec![b'x'; 1_000_000]))
}

/// The same with its output relayed into a pipe that nobody reads.
///
/// # Safety
/// `command` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cofferdam_test_relay(command: *const c_char) -> c_int {
    let Ok((reader, writer)) = std::io::pipe() else { return -1 };
    drop(reader);
    // SAFETY: the caller's promise.
    run(unsafe { CStr::from_ptr(command) }, |c| c.stdout(Stdio::relay(writer)))
}

/// Starts a shell command, kills it after its end, and waits.
///
/// # Safety
/// `command` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cofferdam_test_late_kill(command: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let script = unsafe { CStr::from_ptr(command) }.to_string_lossy().into_owned();
    let killed = || -> cofferdam::Result<c_int> {
        let mut child = Sandbox::new().wall_time(Duration::from_secs(30)).spawn(Command::new("sh").args(["-c", &script]))?;
        let killer = child.killer();
        let exit = child.wait()?;
        // By now, or soon, nobody holds the other end of its socket.
        for _ in 0..100 {
            killer.kill()?;
        }
        Ok(exit.code().unwrap_or(2000))
    };
    killed().unwrap_or(-1)
}
