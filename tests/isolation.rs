//! What a workload sees, and what it can't reach.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use cofferdam::{Capability, Command, ErrorKind, Exit, Image, Layer, LayerState, MIB, Network, Sandbox, Stdio, Syscalls};
use support::{Need, busybox_root, fresh_dir, is_root};

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(support::patience(Duration::from_secs(30)))
}

fn text(sandbox: &Sandbox, command: impl Into<Command>) -> String {
    let out = sandbox.run(command).expect("it runs");
    assert!(out.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    out.text().into_owned()
}

fn sh(sandbox: &Sandbox, script: &str) -> String {
    text(sandbox, ["sh", "-c", script])
}

/// The fields of /proc/self/status that a workload has.
fn status(sandbox: &Sandbox, field: &str) -> String {
    let all = text(sandbox, ["cat", "/proc/self/status"]);
    let line = all.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("no field {field}")).trim().to_string()
}

fn privileges_are_gone() {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&sandbox(), set), "0000000000000000", "{set}");
    }
    assert_eq!(status(&sandbox(), "NoNewPrivs"), "1");
    assert_eq!(status(&sandbox(), "Seccomp"), "2");
    assert_eq!(status(&sandbox(), "Groups"), "", "supplementary groups");
    for mask in ["SigBlk", "SigIgn"] {
        assert_eq!(status(&sandbox(), mask), "0000000000000000", "{mask}");
    }
}

fn every_namespace_is_its_own() {
    let inside = sh(&sandbox(), "cd /proc/self/ns && for n in user mnt pid ipc uts net cgroup; do echo $n $(readlink $n); done");
    assert_eq!(inside.lines().count(), 7);
    for line in inside.lines() {
        let (name, inside) = line.split_once(' ').expect("two words");
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
        assert_ne!(inside, outside.to_string_lossy(), "{name}");
    }
}

/// Whether this is an ordinary user with further ids: see [`support::with_subordinate_ids`].
fn has_subordinate_ids() -> bool {
    !is_root() && *Sandbox::new().check().expect("a report").state(Layer::SubordinateIds) == LayerState::Works
}

fn ids_are_never_the_hosts_root() {
    // As it's seen from here: in the host's numbers.
    let child = sandbox().spawn(["sleep", "100"]).expect("it starts");
    let map = fs::read_to_string(format!("/proc/{}/uid_map", child.id().expect("alive"))).expect("its map");
    let outside: Vec<u64> = map.lines().map(|line| line.split_whitespace().nth(1).expect("a number").parse().expect("a number")).collect();
    if is_root() {
        assert!(outside.iter().all(|first| *first >= 65_536), "{map}");
    } else {
        let own = u64::from(nix::unistd::geteuid().as_raw());
        assert_eq!(outside[0], own, "{map}");
        assert_eq!(outside.get(1).copied(), has_subordinate_ids().then_some(200_000), "{map}");
    }
    assert_eq!(sh(&sandbox(), "id -u; id -g"), "0\n0\n");
    assert_eq!(
        sh(&sandbox().user(1000, 1001), "id -u; id -g; whoami; echo $HOME; touch $HOME/x && echo ok"),
        "1000\n1001\nuser\n/home/user\nok\n"
    );
}

fn two_sandboxes_of_root_have_different_ids() {
    let sandbox = sandbox();
    let first = sandbox.spawn(["sleep", "100"]).expect("it starts");
    let second = sandbox.spawn(["sleep", "100"]).expect("it starts");
    let uid = |pid: Option<u32>| {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.expect("alive"))).expect("its status");
        status.lines().find_map(|l| l.strip_prefix("Uid:")).expect("a line").to_string()
    };
    assert_ne!(uid(first.id()), uid(second.id()));
}

