//! What to run, and what its descriptors are connected to.

mod stdio;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::image::ImageConfig;
use crate::sandbox::Sandbox;
pub use stdio::Stdio;
pub(crate) use stdio::Stream;

/// The search path that a command gets by default.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with its arguments, environment, working directory and streams.
///
/// The nouns are those of [`std::process::Command`], with three differences: it's
/// consumed when it runs, so that no pipe end lingers in the host; its environment
/// starts from a small default and never from the host's; and arguments, names
/// and paths may be any bytes but NUL.
///
/// The default environment is `PATH`, `HOME` and `LANG=C.UTF-8`, and the image's. The
/// default streams are an empty standard input, and captured output and error.
///
/// ```
/// use cofferdam::{Command, Sandbox};
///
/// let out = Sandbox::new().run(Command::new("sh").args(["-c", "read x; echo $x $Y"]).stdin("hello\n").env("Y", "there"))?;
/// assert_eq!(out.text(), "hello there\n");
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Command {
    arguments: Vec<OsString>,
    program: OsString,
    environment: Vec<(OsString, Option<OsString>)>,
    clear: bool,
    directory: Option<PathBuf>,
    /// The image says which program.
    of_image: bool,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) fds: Vec<(u32, OwnedFd, FdKind)>,
    pub(crate) limits: CommandLimits,
    terminal_size: (u16, u16),
}

/// Limits of one command, instead of the recipe's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CommandLimits {
    wall_time: Option<Duration>,
    cpu_time: Option<Duration>,
    idle_time: Option<Duration>,
    output: Option<u64>,
}

impl CommandLimits {
    /// The recipe as it is for this command, if that makes a difference.
    pub(crate) fn over(&self, sandbox: &Sandbox) -> Option<Sandbox> {
        let CommandLimits { wall_time, cpu_time, idle_time, output } = *self;
        if (wall_time, cpu_time, idle_time, output) == (None, None, None, None) {
            return None;
        }
        let mut sandbox = sandbox.clone();
        if let Some(limit) = wall_time {
            sandbox = sandbox.wall_time(limit);
        }
        if let Some(limit) = cpu_time {
            sandbox = sandbox.cpu_time(limit);
        }
        if let Some(limit) = idle_time {
            sandbox = sandbox.idle_time(limit);
        }
        if let Some(bytes) = output {
            sandbox = sandbox.output(bytes);
        }
        Some(sandbox)
    }
}

/// What a passed descriptor may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FdKind {
    Plain,
    /// A standard stream of the host's.
    Inherited,
    Socket,
    Directory,
}

