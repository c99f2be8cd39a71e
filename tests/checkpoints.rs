//! Checkpoints: the files of a live sandbox as what others start from.

mod support;

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use cofferdam::{ChangeKind, Checkpoint, Child, Command, CommitOptions, ErrorKind, Image, Instance, Layer, MIB, Sandbox, Stdio, Syscalls};
use support::processes::eventually;
use support::{Need, host, shell};

const LONG: Duration = Duration::from_secs(30);
/// The first id of the last range.
const ONLY_RANGE: u32 = 0xfffe_0000;

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(support::patience(LONG))
}

fn start() -> Instance {
    sandbox().start().expect("it starts")
}

/// What a script prints in a live sandbox.
#[track_caller]
fn prints(instance: &Instance, script: &str) -> String {
    instance.run(shell(script)).expect("it runs").exit_ok().expect("success").text().into_owned()
}

/// What a script prints in a fresh sandbox.
#[track_caller]
fn run(sandbox: &Sandbox, script: &str) -> String {
    sandbox.run(shell(script)).expect("it runs").exit_ok().expect("success").text().into_owned()
}

/// A process that stays, when it has done what the script says.
fn ready(instance: &Instance, script: &str) -> Child {
    let command = shell(&format!("{script}; echo ready; exec sleep 1000")).stdout(Stdio::piped());
    let mut child = instance.spawn(command).expect("it starts");
    let mut line = [0; 6];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut line).expect("it's ready");
    child
}

fn checkpoint(instance: &mut Instance) -> Checkpoint {
    instance.checkpoint().expect("a checkpoint")
}

