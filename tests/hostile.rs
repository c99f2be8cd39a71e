//! Attacks: by workloads, by images, and by what a host has of its own. Those that once
//! worked and those that are worth keeping out.

#![allow(unsafe_code, reason = "hosts close descriptors under the library's feet, which has no safe form")]

mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::{Capability, Command, Error, ErrorKind, Exit, Image, Limit, MIB, Output, Sandbox, Stdio, Syscalls};
use support::host::{self, Host};
use support::{Need, busybox_root, compile_c, fresh_dir, is_root, processes};

const LONG: Duration = Duration::from_secs(20);

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(LONG)
}

fn sh(sandbox: &Sandbox, script: &str) -> Output {
    sandbox.run(["sh", "-c", script]).expect("it runs")
}

fn told(out: &Output) -> String {
    format!("{}: {}{}", out.status, out.text(), String::from_utf8_lossy(&out.stderr))
}

const ATTACKS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, long result) { printf("%s %s\n", what, result < 0 ? "refused" : "DONE"); }

/* Waits go through these first. */
static void siblings(int count) {
    if (fork() == 0) {
        for (int i = 0; i < count; i++) if (fork() == 0) for (;;) pause();
        _exit(0);
    }
    wait(0);
}

int main(int count, char **words) {
    const char *attack = words[1];
    setvbuf(stdout, 0, _IONBF, 0);
    if (!strcmp(attack, "traceme")) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0)) return 9;
        raise(SIGWINCH);
        kill(getpid(), SIGCONT);
        return 3;
    }
    if (!strcmp(attack, "traceme-exec")) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0)) return 9;
        execl("/bin/sh", "sh", "-c", "exit 4", (char *)0);
    }
    if (!strcmp(attack, "traceme-loop")) {
        for (int i = 0; i < 4; i++) if (fork() == 0) {
            /* An orphan is PID 1's child. */
            if (fork()) _exit(0);
            while (getppid() != 1) sched_yield();
            for (;;) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGWINCH); }
        }
        for (;;) pause();
    }
    if (!strcmp(attack, "limit-pid-1")) {
        struct rlimit one = {1, 1};
        struct sched_param none = {0};
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(0, &cpus);
        say("prlimit", prlimit(1, RLIMIT_CPU, &one, 0));
        say("sched_setscheduler", sched_setscheduler(1, SCHED_IDLE, &none));
        say("sched_setaffinity", sched_setaffinity(1, sizeof cpus, &cpus));
        say("setpriority", setpriority(PRIO_PROCESS, 1, 19));
        say("ptrace", ptrace(PTRACE_SEIZE, 1, 0, 0));
        char byte;
        struct iovec here = {&byte, 1}, there = {main, 1};
        say("process_vm_readv", process_vm_readv(1, &here, 1, &there, 1, 0));
        int pidfd = syscall(SYS_pidfd_open, 1, 0);
        say("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
        return 0;
    }
    if (!strcmp(attack, "flood")) {
        for (int i = 0; i < 4; i++) if (fork() == 0) for (;;) kill(1, SIGCHLD);
        for (;;) pause();
    }
    if (!strcmp(attack, "orphans")) {
        siblings(1500);
        for (int i = 0; i < 8; i++) if (fork() == 0) for (;;) {
            int child = vfork();
            if (child == 0) {
                if (vfork() == 0) _exit(0);
                _exit(0);
            }
            waitpid(child, 0, 0);
        }
        for (;;) pause();
    }
    if (!strcmp(attack, "bomb")) {
        signal(SIGTERM, SIG_IGN);
        for (;;) fork();
    }
    if (!strcmp(attack, "everyone")) {
        signal(SIGCHLD, SIG_IGN);
        kill(-1, SIGSTOP);
        kill(-1, SIGKILL);
        kill(0, SIGSTOP);
        return 5;
    }
    if (!strcmp(attack, "set-id")) {
        say("fchmod", fchmod(1, 04755));
        say("chmod", chmod("/proc/self/fd/1", 02755));
        return 0;
    }
    if (!strcmp(attack, "key")) {
        /* KEYCTL_SEARCH in KEY_SPEC_SESSION_KEYRING */
        say("keyctl", syscall(SYS_keyctl, 10, -3, "user", "cofferdam-secret", 0));
        return 0;
    }
    if (!strcmp(attack, "with-key")) {
        /* KEYCTL_JOIN_SESSION_KEYRING; then the host. */
        syscall(SYS_keyctl, 1, "host");
        if (syscall(SYS_add_key, "user", "cofferdam-secret", "x", 1, -3) < 0) return 77;
        execv(words[2], words + 2);
    }
    return 99;
}
"#;