fn nothing_of_the_host_is_in_sight() {
    let secret = fresh_dir("secret-");
    fs::write(secret.join("file"), "secret").expect("a file");
    let script = format!("ls -d /home/* /root/* /var/lib /run/* {} /sys /boot 2>/dev/null; true", secret.display());
    assert_eq!(sh(&sandbox(), &script), "");
    // The mount table names no host path but those that are shown.
    let table = text(&sandbox(), ["cat", "/proc/self/mountinfo"]);
    for line in table.lines() {
        let point = line.split(' ').nth(4).expect("a mount point");
        let known = ["/usr", "/etc/", "/proc", "/dev", "/bin", "/lib", "/sbin"];
        assert!(point == "/" || known.iter().any(|k| point.starts_with(k)), "{line}");
    }
    assert!(!table.contains("/mnt"), "init's own places are gone: {table}");
    // One process besides the command: PID 1, which is closed.
    assert_eq!(sh(&sandbox(), "set -- /proc/[0-9]*; echo $# $$"), "2 2\n");
}

fn pid_1_is_closed_to_the_workload() {
    for attempt in [
        "readlink /proc/1/exe",
        "head -c 1 /proc/1/exe",
        "head -c 1 /proc/1/mem",
        "head -c 1 /proc/1/maps",
        "head -c 1 /proc/1/environ",
        "ls /proc/1/root/",
        "ls /proc/1/fd/",
        "readlink /proc/1/ns/mnt",
    ] {
        let out = sandbox().run(["sh", "-c", attempt]).expect("it runs");
        assert!(!out.success() && out.stdout.is_empty(), "{attempt}: {}", out.text());
    }
    // Signals don't reach it, so that the end of the run is always told.
    assert_eq!(sh(&sandbox(), "kill -9 1; kill -TERM 1; kill -STOP 1; echo still here"), "still here\n");
}

fn the_host_root_is_read_only_and_scratch_is_limited() {
    let out = sandbox().run(["sh", "-c", "touch /usr/x || touch /bin/x || touch /dev/x || touch /etc/alternatives/x"]).expect("it runs");
    assert_eq!(out.status, Exit::Code(1), "{}", String::from_utf8_lossy(&out.stderr));
    let small = sandbox().writable(2 * MIB).writable_files(100);
    let out = small.run(["dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=10"]).expect("it runs");
    assert!(String::from_utf8_lossy(&out.stderr).contains("No space left"), "{}", String::from_utf8_lossy(&out.stderr));
    // /tmp and /dev/shm share the one limit.
    let out =
        small.run(["sh", "-c", "dd if=/dev/zero of=/tmp/a bs=1M count=1 && dd if=/dev/zero of=/dev/shm/b bs=1M count=1"]).expect("it runs");
    assert!(!out.success(), "one limit for both");
    let out = small.run(["sh", "-c", "i=0; while [ $i -lt 200 ]; do : > /tmp/$i || exit 9; i=$((i+1)); done"]).expect("it runs");
    assert!(!out.success(), "inodes");
}

/// A sandbox on an image. An ordinary user's overlay needs a tmpfs with user.*
/// attributes: where the kernel has none, `None`, and the refusal says so.
fn on_image(root: impl AsRef<Path>) -> Option<Sandbox> {
    let sandbox = sandbox().rootfs(Image::dir(root));
    if is_root() || support::kernel() >= (6, 6) {
        return Some(sandbox);
    }
    let error = sandbox.run("true").expect_err("no user.* attributes");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("needs Linux 6.6"), "{error}");
    None
}

fn mounts_are_nosuid_and_nodev() {
    let image = on_image(busybox_root()).map(|sandbox| sandbox.tmpfs("/t", MIB));
    for sandbox in [Some(sandbox()), image].into_iter().flatten() {
        for line in text(&sandbox, ["cat", "/proc/self/mountinfo"]).lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (point, options) = (fields[4], fields[5]);
            assert!(options.contains("nosuid"), "{line}");
            let device = point.starts_with("/dev/") && !point.starts_with("/dev/shm");
            assert!(options.contains("nodev") || device && options.contains("noexec"), "{line}");
        }
    }
}

