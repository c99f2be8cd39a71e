//! Proof that a sandbox is what its recipe says, from outside, before the command is
//! executed.
//!
//! The command's process has given up then what it gives up (it goes on with what shows in no
//! file, and stops before exec), and the host reads
//! what the kernel shows of it: identity, capabilities, id maps and resource limits for
//! every run (the maps of a live sandbox at its first command only: they are written once,
//! and the ids that `status` shows are by those maps); namespaces and mounts once for every kind of sandbox that an init makes,
//! because those are the same steps each time and cost as much to read as the rest
//! together. None of it comes from the process itself. That the system call filter is in
//! force shows in its own way: the step that installs it is the last before exec, and
//! a failure of it ends the run.
//!
//! Files: `status`, `uid_map`, `gid_map`, `mountinfo` and `ns/` of proc(5); limits by
//! prlimit(2), which tells the same as the file and costs a tenth. Each file of a new
//! process costs some 10 us to open, and every run waits for this.
//! The first process isn't dumpable, and this one still shares its memory: so an
//! ordinary user's host may read all of these but `ns/`.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result, is_exhaustion};
use crate::image::Root;
use crate::net::Network;
use crate::plan::limits::Rlimit;
use crate::plan::namespaces::Ids;
use crate::probe::Layer;
use crate::sandbox::{Mount, MountKind, Sandbox};
use crate::sys;

/// What must be so.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) ids: Ids,
    /// The host program's own ids.
    pub(crate) own: (u32, u32),
    pub(crate) privileged: bool,
    pub(crate) limits: Vec<Rlimit>,
}

/// What is looked at beside what may differ each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks {
    /// The id maps.
    pub(crate) maps: bool,
    /// Namespaces and mounts.
    pub(crate) places: bool,
}

/// Compares a stopped process with what it should be.
pub(crate) fn check(sandbox: &Sandbox, expected: &Expected, pid: u32, looks: Looks) -> Result<()> {
    let process = Process { pid };
    process.status(sandbox, expected)?;
    if looks.maps {
        process.maps(expected)?;
    }
    process.limits(expected)?;
    if looks.places {
        process.namespaces(sandbox, expected)?;
        process.mounts(sandbox)?;
    }
    Ok(())
}

/// There's no looking at it.
pub(crate) fn out_of_sight() -> Error {
    let text = "cannot read back the sandbox: its processes don't show in this program's /proc (mount the one of its own PID namespace, or go on without a look with `prefer(Layer::ReadBack)`)";
    Error::unsupported(text).about(Some(Layer::ReadBack))
}

/// What is gone of a process that was there has ended with it.
fn unread(pid: u32, what: &str, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::new(ErrorKind::Lost, "the command's process ended while it was looked at"),
        _ => unreadable(pid, what, error),
    }
}

fn unreadable(pid: u32, what: &str, error: &io::Error) -> Error {
    // For now: who prefers to go on without a look where none can be had doesn't mean this.
    if let Some(errno) = error.raw_os_error().filter(|errno| is_exhaustion(*errno)) {
        return Error::io("read back", &format!("{what} of process {pid}"), io::Error::from_raw_os_error(errno));
    }
    let why = crate::error::errno_text(error);
    let hint = "is /proc mounted with hidepid? `prefer(Layer::ReadBack)` goes on without a look";
    Error::new(ErrorKind::Unsupported, format!("cannot read back {what} of process {pid}: {why} ({hint})")).about(Some(Layer::ReadBack))
}

/// A process that waits. If it ends, and another gets its number, it executes nothing.
struct Process {
    pid: u32,
}

impl Process {
    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        /// More than all but mountinfo have.
        const USUAL: usize = 4096;
        let (mut file, mut buffer) = (File::open(self.path(name))?, [0; USUAL]);
        let first = file.read(&mut buffer)?;
        let mut bytes = buffer[..first].to_vec();
        // The kernel gives whole lines, so it may stop short of a full buffer.
        if first > USUAL / 2 {
            file.read_to_end(&mut bytes)?;
        }
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn read_on(&self, name: &str) -> Result<String> {
        self.read(name).map_err(|error| unread(self.pid, name, &error))
    }