fn a_hundred_cases_run_against_one_checkpoint() {
    let source = "#include <fstream>\n#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << '\\n';
        if (std::ifstream(\"/tmp/seen\")) std::cout << \"not the first\\n\"; std::ofstream(\"/tmp/seen\") << a; }";
    let mut instance = sandbox().wall_time(4 * LONG).user(1000, 1000).start().expect("it starts");
    instance.write("/tmp/sum.cpp", source).expect("a file");
    instance.run(["g++", "-o", "/tmp/sum", "/tmp/sum.cpp"]).expect("it runs").exit_ok().expect("it compiles");
    let compiled = checkpoint(&mut instance);
    drop(instance);
    let sandbox = compiled.sandbox().memory(64 * MIB).prefer(Layer::MemoryLimit).processes(8);
    for n in 0..100 {
        let out = sandbox.run(Command::new("/tmp/sum").stdin(format!("{n} 1\n"))).expect("it runs");
        assert_eq!(out.exit_ok().expect("success").text(), format!("{}\n", n + 1));
    }
}

fn a_case_finds_nothing_of_the_one_before() {
    let program = support::compile_c("leftovers", include_str!("programs/leftovers.c"), &["-static"]);
    // Without a filter, so that keys and queues of each kind can be left.
    let recipe = sandbox().syscalls(Syscalls::Unfiltered).tmpfs("/scratch", MIB);
    let mut instance = recipe.start().expect("it starts");
    instance.copy_in(&program, "/var/tmp/leftovers").expect("it's copied");
    prints(&instance, "mkdir /tmp/d; chmod 777 /tmp/d");
    let prepared = checkpoint(&mut instance);
    let places = ["/tmp/left", "/tmp/d/left", "/var/tmp/left", "/root/left", "/dev/shm/left", "/scratch/left", "/etc/left"];
    let case = || Command::new("/var/tmp/leftovers").args(places);
    let text = |out: cofferdam::Output| format!("{}{}", out.text(), String::from_utf8_lossy(&out.stderr));
    for _ in 0..3 {
        assert_eq!(text(prepared.sandbox().run(case()).expect("it runs")), "done\n");
    }
    // The same instance again: now the program finds what it looks for.
    assert_eq!(text(instance.run(case()).expect("it runs")), "done\n");
    let again = text(instance.run(case()).expect("it runs"));
    for what in places.into_iter().chain(["System V memory", "System V queue", "System V semaphore", "POSIX queue"]) {
        assert!(again.contains(what), "the program doesn't look for {what}: {again}");
    }
    instance.reset().expect("it's as it was");
    assert_eq!(text(instance.run(case()).expect("it runs")), "done\n");
    for fork in prepared.fork(2).expect("two of them") {
        assert_eq!(text(fork.run(case()).expect("it runs")), "done\n");
    }
}

/// Everything that a program can ask for, and nothing that differs between any two sandboxes,
/// such as numbers of inodes, devices and mounts, or that the whole machine has in common.
const ASK: &str = r#"
    find /tmp /var/tmp -mindepth 1 -printf '%p %y %m %U %G %s %T@ %A@ %C@ %l\n' | sort
    find / -xdev \( -path /usr -o -path /proc \) -prune -o -printf '%p %y %m %U %G %s\n' 2>/dev/null | sort
    for place in /tmp /tmp/d /dev/shm /scratch /var/tmp; do df --output=used,iused $place | tail -1; done
    id; umask; hostname; cat /proc/sys/kernel/domainname; ulimit -aS; ulimit -aH; cat /proc/self/oom_score_adj; nice; env | sort; ls /proc
    cat /proc/sysvipc/*; ipcs -l; ls -A /dev/mqueue; cat /proc/sys/fs/mqueue/* /proc/sys/kernel/sem /proc/sys/kernel/shm* /proc/sys/kernel/msg*
    grep -v OFDLCK /proc/locks; cat /proc/net/unix /proc/net/tcp /proc/net/udp | sed 's/^[0-9a-f]*: //'; wc -l </proc/net/netlink; cat /proc/net/dev
    cat /proc/net/snmp; grep -o 'inuse [0-9]*' /proc/net/sockstat; cat /proc/sys/net/ipv4/ip_local_port_range; cat /proc/net/route /proc/net/arp
    ls /dev/pts; cut -d' ' -f4- /proc/self/mountinfo | sed 's/[ug]id=[0-9]*//g' | sort; cat /proc/1/cgroup; cat /proc/sys/user/*
    cat /proc/1/timerslack_ns /proc/self/coredump_filter /proc/self/personality 2>/dev/null; echo $$
"#;

/// What a hostile case does so that the next one behaves otherwise, beside what
/// `leftovers.c` leaves.
const SPOIL: &str = r#"
import ctypes, fcntl, os, resource, signal, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def tries(what):
    try: what()
    except OSError: pass
def write(path, text):
    with open(path, 'w') as file: file.write(text)
for name in ['hostname', 'domainname', 'msgmax', 'shmall', 'sem', 'shm_rmid_forced', 'ns_last_pid']:
    tries(lambda: write('/proc/sys/kernel/' + name, '7'))
for name in os.listdir('/proc/sys/fs/mqueue'): tries(lambda: write('/proc/sys/fs/mqueue/' + name, '7'))
tries(lambda: write('/proc/sys/net/ipv4/ip_local_port_range', '2000 3000'))
tries(lambda: socket.sethostname('spoilt'))
for name in ['one', 'two']:
    tries(lambda: write('/etc/' + name, name))
# Of what all copies have below them: times, locks, watches, leases, attributes.
file = open('/tmp/base', 'r+')
file.read(); tries(lambda: fcntl.flock(file, fcntl.LOCK_EX)); tries(lambda: fcntl.lockf(file, fcntl.LOCK_EX))
reader = open('/tmp/lower')
reader.read()
tries(lambda: fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK))
os.listdir('/tmp/d'); os.readlink('/tmp/link'); tries(lambda: os.utime('/tmp/d/inner', (1, 1)))
tries(lambda: os.setxattr('/tmp/d', b'user.left', b'x'))
watch = libc.inotify_init1(0); libc.inotify_add_watch(watch, b'/tmp', 0xfff); libc.inotify_add_watch(watch, b'/tmp/lower', 0xfff)
os.rename('/tmp/d/inner', '/tmp/inner'); os.rmdir('/tmp/d'); os.unlink('/tmp/link'); os.mkfifo('/tmp/fifo')
# Of its own limits and counters, and of its network's.
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); os.umask(0o777); os.nice(5)
tries(lambda: resource.prlimit(1, resource.RLIMIT_NPROC, (1, 1)))
tries(lambda: write('/proc/self/oom_score_adj', '900')); libc.personality(0x0040000)
server = socket.create_server(('127.0.0.1', 7000)); client = socket.create_connection(('127.0.0.1', 7000)); client.sendall(b'x' * 1000)
for i in range(50):
    segment = libc.shmget(100 + i, 4096, 0o1666)
    if i % 2: libc.shmctl(segment, 0, 0)
