//! Live sandboxes: several commands in the same one.

mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::{Child, Command, ErrorKind, Exit, Instance, Layer, Limit, MIB, Sandbox, Stdio, Syscalls};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use support::processes::{eventually, find, marked, marker};
use support::{Need, host, shell};

const LONG: Duration = Duration::from_secs(30);

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(support::patience(LONG))
}

fn start() -> Instance {
    sandbox().start().expect("it starts")
}

/// A command that has said "ready" after the first part of its script.
fn ready(instance: &Instance, command: Command) -> (Child, BufReader<io::PipeReader>) {
    let mut child = instance.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped())).expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    (child, output)
}

fn commands_follow_each_other_in_the_same_files() {
    let instance = start();
    instance.run(shell("echo one >/tmp/file; mkdir /tmp/d")).expect("it runs").exit_ok().expect("success");
    let out = instance.run(shell("cat /tmp/file; ls -d /tmp/d; readlink /proc/self/ns/net /proc/self/ns/pid")).expect("it runs");
    let again = instance.run(shell("cat /tmp/file; ls -d /tmp/d; readlink /proc/self/ns/net /proc/self/ns/pid")).expect("it runs");
    assert!(out.text().starts_with("one\n/tmp/d\nnet:["), "{}", out.text());
    assert_eq!(out.text(), again.text(), "the same namespaces");
    let fresh = start().run(shell("cat /tmp/file")).expect("it runs");
    assert_ne!(fresh.status, Exit::Code(0), "another instance has other files");
}

fn each_command_has_its_own_outcome() {
    let instance = start();
    assert_eq!(instance.run(shell("exit 3")).expect("it runs").status, Exit::Code(3));
    assert_eq!(instance.run(shell("kill -ABRT $$")).expect("it runs").status, Exit::Signal(6));
    let out = instance.run(shell("cat; echo err >&2").stdin("input")).expect("it runs");
    assert_eq!((out.text().as_ref(), &out.stderr[..]), ("input", &b"err\n"[..]));
    let missing = instance.run("no-such-program").expect_err("it can't start");
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    let directory = instance.run(Command::new("true").current_dir("/nowhere")).expect_err("it can't start");
    assert_eq!(directory.kind(), ErrorKind::BadWorkingDirectory, "{directory}");
    assert!(instance.run("true").expect("it goes on").success());
}

fn limits_of_a_command_end_that_command_alone() {
    let instance = start();
    let (mut server, _output) = ready(&instance, shell("echo ready; exec sleep 1000"));
    let spin = "while :; do :; done";
    let limit = |command: Command| instance.run(command).expect("it runs").status.limit();
    assert_eq!(limit(Command::new("sleep").arg("1000").wall_time(Duration::from_millis(50))), Some(Limit::WallTime));
    assert_eq!(limit(shell(spin).cpu_time(Duration::from_millis(100))), Some(Limit::CpuTime));
    assert_eq!(limit(shell(&format!("({spin}) & ({spin}) & wait")).cpu_time(Duration::from_millis(200))), Some(Limit::CpuTime));
    assert_eq!(limit(Command::new("sleep").arg("1000").idle_time(Duration::from_millis(200))), Some(Limit::IdleTime));
    assert_eq!(limit(shell("yes").output(1000)), Some(Limit::Output));
    assert_eq!(server.try_wait().expect("a status"), None, "the other one lives");
    server.kill().expect("a signal");
    assert_eq!(server.wait().expect("its end"), Exit::Killed);
}

fn a_command_leaves_nobody_behind_and_takes_nobody_along() {
    let instance = start();
    let (other, left, detached) = (marker(), marker(), marker());
    let (mut server, _output) = ready(&instance, shell(&format!("echo ready; exec sleep {other}")));
    let script = format!("sleep {left} & (setsid sleep {detached} &) ; exit 0");
    assert!(instance.run(shell(&script)).expect("it runs").success());
    assert_eq!(marked(&left), [], "a child of the command");
    assert_eq!(marked(&other).len(), 1, "another command's process");
    if support::is_root() {
        // Without a control group a process that detached itself belongs to nobody.
        assert_eq!(marked(&detached), [], "a process with a session of its own");
    }
    server.kill().expect("a signal");
    server.wait().expect("its end");
    eventually(LONG, "the last command's end ends everybody", || marked(&detached).is_empty());
}