fn message_queues_work_and_are_its_own() {
    let program = "import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
def must(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
if os.listdir('/dev/mqueue'): print('not the first')
q = must(c.mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o600, None))
must(c.mq_send(q, b'message', 7, 0))
print(os.listdir('/dev/mqueue'))
b = ctypes.create_string_buffer(8192)
length = must(c.mq_receive(q, b, 8192, None))
print(b.raw[:length])
if os.fork() == 0:
    must(c.mq_open(b'/queue', os.O_RDWR))
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))";
    let mut users = vec![sandbox()];
    if is_root() {
        users.push(sandbox().user(1000, 1000));
    }
    for sandbox in users {
        let instance = sandbox.start().expect("it starts");
        for run in [sandbox.run(["python3", "-c", program]), instance.run(["python3", "-c", program])] {
            let out = run.expect("it runs");
            assert_eq!(
                (out.text().as_ref(), out.success()),
                ("['queue']\nb'message'\n0\n", true),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
        // It's the instance's as long as that lives, and no longer.
        assert_eq!(instance.run(["ls", "/dev/mqueue"]).expect("it runs").text(), "queue\n");
    }
}

fn devices_are_the_default_ones_and_work() {
    let names = sh(&sandbox(), "ls /dev | tr '\\n' ' '");
    assert_eq!(names.trim(), "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero");
    assert_eq!(sh(&sandbox(), "echo x > /dev/null; head -c 3 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c"), " 00 00 00\n8\n");
    let out = sandbox().run(["sh", "-c", "echo x > /dev/full"]).expect("it runs");
    assert!(!out.success());
    assert_eq!(sh(&sandbox(), "ls /sys 2>/dev/null; echo none"), "none\n", "no sysfs");
    // A terminal of its own.
    let program = "import pty, os\nm, s = os.openpty()\nprint(os.ttyname(s))";
    if support::which("python3").is_some() {
        assert_eq!(text(&sandbox(), ["/usr/bin/python3", "-c", program]), "/dev/pts/0\n");
    }
}

fn the_network_is_loopback_only() {
    let lines = text(&sandbox(), ["cat", "/proc/net/dev"]);
    let names: Vec<&str> = lines.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).collect();
    assert_eq!(names, ["lo"]);
    let server = "import socket\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\nc = socket.create_connection(s.getsockname()); print('up')\n\
                  try: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError as e: print(e.errno)\nprint(socket.gethostbyname('sandbox'))";
    assert_eq!(text(&sandbox(), ["/usr/bin/python3", "-c", server]), format!("up\n{}\n127.0.0.1\n", libc::ENETUNREACH));
    let host = sandbox().network(Network::Host);
    assert_eq!(text(&host, ["readlink", "/proc/self/ns/net"]).trim(), fs::read_link("/proc/self/ns/net").expect("ours").to_string_lossy());
}

/// Namespaces are made ahead, so that one could be given out twice, or be in the reach
/// of capabilities that it wasn't made for.
fn live_sandboxes_share_no_network() {
    let names = |sandbox: &Sandbox| {
        let script = "readlink /proc/self/ns/net; read x";
        let live: Vec<_> = (0..5)
            .map(|_| {
                let command = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
                let mut child = sandbox.spawn(command).expect("it starts");
                let mut name = String::new();
                BufReader::new(child.stdout.take().expect("piped")).read_line(&mut name).expect("a name");
                (child, name)
            })
            .collect();
        live.into_iter().map(|(_child, name)| name).collect::<BTreeSet<_>>()
    };
    let with_capabilities = sandbox().capabilities([Capability::NetBindService]);
    let all: BTreeSet<String> = names(&sandbox()).into_iter().chain(names(&with_capabilities)).collect();
    assert!(names(&sandbox()).len() == 5 && names(&with_capabilities).len() == 5 && all.iter().all(|n| n.starts_with("net:[")), "{all:?}");
    // A port below 1024 needs power over the network, which is the sandbox's own only if
    // it was made for it.
    let bind = "import socket\ns = socket.socket()\ntry: s.bind(('127.0.0.1', 80)); print('bound')\nexcept OSError as e: print(e.errno)";
    assert_eq!(text(&with_capabilities, ["/usr/bin/python3", "-c", bind]), "bound\n");
    assert_eq!(text(&sandbox(), ["/usr/bin/python3", "-c", bind]), format!("{}\n", libc::EACCES));
}

