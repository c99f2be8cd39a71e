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
//!   --env K=V  --workdir DIR  --user UID[:GID]  --hostname NAME
//!   --network none|host  --syscalls default|strict|unfiltered|FILE
//!   --prefer LAYER            go on without a layer that can't be had
//!   --stdin FILE  --stdout FILE  --stderr FILE
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
//! The JSON object has these members; what doesn't apply is null:
//!
//! * `outcome`: `exited`, `signaled`, `limit`, `killed` or `error`
//! * `code`, `signal` (`"SIGABRT"`; a real-time signal is `"SIG40"`)
//! * `limit`: `wall_time`, `cpu_time`, `idle_time`, `memory`, `output`, `syscall`
//! * `syscall`: for the latter, its `name` (or null) and `number`
//! * `error`: `kind` and `message`. Kinds: `invalid`, `unsupported`, `image`,
//!   `mount`, `setup`, `exhausted`, `lost`, `io`, `failed`, and for a command that
//!   can't be started `not_found`, `permission_denied`, `is_a_directory`,
//!   `exec_format`, `interpreter_not_found`, `argument_list_too_long`,
//!   `text_file_busy`, `filesystem_loop`, `name_too_long`, `bad_working_directory`,
//!   `exec`
//! * `usage`: `wall_us`, `cpu_us`, `user_us`, `system_us`, `setup_us`, `throttled_us`,
//!   `peak_memory`, `peak_resident`, `page_cache`, `peak_processes`, `oom_kills`,
//!   `fork_failures`, `context_switches`, `preemptions`, `read_bytes`, `written_bytes`,
//!   `scratch`, `scratch_files`, `scratch_full`: see the crate's `Usage`
//! * `evidence`: the outcome and what speaks for it, in one line
//! * `stdout`, `stderr`: `bytes` and `truncated`
//! * `layers`: what stood around the run; `missing`: what could not be had

#[path = "common/size.rs"]
mod size;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cofferdam::{
    Command, CommitOptions, Error, Exit, Image, ImageFormat, Layer, Limit, Network, Output, Sandbox, Stdio, Store, StreamEnd,
    SyscallProfile, Syscalls,
};
use serde_json::{Value, json};

/// What the command line asked for.
struct Options {
    sandbox: Sandbox,
    command: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<OsString>,
    streams: [Option<PathBuf>; 3],
    rootfs: Option<OsString>,
    store: Option<PathBuf>,
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
    if let (Some(path), Some(object)) = (json, describe(&result)) {
        let open_line = matches!(&result, Ok(Done::Outcome(output)) if output.stdout_stream.last_byte.is_some_and(|b| b != b'\n'));
        if let Err(error) = write_json(&path, &object, open_line) {
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
    let sandbox = options.sandbox.clone();
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

fn describe(result: &Result<Done, Problem>) -> Option<Value> {
    let output = match result {
        Ok(Done::Outcome(output)) => output,
        Ok(Done::Answer(_)) => return None,
        Err(problem) => {
            let error = json!({"kind": problem.kind(), "message": problem.message()});
            return Some(json!({
                "outcome": "error", "code": null, "signal": null, "limit": null, "syscall": null, "error": error,
                "usage": null, "evidence": null, "stdout": null, "stderr": null, "layers": null, "missing": null,
            }));
        }
    };
    let (name, code, signal, limit) = match output.status {
        Exit::Code(code) => ("exited", Some(code), None, None),
        Exit::Signal(n) => ("signaled", None, Some(cofferdam::signal_name(n).map_or_else(|| format!("SIG{n}"), String::from)), None),
        Exit::Limit(limit) => ("limit", None, None, Some(limit.name())),
        _ => ("killed", None, None, None),
    };
    let syscall = match output.status {
        Exit::Limit(Limit::Syscall(call)) => json!({"name": call.name(), "number": call.number()}),
        _ => Value::Null,
    };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let usage = &output.usage;
    let stream = |end: StreamEnd| json!({"bytes": end.bytes, "truncated": end.truncated});
    Some(json!({
        "outcome": name, "code": code, "signal": signal, "limit": limit, "syscall": syscall, "error": null,
        "usage": {
            "wall_us": micros(usage.wall), "cpu_us": micros(usage.cpu()), "user_us": micros(usage.user), "system_us": micros(usage.system),
            "setup_us": micros(usage.setup), "throttled_us": usage.throttled.map(micros),
            "peak_memory": usage.peak_memory, "peak_resident": usage.peak_resident, "page_cache": usage.page_cache,
            "peak_processes": usage.peak_processes, "oom_kills": usage.oom_kills, "fork_failures": usage.fork_failures,
            "context_switches": usage.context_switches, "preemptions": usage.preemptions,
            "read_bytes": usage.read_bytes, "written_bytes": usage.written_bytes,
            "scratch": usage.scratch, "scratch_files": usage.scratch_files, "scratch_full": usage.scratch_full,
        },
        "evidence": output.to_string(),
        "stdout": stream(output.stdout_stream), "stderr": stream(output.stderr_stream),
        "layers": output.layers.iter().map(|layer| layer.name()).collect::<Vec<_>>(),
        "missing": output.missing.iter().map(|layer| layer.name()).collect::<Vec<_>>(),
    }))
}

fn write_json(path: &std::path::Path, object: &Value, open_line: bool) -> io::Result<()> {
    if path.as_os_str() == "-" {
        let mut out = io::stdout().lock();
        if open_line {
            out.write_all(b"\n")?;
        }
        writeln!(out, "{object}")?;
        out.flush()
    } else {
        std::fs::write(path, format!("{object}\n"))
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