signal.setitimer(signal.ITIMER_REAL, 1000)
for i in range(30): subprocess.run(['true'])
master, slave = os.openpty() if os.path.exists('/dev/ptmx') else (0, 0)
if os.fork() == 0: os.setsid(); os.execvp('sleep', ['sleep', '1000'])
print('done')
"#;

/// The next case can't tell what the one before was, from what it left, shifted or wore out.
fn a_case_sees_what_it_would_have_seen_as_the_first() {
    let program = support::compile_c("leftovers", include_str!("programs/leftovers.c"), &["-static"]);
    let recipe = sandbox().syscalls(Syscalls::Unfiltered).tmpfs("/scratch", MIB);
    let mut instance = recipe.start().expect("it starts");
    instance.copy_in(&program, "/var/tmp/leftovers").expect("it's copied");
    prints(
        &instance,
        "mkdir /tmp/d; echo 1 >/tmp/d/inner; echo base >/tmp/base; echo lower >/tmp/lower; ln -s base /tmp/link; chmod -R 777 /tmp",
    );
    let prepared = checkpoint(&mut instance);
    let spoil = || Command::new("python3").args(["-c", SPOIL]);
    let compare = |how: &str, first: &str, second: &str| {
        let other = first.lines().zip(second.lines()).find(|(first, second)| first != second);
        assert_eq!(other, None, "{how}");
        assert_eq!(first.lines().count(), second.lines().count(), "{how}");
    };
    // As each would be if nothing had ever been there.
    let fresh = run(&prepared.sandbox(), ASK);
    let fork = |prepared: &Checkpoint| prepared.fork(1).expect("a fork").remove(0);
    let live = prints(&fork(&prepared), ASK);
    for _ in 0..2 {
        let (out, left) =
            (prepared.sandbox().run(spoil()).expect("it runs"), prepared.sandbox().run("/var/tmp/leftovers").expect("it runs"));
        assert_eq!(
            (out.text().as_ref(), left.text().as_ref()),
            ("done\n", "done\n"),
            "{out} {left} {}",
            String::from_utf8_lossy(&out.stderr)
        );
        compare("after a run", &fresh, &run(&prepared.sandbox(), ASK));
        compare("in a fork after a run", &live, &prints(&fork(&prepared), ASK));
        // In an instance with somebody who stays, while the other case is there.
        let stays = ready(&instance, "/var/tmp/leftovers >/dev/null");
        assert_eq!(instance.run(spoil()).expect("it runs").text(), "done\n");
        compare("beside it", &fresh, &run(&prepared.sandbox(), ASK));
        // Where PID 1 has the one id that there is, perhaps no other command can be started.
        let seen = instance.run(shell(ASK)).map(|out| out.text().into_owned()).unwrap_or_default();
        assert_ne!(seen, live, "it's seen where it is");
        instance.reset().expect("it's as it was");
        drop(stays);
        compare("after a reset", &live, &prints(&instance, ASK));
        instance.reset().expect("it's as it was");
    }
}

fn forks_do_not_see_each_other() {
    let mut instance = start();
    prints(&instance, "echo base > /tmp/file");
    let forks = checkpoint(&mut instance).fork(3).expect("three of them");
    let mut servers = Vec::new();
    for (i, fork) in forks.iter().enumerate() {
        servers.push(ready(fork, &format!("echo {i} >> /tmp/file; echo {i} > /dev/shm/{i}")));
    }
    thread::scope(|scope| {
        for (i, fork) in forks.iter().enumerate() {
            scope.spawn(move || {
                let seen =
                    prints(fork, "cat /tmp/file; ls /dev/shm; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o '[s]leep 1000' | wc -l");
                assert_eq!(seen, format!("base\n{i}\n{i}\n1\n"));
            });
        }
    });
    assert_eq!(prints(&instance, "cat /tmp/file; ls /dev/shm"), "base\n", "nor does the one that they come of");
}

fn as_root_forks_have_ids_that_are_nobody_elses() {
    let mut instance = start();
    prints(&instance, "touch /tmp/file; chmod 600 /tmp/file");
    let forks = checkpoint(&mut instance).fork(2).expect("two of them");
    let map = |instance: &Instance| prints(instance, "cat /proc/self/uid_map");
    let maps = [map(&instance), map(&forks[0]), map(&forks[1])];
    let equal = [maps[0] == maps[1], maps[1] == maps[2], maps[0] == maps[2]];
    assert_eq!(equal, [support::shares_ids(); 3], "{maps:?}");
    let other = start();
    assert!(!maps.contains(&map(&other)), "{maps:?}");
    for fork in &forks {
        assert_eq!(prints(fork, "stat -c '%u %g %a' /tmp/file; echo mine > /tmp/file; stat -c '%u %g %a' /tmp/file"), "0 0 600\n0 0 600\n");
    }
}

