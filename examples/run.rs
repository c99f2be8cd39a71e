//! `docker run` without the rest: a command line over the public API.
//!
//! ```text
//! run [OPTIONS] [--] COMMAND [ARG...]
//!   --rootfs host|PATH[#REF]  the root file system (default: host): a directory, an OCI
//!                             layout, a `docker save` archive, a tar archive; REF is one
//!                             of several images in it
//!   --store DIR               where images are unpacked (default: the user's own store)
//!   --entrypoint PROGRAM      instead of the image's; empty for none
//!   --commit FILE             write the image that the run made of its own to an OCI archive
//!   --memory SIZE  --cpu-time SECS  --wall-time SECS  --processes N  --cpus X
//!   --output SIZE  --disk SIZE  --open-files N  --stack SIZE  --file-size SIZE
//!   --bind HOST:INSIDE[:rw]  --tmpfs INSIDE:SIZE
//!   --volume NAME:INSIDE[:ro] a directory of the store that outlives the run
//!   --env K=V  --workdir DIR  --user UID[:GID]  --hostname NAME
//!   --network none|host  --syscalls default|strict|unfiltered|FILE
//!   --prefer LAYER            go on without a layer that can't be had
//!   --stdin FILE  --stdout FILE  --stderr FILE
//!   --tty                     give the command a terminal, joined with ours
//!   --json FILE|-             write the outcome as one JSON object
//!   --check                   tell what of this this machine can enforce
//!   --explain                 tell what a run would do, step by step
//! ```
//! SIZE is bytes, or a number with K, M, G or T (powers of 1,024); SECS may be
//! fractional. Without a command an image's own is run. Without `--stdin` the command reads our own standard input; output
//! is passed on as it comes.
//!
//! The exit code is the command's, 128 + n for signal n, 124 for a limit, 137 if it
//! was killed, and 125 with a message on standard error if the sandbox could not do
//! its job.
//!
//! The members of the JSON object stand at the head of `examples/run/json.rs`.

#[path = "run/json.rs"]
mod json;
#[path = "common/size.rs"]
mod size;
#[path = "common/terminal.rs"]
mod terminal;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cofferdam::{
    Command, CommitOptions, Error, Exit, Image, ImageFormat, Layer, Network, Output, Sandbox, Stdio, Store, SyscallProfile, Syscalls,
};

/// What the command line asked for.
struct Options {
    sandbox: Sandbox,
    command: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<OsString>,
    streams: [Option<PathBuf>; 3],
    rootfs: Option<OsString>,
    store: Option<PathBuf>,
    /// Name, place, read-only.
    volumes: Vec<(String, OsString, bool)>,
    tty: bool,
    commit: Option<PathBuf>,
    json: Option<PathBuf>,
    check: bool,
    explain: bool,
}

/// Why there's no outcome: an error of the library's, or one of ours in its terms.
enum Problem {
    Library(Error),
    Ours { kind: &'static str, message: String },
}

impl Problem {
    fn kind(&self) -> &'static str {
        match self {
            Problem::Library(error) => error.kind().name(),
            Problem::Ours { kind, .. } => kind,
        }
    }