/// Whatever can be done to a network namespace is done; those after it look for it.
fn what_a_run_does_to_its_network_reaches_nobody() {
    const SEEN: &str = "cd /proc/net && cat dev snmp netstat unix tcp udp raw igmp route; head -1 sockstat
        for f in snmp6 ip6_flowlabel if_inet6 igmp6 mcfilter6 anycast6 ipv6_route tcp6 udp6; do [ ! -e $f ] || cat $f; done";
    let seen = || sh(&sandbox(), SEEN);
    let fresh = seen();
    let marks = [
        "s = socket(AF_INET, SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 9))",
        "s = socket(AF_INET, SOCK_DGRAM); s.connect_ex(('192.0.2.1', 9))",
        "s = socket(AF_INET6, SOCK_DGRAM); s.connect_ex(('2001:db8::1', 9))",
        "l = socket(); l.bind(('127.0.0.1', 0)); l.listen(); c = create_connection(l.getsockname()); a, _ = l.accept(); a.close(); c.close()",
        "s = socket(AF_INET6, SOCK_DGRAM); s.setsockopt(IPPROTO_IPV6, 32, inet_pton(AF_INET6, '::1') + pack('>I', 77) + pack('=BBHHHI', 0, 1, 1, 60, 60, 0))",
        "s = socket(AF_INET, SOCK_DGRAM); s.setsockopt(IPPROTO_IP, IP_ADD_MEMBERSHIP, inet_aton('224.0.0.251') + inet_aton('127.0.0.1'))",
        // A listener that nobody can close any more: it's on its way to itself.
        "l = socket(AF_UNIX); l.bind('\\0name'); l.listen(); a, b = socketpair(); a.sendmsg([b'x'], [(SOL_SOCKET, SCM_RIGHTS, pack('iii', l.fileno(), a.fileno(), b.fileno()))])",
    ];
    for mark in marks {
        // What IPv6 is needed for may fail where there's none.
        let script = format!("from socket import *\nfrom struct import pack\ntry:\n {mark}\nexcept OSError as e: print(e)");
        text(&sandbox(), ["python3", "-c", &script]);
        for _ in 0..4 {
            let new: Vec<String> = seen().lines().filter(|line| !fresh.lines().any(|other| other == *line)).map(String::from).collect();
            assert!(new.is_empty(), "after {mark}: {new:?}");
        }
    }
}

fn only_a_network_out_of_reach_serves_again() {
    let network = |sandbox: &Sandbox| text(sandbox, ["readlink", "/proc/self/ns/net"]);
    let strict = sandbox().syscalls(Syscalls::Strict);
    let mut all = BTreeSet::new();
    // How soon depends on how busy the machine is.
    assert!((0..200).any(|_| !all.insert(network(&strict))), "{} runs, each with another one", all.len());
    // To look at another's namespaces takes the right to trace, which Yama keeps from an
    // ordinary user.
    if !is_root() {
        return;
    }
    // Somebody holds each of these, or its number could be another's.
    let mut held = Vec::new();
    for _ in 0..8 {
        let child = sandbox().spawn(Command::new("sleep").arg("100")).expect("it starts");
        held.push(fs::File::open(format!("/proc/{}/ns/net", child.id().expect("it lives"))).expect("its network"));
    }
    let numbers: BTreeSet<u64> = held.iter().map(|file| file.metadata().expect("a number").ino()).collect();
    assert_eq!(numbers.len(), held.len());
}

fn refused_system_calls_say_so() {
    let out = sandbox().run(["unshare", "-U", "true"]).expect("it runs");
    assert!(String::from_utf8_lossy(&out.stderr).contains("Operation not permitted"), "{}", String::from_utf8_lossy(&out.stderr));
    let out = sandbox().run(["mount", "-t", "tmpfs", "x", "/tmp"]).expect("it runs");
    assert!(!out.success());
    let i386 = "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n\
                ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()";
    if cfg!(target_arch = "x86_64") {
        let out = sandbox().run(["/usr/bin/python3", "-c", i386]).expect("it runs");
        assert_eq!(out.status, Exit::Signal(libc::SIGSYS), "the i386 system call table: {}", String::from_utf8_lossy(&out.stderr));
    }
}