fn shared_ids_are_taken_as_long_as_anybody_has_them() {
    host::alone("shared_ids_are_taken_as_long_as_anybody_has_them", || {
        // The only range that there is for these.
        let recipe = sandbox().id_base(ONLY_RANGE);
        let mut instance = recipe.start().expect("it starts");
        prints(&instance, "echo x > /tmp/file");
        let saved = checkpoint(&mut instance);
        drop(instance);
        let running = saved.sandbox().spawn(shell("sleep 1000")).expect("it starts");
        let above = saved.fork(1).expect("a fork").pop().expect("one").into_checkpoint().expect("a checkpoint");
        let refused = || assert_eq!(recipe.run("true").expect_err("they are taken").kind(), ErrorKind::Exhausted);
        refused();
        assert_eq!(run(&saved.sandbox(), "cat /tmp/file"), "x\n");
        drop(saved);
        refused();
        assert_eq!(run(&above.sandbox(), "cat /tmp/file"), "x\n");
        drop(above);
        refused();
        drop(running);
        assert!(recipe.run("true").expect("it runs").success());
    });
}

fn a_forked_process_has_no_part_in_shared_ids() {
    host::alone("a_forked_process_has_no_part_in_shared_ids", || {
        let saved = checkpoint(&mut start());
        // SAFETY: what is called between fork and exit gets by with it; tests/embedding.rs.
        #[allow(unsafe_code, reason = "a child without exec")]
        let child = match unsafe { libc::fork() } {
            0 => {
                let lost = saved.sandbox().run("true").is_err_and(|error| error.kind() == ErrorKind::Lost);
                // SAFETY: plain numbers.
                unsafe { libc::_exit(i32::from(!lost)) }
            }
            child => child,
        };
        let mut status = 0;
        // SAFETY: a number of our own.
        #[allow(unsafe_code, reason = "the end of that child")]
        unsafe {
            libc::waitpid(child, &raw mut status, 0)
        };
        assert_eq!(status, 0);
        run(&saved.sandbox(), "true");
    });
}

fn who_requires_ids_of_their_own_gets_no_shared_ones() {
    let recipe = sandbox().require(Layer::IdMappedMounts);
    let mut instance = recipe.start().expect("it starts");
    let error = instance.checkpoint().expect_err("tmpfs can't be mapped");
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("Linux 6.3"), "{error}");
    prints(&instance, "echo it goes on");
    let saved = checkpoint(&mut start());
    let error = saved.sandbox().require(Layer::IdMappedMounts).run("true").expect_err("there are none");
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("Linux 6.3"), "{error}");
    run(&saved.sandbox(), "true");
}

/// The host's root, and one whose files stand in an overlay.
fn roots() -> Vec<Image> {
    let mut roots = vec![Image::host()];
    if support::which("busybox").is_some() && (support::is_root() || support::kernel() >= (6, 6)) {
        roots.push(Image::dir(support::busybox_root()));
    }
    roots
}

fn writes_and_deletes_stay_in_a_fork() {
    for root in roots() {
        let mut instance = sandbox().rootfs(&root).start().expect("it starts");
        prints(
            &instance,
            "mkdir -p /tmp/d/e; echo 1 > /tmp/d/e/1; echo 2 > /tmp/d/2; echo long >> /tmp/d/2; ln -s 2 /tmp/d/link; chmod 750 /tmp/d",
        );
        let saved = checkpoint(&mut instance);
        let look = "cd /tmp/d && find . | sort; cat e/1 2 link; stat -c %a .";
        let before = prints(&instance, look);
        let fork = &saved.fork(1).expect("a fork")[0];
        prints(fork, "cd /tmp/d; echo x >> 2; rm e/1; chmod 700 .; mv 2 3; rm link; ln -s 3 link");
        assert_eq!(prints(fork, "cd /tmp/d && find . | sort; cat 3 link"), ".\n./3\n./e\n./link\n2\nlong\nx\n2\nlong\nx\n");
        // A directory that's made anew hides the old one's contents, also in the next layer.
        prints(fork, "rm -r /tmp/d; mkdir /tmp/d; echo new > /tmp/d/new");
        assert_eq!(prints(fork, "ls /tmp/d"), "new\n");
        for root in [saved.sandbox(), sandbox().rootfs(&saved)] {
            assert_eq!(run(&root, look), before);
        }
        prints(&instance, "rm -r /tmp/d; mkdir /tmp/d; echo new > /tmp/d/new");
        let above = checkpoint(&mut instance);
        assert_eq!(prints(&instance, "ls /tmp/d"), "new\n", "what is hidden stays hidden");
        assert_eq!(run(&above.sandbox(), "ls /tmp/d; rm /tmp/d/new; rmdir /tmp/d; mkdir /tmp/d; ls /tmp/d"), "new\n");
        assert_eq!(run(&saved.sandbox(), look), before);
    }
}