fn commands_run_at_once() {
    let instance = start();
    let begun = Instant::now();
    thread::scope(|scope| {
        let runs: Vec<_> = (0..20)
            .map(|i| {
                let instance = &instance;
                scope.spawn(move || instance.run(shell(&format!("sleep 1; echo {i}"))))
            })
            .collect();
        for (i, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().expect("no panic").expect("it runs").text(), format!("{i}\n"));
        }
    });
    assert!(begun.elapsed() < support::patience(Duration::from_secs(15)), "one after another they would take 20 s: {:?}", begun.elapsed());
}

fn a_table_that_is_full_says_so() {
    // Without a time limit: the first must still live when the last has started.
    let instance = Sandbox::new().start().expect("it starts");
    let mut children: Vec<Child> = (0..64).map(|_| instance.spawn(["sleep", "1000"]).expect("it starts")).collect();
    let error = instance.spawn(["sleep", "1000"]).expect_err("no more");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    children.pop().expect("one of them").kill().expect("a signal");
    eventually(LONG, "there's room again", || instance.run("true").is_ok());
    drop(children);
    assert!(instance.run("true").expect("it runs").success());
}

fn dropping_it_ends_everything() {
    let instance = start();
    let name = marker();
    let (mut child, _output) = ready(&instance, shell(&format!("echo ready; exec sleep {name}")));
    assert_eq!(marked(&name).len(), 1);
    drop(instance);
    assert_eq!(marked(&name), []);
    assert_eq!(child.wait().expect("its end"), Exit::Killed);
}

fn dropping_a_child_ends_that_command_alone() {
    let instance = start();
    let (one, other) = (marker(), marker());
    let first = ready(&instance, shell(&format!("echo ready; exec sleep {one}")));
    let second = ready(&instance, shell(&format!("echo ready; exec sleep {other}")));
    drop(first);
    // It waits for two seconds at most, which a slow machine needs more of.
    eventually(LONG, "the first one's end", || marked(&one).is_empty());
    assert_eq!(marked(&other).len(), 1);
    drop(second);
}

fn a_dropped_child_is_dead_on_return() {
    let instance = start();
    let begun = Instant::now();
    for _ in 0..10 {
        let name = marker();
        let child = ready(&instance, shell(&format!("sleep {name} & echo ready; exec sleep {name}")));
        drop(child);
        assert_eq!(marked(&name), []);
    }
    // Each waits for two seconds if it isn't told.
    assert!(begun.elapsed() < support::patience(Duration::from_secs(15)), "{:?}", begun.elapsed());
}

fn signals_and_kill_reach_all_commands() {
    let instance = start();
    let script = "trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.01; done";
    let mut both: Vec<_> = (0..2).map(|_| ready(&instance, shell(script))).collect();
    instance.signal(10).expect("a signal");
    for (child, _) in &mut both {
        assert_eq!(child.wait().expect("its end"), Exit::Code(7));
    }
    let (mut child, _output) = ready(&instance, shell("echo ready; exec sleep 1000"));
    instance.kill().expect("a signal");
    assert_eq!(child.wait().expect("its end"), Exit::Killed);
    assert!(instance.run("true").expect("it goes on").success());
    assert_eq!(instance.signal(99).expect_err("no signal").kind(), ErrorKind::Invalid);
}