fn limits_have_finite_defaults() {
    let limits = text(&sandbox(), ["cat", "/proc/self/limits"]);
    let value = |name: &str| limits.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}")).to_string();
    assert!(value("Max core file size").contains(" 1 "), "{}", value("Max core file size"));
    assert!(value("Max open files").contains(" 1024 "));
    assert!(value("Max nice priority").contains(" 0 "));
    for name in ["Max file size", "Max processes", "Max locked memory", "Max msgqueue size", "Max pending signals"] {
        assert!(!value(name).contains("unlimited"), "{}", value(name));
    }
    for name in ["Max address space", "Max data size"] {
        assert!(value(name).contains("unlimited"), "{}", value(name));
    }
    let own = sandbox().open_files(64).stack(MIB).file_size(4096);
    assert_eq!(sh(&own, "ulimit -n; ulimit -s; ulimit -f"), "64\n1024\n8\n");
    let out = own.run(["dd", "if=/dev/zero", "of=/tmp/x", "bs=4096", "count=2"]).expect("it runs");
    assert_eq!(out.status, Exit::Signal(libc::SIGXFSZ));
}

fn environment_and_session_are_clean() {
    assert_eq!(
        sh(&sandbox(), "env | sort | grep -v ^PWD= | grep -v ^_= | grep -v ^SHLVL= | grep -v OLDPWD"),
        format!("HOME=/root\nLANG=C.UTF-8\nPATH={PATH}\n")
    );
    assert_eq!(sh(&sandbox(), "umask; pwd; hostname"), "0022\n/\nsandbox\n");
    assert_eq!(sh(&sandbox().hostname("box-7"), "hostname; cat /etc/hostname; grep -c box-7 /etc/hosts"), "box-7\nbox-7\n1\n");
    // Session leader, no terminal, nothing but the standard descriptors (3 is the
    // directory that ls reads; a shell would have pipes of its own for a moment).
    assert_eq!(sh(&sandbox(), "cut -d' ' -f 1,5,6,7 /proc/$$/stat"), "2 2 2 0\n");
    assert_eq!(text(&sandbox(), ["ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn binds_show_what_they_name() {
    let dir = fresh_dir("bind-");
    fs::write(dir.join("file"), "hello").expect("a file");
    let sandbox = sandbox().bind(&dir, "/data/in").bind(dir.join("file"), "/etc/one").tmpfs("/scratch", MIB).file("/work/a.txt", "text");
    assert_eq!(sh(&sandbox, "cat /data/in/file /etc/one /work/a.txt; touch /scratch/x && ls /scratch"), "hellohellotextx\n");
    let out = sandbox.run(["touch", "/data/in/new"]).expect("it runs");
    assert!(!out.success(), "read-only");
    assert!(!dir.join("new").exists());
    // Order doesn't matter: parents come first.
    let nested = support_nested(&dir);
    assert_eq!(sh(&nested, "cat /a/b/file"), "hello");
}

fn support_nested(dir: &Path) -> Sandbox {
    sandbox().bind(dir, "/a/b").tmpfs("/a", MIB)
}

fn writable_binds_keep_owners_and_refuse_set_id_bits() {
    let dir = fresh_dir("rw-");
    if is_root() {
        std::os::unix::fs::chown(&dir, Some(1000), Some(1000)).expect("chown");
    }
    let bound = sandbox().bind_rw(&dir, "/data");
    let user = if has_subordinate_ids() {
        // Only the sandbox's root is the host's user.
        assert_eq!(sh(&bound.clone().user(1000, 1000), "touch /data/new || stat -c %u:%g /data"), "0:0\n");
        0
    } else {
        1000
    };
    let sandbox = bound.user(user, user);
    assert_eq!(sh(&sandbox, "echo kept > /data/new; stat -c %u:%g /data/new"), format!("{user}:{user}\n"));
    assert_eq!(fs::read_to_string(dir.join("new")).expect("it's there"), "kept\n");
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(dir.join("new")).expect("metadata").uid();
    assert_eq!(owner, if is_root() { 1000 } else { nix::unistd::geteuid().as_raw() });
    // A set-user-ID file would keep its power outside.
    for script in ["chmod u+s /data/new", "chmod 2755 /data/new", "install -m 4755 /bin/true /data/evil"] {
        let out = sandbox.run(["sh", "-c", script]).expect("it runs");
        assert!(!out.success(), "{script}");
    }
    for entry in fs::read_dir(&dir).expect("the directory").flatten() {
        assert_eq!(entry.metadata().expect("metadata").mode() & 0o6000, 0, "{:?}", entry.path());
    }
}

fn missing_objects_are_named() {
    let cases = [
        (sandbox().bind("/no/such/place", "/x"), ErrorKind::Mount, "/no/such/place"),
        (sandbox().rootfs(Image::dir("/no/such/root")), ErrorKind::Image, "/no/such/root"),
        (sandbox().rootfs(Image::dir("/etc/passwd")), ErrorKind::Image, "/etc/passwd"),
        (sandbox().file("/usr/bin/new", "x"), ErrorKind::Mount, "/usr/bin/new"),
        (sandbox().rlimit(cofferdam::Resource::OpenFiles, 1 << 40, 1 << 40), ErrorKind::Unsupported, "RLIMIT_NOFILE"),
    ];
    for (sandbox, kind, object) in cases {
        let error = sandbox.run("true").expect_err(object);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(object), "{error}");
        assert!(error.to_string().starts_with("cannot "), "{error}");
    }
    if !is_root() {
        let error = sandbox().rootfs(Image::dir("/root")).run("true").expect_err("unreadable");
        assert_eq!(error.kind(), ErrorKind::Image, "{error}");
        assert!(error.to_string().contains("/root"), "{error}");
    }
}

fn an_unpacked_root_is_shared_and_never_written() {
    let root = busybox_root();
    let before = fs::read_dir(&root).expect("the root").count();
    let Some(sandbox) = on_image(&root) else { return };
    let first = sandbox.spawn(["sh", "-c", "echo mine > /own; read x; cat /own"]).expect("it starts");
    assert_eq!(sh(&sandbox, "cat /own 2>/dev/null; echo other > /own; cat /own"), "other\n");
    drop(first);
    assert_eq!(fs::read_dir(&root).expect("the root").count(), before);
    assert_eq!(sh(&sandbox, "ls / | tr '\\n' ' '"), "bin dev etc proc tmp ");
}

fn images_of_root_have_their_owners_inside() {
    let root = busybox_root();
    let sandbox = sandbox().rootfs(Image::dir(&root));
    assert_eq!(sh(&sandbox, "stat -c %u:%g /bin/busybox; rm /bin/ls; test -e /bin/ls || echo gone; rm -r /bin; echo $?"), "0:0\ngone\n0\n");
    assert!(root.join("bin/ls").exists() || root.join("bin/ls").is_symlink());
}

fn images_on_a_file_system_without_idmapped_mounts_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on a tmpfs");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let root = directory.path().join("root");
    let copied = std::process::Command::new("cp").arg("-a").arg(busybox_root()).arg(&root).status().expect("cp runs");
    assert!(copied.success());
    let sandbox = sandbox().rootfs(Image::dir(&root));
    let owner = "stat -c %u /bin/busybox; echo x > /tmp/x && echo written";
    if support::kernel() >= (6, 3) {
        assert_eq!(sh(&sandbox, owner), "0\nwritten\n");
        return;
    }
    let error = sandbox.run("true").expect_err("tmpfs has none yet");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("Linux 6.3"), "{error}");
    assert!(matches!(sandbox.check().expect("a report").state(Layer::IdMappedMounts), LayerState::Missing(_)));
    let sandbox = sandbox.prefer(Layer::IdMappedMounts);
    assert_eq!(sh(&sandbox, owner), "65534\nwritten\n");
    assert_eq!(sandbox.run("true").expect("it runs").missing, [Layer::IdMappedMounts]);
    let report = sandbox.check().expect("a report");
    assert!(report.works(), "{report}");
    assert!(matches!(report.state(Layer::IdMappedMounts), LayerState::Missing(why) if why.contains("Linux 6.3")), "{report}");
}