fn files_of_the_image_can_be_deleted_in_a_checkpoint() {
    let root = Image::dir(support::busybox_root());
    let mut instance = sandbox().rootfs(root).start().expect("it starts");
    prints(&instance, "rm /bin/wc; mkdir /bin/dir; echo x > /bin/dir/x");
    let saved = checkpoint(&mut instance);
    assert_eq!(run(&saved.sandbox(), "test -e /bin/wc || echo gone; cat /bin/dir/x"), "gone\nx\n");
}

fn a_reset_goes_back_to_the_latest_checkpoint() {
    let mut instance = start();
    for n in 0..3 {
        prints(&instance, &format!("echo {n} >> /tmp/log"));
        checkpoint(&mut instance);
        prints(&instance, "echo dropped >> /tmp/log; touch /tmp/new");
        instance.reset().expect("it's as it was");
    }
    assert_eq!(prints(&instance, "cat /tmp/log; ls /tmp"), "0\n1\n2\nlog\n");
}

fn checkpoints_stack_and_are_dropped_in_any_order() {
    for root in roots() {
        let mut instance = sandbox().rootfs(&root).start().expect("it starts");
        let mut saved = Vec::new();
        for n in 0..20 {
            prints(&instance, &format!("echo {n} >> /tmp/all; echo {n} > /tmp/{n}; rm -f /tmp/$(({n} - 1))"));
            saved.push(checkpoint(&mut instance));
        }
        let expected = |n: usize| (0..=n).map(|i| format!("{i}\n")).collect::<String>() + &format!("{n}\nall\n");
        // First those that others lie on, then every other one.
        saved.drain(..4);
        for n in (4..20).filter(|n| n % 2 == 0) {
            saved.remove(n / 2 - 2);
        }
        drop(instance);
        for (i, saved) in saved.iter().enumerate().rev() {
            assert_eq!(run(&saved.sandbox(), "cat /tmp/all; ls /tmp"), expected(2 * i + 5));
        }
    }
}

fn a_stack_that_is_too_deep_is_an_error_that_changes_nothing() {
    let mut instance = start();
    prints(&instance, "echo here > /tmp/file");
    let error = (0..30).find_map(|_| instance.checkpoint().err()).expect("there's an end");
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("24"), "{error}");
    assert_eq!(prints(&instance, "cat /tmp/file"), "here\n", "it goes on");
}

fn a_running_command_keeps_it_from_happening() {
    let mut instance = start();
    let mut child = ready(&instance, "echo x > /tmp/file");
    let error = instance.checkpoint().expect_err("there's a process");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(child.try_wait().expect("a status"), None, "it goes on");
    instance.kill().expect("a signal");
    child.wait().expect("its end");
    // The handle of a command that has ended is no hindrance.
    let saved = checkpoint(&mut instance);
    assert_eq!(run(&saved.sandbox(), "cat /tmp/file"), "x\n");
    drop(child);
    checkpoint(&mut instance);
}