impl Command {
    /// A command without arguments. A name without a slash is looked up in the
    /// sandbox along its `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        let program = program.as_ref().to_os_string();
        Command {
            arguments: vec![program.clone()],
            program,
            environment: Vec::new(),
            clear: false,
            directory: None,
            of_image: false,
            stdin: Stdio::null(),
            stdout: Stdio::captured(),
            stderr: Stdio::captured(),
            fds: Vec::new(),
            limits: CommandLimits::default(),
            terminal_size: (24, 80),
        }
    }

    /// The command of the sandbox's image: its entrypoint and default arguments. With
    /// arguments added it's its entrypoint with these.
    pub fn of_image() -> Command {
        let mut command = Command::new("");
        command.of_image = true;
        command
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Command {
        self.arguments.push(argument.as_ref().to_os_string());
        self
    }

    /// Adds arguments.
    pub fn args<I>(mut self, arguments: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_os_string()));
        self
    }

    /// What the program sees as its own name; by default as it was given.
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Command {
        self.arguments[0] = name.as_ref().to_os_string();
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Command {
        self.environment.push((name.as_ref().to_os_string(), Some(value.as_ref().to_os_string())));
        self
    }

    /// Sets variables.
    pub fn envs<I, K, V>(mut self, variables: I) -> Command
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        for (name, value) in variables {
            self = self.env(name, value);
        }
        self
    }

    /// Removes a variable, also one of the default environment.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Command {
        self.environment.push((name.as_ref().to_os_string(), None));
        self
    }

    /// Starts from an empty environment, without the defaults and without what was
    /// set before.
    pub fn env_clear(mut self) -> Command {
        self.environment.clear();
        self.clear = true;
        self
    }

    /// The working directory, inside. By default the image's, or `/`. One that's missing is
    /// [`ErrorKind::BadWorkingDirectory`](crate::ErrorKind::BadWorkingDirectory).
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Command {
        self.directory = Some(directory.as_ref().to_path_buf());
        self
    }

    /// Standard input: bytes, a file, a pipe. By default it's empty.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Command {
        self.stdin = stdin.into();
        self
    }

    /// Standard output. By default it's captured.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Command {
        self.stdout = stdout.into();
        self
    }

    /// Standard error. By default it's captured.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Command {
        self.stderr = stderr.into();
        self
    }

    /// Connects all three streams to a [terminal](Stdio::pty) of this size. The command
    /// leads a session of its own with this as its controlling terminal, so that job
    /// control and Ctrl-C work in it; set `TERM` for programs that draw.
    ///
    /// ```
    /// use cofferdam::{Command, Sandbox};
    /// use std::io::{Read, Write};
    ///
    /// let mut shell = Sandbox::new().spawn(Command::new("sh").arg("-i").pty(24, 80))?;
    /// let mut terminal = shell.pty.take().expect("a terminal");
    /// terminal.write_all(b"stty size; exit 3\n").unwrap();
    /// let mut screen = String::new();
    /// terminal.read_to_string(&mut screen).unwrap();
    /// assert!(screen.contains("24 80"), "{screen}");
    /// assert_eq!(shell.wait()?.code(), Some(3));
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn pty(mut self, rows: u16, columns: u16) -> Command {
        self.terminal_size = (rows, columns);
        self.stdin(Stdio::pty()).stdout(Stdio::pty()).stderr(Stdio::pty())
    }

    pub(crate) fn terminal_size(&self) -> (u16, u16) {
        self.terminal_size
    }

    /// The [wall time](Sandbox::wall_time) of this command, instead of the recipe's.
    pub fn wall_time(mut self, limit: Duration) -> Command {
        self.limits.wall_time = Some(limit);
        self
    }

    /// The [CPU time](Sandbox::cpu_time) of this command, instead of the recipe's.
    pub fn cpu_time(mut self, limit: Duration) -> Command {
        self.limits.cpu_time = Some(limit);
        self
    }

    /// The [idle time](Sandbox::idle_time) of this command, instead of the recipe's.
    pub fn idle_time(mut self, limit: Duration) -> Command {
        self.limits.idle_time = Some(limit);
        self
    }

    /// The [limit on output](Sandbox::output) of this command, instead of the recipe's.
    pub fn output(mut self, bytes: u64) -> Command {
        self.limits.output = Some(bytes);
        self
    }

    /// Passes a further descriptor under this number: a regular file, a pipe or a
    /// character device. Anything else is refused when the command starts,
    /// because it can be a way out: see [`socket`](Self::socket) and
    /// [`directory_fd`](Self::directory_fd). 50 are possible.
    ///
    /// Landlock keeps a file that was opened for reading from being written, also through
    /// /proc/self/fd, where a workload can open it once more (truncate(2) of that path only
    /// from Linux 6.2 on). Where [`Layer::Landlock`](crate::Layer::Landlock) is missing, or
    /// with [`nesting`](crate::Sandbox::nesting), permissions decide: an ordinary user's
    /// sandbox has that user's rights to the file, and a workload of root's has those of
    /// everybody. Who owns the file can change its mode and times in any case. A
    /// [bind](crate::Sandbox::bind) or [bytes](Stdio::bytes) keep a file wholly as it is.
    /// All this holds for streams too.
    pub fn fd(mut self, number: u32, fd: impl Into<OwnedFd>) -> Command {
        self.fds.push((number, fd.into(), FdKind::Plain));
        self
    }

    /// Passes a socket. Its peer can send the workload further descriptors, and
    /// whatever listens there is in the workload's reach: use it with a peer
    /// that expects hostile input.
    pub fn socket(mut self, number: u32, fd: impl Into<OwnedFd>) -> Command {
        self.fds.push((number, fd.into(), FdKind::Socket));
        self
    }

    /// Passes a directory of the host's. The workload can open everything below it
    /// and, with `..`, above it, as far as permissions go: this gives up the
    /// isolation of files.
    pub fn directory_fd(mut self, number: u32, fd: impl Into<OwnedFd>) -> Command {
        self.fds.push((number, fd.into(), FdKind::Directory));
        self
    }

    pub(crate) fn program(&self) -> &OsStr {
        &self.program
    }

    pub(crate) fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(Path::new("/"))
    }

    /// What docker run makes of it: the image's entrypoint before it, the image's
    /// environment below its own, the image's working directory.
    pub(crate) fn in_image(mut self, image: Option<&ImageConfig>, entrypoint: Option<&[OsString]>) -> Result<Command> {
        let given = if self.of_image { self.arguments[1..].to_vec() } else { [&[self.program.clone()], &self.arguments[1..]].concat() };
        let line = match image {
            Some(image) => image.arguments(entrypoint, &given),
            None => [entrypoint.unwrap_or_default(), &given].concat(),
        };
        if line.is_empty() {
            return Err(Error::invalid("the root file system names no command; give one"));
        }
        // Nothing came before it, so its own name stays as it was given.
        if self.of_image || line.len() != given.len() {
            self.program = line[0].clone();
            self.arguments = line;
            self.of_image = false;
        }
        if let Some(image) = image {
            if !self.clear {
                let own = image.env().map(|(name, value)| (name.into(), Some(value.into())));
                self.environment.splice(0..0, own);
            }
            self.directory = self.directory.or_else(|| image.working_dir().map(Path::to_path_buf));
        }
        Ok(self)
    }

    /// The environment that the program will have.
    pub(crate) fn environment(&self, home: &str) -> Vec<(OsString, OsString)> {
        let mut all: Vec<(OsString, OsString)> = Vec::new();
        if !self.clear {
            all.push(("PATH".into(), DEFAULT_PATH.into()));
            all.push(("HOME".into(), home.into()));
            all.push(("LANG".into(), "C.UTF-8".into()));
        }
        for (name, value) in &self.environment {
            let place = all.iter().position(|(n, _)| n == name);
            match (value, place) {
                (Some(value), Some(i)) => all[i].1.clone_from(value),
                (Some(value), None) => all.push((name.clone(), value.clone())),
                (None, Some(i)) => {
                    all.remove(i);
                }
                (None, None) => {}
            }
        }
        all
    }

    /// The paths to try, in order, as execvp(3) does.
    pub(crate) fn candidates(&self, environment: &[(OsString, OsString)]) -> Vec<Vec<u8>> {
        let program = self.program.as_bytes();
        if program.contains(&b'/') {
            return vec![program.to_vec()];
        }
        let path = environment.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH.as_bytes(), |(_, value)| value.as_bytes());
        path.split(|b| *b == b':')
            .map(|directory| {
                let directory = if directory.is_empty() { b"." } else { directory };
                [directory, b"/", program].concat()
            })
            .collect()
    }

    /// Refuses what no kernel call could carry.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.program.is_empty() {
            return Err(Error::invalid("the command's program is the empty string"));
        }
        let has_nul = |text: &OsStr| text.as_bytes().contains(&0);
        if has_nul(&self.program) || self.arguments.iter().any(|a| has_nul(a)) {
            return Err(Error::invalid("an argument of the command holds a NUL byte"));
        }
        if has_nul(self.directory().as_os_str()) || self.directory().as_os_str().is_empty() {
            return Err(Error::invalid("the working directory is empty or holds a NUL byte"));
        }
        for (name, value) in &self.environment {
            let wrong = name.is_empty() || has_nul(name) || name.as_bytes().contains(&b'=');
            if wrong || value.as_deref().is_some_and(has_nul) {
                return Err(Error::invalid(format!(
                    "{name:?} can't be an environment variable: its name is empty or holds `=`, or there's a NUL byte in it"
                )));
            }
        }
        for (i, (number, ..)) in self.fds.iter().enumerate() {
            if *number <= 2 {
                return Err(Error::invalid("descriptors 0, 1 and 2 are set with stdin, stdout and stderr"));
            }
            if *number >= 1 << 16 || self.fds[..i].iter().any(|(n, ..)| n == number) {
                return Err(Error::invalid(format!("descriptor number {number} is given twice, or is above 65,535")));
            }
        }
        // In one message with the three streams, the plan, the reply socket, and up to
        // four membership files and three counters of a control group.
        const MOST: usize = 50;
        const _: () = assert!(MOST + 3 + 2 + 7 <= crate::plan::wire::MAX_FDS);
        if self.fds.len() > MOST {
            return Err(Error::invalid(format!("{} further descriptors are too many ({MOST} are possible)", self.fds.len())));
        }
        Ok(())
    }
}

