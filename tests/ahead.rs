//! What is made for a sandbox before anybody asks for it: its first process, its network
//! and its control group. None of it may cost a run its success, tell one run of another,
//! or stay.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam::{Command, ErrorKind, Exit, Layer, Limit, MIB, Sandbox, Stdio, Syscalls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::Need;
use support::host::alone;
use support::processes::{self, Process};

const LONG: Duration = Duration::from_secs(30);

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(LONG)
}

/// Two whose first processes are made alike, and two others.
fn recipes() -> [Sandbox; 4] {
    let strict = sandbox().syscalls(Syscalls::Strict);
    [sandbox(), strict.clone(), sandbox().hostname("other"), strict.memory(64 * MIB).prefer(Layer::MemoryLimit)]
}

/// Does `body` in each of so many threads until the time is over; they all are.
fn at_once(threads: usize, time: Duration, body: impl Fn(usize) + Sync) {
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        for i in 0..threads {
            let body = &body;
            scope.spawn(move || {
                while Instant::now() < end {
                    body(i);
                }
            });
        }
    });
}

fn quiet() {
    assert!(cofferdam::quiesce(LONG).expect("init answers"), "something lives on");
}

/// Whoever asks for quiet makes what was made ahead go: not what another thread has just
/// been given.
fn quiet_takes_nothing_from_a_run() {
    alone("quiet_takes_nothing_from_a_run", || {
        at_once(3, Duration::from_secs(3), |i| match i {
            0 => drop(cofferdam::quiesce(LONG).expect("init answers")),
            _ => assert!(sandbox().run("true").expect("it runs").success()),
        });
        quiet();
    });
}

/// One that waits too long for its like is given up, at whatever moment that is.
fn recipes_may_take_turns() {
    alone("recipes_may_take_turns", || {
        let recipes = recipes();
        at_once(4, Duration::from_secs(4), |i| assert!(recipes[i].run("true").expect("it runs").success()));
        quiet();
    });
}

/// init's children, which aren't the workload's.
fn ours() -> Vec<Process> {
    processes::inits(std::process::id()).iter().flat_map(|init| processes::children(init.pid)).collect()
}

/// Each process of ours is killed at any moment: a run succeeds or is lost, and never
/// passes for anything else; nothing hangs and nothing stays.
fn killed_at_any_moment() {
    alone("killed_at_any_moment", || {
        let recipes = recipes();
        drop(sandbox().run("true").expect("it runs"));
        quiet();
        let descriptors = || fs::read_dir("/proc/self/fd").expect("descriptors").count();
        let before = descriptors();
        let end = Instant::now() + Duration::from_secs(6);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut turn = 0usize;
                while Instant::now() < end {
                    let victims = match turn % 16 {
                        15 => processes::inits(std::process::id()),
                        _ => ours(),
                    };
                    if let Some(victim) = victims.get(turn % victims.len().max(1)) {
                        let _ = kill(Pid::from_raw(victim.pid as i32), Signal::SIGKILL);
                    }
                    turn += 1;
                }
            });
            at_once(2, Duration::from_secs(6), |i| {
                let began = Instant::now();
                for recipe in &recipes[i..] {
                    match recipe.run("true") {
                        Ok(out) => assert_eq!(out.status, Exit::Code(0)),
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::Lost | ErrorKind::Setup), "{}: {error}", error.kind().name())
                        }
                    }
                }
                assert!(began.elapsed() < support::patience(LONG), "it hung");
            });
        });
        // What has been killed is dead then.
        quiet();
        assert!(recipes.iter().all(|recipe| recipe.run("true").expect("it runs").success()), "and everything is as before");
        quiet();
        let left = processes::sandboxes(ours());
        assert!(left.is_empty(), "{left:?}");
        assert!(descriptors() <= before, "descriptors stay open");
    });
}

/// With so few descriptors that something fails, each time something else: what's made
/// ahead is given up first or last, and a run works or says that it can't.
fn few_descriptors_are_an_error_at_worst() {
    alone("few_descriptors_are_an_error_at_worst", || {
        use nix::sys::resource::{Resource, setrlimit};
        let recipes = recipes();
        let (mut worked, mut failed) = (0, 0);
        for most in (16..80).rev().step_by(4) {
            setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a lower limit");
            // The next one has that limit too.
            for init in processes::inits(std::process::id()) {
                kill(Pid::from_raw(init.pid as i32), Signal::SIGKILL).expect("init is ours");
                processes::eventually(LONG, "init is dead", || processes::alive(std::slice::from_ref(&init)).is_empty());
            }
            for recipe in recipes.iter().chain(&recipes) {
                match recipe.run("true") {
                    Ok(out) => {
                        assert_eq!(out.status, Exit::Code(0));
                        worked += 1;
                    }
                    Err(error) => {
                        assert!(!error.to_string().contains("user namespaces are refused"), "{most}: {error}");
                        assert!(error.kind() != ErrorKind::Invalid, "{most}: {error}");
                        failed += 1;
                    }
                }
            }
            assert!(cofferdam::quiesce(LONG).unwrap_or(true), "{most}: something lives on");
        }
        assert!(worked > 0 && failed > 0, "{worked} and {failed}: the test means nothing");
    });
}