fn a_paused_instance_stands_still() {
    let instance = start();
    let (mut child, mut output) =
        ready(&instance, shell("echo ready; while :; do echo x; sleep 0.01; done").idle_time(Duration::from_millis(300)));
    instance.pause().expect("it stops");
    instance.pause().expect("and once more");
    assert_eq!(instance.run("true").expect_err("not now").kind(), ErrorKind::Invalid);
    let pipe = output.get_ref();
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
    // What was on its way when it stopped.
    thread::sleep(Duration::from_millis(100));
    let _ = io::copy(&mut output, &mut io::sink());
    thread::sleep(Duration::from_millis(900));
    assert_eq!(child.try_wait().expect("a status"), None, "idle time doesn't count");
    let usage = instance.usage();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(instance.usage().cpu(), usage.cpu());
    assert_eq!(output.read(&mut [0]).expect_err("nothing new").kind(), io::ErrorKind::WouldBlock);
    instance.resume().expect("it goes on");
    eventually(LONG, "it writes again", || output.read(&mut [0]).is_ok());
    child.kill().expect("a signal");
    assert_eq!(child.wait().expect("its end"), Exit::Killed);
}

fn usage_is_each_commands_own() {
    let instance = start();
    let spin = shell("i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done");
    let busy = instance.run(spin).expect("it runs").usage;
    let quiet = instance.run(["sleep", "0.1"]).expect("it runs").usage;
    // Counted together the second would have more than the first.
    assert!(busy.cpu() > quiet.cpu(), "{busy:?} {quiet:?}");
    assert!(quiet.wall >= Duration::from_millis(100) && quiet.wall < Duration::from_secs(10), "{quiet:?}");
    if support::is_root() {
        let all = instance.usage();
        assert!(all.cpu() >= busy.cpu(), "{all:?}");
    }
}

fn memory_is_one_limit_for_all() {
    let instance = sandbox().memory(64 * MIB).start().expect("it starts");
    let (mut other, _output) = ready(&instance, shell("echo ready; exec sleep 1000"));
    let hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo $x | wc -c";
    let out = instance.run(shell(hog)).expect("it runs");
    assert_eq!(out.status, Exit::Limit(Limit::Memory), "{out}");
    assert_eq!(other.wait().expect("its end"), Exit::Limit(Limit::Memory), "everything ends");
    // What ran out of memory before says nothing about the next one.
    assert!(instance.run("true").expect("it runs").success());
    let out = instance.run(shell(hog)).expect("it runs");
    assert_eq!(out.status, Exit::Limit(Limit::Memory), "and once more: {out}");
    instance.update(&sandbox().memory(1 << 30)).expect("a larger limit");
    let out = instance.run(shell(hog)).expect("it runs");
    assert_eq!(out.text(), "200000001\n", "{out}");
}

fn limits_can_change_while_it_runs() {
    let instance = start();
    instance.update(&Sandbox::new().wall_time(Duration::from_millis(50))).expect("other limits");
    assert_eq!(instance.run(["sleep", "1000"]).expect("it runs").status, Exit::Limit(Limit::WallTime));
    assert_eq!(instance.update(&Sandbox::new().wall_time(Duration::ZERO)).expect_err("nonsense").kind(), ErrorKind::Invalid);
}