/// A sandbox with the attacks under `/x/attack`.
fn attacked(sandbox: Sandbox) -> Sandbox {
    sandbox.bind(program().parent().expect("a directory"), "/x")
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compile_c("attack", ATTACKS, &["-static"]))
}

fn attack(sandbox: Sandbox, name: &str) -> Output {
    attacked(sandbox).run(["/x/attack", name]).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn who_makes_pid_1_its_tracer_gets_no_verdict_of_its_own_making() {
    assert_eq!(attack(sandbox(), "traceme").status, Exit::Code(3));
    assert_eq!(attack(sandbox(), "traceme-exec").status, Exit::Code(4));
    let began = Instant::now();
    let out = attack(sandbox().wall_time(Duration::from_millis(500)), "traceme-loop");
    assert_eq!(out.status, Exit::Limit(Limit::WallTime));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

fn pid_1_keeps_its_limits_and_its_secrets() {
    let caps = [Capability::SysPtrace, Capability::SysNice, Capability::Setuid, Capability::Setgid, Capability::Kill];
    for sandbox in [sandbox(), sandbox().capabilities(caps), sandbox().user(1, 1)] {
        let out = attack(sandbox, "limit-pid-1");
        assert!(out.success() && !out.text().contains("DONE"), "{}", told(&out));
    }
    if is_root() {
        // Not only by the filter.
        let out = attack(sandbox().syscalls(Syscalls::Unfiltered), "limit-pid-1");
        assert!(out.success() && !out.text().contains("DONE"), "{}", told(&out));
    }
}

fn no_flood_puts_off_the_wall_clock() {
    for name in ["flood", "orphans", "bomb"] {
        let limit = Duration::from_secs(1);
        let out = attack(sandbox().wall_time(limit), name);
        assert_eq!(out.status, Exit::Limit(Limit::WallTime), "{name}");
        assert!(out.usage.wall < limit * 3, "{name}: {:?}", out.usage.wall);
    }
}

fn who_kills_or_stops_everybody_still_ends() {
    let out = attack(sandbox().wall_time(Duration::from_secs(1)), "everyone");
    assert_eq!(out.status, Exit::Limit(Limit::WallTime), "it stopped itself");
    assert_eq!(sh(&sandbox(), "kill -9 -1; exit 6").status, Exit::Code(6));
}

fn a_bomb_at_a_cpu_limit_ends() {
    // A limit needs a control group, which an ordinary user may not have.
    match attacked(sandbox().processes(200).cpu_time(Duration::from_millis(300))).run(["/x/attack", "bomb"]) {
        Ok(out) => assert_eq!(out.status, Exit::Limit(Limit::CpuTime), "{}", told(&out)),
        Err(error) => assert!(!is_root() && error.kind() == ErrorKind::Unsupported, "{error}"),
    }
}

fn files_in_a_writable_bind_get_no_capabilities() {
    let dir = fresh_dir("caps-");
    fs::copy("/bin/true", dir.join("true")).expect("a copy");
    let out = sh(&sandbox().capabilities(Capability::DOCKER).bind_rw(&dir, "/data"), "setcap cap_sys_admin+ep /data/true");
    assert!(!out.success());
    let text = Program::new("getcap").arg("-n").arg(dir.join("true")).output().expect("getcap runs");
    assert_eq!(String::from_utf8_lossy(&text.stdout), "");
}

fn what_a_command_writes_to_a_file_of_the_host_cannot_be_made_set_id() {
    let dir = fresh_dir("fd-");
    for (name, mode) in [("new", 0o644), ("shared", 0o666)] {
        let file = File::create(dir.join(name)).expect("a file");
        file.set_permissions(fs::Permissions::from_mode(mode)).expect("its mode");
        attacked(sandbox()).run(Command::new("/x/attack").arg("set-id").stdout(file)).expect("it runs");
        let text = fs::read_to_string(dir.join(name)).expect("its text");
        assert!(!text.contains("DONE"), "{text}");
        assert_eq!(fs::metadata(dir.join(name)).expect("metadata").mode() & 0o6000, 0);
    }
}

fn a_hosts_session_keyring_stays_with_it() {
    if host::inside() {
        for syscalls in [Syscalls::Default, Syscalls::Unfiltered] {
            assert_eq!(attack(sandbox().syscalls(syscalls.clone()), "key").text(), "keyctl refused\n", "{syscalls:?}");
        }
        return;
    }
    let name = "a_hosts_session_keyring_stays_with_it";
    let mut command = Program::new(program());
    command.arg("with-key").arg(std::env::current_exe().expect("a path of our own"));
    command.args([name, "--exact", "--test-threads=1", "--nocapture"]).env("TMPDIR", fresh_dir("tmp-"));
    let mut host = Host::start_command(command);
    let status = host.end();
    // 77: the kernel has no keys.
    assert!(status.success() || status.code() == Some(77), "{}", host.log());
}

/// Of a host that set itself above others.
fn precedence_is_not_inherited() {
    if host::inside() {
        let out = sh(&sandbox(), "cut -d' ' -f 18,19,40,41 /proc/self/stat; cat /proc/self/oom_score_adj");
        let text = out.text().into_owned();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("20 0 0 0"), "priority, nice value, real-time priority, policy");
        let score: i32 = lines.next().and_then(|l| l.parse().ok()).expect("a score");
        assert!(score >= 0, "{score}");
        return;
    }
    let mut command = Program::new("sh");
    let script = "echo -1000 > /proc/self/oom_score_adj 2> /dev/null; renice -n -5 -p $$ > /dev/null; exec chrt --fifo 10 \"$@\"";
    command.args(["-c", script, "sh"]).arg(std::env::current_exe().expect("a path of our own"));
    command.args(["precedence_is_not_inherited", "--exact", "--test-threads=1", "--nocapture"]).env("TMPDIR", fresh_dir("tmp-"));
    Host::start_command(command).success();
}

/// An image of busybox that is changed before use.
fn image(name: &str, change: impl FnOnce(&Path)) -> Sandbox {
    let root = fresh_dir(name);
    let copied = Program::new("cp").arg("-a").arg(busybox_root().join("bin")).arg(&root).status().expect("cp runs");
    assert!(copied.success());
    change(&root);
    sandbox().rootfs(Image::dir(root))
}

fn refused(result: Result<Output, Error>, word: &str) {
    match result {
        Ok(out) => panic!("{word}: {}", told(&out)),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Mount | ErrorKind::Image), "{error:?}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

fn an_image_that_is_not_what_it_should_be_is_refused_or_replaced() {
    let fifo = |path: PathBuf| assert!(Program::new("mkfifo").arg(path).status().expect("mkfifo runs").success());
    let dir = |path: PathBuf| fs::create_dir_all(path).expect("a directory");
    for target in ["/", "bin", "/proc", "../../../../etc"] {
        refused(image("proc-", |root| symlink(target, root.join("proc")).expect("a link")).run("true"), "/proc");
        refused(image("dev-", |root| symlink(target, root.join("dev")).expect("a link")).run("true"), "/dev");
    }
    refused(image("dev-", |root| fs::write(root.join("dev"), "").expect("a file")).run("true"), "/dev");
    // An ordinary user's upper layer has a directory of that name from the start.
    if is_root() {
        refused(image("etc-", |root| fs::write(root.join("etc"), "").expect("a file")).run("true"), "/etc");
        for target in ["/proc/1", "/proc/self/root/etc", "/proc/1/cwd", "/proc/sys/kernel", "etc", "/nowhere/at/all"] {
            refused(image("etc-", |root| symlink(target, root.join("etc")).expect("a link")).run("true"), "/etc");
        }
    }
    refused(image("hosts-", |root| dir(root.join("etc/hosts"))).run("true"), "/etc/hosts");
    let replaced = image("hosts-", |root| {
        dir(root.join("etc"));
        fifo(root.join("etc/hosts"));
        symlink("/bin/busybox", root.join("etc/hostname")).expect("a link");
        symlink("/bin", root.join("tmp")).expect("a link");
        fifo(root.join("work"));
    });
    let out = sh(&replaced, "cat /etc/hostname && grep -c localhost /etc/hosts && test -f /bin/busybox && echo whole");
    assert_eq!(out.text(), "sandbox\n2\nwhole\n", "{}", told(&out));
    // A FIFO in the place of a file or a directory holds nobody up.
    assert_eq!(sh(&replaced.clone().file("/work", "text"), "cat /work").text(), "text");
    refused(replaced.clone().tmpfs("/work", MIB).run("true"), "/work");
    let error = replaced.run("/work").expect_err("no program");
    assert!(matches!(error.kind(), ErrorKind::PermissionDenied), "{error:?}");
}

fn an_image_leads_none_of_our_files_into_a_writable_bind() {
    let data = fresh_dir("data-");
    fs::write(data.join("hosts"), "precious").expect("a file");
    let sandbox = image("link-", |root| symlink("/data", root.join("etc")).expect("a link")).bind_rw(&data, "/data");
    let _ = sandbox.run("true");
    let _ = sandbox.clone().file("/etc/new", "x").run("true");
    let _ = sandbox.file("/data/meant", "x").run("true");
    assert_eq!(fs::read_to_string(data.join("hosts")).expect("it's there"), "precious");
    assert!(!data.join("hostname").exists() && !data.join("new").exists());
}

fn an_image_leads_no_mount_into_a_writable_bind() {
    let data = fresh_dir("data-");
    fs::create_dir(data.join("given")).expect("a directory");
    let recipe = || {
        let links = |root: &Path| {
            symlink("/data", root.join("link")).expect("a link");
            symlink("bin", root.join("plain")).expect("a link");
        };
        image("link-", links).bind_rw(&data, "/data")
    };
    refused(recipe().tmpfs("/link/made/here", MIB).run("true"), "/link/made/here");
    refused(recipe().bind(&data, "/link/given").run("true"), "/link/given");
    refused(recipe().bind(data.join("given"), "/link/made").run("true"), "/link/made");
    assert!(!data.join("made").exists(), "nothing was made in the host's directory");
    // What stays in the image, and what the caller names, is meant.
    assert!(recipe().tmpfs("/plain/new/place", MIB).run("true").expect("it runs").success());
    assert_eq!(sh(&recipe().tmpfs("/data/given", MIB), "echo x > /data/given/y; ls /data/given").text(), "y\n");
    assert_eq!(sh(&recipe().tmpfs("/dev/shm", MIB).tmpfs("/dev/shm", 2 * MIB), "df -k /dev/shm | tail -n 1 | wc -l").text().trim(), "1");
    assert_eq!(fs::read_dir(data.join("given")).expect("a directory").count(), 0);
}

fn device_nodes_and_set_id_programs_of_an_image_are_dead() {
    let sandbox = image("nodes-", |root| {
        let node = |name: &str, kind: &str, major: &str, minor: &str| {
            let made = Program::new("mknod").args(["-m", "666"]).arg(root.join(name)).args([kind, major, minor]).status();
            assert!(made.expect("mknod runs").success());
        };
        node("null", "c", "1", "3");
        node("disk", "b", "254", "0");
        fs::create_dir(root.join("root-shell")).expect("a directory");
        fs::copy(root.join("bin/busybox"), root.join("root-shell/busybox")).expect("a copy");
        fs::set_permissions(root.join("root-shell/busybox"), fs::Permissions::from_mode(0o4755)).expect("its mode");
    });
    let out = sh(&sandbox.clone().capabilities(Capability::DOCKER), "cat /null; head -c 1 /disk; mknod /tmp/n c 1 3");
    assert!(out.stdout.is_empty() && !out.success(), "{}", told(&out));
    assert_eq!(sh(&sandbox.user(1000, 1000).syscalls(Syscalls::Unfiltered), "/root-shell/busybox id -u").text(), "1000\n");
}

fn nothing_of_the_machine_can_be_written_through_proc() {
    let script = "find /proc -maxdepth 6 -type f -writable ! -path '/proc/[0-9]*' ! -path '/proc/self/*' ! -path '/proc/thread-self/*' \
                  2>/dev/null";
    // Of the sandbox's own namespaces; and pressure triggers, which only wait.
    let own = ["/proc/sys/net/", "/proc/sys/fs/mqueue/", "/proc/pressure/", "/proc/sys/user/"];
    let own_kernel = ["auto_msgmni", "msg", "ns_last_pid", "pid_max", "sem", "shm"];
    let out = sh(&sandbox().capabilities(Capability::DOCKER), script);
    for path in out.text().lines() {
        let kernel = path.strip_prefix("/proc/sys/kernel/").is_some_and(|name| own_kernel.iter().any(|o| name.starts_with(o)));
        assert!(kernel || own.iter().any(|o| path.starts_with(o)), "{path}");
    }
    // The numbers of processes are the sandbox's own too, where it can change them.
    let before = fs::read_to_string("/proc/sys/kernel/pid_max").expect("a number");
    sh(&sandbox(), "echo 400 > /proc/sys/kernel/pid_max; echo 1 > /proc/sys/kernel/ns_last_pid");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/pid_max").expect("a number"), before);
    assert!(!sh(&sandbox(), "echo b > /proc/sysrq-trigger").success());
    assert!(!sh(&sandbox(), "exec 3< /proc/kcore || exec 3< /dev/tty").success());
}

/// A daemon closes its standard streams, and what is opened next gets their numbers.
fn closed_standard_streams_are_never_ours() {
    let name = "closed_standard_streams_are_never_ours";
    host::alone(name, || {
        let log = File::options().append(true).open(fs::read_link("/proc/self/fd/1").expect("the log")).expect("the log");
        for fd in 0..3 {
            // SAFETY: nobody uses them in between.
            unsafe { libc::close(fd) };
        }
        let child = sandbox().spawn(Command::new("sleep").arg("100").stdout(Stdio::null()).stderr(Stdio::null()));
        let open: Vec<(i32, PathBuf)> = (0..3).filter_map(|fd| Some((fd, fs::read_link(format!("/proc/self/fd/{fd}")).ok()?))).collect();
        let inherited = sandbox().run(Command::new("true").stdin(Stdio::inherit()));
        for fd in 0..3 {
            // SAFETY: puts them back for the test's own words.
            unsafe { libc::dup2(log.as_raw_fd(), fd) };
        }
        child.expect("it starts");
        assert_eq!(open, [], "sockets, pipes or files of the library stand for a standard stream");
        assert!(inherited.is_err(), "there was no standard input");
    });
}

fn any_limit_on_descriptors_is_an_error_at_worst() {
    host::alone("any_limit_on_descriptors_is_an_error_at_worst", || {
        // A control group that was made ahead of the next run has descriptors too.
        let count = || {
            assert!(cofferdam::quiesce(support::patience(LONG)).expect("an answer"));
            fs::read_dir("/proc/self/fd").expect("our descriptors").count() as u64
        };
        sandbox().run("true").expect("it runs");
        let before = count();
        let set = |most: u64| {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: 4096 };
            // SAFETY: a structure of our own.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        };
        let mut worked = 0;
        for more in 0..24 {
            set(before + more);
            let result = sandbox().run(Command::new("true").stdin("x"));
            set(1024);
            match result {
                Ok(out) => worked += u32::from(out.success()),
                Err(error) => assert!(matches!(error.kind(), ErrorKind::Exhausted), "{more}: {error:?}"),
            }
            // A group that was made ahead may have been used up.
            assert!(count() <= before, "{more}: descriptors stay open");
        }
        assert!(worked > 0, "enough in the end");
    });
}

fn bounds_are_told_and_hold() {
    let mut command = Command::new("true");
    for number in 0..50 {
        command = command.fd(3 + number, File::open("/dev/null").expect("a file"));
    }
    let mut all = sandbox();
    if is_root() {
        all = all.memory(64 * MIB).processes(20).cpus(1.0).cpu_time(LONG).idle_time(LONG);
    }
    assert!(all.run(command).expect("50 descriptors and every limit").success());
    let mut files = sandbox();
    for number in 0..5000 {
        files = files.file(format!("/many/{number}"), "x");
    }
    assert_eq!(sh(&files, "ls /many | wc -l").text().trim(), "5000");
    let longest = sandbox().wall_time(Duration::MAX);
    assert!(longest.clone().run("true").expect("it runs").success());
    if is_root() {
        let out = sh(&longest.cpu_time(Duration::MAX).idle_time(Duration::MAX), "ulimit -t");
        assert_eq!(out.text(), "unlimited\n", "{}", told(&out));
    }
    assert!(cofferdam::quiesce(Duration::MAX).expect("it's quiet"));
}

fn killers_race_with_ends_and_drops() {
    for round in 0..30 {
        let child = sandbox().spawn(["sh", "-c", "sleep 0.00$0", &(round % 7).to_string()]).expect("it starts");
        let killers: Vec<_> = (0..4).map(|_| child.killer()).collect();
        thread::scope(|scope| {
            for killer in &killers {
                scope.spawn(move || {
                    thread::sleep(Duration::from_micros(300 * round % 4000));
                    killer.kill().expect("harmless at any time");
                    killer.signal(libc::SIGTERM).expect("harmless at any time");
                });
            }
            let mut child = child;
            if round % 3 == 0 {
                drop(child);
            } else {
                let exit = child.wait().expect("a verdict");
                assert!(matches!(exit, Exit::Code(0) | Exit::Killed | Exit::Signal(libc::SIGTERM)), "{exit}");
            }
        });
        for killer in killers {
            killer.stop(Duration::ZERO).expect("harmless afterwards");
        }
    }
    assert!(cofferdam::quiesce(LONG).expect("an answer"), "killers keep nothing alive");
}

/// A loss is told once; a handle that is still around keeps neither place nor group.
fn a_lost_sandbox_leaves_nothing_although_its_killer_lives() {
    host::alone("a_lost_sandbox_leaves_nothing_although_its_killer_lives", || {
        let mut child = sandbox().spawn(["sleep", "100"]).expect("it starts");
        let killer = child.killer();
        let own = child.id().expect("alive");
        let pid1 = processes::find(own).expect("alive").parent;
        // SAFETY: a number, of a process that lives.
        unsafe { libc::kill(pid1 as i32, libc::SIGKILL) };
        assert_eq!(child.wait().expect_err("lost").kind(), ErrorKind::Lost);
        drop(child);
        assert!(cofferdam::quiesce(Duration::from_secs(5)).expect("an answer"), "init still waits for it");
        killer.kill().expect("harmless");
    });
}

/// Each looks dead to the others between making its directory and locking it.
fn hosts_that_start_at_once_all_get_their_groups() {
    const NAME: &str = "hosts_that_start_at_once_all_get_their_groups";
    if host::inside() {
        assert!(sandbox().memory(64 * MIB).run("true").expect("a group").success());
        return;
    }
    for _ in 0..3 {
        let hosts: Vec<Host> = (0..8).map(|_| Host::start(NAME)).collect();
        for host in hosts {
            host.success();
        }
    }
}

fn both_streams_at_once_meet_the_output_limit() {
    let script = "(while :; do echo out; done) & (while :; do echo err >&2; done) & trap '' TERM PIPE; exec 1>&- 2>&-; wait";
    let out = sh(&sandbox().output(100_000), script);
    assert_eq!(out.status, Exit::Limit(Limit::Output));
    assert!(out.stdout.len() <= 100_000 && out.stderr.len() <= 100_000);
}

fn main() {
    support::main(vec![
        test!(who_makes_pid_1_its_tracer_gets_no_verdict_of_its_own_making, Need::Tool("gcc")),
        test!(pid_1_keeps_its_limits_and_its_secrets, Need::Tool("gcc")),
        test!(no_flood_puts_off_the_wall_clock, Need::Tool("gcc")),
        test!(who_kills_or_stops_everybody_still_ends, Need::Tool("gcc")),
        test!(a_bomb_at_a_cpu_limit_ends, Need::Tool("gcc")),
        test!(files_in_a_writable_bind_get_no_capabilities, root, Need::Tool("setcap"), Need::Tool("getcap")),
        test!(what_a_command_writes_to_a_file_of_the_host_cannot_be_made_set_id, Need::Tool("gcc")),
        test!(a_hosts_session_keyring_stays_with_it, Need::Tool("gcc")),
        test!(precedence_is_not_inherited, root, Need::Tool("chrt")),
        test!(an_image_that_is_not_what_it_should_be_is_refused_or_replaced, Need::Tool("busybox"), Need::Overlay),
        test!(an_image_leads_no_mount_into_a_writable_bind, Need::Tool("busybox"), Need::Overlay),
        test!(an_image_leads_none_of_our_files_into_a_writable_bind, Need::Tool("busybox"), Need::Overlay),
        test!(device_nodes_and_set_id_programs_of_an_image_are_dead, root, Need::Tool("busybox")),
        test!(nothing_of_the_machine_can_be_written_through_proc),
        test!(closed_standard_streams_are_never_ours),
        test!(any_limit_on_descriptors_is_an_error_at_worst),
        test!(bounds_are_told_and_hold),
        test!(killers_race_with_ends_and_drops),
        test!(a_lost_sandbox_leaves_nothing_although_its_killer_lives),
        test!(hosts_that_start_at_once_all_get_their_groups, root),
        test!(both_streams_at_once_meet_the_output_limit),
    ])
}