/// Receives a descriptor by SCM_RIGHTS.
fn receive(stream: &std::os::unix::net::UnixStream) -> fs::File {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (mut byte, mut space) = ([0], nix::cmsg_space!([i32; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).expect("a message");
    let found = message.cmsgs().expect("all of it").find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made it for us.
    #[allow(unsafe_code, reason = "a descriptor out of a control message")]
    unsafe {
        fs::File::from_raw_fd(found.expect("a descriptor"))
    }
}

fn what_a_sandbox_passed_out_cannot_write_to_a_checkpoint() {
    let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/s'); s.listen(); c = s.accept()[0]
f = open('/tmp/file', sys.argv[1]); f.write('old') if 'w' in sys.argv[1] else None; f.flush(); socket.send_fds(c, [b'x'], [f.fileno()])";
    for (mode, writable) in [("w+", true), ("r", false)] {
        let mut instance = start();
        instance.write("/tmp/file", "old").expect("a file");
        let mut server = instance.spawn(["python3", "-c", script, mode]).expect("it starts");
        let stream = instance.connect_unix("/tmp/s", support::patience(LONG)).expect("a connection");
        let mut file = receive(&stream);
        assert!(server.wait().expect("its end") == cofferdam::Exit::Code(0));
        if writable {
            let saved = instance.into_checkpoint().expect("nobody has looked yet");
            let error = saved.sandbox().run("true").expect_err("somebody could write to it");
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("open for writing"), "{error}");
            file.write_all(b" and new").expect("it's open for writing");
            // Without that step nothing keeps it from happening.
            let unsealed = saved.sandbox().without_step("seal the checkpoint");
            assert_eq!(run(&unsealed, "cat /tmp/file"), "old and new");
            file.write_all(b" and newer").expect("it's open for writing");
            assert_eq!(run(&saved.sandbox(), "cat /tmp/file"), "old and new and newer");
        } else {
            let saved = checkpoint(&mut instance);
            file.write_all(b"x").expect_err("it's open for reading");
            assert_eq!(run(&saved.sandbox(), "cat /tmp/file"), "old");
        }
    }
}

fn each_sandbox_has_a_whole_scratch_layer() {
    let mut instance = sandbox().writable(4 * MIB).start().expect("it starts");
    let fill = "head -c 3000000 /dev/zero > /tmp/$(ls /tmp | wc -l) && echo fits";
    assert_eq!(prints(&instance, fill), "fits\n");
    assert!(!instance.run(shell(fill)).expect("it runs").success(), "there's no room for two");
    prints(&instance, "rm /tmp/1");
    let saved = checkpoint(&mut instance);
    assert_eq!(prints(&instance, fill), "fits\n", "the layer is a new one");
    assert!(!instance.run(shell(fill)).expect("it runs").success(), "and as small");
    let small = saved.sandbox().writable(MIB).run(shell("echo x >> /tmp/0")).expect("it runs");
    assert!(!small.success(), "a file is copied as a whole before it changes");
    assert_eq!(run(&saved.sandbox().writable(8 * MIB), &format!("{fill}; {fill}")), "fits\nfits\n");
}

fn a_recipe_s_files_are_as_the_commands_left_them() {
    let recipe = sandbox().file("/work/a", "a").file("/work/b", "b").tmpfs("/mem", MIB).file("/mem/c", "c").file("/etc/hosts", "mine");
    let mut instance = recipe.start().expect("it starts");
    prints(&instance, "echo changed > /work/a; rm /work/b; echo changed > /mem/c; echo new > /work/new");
    let saved = checkpoint(&mut instance);
    let look = "cat /work/a; ls /work; cat /mem/c; cat /etc/hosts; touch /work/writable";
    assert_eq!(prints(&instance, look), "changed\na\nnew\ncmine");
    assert_eq!(run(&saved.sandbox(), look), "changed\na\nnew\ncmine");
    assert_eq!(run(&saved.sandbox().file("/work/a", "given"), "cat /work/a"), "given");
    // Whose name is another's is told so.
    assert_eq!(run(&saved.sandbox().hostname("other"), "cat /etc/hostname"), "other\n");
    if support::is_root() {
        assert_eq!(run(&saved.sandbox().user(1000, 1000), "whoami; cd; pwd"), "user\n/home/user\n");
    }
}

fn changes_are_those_since_the_latest_checkpoint() {
    for root in roots() {
        let mut instance = sandbox().rootfs(&root).start().expect("it starts");
        assert_eq!(instance.changes().expect("none"), [], "what we made is no change");
        let told = |instance: &Instance| -> Vec<(String, ChangeKind)> {
            let changes = instance.changes().expect("changes");
            changes.into_iter().map(|change| (change.path.to_string_lossy().into_owned(), change.kind)).collect()
        };
        let is = |kind: ChangeKind, path: &str| (path.to_string(), kind);
        prints(&instance, "mkdir -p /tmp/d; echo 1 > /tmp/d/1; echo 2 > /tmp/d/2; echo 3 > /dev/shm/3");
        assert_eq!(told(&instance), ["tmp/d", "tmp/d/1", "tmp/d/2"].map(|path| is(ChangeKind::Added, path)));
        checkpoint(&mut instance);
        assert_eq!(told(&instance), []);
        prints(&instance, "rm /tmp/d/1; echo more >> /tmp/d/2; echo 4 > /tmp/d/4");
        let expected = [is(ChangeKind::Deleted, "tmp/d/1"), is(ChangeKind::Modified, "tmp/d/2"), is(ChangeKind::Added, "tmp/d/4")];
        assert_eq!(told(&instance), expected);
        instance.reset().expect("it's as it was");
        assert_eq!(told(&instance), []);
        prints(&instance, "rm -r /tmp/d");
        checkpoint(&mut instance);
        prints(&instance, "mkdir /tmp/d; echo 5 > /tmp/d/5");
        assert_eq!(told(&instance), [is(ChangeKind::Added, "tmp/d"), is(ChangeKind::Added, "tmp/d/5")], "all of it is new");
    }
}

fn an_instance_is_committed_with_its_checkpoints() {
    let archive = support::fresh_dir("commit-").join("root.tar");
    // Of the run's user, whoever made the tree.
    let mut tar = std::process::Command::new("tar");
    let packed = tar.args(["--owner=0", "--group=0", "-C"]).arg(support::busybox_root()).arg("-cf").arg(&archive).arg(".").status();
    assert!(packed.expect("tar runs").success());
    let store = support::fresh_dir("store-");
    let store = cofferdam::Store::open(store.join("store")).expect("a store");
    let image = Image::options().store(&store).open(&archive).expect("an image");
    let mut instance = sandbox().rootfs(&image).start().expect("it starts");
    prints(&instance, "mkdir /data; echo 1 > /data/1; echo 2 > /data/2; rm /bin/wc");
    checkpoint(&mut instance);
    prints(&instance, "rm /data/1; echo 3 > /data/3; chmod 700 /data");
    let saved = checkpoint(&mut instance);
    prints(&instance, "echo more >> /data/2");
    let look = "ls /data; cat /data/2; stat -c %a /data; test -e /bin/wc || echo gone";
    let committed = instance.commit(&CommitOptions::new().name("mine:1")).expect("an image");
    assert_eq!(store.image("mine:1").expect("by name").id(), committed.id());
    assert_eq!(run(&sandbox().rootfs(&committed), look), prints(&instance, look));
    let fork = saved.sandbox().start().expect("a fork");
    let before = fork.commit(&CommitOptions::new()).expect("an image");
    assert_eq!(run(&sandbox().rootfs(&before), look), "2\n3\n2\n700\ngone\n");
    let of_run = saved.sandbox().keep_changes(true).run(shell("echo run > /data/run")).expect("it runs");
    assert_eq!(of_run.changes().expect("changes").len(), 1, "{:?}", of_run.changes());
    let of_run = of_run.commit(&CommitOptions::new()).expect("an image");
    assert_eq!(run(&sandbox().rootfs(&of_run), "cat /data/run; ls /data"), "run\n2\n3\nrun\n");
    let host = start().commit(&CommitOptions::new()).expect_err("no image");
    assert_eq!(host.kind(), ErrorKind::Invalid, "{host}");
}

/// Memory that files in tmpfs hold, on the whole machine.
fn shared_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("Shmem:")).expect("Shmem");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

