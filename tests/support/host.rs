//! Host programs for tests: the test's own binary once more, in a process that may
//! be changed, killed and looked at without harm to other tests.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use super::{fresh_dir, patience, processes};

const ROLE: &str = "COFFERDAM_TEST_HOST";
const LIMIT: Duration = Duration::from_secs(60);

/// Whether this process is such a host.
pub fn inside() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Runs the body of the test `name` in a process of its own, alone.
#[track_caller]
pub fn alone(name: &str, body: impl FnOnce()) {
    if inside() {
        return body();
    }
    Host::start(name).success();
}

/// Tells the test that started this host something.
pub fn say(text: &str) {
    println!("\nhost: {text}");
}

/// What [`Host::start`] starts.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path of our own"));
    command.args([name, "--exact", "--test-threads=1", "--nocapture"]);
    // What it leaves when it's killed goes with our own.
    command.env("TMPDIR", fresh_dir("tmp-"));
    command
}

/// A host process. What's left of it is killed in the end.
pub struct Host {
    child: Child,
    log: PathBuf,
    limit: Duration,
}

impl Host {
    /// Starts the test `name` as a host, in a process group of its own.
    pub fn start(name: &str) -> Host {
        Host::start_command(command(name))
    }

    /// Starts any program as a host.
    pub fn start_command(mut command: Command) -> Host {
        let log = fresh_dir("host-").join("log");
        let file = File::create(&log).expect("a log");
        let copy = file.try_clone().expect("a copy");
        let child = command.env(ROLE, "1").process_group(0).stdout(file).stderr(copy).spawn().expect("the host starts");
        Host { child, log, limit: patience(LIMIT) }
    }

    /// How long it may take to its end; a minute by default.
    pub fn limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the host has said something that begins with `what`; the rest of it.
    #[track_caller]
    pub fn hear(&mut self, what: &str) -> String {
        let deadline = Instant::now() + patience(LIMIT);
        loop {
            // Asked first: what it has said before its end is in the log then.
            let ended = self.child.try_wait().expect("a status");
            let log = self.log();
            // A line without its end is still being written.
            let lines = log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            if let Some(rest) = lines.filter_map(|line| line.strip_prefix("host: ")).find_map(|line| line.strip_prefix(what)) {
                return rest.trim().to_string();
            }
            assert!(ended.is_none() && Instant::now() < deadline, "the host did not say `{what}` ({ended:?}):\n{log}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends SIGKILL to the host alone and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().expect("a signal");
        self.child.wait().expect("a status");
    }

    /// Waits for the host's end.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status;
            }
            assert!(Instant::now() < deadline, "the host hangs:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the host's end and checks that the test in it has passed.
    #[track_caller]
    pub fn success(mut self) -> String {
        let status = self.end();
        let log = self.log();
        assert!(status.success(), "the host ended with {:?}, signal {:?}:\n{log}", status.code(), status.signal());
        log
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let below = processes::descendants(self.pid());
            let _ = self.child.kill();
            let _ = self.child.wait();
            // A library that works has killed them; one that doesn't mustn't leave them.
            for process in processes::alive(&below) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid as i32), nix::sys::signal::SIGKILL);
            }
        }
    }
}