/// A workload that stops and kills whatever comes to have its id.
fn a_hostile_command_holds_up_nobody_for_long() {
    let instance = start();
    let hostile = "echo ready; while :; do kill -STOP -1; done";
    let bash = Command::new("bash").args(["-c", hostile]);
    let (child, _output) = ready(&instance, bash);
    for _ in 0..30 {
        // It's stopped before or after exec, and then runs into its limit: nothing hangs.
        let out = instance.run(Command::new("true").wall_time(Duration::from_millis(100)));
        match out {
            Ok(out) => assert!(out.success() || out.status == Exit::Limit(Limit::WallTime), "{out}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Setup, "{error}"),
        }
    }
    drop(child);
    assert!(instance.run("true").expect("it runs").success());
}

/// A failure that comes after the host's look is all that's said of a command: nobody waits for
/// more, which took two seconds each.
fn commands_that_come_to_nothing_are_over_at_once() {
    let (instance, began) = (start(), Instant::now());
    for _ in 0..20 {
        let nowhere = instance.run(Command::new("true").current_dir("/nowhere")).expect_err("there's none");
        assert_eq!(nowhere.kind(), ErrorKind::BadWorkingDirectory);
        assert_eq!(instance.run("/nowhere/true").expect_err("there's none").kind(), ErrorKind::NotFound);
    }
    assert!(began.elapsed() < support::patience(Duration::from_secs(30)), "{:?}", began.elapsed());
}

fn connections_reach_servers_inside() {
    let instance = start();
    let server = "import socket\ns = socket.create_server(('127.0.0.1', 8080))\nu = socket.socket(socket.AF_UNIX)\nu.bind('/tmp/sock')\nu.listen()\n\
                  for s in s, u:\n  c = s.accept()[0]\n  c.sendall(b'got ' + c.recv(100))\n  c.close()\n";
    let refused = instance.connect(([127, 0, 0, 1], 8080).into(), support::patience(Duration::from_secs(1))).expect_err("nobody listens");
    assert!(refused.to_string().starts_with("cannot connect to 127.0.0.1:8080: Connection refused"), "{refused}");
    let mut child = instance.spawn(["python3", "-c", server]).expect("it starts");
    let mut answer = String::new();
    let mut tcp = instance.connect(([127, 0, 0, 1], 8080).into(), LONG).expect("a connection");
    tcp.write_all(b"tcp").expect("a request");
    tcp.read_to_string(&mut answer).expect("an answer");
    let mut unix = instance.connect_unix("/tmp/sock", LONG).expect("a connection");
    unix.write_all(b" unix").expect("a request");
    unix.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "got tcpgot  unix");
    assert!(child.wait().expect("its end").success());
    assert_eq!(instance.connect_unix("relative", LONG).expect_err("no path").kind(), ErrorKind::Invalid);
}

/// A server that doesn't accept: its queue is full, and connecting would wait forever.
fn a_connection_that_is_never_accepted_ends_with_its_limit() {
    let instance = start();
    let server = "import socket, time\nu = socket.socket(socket.AF_UNIX)\nu.bind('/tmp/sock')\nu.listen(0)\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    let (_child, _output) = ready(&instance, Command::new("python3").args(["-c", server]));
    let _first = instance.connect_unix("/tmp/sock", LONG).expect("one waits in the queue");
    instance.connect_unix("/tmp/sock", Duration::from_millis(200)).expect_err("the next one doesn't fit");
    assert!(instance.run("true").expect("it runs").success());
}

fn a_reset_leaves_nothing_of_what_was() {
    let mut instance = start();
    let name = marker();
    let (mut child, _output) = ready(&instance, shell(&format!("echo x >/tmp/file; echo y >/dev/shm/file; echo ready; exec sleep {name}")));
    instance.update(&Sandbox::new().wall_time(Duration::from_millis(100))).expect("other limits");
    instance.reset().expect("it's as it was");
    assert_eq!(child.wait().expect("its end"), Exit::Killed);
    assert_eq!(marked(&name), []);
    let out = instance.run(shell("ls /tmp /dev/shm").wall_time(LONG)).expect("it runs");
    assert_eq!(out.text(), "/dev/shm:\n\n/tmp:\n");
    assert_eq!(instance.run(["sleep", "1000"]).expect("it runs").status, Exit::Limit(Limit::WallTime), "limits stay");
}

/// The filter's listener comes from a courier, beside other commands as in a sandbox of
/// its own.
fn forbidden_calls_end_that_command_alone() {
    let instance = sandbox().syscalls(Syscalls::Strict).start().expect("it starts");
    let (mut other, _output) = ready(&instance, shell("echo ready; exec sleep 1000"));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let out = instance.run(["unshare", "--ipc", "true"]).expect("it runs");
                    assert!(matches!(out.status, Exit::Limit(Limit::Syscall(call)) if call.to_string().contains("unshare")), "{out}");
                    assert!(instance.run("true").expect("it runs").success());
                }
            });
        }
    });
    assert_eq!(other.try_wait().expect("a status"), None);
    let missing = instance.run("no-such-program").expect_err("it can't start");
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
}