const LARGE: u64 = 96 * MIB;

fn large() -> (Instance, Checkpoint) {
    let mut instance = start();
    prints(&instance, &format!("head -c {LARGE} /dev/zero > /tmp/large"));
    let saved = checkpoint(&mut instance);
    (instance, saved)
}

/// Others on the machine use memory too, but nobody so much at once.
fn is_freed(before: u64) -> bool {
    shared_memory() < before - LARGE * 2 / 3
}

fn its_memory_is_freed_with_the_last_user() {
    host::alone("its_memory_is_freed_with_the_last_user", || {
        let (instance, saved) = large();
        let copy = saved.clone();
        drop(saved);
        drop(instance);
        let run = copy.sandbox().spawn(shell("sleep 1000")).expect("it runs");
        let held = shared_memory();
        drop(copy);
        assert!(!is_freed(held), "a sandbox is on it");
        drop(run);
        eventually(LONG, "the memory is free", || is_freed(held));
    });
}

fn nothing_is_left_of_it_after_a_killed_host() {
    let name = "nothing_is_left_of_it_after_a_killed_host";
    if host::inside() {
        let (_instance, saved) = large();
        let _forks = saved.fork(2).expect("two of them");
        host::say("ready");
        loop {
            thread::sleep(LONG);
        }
    }
    let mut host = host::Host::start(name);
    host.hear("ready");
    let held = shared_memory();
    host.kill();
    eventually(LONG, "the memory is free", || is_freed(held));
}