impl From<&str> for Command {
    /// A program without arguments: the string isn't split, and no shell reads it.
    fn from(program: &str) -> Command {
        Command::new(program)
    }
}

impl From<String> for Command {
    fn from(program: String) -> Command {
        Command::new(program)
    }
}

impl From<&Path> for Command {
    fn from(program: &Path) -> Command {
        Command::new(program)
    }
}

impl<S: AsRef<OsStr>, const N: usize> From<[S; N]> for Command {
    fn from(words: [S; N]) -> Command {
        from_words(words.iter())
    }
}

impl<S: AsRef<OsStr>> From<&[S]> for Command {
    fn from(words: &[S]) -> Command {
        from_words(words.iter())
    }
}

impl<S: AsRef<OsStr>> From<Vec<S>> for Command {
    fn from(words: Vec<S>) -> Command {
        from_words(words.iter())
    }
}

/// No words make an empty program, which is refused when it runs.
fn from_words<S: AsRef<OsStr>>(mut words: impl Iterator<Item = S>) -> Command {
    match words.next() {
        Some(program) => Command::new(program).args(words),
        None => Command::new(""),
    }
}

impl From<&std::process::Command> for Command {
    /// Takes over program, arguments, variables that were set, and the working
    /// directory. Streams aren't readable on the other type and keep our defaults.
    fn from(other: &std::process::Command) -> Command {
        let mut command = Command::new(other.get_program()).args(other.get_args());
        for (name, value) in other.get_envs() {
            command = match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        match other.get_current_dir() {
            Some(directory) => command.current_dir(directory),
            None => command,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_starts_small_and_is_changed_in_order() {
        let command = Command::new("x").env("A", "1").env("HOME", "/w").env("A", "2").env_remove("LANG");
        let environment = command.environment("/root");
        let pairs: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (k.to_str().unwrap(), v.to_str().unwrap())).collect();
        assert_eq!(pairs, [("PATH", DEFAULT_PATH), ("HOME", "/w"), ("A", "2")]);
        assert!(Command::new("x").env("A", "1").env_clear().environment("/root").is_empty());
    }

    #[test]
    fn programs_are_looked_up_along_the_commands_own_path() {
        let command = Command::new("tool").env("PATH", "/a::/b");
        assert_eq!(command.candidates(&command.environment("/")), [b"/a/tool".to_vec(), b"./tool".to_vec(), b"/b/tool".to_vec()]);
        let command = Command::new("./tool");
        assert_eq!(command.candidates(&command.environment("/")), [b"./tool".to_vec()]);
    }

    #[test]
    fn what_no_kernel_call_carries_is_refused() {
        for command in [
            Command::new(""),
            Command::new("a\0b"),
            Command::new("a").arg("\0"),
            Command::new("a").env("A=B", "1"),
            Command::new("a").env("", "1"),
            Command::new("a").current_dir(""),
            Command::from(Vec::<&str>::new()),
        ] {
            assert_eq!(command.validate().unwrap_err().kind(), crate::ErrorKind::Invalid, "{command:?}");
        }
    }
}