    fn message(&self) -> String {
        match self {
            Problem::Library(error) => error.to_string(),
            Problem::Ours { message, .. } => message.clone(),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        Problem::Library(error)
    }
}

impl From<lexopt::Error> for Problem {
    fn from(error: lexopt::Error) -> Problem {
        invalid(error.to_string())
    }
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::Ours { kind: "invalid", message: message.into() }
}

fn main() -> ExitCode {
    // Where the JSON goes must be known even if the rest can't be understood.
    let mut json = None;
    let result = parse(&mut json).and_then(|options| perform(&options));
    let code = match &result {
        Ok(Done::Outcome(output)) => exit_code(output.status),
        Ok(Done::Answer(works)) => {
            if *works {
                0
            } else {
                125
            }
        }
        Err(problem) => {
            eprintln!("run: {}", problem.message());
            125
        }
    };
    if let (Some(path), Some(object)) = (json, json::describe(&result)) {
        let open_line = matches!(&result, Ok(Done::Outcome(output)) if output.stdout_stream.last_byte.is_some_and(|b| b != b'\n'));
        if let Err(error) = json::write(&path, &object, open_line) {
            eprintln!("run: cannot write {}: {error}", path.display());
            return ExitCode::from(125);
        }
    }
    ExitCode::from(code)
}

enum Done {
    Outcome(Box<Output>),
    Answer(bool),
}

/// The recipe with its root file system, which may take a while to unpack.
fn recipe(options: &Options) -> Result<Sandbox, Problem> {
    let mut sandbox = options.sandbox.clone();
    for (name, inside, read_only) in &options.volumes {
        let volume = options.store.as_ref().map_or_else(Store::open_default, Store::open)?.volume(name)?;
        sandbox = sandbox.volume(&if *read_only { volume.read_only() } else { volume }, inside);
    }
    let Some(rootfs) = options.rootfs.as_ref().filter(|rootfs| *rootfs != "host") else { return Ok(sandbox) };
    let (path, reference) = split(rootfs);
    let mut image = Image::options();
    if let Some(reference) = reference {
        image = image.reference(reference);
    }
    if let Some(store) = &options.store {
        image = image.store(&Store::open(store)?);
    }
    Ok(sandbox.rootfs(image.open(path)?))
}

/// PATH#REF; a path that exists as it is has no REF.
fn split(rootfs: &OsString) -> (PathBuf, Option<String>) {
    let whole = PathBuf::from(rootfs);
    match rootfs.as_bytes().iter().rposition(|b| *b == b'#') {
        Some(at) if !whole.exists() => {
            let (path, reference) = rootfs.as_bytes().split_at(at);
            (OsString::from_vec(path.to_vec()).into(), Some(String::from_utf8_lossy(&reference[1..]).into_owned()))
        }
        _ => (whole, None),
    }
}

/// Writes the image that a run made of its own.
fn commit(output: &Output, path: &std::path::Path) -> Result<(), Problem> {
    let name = path.file_stem().map_or_else(|| "committed".into(), |name| name.to_string_lossy().into_owned());
    output.commit(&CommitOptions::new())?.save(path, ImageFormat::OciArchive, &name)?;
    Ok(())
}

fn perform(options: &Options) -> Result<Done, Problem> {
    let sandbox = recipe(options)?;
    if options.check {
        let report = sandbox.check()?;
        print!("{report}");
        return Ok(Done::Answer(report.works()));
    }
    if options.explain {
        print!("{}", sandbox.explain()?);
        return Ok(Done::Answer(true));
    }
    let [stdin, stdout, stderr] = &options.streams;
    let command = if options.command.is_empty() { Command::of_image() } else { Command::from(options.command.as_slice()) };
    let mut command = command.envs(options.environment.iter().map(|(k, v)| (k, v)));
    if let Some(directory) = &options.directory {
        command = command.current_dir(directory);
    }
    if options.tty {
        return on_terminal(&sandbox, command);
    }
    command = command.stdin(match stdin {
        Some(path) => Stdio::from(File::open(path).map_err(|e| file_problem("open", path, &e))?),
        None => Stdio::inherit(),
    });
    command = command.stdout(Stdio::relay(target(stdout, io::stdout().as_fd().try_clone_to_owned())?));
    command = command.stderr(Stdio::relay(target(stderr, io::stderr().as_fd().try_clone_to_owned())?));
    let output = sandbox.run(command)?;
    if let Some(path) = &options.commit {
        commit(&output, path)?;
    }
    Ok(Done::Outcome(Box::new(output)))
}

fn on_terminal(sandbox: &Sandbox, command: Command) -> Result<Done, Problem> {
    let (rows, columns) = terminal::size();
    let mut child = sandbox.spawn(command.env("TERM", terminal::kind()).pty(rows, columns))?;
    if let Some(pty) = child.pty.take() {
        terminal::join(pty).map_err(|e| Problem::Ours { kind: "io", message: format!("cannot use the terminal: {e}") })?;
    }
    Ok(Done::Outcome(Box::new(child.wait_with_output()?)))
}

fn target(path: &Option<PathBuf>, own: io::Result<OwnedFd>) -> Result<OwnedFd, Problem> {
    match path {
        Some(path) => {
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
            Ok(file.map_err(|e| file_problem("create", path, &e))?.into())
        }
        None => own.map_err(|e| Problem::Ours { kind: "io", message: format!("cannot use a standard stream: {e}") }),
    }
}

fn file_problem(doing: &str, path: &std::path::Path, error: &io::Error) -> Problem {
    Problem::Ours { kind: "io", message: format!("cannot {doing} {}: {error}", path.display()) }
}

fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => code as u8,
        Exit::Signal(signal) => 128 + signal as u8,
        Exit::Limit(_) => 124,
        _ => 137,
    }
}