fn it_is_shared_between_threads() {
    fn shared<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    shared::<Checkpoint>();
    let mut instance = start();
    instance.write("/tmp/file", "same").expect("a file");
    let saved = checkpoint(&mut instance);
    thread::scope(|scope| {
        for _ in 0..4 {
            let saved = saved.clone();
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(run(&saved.sandbox(), "cat /tmp/file; rm -f /tmp/file; ls /tmp"), "same");
                }
            });
        }
    });
}

fn what_the_workload_makes_of_its_root_leads_nowhere() {
    // The next sandbox mounts into what the last one has left.
    let outside = support::fresh_dir("outside-");
    fs::write(outside.join("secret"), "secret").expect("a file");
    for root in roots() {
        let mut instance = sandbox().rootfs(&root).start().expect("it starts");
        let script = format!(
            "rm -rf /etc/hostname /etc/hosts /work; ln -s {0} /work; ln -s {0}/secret /etc/hosts; ln -s /proc/1/root /tmp/up; true",
            outside.display()
        );
        instance.run(shell(&script)).expect("it runs");
        let saved = checkpoint(&mut instance);
        let out = saved.sandbox().hostname("other").file("/tmp/up/file", "x").run(shell("cat /etc/hosts /work/secret"));
        let told = out.map(|out| out.text().into_owned()).unwrap_or_default();
        assert!(!told.contains("secret"), "{told}");
        assert_eq!(fs::read(outside.join("secret")).expect("the file"), b"secret");
        assert!(!Path::new("/file").exists());
    }
}

fn main() {
    support::main_with_shared_ids(vec![
        test!(a_hundred_cases_run_against_one_checkpoint, Need::Tool("g++"), Need::Checkpoint),
        test!(a_case_finds_nothing_of_the_one_before, Need::Program("leftovers"), Need::Checkpoint),
        test!(a_case_sees_what_it_would_have_seen_as_the_first, Need::Program("leftovers"), Need::Tool("python3"), Need::Checkpoint),
        test!(forks_do_not_see_each_other, Need::Checkpoint),
        test!(as_root_forks_have_ids_that_are_nobody_elses, root, Need::Checkpoint),
        test!(shared_ids_are_taken_as_long_as_anybody_has_them, root, Need::SharedIds),
        test!(a_forked_process_has_no_part_in_shared_ids, root, Need::SharedIds),
        test!(who_requires_ids_of_their_own_gets_no_shared_ones, root, Need::SharedIds),
        test!(writes_and_deletes_stay_in_a_fork, Need::Checkpoint),
        test!(files_of_the_image_can_be_deleted_in_a_checkpoint, Need::Tool("busybox"), Need::Checkpoint),
        test!(a_reset_goes_back_to_the_latest_checkpoint, Need::Checkpoint),
        test!(checkpoints_stack_and_are_dropped_in_any_order, Need::Checkpoint),
        test!(a_stack_that_is_too_deep_is_an_error_that_changes_nothing, Need::Checkpoint),
        test!(a_running_command_keeps_it_from_happening, Need::Checkpoint),
        test!(what_a_sandbox_passed_out_cannot_write_to_a_checkpoint, Need::Tool("python3"), Need::Checkpoint),
        test!(each_sandbox_has_a_whole_scratch_layer, Need::Checkpoint),
        test!(a_recipe_s_files_are_as_the_commands_left_them, Need::Checkpoint),
        test!(changes_are_those_since_the_latest_checkpoint, Need::Checkpoint),
        test!(an_instance_is_committed_with_its_checkpoints, Need::Tool("busybox"), Need::Checkpoint),
        test!(its_memory_is_freed_with_the_last_user, Need::Checkpoint),
        test!(nothing_is_left_of_it_after_a_killed_host, Need::Checkpoint),
        test!(it_is_shared_between_threads, Need::Checkpoint),
        test!(what_the_workload_makes_of_its_root_leads_nowhere, Need::Checkpoint),
    ]);
}