/// A group that was made ahead counts from nothing, and enforces what it was made for.
fn groups_begin_at_nothing() {
    alone("groups_begin_at_nothing", || {
        let small = sandbox().memory(32 * MIB).prefer(Layer::MemoryLimit);
        let hungry = ["sh", "-c", "head -c 40M /dev/zero | tail -c 40M >/dev/null; true"];
        for _ in 0..3 {
            let limited = small.run(hungry).expect("it runs");
            let modest = small.run("true").expect("it runs");
            if limited.missing.contains(&Layer::MemoryLimit) {
                return;
            }
            assert_eq!(limited.status, Exit::Limit(Limit::Memory));
            assert!(modest.success(), "{modest}");
            assert!(modest.usage.peak_memory.is_none_or(|peak| peak < 32 * MIB), "{:?}", modest.usage);
        }
    });
}

/// A network namespace that serves again has seen nothing: not even a setting that the
/// owner of its files could change.
fn a_network_that_serves_again_is_as_new() {
    alone("a_network_that_serves_again_is_as_new", || {
        const FILE: &str = "/proc/sys/net/ipv4/ip_default_ttl";
        if !Path::new(FILE).exists() {
            return;
        }
        let strict = sandbox().syscalls(Syscalls::Strict);
        for recipe in [strict.clone(), strict.nesting()] {
            let said = |script: &str| recipe.run(["sh", "-c", script]).expect("it runs").text().trim().to_string();
            let new = said(&format!("cat {FILE}"));
            for _ in 0..8 {
                assert_eq!(said(&format!("cat {FILE}; (echo 77 >{FILE}) 2>/dev/null")), new);
            }
        }
    });
}

/// A network namespace that has served goes only to those that don't mind.
fn a_used_network_is_for_those_that_ask() {
    alone("a_used_network_is_for_those_that_ask", || {
        let fresh = sandbox();
        let reusing = fresh.clone().reuse_network(true);
        let packets = |recipe: &Sandbox, before: &str| -> u64 {
            let script = format!("{before} while read name bytes packets rest; do [ $name != lo: ] || echo $packets; done </proc/net/dev");
            recipe
                .run([if before.is_empty() { "sh" } else { "bash" }, "-c", &script])
                .expect("it runs")
                .text()
                .trim()
                .parse()
                .expect("a number")
        };
        const SEND: &str = "echo x >/dev/udp/127.0.0.1/9;";
        let once = packets(&fresh, SEND);
        let served_again = (0..20)
            .filter(|_| {
                let found = packets(&reusing, SEND);
                assert_eq!(packets(&fresh, ""), 0, "it has a used one");
                assert_eq!(packets(&fresh.clone().syscalls(Syscalls::Strict), ""), 0, "it has a used one");
                found > once
            })
            .count();
        // An ordinary user's sandboxes have theirs from clone(2).
        assert!(served_again > 5 || !nix::unistd::geteuid().is_root(), "served again {served_again} times");
        quiet();
        assert_eq!(packets(&fresh, ""), 0);
    });
}

/// Runs a script that says something and ends with its input, and has its network namespace,
/// which nobody else can have the number of as long as it's held.
fn network_of(recipe: &Sandbox, command: Command) -> File {
    let mut child = recipe.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped())).expect("it starts");
    let mut said = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut said).expect("it says something");
    let network = File::open(format!("/proc/{}/ns/net", child.id().expect("it lives"))).expect("its network");
    drop(child.stdin.take());
    let output = child.wait().expect("it ends");
    assert!(output.success() && said == "done\n", "{output}: {said:?}");
    network
}

/// Whether one of those that come after it has the same.
fn is_had_again(recipe: &Sandbox, network: &File) -> bool {
    let number = format!("net:[{}]", network.metadata().expect("a number").ino());
    (0..30).any(|_| recipe.run(["readlink", "/proc/self/ns/net"]).expect("it runs").text().trim() == number)
}