fn parse(json: &mut Option<PathBuf>) -> Result<Options, Problem> {
    use lexopt::Arg::{Long, Short, Value};
    let mut options = Options {
        sandbox: Sandbox::new(),
        command: Vec::new(),
        environment: Vec::new(),
        directory: None,
        streams: [None, None, None],
        rootfs: None,
        store: None,
        volumes: Vec::new(),
        tty: false,
        commit: None,
        json: None,
        check: false,
        explain: false,
    };
    // Even after a mistake the rest is read, so that `--json` is found.
    let mut problem = None;
    let mut parser = lexopt::Parser::from_env();
    loop {
        let argument = match parser.next() {
            Ok(Some(argument)) => argument,
            Ok(None) => break,
            Err(error) => {
                problem.get_or_insert(Problem::from(error));
                continue;
            }
        };
        let result = match argument {
            Value(program) => {
                options.command.push(program);
                options.command.extend(parser.raw_args()?);
                break;
            }
            Long(name) => {
                let name = name.to_string();
                option(&mut options, &name, &mut parser)
            }
            Short(letter) => Err(invalid(format!("there's no option -{letter}"))),
        };
        if let Err(error) = result {
            problem.get_or_insert(error);
        }
    }
    json.clone_from(&options.json);
    match problem {
        Some(problem) => Err(problem),
        None if options.tty && options.streams.iter().any(Option::is_some) => {
            Err(invalid("--tty takes the place of --stdin, --stdout and --stderr"))
        }
        None if options.command.is_empty() && options.rootfs.is_none() && !options.check && !options.explain => {
            Err(invalid("there's no command: run [OPTIONS] [--] COMMAND [ARG...]"))
        }
        None => Ok(options),
    }
}