/// What is the same for every tree of files: names, sizes and times of change.
fn state(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let (mut states, mut left) = (Vec::new(), vec![directory.to_path_buf()]);
    while let Some(path) = left.pop() {
        let m = fs::symlink_metadata(&path).expect("metadata");
        states.push(format!("{} {} {:o} {}:{} {}", path.display(), m.len(), m.mode(), m.uid(), m.gid(), m.ctime_nsec()));
        if m.is_dir() {
            // What is closed to us is closed to our sandbox.
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    states.sort();
    states
}

fn a_debian_root_works_and_stays_as_it_is() {
    let root = support::debian_root().expect("it was looked for");
    let Some(sandbox) = on_image(&root) else { return };
    let before = state(&root);
    assert!(text(&sandbox, ["apt-get", "--version"]).starts_with("apt "));
    assert!(text(&sandbox, ["dpkg", "-l"]).lines().filter(|line| line.starts_with("ii ")).count() > 50);
    assert_eq!(text(&sandbox, ["perl", "-e", "print join ',', map { $_ ** 2 } 1..4"]), "1,4,9,16");
    let script = "#!/bin/bash\nset -o pipefail\ndeclare -A a=([x]=1 [y]=2)\nfor k in x y; do echo $k=${a[$k]}; done | sort -r > /tmp/out\ncat /tmp/out\n";
    assert_eq!(text(&sandbox.clone().file_mode("/tmp/script", script, 0o755), "/tmp/script"), "y=2\nx=1\n");
    // What every run may write, and what only the owner of the image may.
    assert_eq!(
        sh(&sandbox, "cat /etc/hostname; echo new > /etc/new && rm /etc/issue && cat /etc/new; ls /etc/issue 2>&1 | wc -l"),
        "sandbox\nnew\n1\n"
    );
    let owner = sh(&sandbox, "stat -c %u:%g /etc/passwd");
    let changed =
        sandbox.run(["sh", "-c", "echo user:x:7:7::/:/bin/sh >> /etc/passwd && id -u user && rm -r /var/lib/dpkg"]).expect("it runs");
    if is_root() {
        assert_eq!((owner.as_str(), &*changed.text()), ("0:0\n", "7\n"));
        assert!(changed.success(), "{}", String::from_utf8_lossy(&changed.stderr));
        let docker = sandbox.clone().capabilities(Capability::DOCKER);
        assert_eq!(
            sh(&docker, "useradd --create-home alice && su alice -c 'id -un; echo $HOME; touch ~/x' && stat -c %U /home/alice/x"),
            "alice\n/home/alice\nalice\n"
        );
    } else {
        assert_eq!((owner.as_str(), &*changed.text()), ("65534:65534\n", ""));
        assert!(!changed.success());
    }
    assert_eq!(state(&root), before);
}

/// In a user namespace of the test's own, which a limit of 0 makes useless.
fn used_up_user_namespaces_are_named() {
    if support::is_again() {
        let error = sandbox().run("true").expect_err("the limit is 0");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("user.max_user_namespaces"), "{error}");
        let report = sandbox().check().expect("a report");
        assert!(!report.works());
        assert!(
            matches!(report.state(Layer::UserNamespace), LayerState::Missing(why) if why.contains("user.max_user_namespaces")),
            "{report}"
        );
        return;
    }
    let name = "used_up_user_namespaces_are_named";
    let closed = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    // Somebody else there: capabilities are gone after exec.
    let ordinary = ["unshare", "--user", "--map-user=1234", "--keep-caps", "sh", "-c", closed, "sh", "setpriv", "--ambient-caps=-all"];
    support::again(&ordinary, name);
    if is_root() {
        support::again(&["unshare", "--user", "--map-root-user", "sh", "-c", closed, "sh"], name);
    }
}

/// As an ordinary user to whom a copy of /etc gives subordinate ids.
fn subordinate_ids_are_used_where_there_are_some() {
    if support::is_again() {
        assert!(!is_root());
        let sandbox = sandbox().require(Layer::SubordinateIds);
        let report = sandbox.check().expect("a report");
        assert!(report.works(), "{report}");
        assert_eq!(*report.state(Layer::SubordinateIds), LayerState::Works);
        let map = text(&sandbox, ["cat", "/proc/self/uid_map", "/proc/self/gid_map"]);
        let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
        // As the parent, init's user namespace, numbers them: the user's own id, then the others.
        assert_eq!(lines, [["0", "0", "1"], ["1", "1", "65535"], ["0", "0", "1"], ["1", "1", "65535"]]);
        let docker = sandbox.clone().capabilities(Capability::DOCKER);
        let changes = "touch /tmp/x; chown 33:44 /tmp/x; stat -c %u:%g /tmp/x; setpriv --reuid=1000 --regid=1001 --groups=7 id";
        assert_eq!(sh(&docker, changes), "33:44\nuid=1000 gid=1001 groups=1001,7\n");
        let user = sandbox.user(1000, 1000);
        assert_eq!(sh(&user, "id -u; id -g; touch /tmp/x; stat -c %u:%g /tmp/x"), "1000\n1000\n1000:1000\n");
        return;
    }
    support::with_subordinate_ids("subordinate_ids_are_used_where_there_are_some");
}

fn capabilities_are_what_was_asked_for() {
    let docker = sandbox().capabilities(Capability::DOCKER);
    assert_eq!(status(&docker, "CapEff"), "00000000a80425fb");
    assert_eq!(status(&docker, "CapBnd"), "00000000a80425fb");
    let user = sandbox().user(1000, 1000).capabilities([Capability::NetBindService]);
    assert_eq!(status(&user, "CapEff"), "0000000000000400");
    if is_root() {
        assert_eq!(sh(&docker, "touch /tmp/x; chown 33:44 /tmp/x; stat -c %u:%g /tmp/x"), "33:44\n");
    }
}

fn explain_and_check_tell_what_a_run_does() {
    let plan = sandbox().explain().expect("a plan");
    let text = plan.to_string();
    assert_eq!(text.lines().count(), plan.len());
    for word in ["pivot_root", "no_new_privs", "execute true", "outer", "inner", "command"] {
        assert!(text.contains(word), "{word}");
    }
    let report = sandbox().check().expect("a report");
    assert!(report.works(), "{report}");
    assert_eq!(*report.state(Layer::UserNamespace), LayerState::Works);
    let bad = sandbox().rootfs(Image::dir("/no/such")).check().expect("a report");
    assert!(!bad.works());
    assert!(bad.to_string().contains("/no/such"), "{bad}");
}

/// vm.memfd_noexec=2 refuses executable memfds; it holds for a PID namespace.
fn init_starts_where_memfds_cannot_be_executed() {
    if support::is_again() {
        assert_eq!(fs::read_to_string("/proc/sys/vm/memfd_noexec").expect("the setting").trim(), "2");
        assert_eq!(sh(&sandbox(), "echo $((6 * 7))"), "42\n");
        return;
    }
    let refuse = "echo 2 > /proc/sys/vm/memfd_noexec && exec \"$@\"";
    support::again(
        &["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", refuse, "sh"],
        "init_starts_where_memfds_cannot_be_executed",
    );
}

fn main() {
    support::main_with_subordinate_ids(vec![
        test!(privileges_are_gone),
        test!(every_namespace_is_its_own),
        test!(ids_are_never_the_hosts_root),
        test!(two_sandboxes_of_root_have_different_ids, root),
        test!(nothing_of_the_host_is_in_sight),
        test!(pid_1_is_closed_to_the_workload),
        test!(the_host_root_is_read_only_and_scratch_is_limited),
        test!(mounts_are_nosuid_and_nodev, Need::Tool("busybox")),
        test!(message_queues_work_and_are_its_own, Need::Tool("python3")),
        test!(devices_are_the_default_ones_and_work),
        test!(live_sandboxes_share_no_network, Need::Tool("python3")),
        test!(the_network_is_loopback_only, Need::Tool("python3")),
        test!(what_a_run_does_to_its_network_reaches_nobody, Need::Tool("python3")),
        test!(only_a_network_out_of_reach_serves_again),
        test!(refused_system_calls_say_so, Need::Tool("python3")),
        test!(limits_have_finite_defaults),
        test!(environment_and_session_are_clean),
        test!(binds_show_what_they_name),
        test!(writable_binds_keep_owners_and_refuse_set_id_bits),
        test!(missing_objects_are_named),
        test!(an_unpacked_root_is_shared_and_never_written, Need::Tool("busybox")),
        test!(images_of_root_have_their_owners_inside, root),
        test!(images_on_a_file_system_without_idmapped_mounts_are_refused, root, Need::Tool("busybox")),
        test!(a_debian_root_works_and_stays_as_it_is, Need::DebianRoot),
        test!(used_up_user_namespaces_are_named),
        test!(subordinate_ids_are_used_where_there_are_some, root, Need::Tool("newuidmap")),
        test!(capabilities_are_what_was_asked_for),
        test!(explain_and_check_tell_what_a_run_does),
        test!(init_starts_where_memfds_cannot_be_executed, root, Need::MemfdNoexec),
    ])
}