/// A network namespace serves again if no socket was ever made in it that could leave anything
/// behind, however hidden, and only then.
fn a_network_with_a_socket_is_used_once() {
    alone("a_network_with_a_socket_is_used_once", || {
        let recipe = sandbox();
        // Some are made by the sandbox's own outer process, which are used once.
        let idle = || Command::new("sh").args(["-c", "echo done; read line || true"]);
        let serves_again = |recipe: &Sandbox| (0..20).any(|_| is_had_again(recipe, &network_of(recipe, idle())));
        let without = recipe.clone().syscalls(Syscalls::Default.deny("socket").deny("socketpair"));
        assert!(serves_again(&recipe) && serves_again(&recipe.clone().syscalls(Syscalls::Strict)), "none of them served again");
        assert!(!serves_again(&recipe.clone().bind("/usr/bin", "/bound")), "it could be seen by others");
        let directory = File::open("/var").expect("a directory");
        let network = network_of(&recipe, idle().directory_fd(5, directory));
        assert!(!is_had_again(&recipe, &network), "it had a directory of ours");
        // By a socket that leads to others something of its network could be theirs.
        for recipe in [&recipe, &without] {
            for _ in 0..4 {
                let (ours, theirs) = UnixStream::pair().expect("sockets");
                let network = network_of(recipe, idle().socket(5, OwnedFd::from(theirs)));
                assert!(!is_had_again(recipe, &network), "it had a socket of ours");
                drop(ours);
            }
        }
        let ways = [
            "socket()",
            "socket(AF_INET6, SOCK_DGRAM)",
            "socket().close()",
            "thread = Thread(target=socket); thread.start(); thread.join()",
            "pid = os.fork()\nif pid == 0: os.setsid(); socket(); os._exit(0)\nos.waitpid(pid, 0)",
            "s = socket(AF_INET, 1, 262)",
            "s = socket(AF_NETLINK, SOCK_RAW, 0); s.send(pack('IHHII', 48, 26, 1, 1, 0) + pack('BBBBBBBBI', 10, 128, 0, 0, 0, 0, 0, 0, 0) + pack('HH', 20, 1) + inet_pton(AF_INET6, '::1')); s.recv(4096)\n\
             s.close()\nwhile 'used 0' not in open('/proc/net/sockstat').read(): pass",
            "l = socket(AF_UNIX); l.bind('\\0name'); l.listen(); a, b = socketpair()\n\
             a.sendmsg([b'x'], [(SOL_SOCKET, SCM_RIGHTS, pack('iii', l.fileno(), a.fileno(), b.fileno()))])",
        ];
        for way in ways {
            let script = format!(
                "import os, sys\nfrom socket import *\nfrom struct import pack\nfrom threading import Thread\n\
                 try:\n {}\nexcept OSError as e: print(e, file=sys.stderr)\nprint('done', flush=True)\nsys.stdin.read()",
                way.replace('\n', "\n ")
            );
            for _ in 0..4 {
                let network = network_of(&recipe, Command::new("python3").args(["-c", &script]));
                assert!(!is_had_again(&recipe, &network), "after {way}");
            }
        }
    });
}

/// The kernel remembers what it has been asked of routes: the flags that whoever asked
/// wanted, and when.
fn what_was_asked_of_routes_is_forgotten() {
    alone("what_was_asked_of_routes_is_forgotten", || {
        // RTM_GETROUTE of rtnetlink(7), of 127.0.0.1: flags and, of RTA_CACHEINFO, when it was
        // last used.
        let ask = |flags: u32| {
            let script = format!(
                "from socket import *\nfrom struct import pack, unpack\nimport os\n\
                 s = socket(AF_NETLINK, SOCK_RAW, 0)\n\
                 s.send(pack('IHHII', 36, 26, 1, 1, 0) + pack('BBBBBBBBI', 2, 32, 0, 0, 0, 0, 0, 0, {flags}) + pack('HH4s', 8, 1, inet_aton('127.0.0.1')))\n\
                 r = s.recv(8192); at = 28; used = 0\n\
                 while at < len(r):\n size, kind = unpack('HH', r[at:at + 4])\n \
                 if kind == 12: used = unpack('I', r[at + 8:at + 12])[0]\n at += size + 3 & ~3\n\
                 s.close()\nwhile 'used 0' not in open('/proc/net/sockstat').read(): pass\n\
                 print(os.readlink('/proc/self/ns/net'), hex(unpack('I', r[24:28])[0]), used > 20)"
            );
            let output = sandbox().run(["python3", "-c", &script]).expect("it runs");
            assert!(output.success(), "{output}: {}", String::from_utf8_lossy(&output.stderr));
            let [network, answer] = output.text().trim().splitn(2, ' ').map(String::from).collect::<Vec<_>>().try_into().expect("two");
            (network, answer)
        };
        const RTM_F_NOTIFY: u32 = 0x100;
        let (mut seen, mut again) = (std::collections::BTreeSet::new(), 0);
        for _ in 0..20 {
            let (network, _) = ask(RTM_F_NOTIFY);
            seen.insert(network);
            std::thread::sleep(Duration::from_millis(300));
            let (network, answer) = ask(0);
            again += usize::from(seen.contains(&network));
            assert_eq!(answer, "0x80000200 False");
            seen.insert(network);
        }
        assert!(again > 0, "none has served again");
    });
}

fn main() {
    support::main(vec![
        test!(quiet_takes_nothing_from_a_run),
        test!(recipes_may_take_turns),
        test!(killed_at_any_moment),
        test!(few_descriptors_are_an_error_at_worst),
        test!(groups_begin_at_nothing),
        test!(a_network_that_serves_again_is_as_new),
        test!(a_used_network_is_for_those_that_ask),
        test!(what_was_asked_of_routes_is_forgotten, root, Need::Tool("python3")),
        test!(a_network_with_a_socket_is_used_once, root, Need::Tool("python3")),
    ])
}