/// Landlock, no_new_privs and the filter: what the kernel says of a later command.
fn later_commands_stand_behind_the_same_fences() {
    let instance = start();
    let script =
        "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd)' /proc/self/status; echo x 2>/dev/null >/proc/sys/kernel/hostname || echo closed";
    let own = sandbox().run(shell(script)).expect("it runs");
    let (first, second) = (instance.run(shell(script)).expect("it runs"), instance.run(shell(script)).expect("it runs"));
    assert!(own.text().contains("Seccomp:\t2") && own.text().contains("closed"), "{}", own.text());
    assert_eq!((first.text(), second.text()), (own.text(), own.text()));
    assert_eq!((first.missing, second.missing), (own.missing.clone(), own.missing));
}

fn nothing_is_left_of_its_groups() {
    host::alone("nothing_is_left_of_its_groups", || {
        for _ in 0..3 {
            let instance = start();
            let child = instance.spawn(["sleep", "1000"]).expect("it starts");
            drop(instance);
            drop(child);
        }
        assert!(cofferdam::quiesce(Duration::from_secs(20)).expect("an answer"), "a group couldn't be removed");
    });
}

/// PID 1 of the sandbox that a command runs in.
fn pid1(child: &Child) -> nix::unistd::Pid {
    let command = find(child.id().expect("alive")).expect("alive");
    nix::unistd::Pid::from_raw(command.parent as i32)
}

/// PID 1 keeps the wall limits; if it can't, because somebody has stopped it, init does.
fn the_wall_limit_of_a_command_holds_without_pid_1() {
    let short = Duration::from_millis(700);
    let spin = || shell("while :; do :; done").wall_time(short);
    let instance = Sandbox::new().start().expect("it starts");
    let mut beside = instance.spawn(["sleep", "1000"]).expect("it starts");
    let (mut late, over) = (instance.spawn(spin()).expect("it starts"), instance.spawn(spin()).expect("it starts"));
    kill(pid1(&beside), Signal::SIGSTOP).expect("stopped");
    let wall = Exit::Limit(Limit::WallTime);
    eventually(support::patience(LONG), "init ends it although nobody waits", || beside.id().is_none() && over.id().is_none());
    let out = over.wait_with_output().expect("a verdict");
    assert_eq!((out.status, out.raw), (wall, Exit::Signal(libc::SIGKILL)));
    assert!(out.usage.wall >= short, "{:?}", out.usage);
    let error = beside.wait().expect_err("it had no limit");
    assert!(error.kind() == ErrorKind::Lost && error.to_string().contains("did not see to a wall limit"), "{error}");
    assert_eq!(late.wait().expect("a verdict"), wall, "each that was late, whoever asks first");
    assert_eq!(instance.run("true").expect_err("it's gone").kind(), ErrorKind::Lost);
}

/// What is asked of a first process that has just died is asked in vain, and not for long.
fn a_killed_pid_1_is_told_at_once() {
    for stopped in [false, true] {
        let instance = Sandbox::new().start().expect("it starts");
        let mut child = instance.spawn(["sleep", "1000"]).expect("it starts");
        let pid1 = pid1(&child);
        let begun = Instant::now();
        let (told, errors) = thread::scope(|scope| {
            if stopped {
                kill(pid1, Signal::SIGSTOP).expect("stopped");
            } else {
                kill(pid1, Signal::SIGKILL).expect("killed");
            }
            let asks = [scope.spawn(|| instance.run("true").map(drop)), scope.spawn(|| instance.write("/tmp/file", ""))];
            if stopped {
                let asked = || fs::read_dir("/proc/self/task").expect("tasks").count() >= 3;
                eventually(LONG, "both have asked, or are about to", asked);
                thread::sleep(Duration::from_millis(50));
                kill(pid1, Signal::SIGKILL).expect("killed");
            }
            let told = child.wait().map(drop);
            (told, asks.map(|asked| asked.join().expect("a thread")))
        });
        for result in errors.into_iter().chain([told, instance.run("true").map(drop), instance.read("/tmp/file", 1).map(drop)]) {
            let error = result.expect_err("it's dead");
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        }
        assert!(begun.elapsed() < support::patience(LONG), "{:?}", begun.elapsed());
    }
}