fn option(options: &mut Options, name: &str, parser: &mut lexopt::Parser) -> Result<(), Problem> {
    match name {
        "check" => {
            options.check = true;
            return Ok(());
        }
        "explain" => {
            options.explain = true;
            return Ok(());
        }
        "tty" => {
            options.tty = true;
            return Ok(());
        }
        _ => {}
    }
    const KNOWN: &[&str] = &[
        "rootfs",
        "store",
        "entrypoint",
        "commit",
        "memory",
        "cpu-time",
        "wall-time",
        "processes",
        "cpus",
        "output",
        "disk",
        "open-files",
        "stack",
        "file-size",
        "bind",
        "tmpfs",
        "volume",
        "env",
        "workdir",
        "user",
        "hostname",
        "network",
        "syscalls",
        "prefer",
        "stdin",
        "stdout",
        "stderr",
        "json",
    ];
    if !KNOWN.contains(&name) {
        return Err(invalid(format!("there's no option --{name}")));
    }
    let value = parser.value()?;
    let text = || value.to_str().ok_or_else(|| invalid(format!("--{name}: not a text: {value:?}")));
    let sandbox = std::mem::take(&mut options.sandbox);
    options.sandbox = match name {
        "rootfs" => {
            options.rootfs = Some(value.clone());
            sandbox
        }
        "store" => {
            options.store = Some(value.into());
            sandbox
        }
        "commit" => {
            options.commit = Some(value.into());
            sandbox.keep_changes(true)
        }
        "entrypoint" if value.is_empty() => sandbox.entrypoint([""; 0]),
        "entrypoint" => sandbox.entrypoint([value]),
        "memory" => sandbox.memory(size(name, text()?)?),
        "cpu-time" => sandbox.cpu_time(seconds(name, text()?)?),
        "cpus" => sandbox.cpus(text()?.parse().map_err(|_| invalid("--cpus wants a number like 1.5"))?),
        "wall-time" => sandbox.wall_time(seconds(name, text()?)?),
        "processes" => sandbox.processes(number(name, text()?)?),
        "output" => sandbox.output(size(name, text()?)?),
        "disk" => sandbox.writable(size(name, text()?)?),
        "open-files" => sandbox.open_files(number(name, text()?)?),
        "stack" => sandbox.stack(size(name, text()?)?),
        "file-size" => sandbox.file_size(size(name, text()?)?),
        "bind" => {
            let (host, inside, writable) = bind(&value)?;
            if writable { sandbox.bind_rw(host, inside) } else { sandbox.bind(host, inside) }
        }
        "volume" => {
            options.volumes.push(volume(text()?)?);
            sandbox
        }
        "tmpfs" => match text()?.rsplit_once(':') {
            Some((inside, bytes)) => sandbox.tmpfs(inside, size(name, bytes)?),
            None => return Err(invalid("--tmpfs wants INSIDE:SIZE")),
        },
        "env" => {
            let bytes = value.as_bytes();
            let at = bytes.iter().position(|b| *b == b'=').ok_or_else(|| invalid("--env wants K=V"))?;
            let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            options.environment.push((part(&bytes[..at]), part(&bytes[at + 1..])));
            sandbox
        }
        "workdir" => {
            options.directory = Some(value.clone());
            sandbox
        }
        "user" => {
            let (uid, gid) = match text()?.split_once(':') {
                Some((uid, gid)) => (number(name, uid)?, number(name, gid)?),
                None => (number(name, text()?)?, number(name, text()?)?),
            };
            sandbox.user(uid, gid)
        }
        "hostname" => sandbox.hostname(text()?),
        "network" => match text()? {
            "none" => sandbox.network(Network::None),
            "host" => sandbox.network(Network::Host),
            other => return Err(invalid(format!("--network is none or host, not {other}"))),
        },
        "syscalls" => match text()? {
            "default" => sandbox.syscalls(Syscalls::Default),
            "strict" => sandbox.syscalls(Syscalls::Strict),
            "unfiltered" => sandbox.syscalls(Syscalls::Unfiltered),
            file => sandbox.syscalls(SyscallProfile::open(file)?),
        },
        "prefer" => {
            let layer = Layer::from_name(&text()?.replace('-', "_"));
            let names = || Layer::ALL.map(Layer::name).join(", ");
            sandbox.prefer(layer.ok_or_else(|| invalid(format!("--prefer: there's no such layer; they are {}", names())))?)
        }
        "json" => {
            options.json = Some(value.into());
            sandbox
        }
        stream => {
            let i = ["stdin", "stdout", "stderr"].iter().position(|s| *s == stream).unwrap_or(0);
            options.streams[i] = Some(value.into());
            sandbox
        }
    };
    Ok(())
}

/// HOST:INSIDE[:rw]; neither may hold a colon.
fn bind(value: &OsString) -> Result<(OsString, OsString, bool), Problem> {
    let parts: Vec<&[u8]> = value.as_bytes().split(|b| *b == b':').collect();
    let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    match parts.as_slice() {
        [host, inside] => Ok((part(host), part(inside), false)),
        [host, inside, b"rw"] => Ok((part(host), part(inside), true)),
        [host, inside, b"ro"] => Ok((part(host), part(inside), false)),
        _ => Err(invalid("--bind wants HOST:INSIDE or HOST:INSIDE:rw")),
    }
}

/// NAME:INSIDE[:ro]; neither may hold a colon.
fn volume(text: &str) -> Result<(String, OsString, bool), Problem> {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [name, inside] => Ok(((*name).into(), inside.into(), false)),
        [name, inside, "ro"] => Ok(((*name).into(), inside.into(), true)),
        _ => Err(invalid("--volume wants NAME:INSIDE or NAME:INSIDE:ro")),
    }
}

fn size(name: &str, text: &str) -> Result<u64, Problem> {
    size::parse(text).map_err(|_| invalid(format!("--{name}: {text:?} is not a size like 64M, 1G or 4096")))
}

fn seconds(name: &str, text: &str) -> Result<Duration, Problem> {
    let time = text.parse::<f64>().ok().and_then(|n| Duration::try_from_secs_f64(n).ok());
    time.ok_or_else(|| invalid(format!("--{name}: {text:?} is not a number of seconds")))
}

fn number(name: &str, text: &str) -> Result<u32, Problem> {
    text.parse().map_err(|_| invalid(format!("--{name}: {text:?} is not a number")))
}