    fn status(&self, sandbox: &Sandbox, expected: &Expected) -> Result<()> {
        // The first of all: whether it shows at all isn't known before.
        let text = self.read("status").map_err(|error| unreadable(self.pid, "/proc", &error))?;
        const NAMES: [&str; 10] = ["Uid", "Gid", "Groups", "NSpid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
        let mut values = [""; NAMES.len()];
        for (name, value) in text.split('\n').filter_map(|line| line.split_once(':')) {
            if let Some(i) = NAMES.iter().position(|wanted| *wanted == name) {
                values[i] = value.trim_ascii();
            }
        }
        let field = |wanted: &str| NAMES.iter().position(|name| *name == wanted).map_or("", |i| values[i]);
        let numbers = |name: &str| field(name).split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>();
        let (uid, gid) = sandbox.account();
        for (name, outside) in [("Uid", expected.outside(uid, expected.own.0)), ("Gid", expected.outside(gid, expected.own.1))] {
            let found = numbers(name);
            let right = match outside {
                Some(id) => found == [id; 4],
                // A subordinate id, whichever: but none of the host's own.
                None => found.len() == 4 && found.iter().all(|id| *id == found[0] && *id != 0),
            };
            same(name, right, field(name), outside.map_or(String::from("a subordinate id"), |id| id.to_string()))?;
        }
        if expected.ids.groups() {
            let outside: Vec<Option<u32>> = sandbox.groups().iter().map(|group| expected.outside(*group, expected.own.1)).collect();
            let found = numbers("Groups");
            // Subordinate ids may come in another order.
            let right = found.len() == outside.len() && outside.iter().flatten().all(|id| found.contains(id));
            same("Groups", right, field("Groups"), format!("{} groups", outside.len()))?;
        }
        let kept = sandbox.kept_capabilities();
        let ambient = if uid == 0 { 0 } else { kept };
        for (name, set) in [("CapInh", ambient), ("CapPrm", kept), ("CapEff", kept), ("CapBnd", kept), ("CapAmb", ambient)] {
            same(name, u64::from_str_radix(field(name), 16) == Ok(set), field(name), format_args!("{set:016x}"))?;
        }
        same("NoNewPrivs", field("NoNewPrivs") == "1", field("NoNewPrivs"), "1")?;
        let levels = field("NSpid").split_whitespace().count();
        same("NSpid", levels >= 2, field("NSpid"), "a PID namespace below the host's")
    }

    fn maps(&self, expected: &Expected) -> Result<()> {
        for (name, own) in [("uid_map", expected.own.0), ("gid_map", expected.own.1)] {
            let text = self.read_on(name)?;
            let found: Vec<Vec<u32>> = text.lines().map(|l| l.split_whitespace().filter_map(|n| n.parse().ok()).collect()).collect();
            let (right, wanted) = match expected.ids {
                Ids::Range { first, .. } => (found == [vec![0, first, crate::plan::namespaces::RANGE]], format!("0 {first} 65536")),
                Ids::Single { uid, gid } => {
                    let inside = if name == "uid_map" { uid } else { gid };
                    (found == [vec![inside, own, 1]], format!("{inside} {own} 1"))
                }
                Ids::Outer { count } => {
                    let covers = found.iter().filter_map(|line| line.get(2)).sum::<u32>() == count;
                    (covers && found.first().is_some_and(|line| line[..] == [0, own, 1]), format!("0 {own} 1 and subordinate ids"))
                }
            };
            same(name, right, text.trim(), wanted)?;
        }
        Ok(())
    }

    fn limits(&self, expected: &Expected) -> Result<()> {
        for limit in &expected.limits {
            let name = limit.resource.kernel_name();
            let found = sys::rlimit::of(self.pid, limit.resource.number()).map_err(|error| unread(self.pid, name, &error))?;
            let shown = format_args!("{} {}", found.0, found.1);
            same(name, found == (limit.soft, limit.hard), shown, format_args!("{} {}", limit.soft, limit.hard))?;
        }
        Ok(())
    }

    fn namespaces(&self, sandbox: &Sandbox, expected: &Expected) -> Result<()> {
        // Reading these asks for the right to trace.
        if !expected.privileged {
            return Ok(());
        }
        let mut names = vec!["user", "mnt", "pid", "ipc", "uts"];
        names.extend((sandbox.network == Network::None).then_some("net"));
        for name in names {
            let file = format!("ns/{name}");
            let found = fs::read_link(self.path(&file)).map_err(|error| unread(self.pid, &format!("the {name} namespace"), &error))?;
            let own = fs::read_link(format!("/proc/self/{file}")).map_err(|e| Error::io("look at", &format!("the {name} namespace"), e))?;
            same(&format!("the {name} namespace"), found != own, found.display(), "one of its own")?;
        }
        Ok(())
    }

    /// Every mount keeps set-user-ID programs powerless, and device nodes outside of
    /// /dev; what is to be read-only is.
    fn mounts(&self, sandbox: &Sandbox) -> Result<()> {
        let text = self.read_on("mountinfo")?;
        let (mut wanted, binds) = read_only(sandbox);
        for line in text.lines() {
            let mut fields = line.split(' ').skip(4);
            let (Some(place), Some(options)) = (fields.next(), fields.next()) else { continue };
            let has = |option: &str| options.split(',').any(|o| o == option);
            same(place, has("nosuid"), options, "nosuid")?;
            let devices = Path::new(place).starts_with("/dev");
            same(place, has("nodev") || (devices && has("noexec")), options, "nodev, or noexec in /dev")?;
            let in_list = |list: &[String]| list.iter().position(|wanted| wanted == place);
            if in_list(&wanted).or(in_list(&binds)).is_some() {
                same(place, has("ro"), options, "ro")?;
            }
            wanted.retain(|wanted| wanted != place);
        }
        same("mountinfo", wanted.is_empty(), "incomplete", format_args!("with mounts on {}", wanted.join(", ")))
    }
}

/// Where something read-only is mounted, as mountinfo writes it: what must be there, and
/// the recipe's binds. A link may have led those elsewhere, so they needn't.
fn read_only(sandbox: &Sandbox) -> (Vec<String>, Vec<String>) {
    let escaped = |path: &str| path.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012");
    let place = |mount: &Mount| escaped(&mount.inside.components().collect::<PathBuf>().to_string_lossy());
    let places: Vec<String> = sandbox.mounts().iter().map(place).collect();
    // What the recipe mounts on may be anything.
    let free = |path: &String| !places.contains(path);
    let mut wanted: Vec<String> = Vec::new();
    if let Root::Host(layout) = sandbox.root.base() {
        wanted.extend(layout.parts.iter().map(|part| escaped(&part.inside)).filter(free));
    }
    wanted.extend((!sandbox.nesting && !sandbox.borrowed_proc).then(|| String::from("/proc/sys")).filter(free));
    let once = |path: &String| places.iter().filter(|other| *other == path).count() == 1;
    let read_only = sandbox.mounts().iter().filter(|mount| matches!(mount.kind, MountKind::Bind { writable: false, .. }));
    (wanted, read_only.map(place).filter(once).collect())
}

impl Expected {
    /// What an id of the sandbox is outside; `None` for a subordinate one.
    fn outside(&self, id: u32, own: u32) -> Option<u32> {
        match self.ids {
            Ids::Range { first, .. } => Some(first + id),
            Ids::Single { .. } => Some(own),
            Ids::Outer { .. } => (id == 0).then_some(own),
        }
    }
}

fn same(what: &str, right: bool, found: impl Display, wanted: impl Display) -> Result<()> {
    if right {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Setup,
        format!("the sandbox is not what its recipe says: {what} is `{found}`, not {wanted}; nothing was executed"),
    ))
}