/// A lease that another sandbox has on a program in a directory that both may write to holds
/// up its exec. Not the first process, which goes on to serve others.
fn nobody_elsewhere_holds_up_the_others() {
    const LEASE: &str = "import fcntl, os, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
open('/work/program', 'wb').write(open('/bin/true', 'rb').read())
os.chmod('/work/program', 0o755)
fcntl.fcntl(os.open('/work/program', os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('leased', flush=True)
time.sleep(60)";
    let shared = support::fresh_dir("shared-");
    fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("a mode");
    let recipe = sandbox().bind_rw(&shared, "/work");
    let (holder, instance) = (recipe.start().expect("it starts"), recipe.start().expect("it starts"));
    let mut child = holder.spawn(Command::new("python3").args(["-c", LEASE]).stdout(Stdio::piped())).expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert_eq!(line, "leased\n");
    thread::scope(|scope| {
        let held = scope.spawn(|| instance.run("/work/program"));
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(1) {
            assert!(instance.run("true").expect("it runs").success());
        }
        assert!(began.elapsed() < support::patience(Duration::from_secs(20)), "it was held up");
        instance.kill().expect("told");
        // It was on its way or, without the lease's file system, already done.
        drop(held.join().expect("a thread"));
    });
    drop(child);
}

/// Whatever can't be opened in the host: it's told at once, and not when nobody has answered
/// for a minute.
fn few_descriptors_are_an_error_at_once() {
    host::alone("few_descriptors_are_an_error_at_once", || {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        let recipe = sandbox().memory(256 * MIB).processes(20).prefer(Layer::MemoryLimit).prefer(Layer::CpuAccount);
        let works = || recipe.start().and_then(|instance| instance.run("true"));
        works().expect("it runs");
        let open = fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
        let highest = open.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max().expect("some");
        let (mut worked, mut failed) = (0, 0);
        for most in (0..2).flat_map(|_| 3..highest + 30) {
            setrlimit(Resource::RLIMIT_NOFILE, most, hard).expect("a lower limit");
            let began = Instant::now();
            match works() {
                Ok(out) => {
                    assert_eq!(out.status, Exit::Code(0));
                    worked += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Exhausted, "{most}: {error}");
                    failed += 1;
                }
            }
            assert!(began.elapsed() < support::patience(LONG), "{most}: after {:?}", began.elapsed());
        }
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("as before");
        works().expect("it runs");
        assert!(worked > 0 && failed > 0, "{worked} and {failed}: the test means nothing");
    });
}

fn main() {
    support::main(vec![
        test!(few_descriptors_are_an_error_at_once),
        test!(commands_follow_each_other_in_the_same_files),
        test!(nobody_elsewhere_holds_up_the_others, Need::Tool("python3")),
        test!(each_command_has_its_own_outcome),
        test!(limits_of_a_command_end_that_command_alone),
        test!(a_command_leaves_nobody_behind_and_takes_nobody_along),
        test!(commands_run_at_once),
        test!(a_table_that_is_full_says_so),
        test!(dropping_it_ends_everything),
        test!(dropping_a_child_ends_that_command_alone),
        test!(a_dropped_child_is_dead_on_return),
        test!(signals_and_kill_reach_all_commands),
        test!(a_paused_instance_stands_still),
        test!(usage_is_each_commands_own),
        test!(memory_is_one_limit_for_all, root),
        test!(limits_can_change_while_it_runs),
        test!(a_hostile_command_holds_up_nobody_for_long),
        test!(commands_that_come_to_nothing_are_over_at_once),
        test!(connections_reach_servers_inside, Need::Tool("python3")),
        test!(a_connection_that_is_never_accepted_ends_with_its_limit, Need::Tool("python3")),
        test!(a_reset_leaves_nothing_of_what_was),
        test!(forbidden_calls_end_that_command_alone, Need::Tool("unshare")),
        test!(later_commands_stand_behind_the_same_fences),
        test!(nothing_is_left_of_its_groups),
        test!(the_wall_limit_of_a_command_holds_without_pid_1),
        test!(a_killed_pid_1_is_told_at_once),
    ]);
}
