//! What a command is given, what comes back, and how it ends.

#![allow(unsafe_code, reason = "descriptors that std doesn't make")]

mod support;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::{Child, Command, ErrorKind, Exit, GIB, Limit, MIB, Output, Sandbox, Stdio};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::processes::{self, eventually, marked, marker};
use support::{Need, compile_c, fresh_dir, host, shell};

const LONG: Duration = Duration::from_secs(30);

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(support::patience(LONG))
}

fn run(command: impl Into<Command>) -> Output {
    sandbox().run(command).expect("it runs")
}

fn sh(script: &str) -> Output {
    run(["sh", "-c", script])
}

/// A shell that has said "ready" after the first part of its script.
fn ready(script: &str) -> (Child, BufReader<io::PipeReader>) {
    let mut child = sandbox().spawn(shell(script).stdin(Stdio::piped()).stdout(Stdio::piped())).expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    (child, output)
}

fn kind(command: impl Into<Command>) -> ErrorKind {
    kind_in(&sandbox(), command)
}

/// The kind of a failure to start, the same for `run` and `spawn`'s way.
fn kind_in(sandbox: &Sandbox, command: impl Into<Command>) -> ErrorKind {
    let error = sandbox.run(command).expect_err("it can't start");
    assert!(error.to_string().starts_with("cannot "), "{error}");
    error.kind()
}

/// Bytes without a pattern that a lost or doubled block would keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = length.div_ceil(8);
    let mut bytes = Vec::with_capacity(words * 8);
    for _ in 0..words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

// Standard input

fn input_of_100_mb_arrives_exactly() {
    let bytes = noise(100_000_000);
    let out = sandbox().output(GIB).run(Command::new("cat").stdin(bytes.clone())).expect("it runs");
    assert_eq!(out.status, Exit::Code(0));
    assert!(out.stdout == bytes, "{} bytes came back, and not the same", out.stdout.len());
    assert_eq!((out.stdout_stream.bytes, out.stdout_stream.truncated), (100_000_000, false));
}

fn input_is_a_file_a_pipe_or_nothing() {
    let path = fresh_dir("in-").join("file");
    fs::write(&path, "0123456789").expect("a file");
    let mut file = File::open(&path).expect("a file");
    file.seek(io::SeekFrom::Start(4)).expect("an offset");
    assert_eq!(run(Command::new("cat").stdin(file)).text(), "456789", "a file is read from where it stands");

    let (reader, mut writer) = io::pipe().expect("a pipe");
    let feeder = thread::spawn(move || writer.write_all(&noise(300_000)));
    assert_eq!(run(Command::new("wc").arg("-c").stdin(reader)).text().trim(), "300000");
    feeder.join().expect("a thread").expect("all written");

    for empty in [Stdio::null(), Stdio::captured(), Stdio::bytes("")] {
        assert_eq!(run(Command::new("wc").arg("-c").stdin(empty)).text().trim(), "0");
    }
}

fn a_piped_command_can_be_talked_to() {
    let mut child = sandbox().spawn(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped())).expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    for word in ["one\n", "two\n"] {
        child.stdin.as_mut().expect("a pipe").write_all(word.as_bytes()).expect("written");
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, word);
    }
    assert_eq!(child.try_wait().expect("alive"), None);
    // `wait` closes the input, which is what ends cat.
    assert_eq!(child.wait().expect("a verdict"), Exit::Code(0));
    assert_eq!(output.read_line(&mut String::new()).expect("the end"), 0);
    assert_eq!(child.wait().expect("the same verdict"), Exit::Code(0));
}

fn piped_output_can_be_collected_after_all() {
    let script = "cat; echo err >&2; exit 4";
    let command = shell(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = sandbox().spawn(command).expect("it starts");
    child.stdin.as_mut().expect("a pipe").write_all(b"in").expect("written");
    let out = child.wait_with_output().expect("an outcome");
    assert_eq!((out.status, &*out.stdout, &*out.stderr), (Exit::Code(4), &b"in"[..], &b"err\n"[..]));
}

fn run_refuses_pipes_that_nobody_could_hold() {
    for command in
        [Command::new("cat").stdin(Stdio::piped()), Command::new("cat").stdout(Stdio::piped()), Command::new("cat").stderr(Stdio::piped())]
    {
        assert_eq!(sandbox().run(command).expect_err("refused").kind(), ErrorKind::Invalid);
    }
    let (_, writer) = io::pipe().expect("a pipe");
    assert_eq!(sandbox().run(Command::new("cat").stdin(Stdio::relay(writer))).expect_err("refused").kind(), ErrorKind::Invalid);
    assert_eq!(sandbox().run(Command::new("cat").stdout(Stdio::bytes("x"))).expect_err("refused").kind(), ErrorKind::Invalid);
}

fn input_that_nobody_reads_hurts_nobody() {
    assert_eq!(run(Command::new("true").stdin(vec![b'x'; 10_000_000])).status, Exit::Code(0));
    assert_eq!(run(shell("exec <&-; exit 3").stdin(vec![b'x'; 1_000_000])).status, Exit::Code(3));
    let mut child = sandbox().spawn(Command::new("true").stdin(Stdio::piped())).expect("it starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    let error = pipe.write_all(&vec![b'x'; 1_000_000]).expect_err("nobody reads");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(child.wait().expect("a verdict"), Exit::Code(0));
}

// Output

fn output_beyond_its_limit_ends_the_run() {
    for (script, stream) in [("yes", 0), ("yes >&2", 1)] {
        let out = sandbox().output(100_000).run(shell(script)).expect("it runs");
        assert_eq!(out.status, Exit::Limit(Limit::Output), "{script}");
        let (kept, end) = if stream == 0 { (&out.stdout, out.stdout_stream) } else { (&out.stderr, out.stderr_stream) };
        assert_eq!(kept.len(), 100_000);
        assert!(kept.chunks(2).all(|chunk| chunk == b"y\n"));
        assert!(end.truncated && end.bytes > 100_000, "{end:?}");
    }
    // The limit itself is still allowed, for each stream by itself.
    let out = sandbox().output(1000).run(shell("head -c 1000 /dev/zero; head -c 1000 /dev/zero >&2")).expect("it runs");
    assert_eq!((out.status, out.stdout.len(), out.stderr.len()), (Exit::Code(0), 1000, 1000));
    let out = sandbox().output(1000).run(shell("head -c 1001 /dev/zero")).expect("it runs");
    assert_eq!((out.status, out.stdout.len(), out.stdout_stream.bytes), (Exit::Limit(Limit::Output), 1000, 1001));
    let out = sandbox().output(0).run(shell("echo x")).expect("it runs");
    assert_eq!((out.status, out.stdout.len()), (Exit::Limit(Limit::Output), 0));
}

fn without_a_limit_16_mib_are_kept_and_the_rest_counted() {
    let out = run(["head", "-c", "20000000", "/dev/zero"]);
    assert_eq!(out.status, Exit::Code(0));
    assert_eq!(out.stdout.len() as u64, 16 * MIB);
    assert_eq!((out.stdout_stream.bytes, out.stdout_stream.truncated), (20_000_000, true));
}

fn both_streams_carry_20_mb_at_once() {
    let script = "head -c 20000000 /dev/zero & head -c 20000000 /dev/zero | tr '\\0' x >&2; wait";
    let out = sandbox().output(64 * MIB).run(shell(script)).expect("it runs");
    assert_eq!(out.status, Exit::Code(0));
    assert_eq!((out.stdout.len(), out.stderr.len()), (20_000_000, 20_000_000));
    assert!(out.stdout.iter().all(|b| *b == 0) && out.stderr.iter().all(|b| *b == b'x'));
    // One after the other, where a reader of one stream at a time would hang.
    let out = sandbox().output(64 * MIB).run(shell("head -c 20000000 /dev/zero >&2; head -c 20000000 /dev/zero")).expect("it runs");
    assert_eq!((out.stdout.len(), out.stderr.len()), (20_000_000, 20_000_000));
}

fn a_relay_passes_everything_on_and_counts() {
    let path = fresh_dir("relay-").join("file");
    let out = run(shell("head -c 1000000 /dev/zero; echo err >&2").stdout(Stdio::relay(File::create(&path).expect("a file"))));
    assert_eq!((out.status, out.stdout.len(), &*out.stderr), (Exit::Code(0), 0, &b"err\n"[..]));
    assert_eq!((out.stdout_stream.bytes, out.stdout_stream.truncated), (1_000_000, false));
    assert_eq!(fs::read(&path).expect("the file"), vec![0; 1_000_000]);

    // A pipe whose reader is slower than the workload.
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let collector = thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map(|_| all)
    });
    let out = run(shell("seq 1 100000").stdout(Stdio::relay(writer)));
    let all = collector.join().expect("a thread").expect("the end of the pipe");
    assert_eq!(all.len() as u64, out.stdout_stream.bytes);
    assert!(all.ends_with(b"\n99999\n100000\n"));

    let out = sandbox().output(5000).run(shell("yes").stdout(Stdio::relay(File::create(&path).expect("a file")))).expect("it runs");
    assert_eq!(out.status, Exit::Limit(Limit::Output), "relayed bytes are limited too");
    assert_eq!(fs::metadata(&path).expect("the file").len(), 5000);
}

fn a_relay_whose_reader_is_gone_swallows() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let out = run(shell("head -c 300000 /dev/zero; echo end >&2").stdout(Stdio::relay(writer)));
    assert_eq!((out.status, &*out.stderr), (Exit::Code(0), &b"end\n"[..]));
    assert!(out.stdout_stream.truncated && out.stdout_stream.bytes == 300_000, "{:?}", out.stdout_stream);
}

fn streams_can_be_files_and_pipes() {
    let path = fresh_dir("out-").join("file");
    let file = File::create(&path).expect("a file");
    let copy = file.try_clone().expect("a copy");
    let out = run(shell("echo out; echo err >&2").stdout(file).stderr(copy));
    assert_eq!((out.stdout.len(), out.stderr.len(), out.stdout_stream.bytes), (0, 0, 0));
    assert_eq!(fs::read_to_string(&path).expect("the file"), "out\nerr\n");

    let (mut reader, writer) = io::pipe().expect("a pipe");
    run(shell("echo through").stdout(writer));
    let mut text = String::new();
    // It ends, so neither we nor init has kept the other end.
    reader.read_to_string(&mut text).expect("the end of the pipe");
    assert_eq!(text, "through\n");
    assert_eq!(run(shell("echo out; echo err >&2").stdout(Stdio::null())).stderr, b"err\n");
}

fn inherited_streams_are_the_hosts_own() {
    if host::inside() {
        run(shell("echo inherited-out; echo inherited-err >&2").stdout(Stdio::inherit()).stderr(Stdio::inherit()));
        let put_in_place = |fd: OwnedFd| {
            // SAFETY: nobody reads standard input here.
            unsafe { libc::dup2(fd.as_raw_fd(), 0) };
        };
        put_in_place(File::open("/").expect("a directory").into());
        let error = sandbox().run(Command::new("true").stdin(Stdio::inherit())).expect_err("a way out");
        assert!(error.to_string().contains("standard input is a directory"), "{error}");
        let (mut ours, theirs) = UnixStream::pair().expect("sockets");
        put_in_place(theirs.into());
        ours.write_all(b"by socket\n").expect("written");
        assert_eq!(run(shell("read x; echo $x").stdin(Stdio::inherit())).text(), "by socket\n");
        return;
    }
    let log = host::Host::start("inherited_streams_are_the_hosts_own").success();
    assert!(log.contains("inherited-out\n") && log.contains("inherited-err\n"), "{log}");
}

// Further descriptors

fn further_descriptors_arrive_under_their_numbers() {
    let path = fresh_dir("fd-").join("file");
    fs::write(&path, "from a file").expect("a file");
    let (reader, mut writer) = io::pipe().expect("a pipe");
    writer.write_all(b"from a pipe").expect("written");
    drop(writer);
    let (mut back, towards) = io::pipe().expect("a pipe");
    let command = shell("cat <&4; echo; cat <&3; echo; echo answer >&9; exec ls /proc/self/fd")
        .fd(3, reader)
        .fd(4, File::open(&path).expect("a file"))
        .fd(9, towards);
    // 5 is the directory that ls reads.
    assert_eq!(run(command).text(), "from a file\nfrom a pipe\n0\n1\n2\n3\n4\n5\n9\n");
    let mut text = String::new();
    back.read_to_string(&mut text).expect("the end of the pipe");
    assert_eq!(text, "answer\n");
    // Numbers that collide with those that the descriptors have on their way.
    let mut command = shell("for i in 3 4 5 6 7 8 9; do eval \"cat <&$i\"; done; cat /proc/self/fd/700");
    for number in [9, 7, 5, 3, 4, 6, 8, 700] {
        command = command.fd(number, file_of(&format!("{number} ")));
    }
    assert_eq!(run(command).text(), "3 4 5 6 7 8 9 700 ");
}

/// A file of this text, open for reading.
fn file_of(text: &str) -> File {
    let path = fresh_dir("text-").join("file");
    fs::write(&path, text).expect("a file");
    File::open(path).expect("a file")
}

/// Through /proc a descriptor can be opened once more; see `Command::fd`.
fn a_file_for_reading_is_not_written() {
    let path = fresh_dir("read-").join("file");
    fs::write(&path, "precious").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("its mode");
    let open = || File::open(&path).expect("a file");
    let script =
        "for fd in 0 3; do echo bad > /proc/self/fd/$fd; echo bad >> /proc/self/fd/$fd; truncate -s 0 /proc/self/fd/$fd; done; cat <&3";
    let out = run(shell(script).stdin(open()).fd(3, open()));
    assert_eq!((out.text().as_ref(), fs::read_to_string(&path).expect("a file").as_str()), ("precious", "precious"));
    // One for writing is.
    run(shell("echo good > /proc/self/fd/3").fd(3, File::options().append(true).open(&path).expect("a file")));
    assert_eq!(fs::read_to_string(&path).expect("a file"), "good\n");
}

fn sockets_and_directories_must_be_asked_for_by_name() {
    let directory = fresh_dir("dir-");
    fs::write(directory.join("file"), "of the host").expect("a file");
    let open = || OwnedFd::from(File::open(&directory).expect("a directory"));
    let socket = || UnixStream::pair().expect("sockets").0;
    let device = File::open("/dev/zero").expect("a device");
    assert_eq!(run(shell("head -c 2 <&5 | wc -c").fd(5, device)).text().trim(), "2", "character devices are plain");
    for (command, word) in [
        (Command::new("true").fd(3, open()), "directory_fd"),
        (Command::new("true").fd(3, socket()), "Command::socket"),
        (Command::new("true").socket(3, open()), "directory"),
        (Command::new("true").directory_fd(3, socket()), "socket"),
        (Command::new("true").stdin(Stdio::from(open())), "standard input"),
        (Command::new("true").stdout(Stdio::from(OwnedFd::from(socket()))), "standard output"),
        (Command::new("true").fd(2, socket()), "stdin, stdout and stderr"),
        (Command::new("true").fd(3, File::open("/dev/null").expect("null")).fd(3, File::open("/dev/null").expect("null")), "twice"),
    ] {
        let error = sandbox().run(command).expect_err(word);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    // What only looks like a file: a namespace, a process, a path that is open for nothing.
    let namespace = || File::open("/proc/self/ns/mnt").expect("a namespace");
    // SAFETY: a plain number; the descriptor is new.
    let process = unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) as i32) };
    let path = File::options().read(true).custom_flags(libc::O_PATH).open(directory.join("file")).expect("a path");
    for fd in [OwnedFd::from(namespace()), process, path.into()] {
        let error = sandbox().run(Command::new("true").fd(3, fd)).expect_err("no file");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("neither a file"), "{error}");
    }
    let error = sandbox().run(Command::new("true").stdin(namespace())).expect_err("no file");
    assert!(error.to_string().contains("standard input is neither a file"), "{error}");
    assert_eq!(run(shell("cd /proc/self/fd/3 && cat file").directory_fd(3, open())).text(), "of the host");
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    ours.write_all(b"question\n").expect("written");
    let out = run(shell("read line <&3; echo \"re: $line\" >&3").socket(3, theirs));
    assert_eq!(out.status, Exit::Code(0), "{}", String::from_utf8_lossy(&out.stderr));
    let mut text = String::new();
    ours.read_to_string(&mut text).expect("the end of the socket");
    assert_eq!(text, "re: question\n");
}

// Arguments, environment, paths

fn names_may_be_any_bytes() {
    let odd = OsStr::from_bytes(b"\xff\xfe \n\x01");
    let out = run(Command::new("printf").arg("%s").arg(odd));
    assert_eq!(out.stdout, odd.as_bytes());
    let out = run(Command::new("env").env_clear().env("PATH", "/usr/bin").env(OsStr::from_bytes(b"N\xff"), odd));
    assert_eq!(out.stdout, [b"PATH=/usr/bin\nN\xff=", odd.as_bytes(), b"\n"].concat());

    let directory = fresh_dir("odd-").join(odd);
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join(odd), "contents").expect("a file");
    let inside = Path::new("/data").join(odd);
    let sandbox = sandbox().bind(&directory, &inside).file_mode(Path::new("/bin-").join(odd), "#!/bin/sh\npwd", 0o755);
    let out = sandbox.run(Command::new("cat").arg(odd).current_dir(&inside)).expect("it runs");
    assert_eq!(out.text(), "contents", "{}", String::from_utf8_lossy(&out.stderr));
    let program = OsString::from_vec([b"/bin-/", odd.as_bytes()].concat());
    let out = sandbox.run(Command::new(program).current_dir(&inside)).expect("it runs");
    assert_eq!(out.stdout, [inside.as_os_str().as_bytes(), b"\n"].concat());
}

fn arguments_and_environment_of_megabytes_arrive() {
    // Twelve large ones, and a hundred thousand small ones.
    let script = "echo $#; for a; do echo ${#a}; done | sort | uniq -c";
    let out = run(shell(script).arg("sh").args(vec!["x".repeat(125_000); 12]));
    assert_eq!(out.text().split_whitespace().collect::<Vec<_>>(), ["12", "12", "125000"]);
    let out = run(shell("echo $# ${99999}").arg("sh").args((0..100_000).map(|i| format!("{i:04}"))));
    assert_eq!(out.text(), "100000 99998\n", "{}", String::from_utf8_lossy(&out.stderr));
    let out = run(Command::new("env").envs((0..15).map(|i| (format!("V{i}"), "v".repeat(100_000)))));
    assert!(out.stdout.len() > 1_500_000 && out.text().lines().filter(|l| l.len() > 100_000).count() == 15);
}

fn too_many_arguments_are_told_as_such() {
    assert_eq!(kind(Command::new("true").arg("x".repeat(200_000))), ErrorKind::ArgumentListTooLong, "one argument");
    assert_eq!(kind(Command::new("true").args(vec!["x".repeat(100_000); 30])), ErrorKind::ArgumentListTooLong, "all together");
    assert_eq!(kind(Command::new("true").env("X", "x".repeat(200_000))), ErrorKind::ArgumentListTooLong, "environment");
    // A larger stack makes room, as with execve(2) itself.
    let sandbox = sandbox().stack(32 * MIB);
    let out = sandbox.run(Command::new("true").args(vec!["x".repeat(100_000); 30])).expect("it runs");
    assert_eq!(out.status, Exit::Code(0));
}

// What keeps a program from starting

fn each_failure_to_start_has_its_kind() {
    let sandbox = sandbox()
        .file("/x/plain", "#!/bin/sh\n")
        .file_mode("/x/garbage", "\x7fELF, but not really", 0o755)
        .file_mode("/x/empty", "", 0o755)
        .file_mode("/x/lost", "#!/no/such/interpreter\n", 0o755)
        .file_mode("/x/through", "#!/x/plain/interpreter\n", 0o755)
        .file_mode("/x/good", "#!/bin/sh\nexit 7\n", 0o755);
    let kind = |command: Command| kind_in(&sandbox, command);
    assert_eq!(kind("no-such-program".into()), ErrorKind::NotFound);
    assert_eq!(kind("/no/such/program".into()), ErrorKind::NotFound);
    assert_eq!(kind("/x/good/under-a-file".into()), ErrorKind::NotFound);
    assert_eq!(kind(Command::new("sh").env("PATH", "/no:/such")), ErrorKind::NotFound);
    assert_eq!(kind("/x/plain".into()), ErrorKind::PermissionDenied);
    assert_eq!(kind("/x".into()), ErrorKind::IsADirectory);
    assert_eq!(kind("/".into()), ErrorKind::IsADirectory);
    assert_eq!(kind("/x/garbage".into()), ErrorKind::ExecFormat);
    assert_eq!(kind("/x/empty".into()), ErrorKind::ExecFormat);
    assert_eq!(kind("/x/lost".into()), ErrorKind::InterpreterNotFound);
    assert_eq!(kind("/x/through".into()), ErrorKind::InterpreterNotFound);
    assert_eq!(kind(Command::new("true").current_dir("/no/such")), ErrorKind::BadWorkingDirectory);
    assert_eq!(kind(Command::new("true").current_dir("/x/plain")), ErrorKind::BadWorkingDirectory);
    assert_eq!(kind(format!("/{}", "n".repeat(300)).into()), ErrorKind::NameTooLong);
    assert_eq!(kind("n".repeat(300).into()), ErrorKind::NameTooLong);
    // A directory of PATH that hides the program doesn't end the search.
    assert_eq!(sandbox.run(Command::new("good").env("PATH", "/no:/x/plain:/x")).expect("it runs").status, Exit::Code(7));
    // One that may not be executed is passed over, but remembered (execvp(3)).
    assert_eq!(kind(Command::new("plain").env("PATH", "/x:/no")), ErrorKind::PermissionDenied);
    assert_eq!(sandbox.run(Command::new("./good").current_dir("/x")).expect("it runs").status, Exit::Code(7));
    // `spawn` tells the same as `run`.
    for (program, kind) in [("no-such-program", ErrorKind::NotFound), ("/x/lost", ErrorKind::InterpreterNotFound)] {
        assert_eq!(sandbox.spawn(program).expect_err("it can't start").kind(), kind);
    }
}

fn links_in_circles_and_busy_programs_have_their_kinds() {
    let directory = fresh_dir("exec-");
    std::os::unix::fs::symlink("b", directory.join("a")).expect("a link");
    std::os::unix::fs::symlink("a", directory.join("b")).expect("a link");
    let program = directory.join("program");
    fs::copy("/bin/true", &program).expect("a copy");
    let sandbox = sandbox().bind(&directory, "/x");
    assert_eq!(kind_in(&sandbox, "/x/a"), ErrorKind::FilesystemLoop);
    let writer = File::options().write(true).open(&program).expect("open for writing");
    assert_eq!(kind_in(&sandbox, "/x/program"), ErrorKind::TextFileBusy);
    drop(writer);
    // Another trial's program on its way to exec may have a copy of it for a moment.
    let end = Instant::now() + support::patience(Duration::from_secs(10));
    let out = loop {
        match sandbox.run("/x/program") {
            Err(error) if error.kind() == ErrorKind::TextFileBusy && Instant::now() < end => {}
            other => break other.expect("it runs"),
        }
    };
    assert_eq!(out.status, Exit::Code(0));
}

fn a_missing_elf_loader_is_a_missing_interpreter() {
    let program = compile_c("lost", include_str!("programs/lost.c"), &["-Wl,--dynamic-linker=/no/such/ld.so"]);
    assert_eq!(kind_in(&sandbox().bind(program, "/x/lost"), "/x/lost"), ErrorKind::InterpreterNotFound);
}

// Ends

fn every_exit_code_is_reported_exactly() {
    let sandbox = sandbox();
    for code in 0..=255 {
        let out = sandbox.run(["sh", "-c", &format!("exit {code}")]).expect("it runs");
        assert_eq!((out.status, out.raw), (Exit::Code(code), Exit::Code(code)));
        assert_eq!(out.success(), code == 0);
    }
}

fn signals_of_its_own_making_are_reported_as_such() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGKILL, libc::SIGUSR1, libc::SIGPIPE, libc::SIGTERM, libc::SIGXCPU, 34, 64] {
        let out = sh(&format!("kill -{signal} $$"));
        assert_eq!((out.status, out.raw), (Exit::Signal(signal), Exit::Signal(signal)));
    }
    // A shell's 128 + n is an exit code: nobody but the shell had that signal.
    assert_eq!(sh("sh -c 'kill -9 $$'; exit $?").status, Exit::Code(137));
}

fn abort_and_arithmetic_are_their_signals() {
    let program = compile_c("crash", include_str!("programs/crash.c"), &[]);
    let sandbox = sandbox().bind(program, "/crash");
    for (how, signal) in [("abort", libc::SIGABRT), ("fpe", libc::SIGFPE), ("segv", libc::SIGSEGV)] {
        assert_eq!(sandbox.run(["/crash", how]).expect("it runs").status, Exit::Signal(signal), "{how}");
    }
}

fn a_daemon_that_holds_the_output_open_neither_outlives_nor_hangs() {
    let marker = marker();
    let began = Instant::now();
    // Forked twice, in a session of its own, deaf to polite signals.
    let out = sh(&format!("(setsid sh -c 'trap \"\" HUP TERM INT; sleep {marker}; :' & ) ; echo done"));
    assert_eq!((out.status, &*out.text()), (Exit::Code(0), "done\n"));
    assert_eq!(marked(&marker), []);
    assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
}

fn wall_time_ends_a_run() {
    let marker = marker();
    let limit = Duration::from_millis(150);
    for script in
        [format!("sleep {marker}"), format!("trap '' TERM INT; sleep {marker} & sleep {marker}; wait"), "while :; do :; done".into()]
    {
        let out = Sandbox::new().wall_time(limit).run(shell(&script)).expect("it runs");
        assert_eq!((out.status, out.raw), (Exit::Limit(Limit::WallTime), Exit::Signal(libc::SIGKILL)), "{script}");
        assert!(out.usage.wall >= limit && out.usage.wall < LONG / 3, "{:?}", out.usage.wall);
        assert_eq!(marked(&marker), [], "{script}");
    }
    // What was printed before is kept.
    let out = Sandbox::new().wall_time(support::patience(limit)).run(shell("echo before; sleep 1000")).expect("it runs");
    assert_eq!((out.status, &*out.text()), (Exit::Limit(Limit::WallTime), "before\n"));
}

fn waiting_can_be_limited() {
    let (mut child, _output) = ready("echo ready; read x; exit 5");
    assert_eq!(child.try_wait().expect("alive"), None);
    let began = Instant::now();
    assert_eq!(child.wait_timeout(Duration::from_millis(50)).expect("alive"), None);
    assert!(began.elapsed() >= Duration::from_millis(50));
    child.stdin.as_mut().expect("still open").write_all(b"\n").expect("written");
    assert_eq!(child.wait_timeout(LONG).expect("a verdict"), Some(Exit::Code(5)));
    assert_eq!(child.try_wait().expect("a verdict"), Some(Exit::Code(5)));
}

fn waiting_is_limited_even_while_output_pours() {
    let sink = File::options().write(true).open("/dev/null").expect("null");
    let sandbox = sandbox().bind(compile_c("pour", include_str!("programs/pour.c"), &[]), "/pour");
    let mut child = sandbox.spawn(Command::new("/pour").stdout(Stdio::relay(sink))).expect("it starts");
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(child.wait_timeout(Duration::from_millis(1)).expect("alive"), None);
        assert_eq!(child.try_wait().expect("alive"), None);
    }
    assert!(began.elapsed() < LONG, "100 ms took {:?}", began.elapsed());
}

fn an_event_loop_sees_the_end() {
    let (mut child, _output) = ready("echo ready; read x; exit 6");
    let readable = |child: &Child, limit: u16| {
        let mut polled = [PollFd::new(child.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::from(limit)).expect("poll") == 1
    };
    assert!(!readable(&child, 0));
    child.stdin = None;
    assert!(readable(&child, 20_000));
    assert_eq!(child.try_wait().expect("a verdict"), Some(Exit::Code(6)));
}

fn kill_ends_everything() {
    let marker = marker();
    let mut child = sandbox().spawn(shell(&format!("sleep {marker} & sleep {marker} & exec sleep {marker}"))).expect("it starts");
    eventually(LONG, "three sleep", || marked(&marker).len() == 3);
    child.kill().expect("told");
    assert_eq!(child.wait().expect("a verdict"), Exit::Killed);
    assert_eq!(marked(&marker), []);
    child.kill().expect("harmless afterwards");
    assert_eq!(child.wait().expect("the same verdict"), Exit::Killed);
}

fn a_killer_works_from_another_thread_and_afterwards() {
    let mut child = sandbox().spawn(["sleep", "1000"]).expect("it starts");
    let killer = child.killer();
    let thread = thread::spawn({
        let killer = killer.clone();
        move || killer.kill()
    });
    assert_eq!(child.wait().expect("a verdict"), Exit::Killed);
    thread.join().expect("a thread").expect("told");
    drop(child);
    for result in [killer.kill(), killer.signal(libc::SIGTERM), killer.stop(Duration::ZERO)] {
        result.expect("harmless afterwards");
    }
}

fn an_end_before_the_kill_is_the_verdict() {
    let mut child = sandbox().spawn(shell("exit 9")).expect("it starts");
    // The verdict is on its way, but nobody has asked for it yet.
    eventually(LONG, "it ends", || child.id().is_none());
    child.kill().expect("harmless");
    assert_eq!(child.wait().expect("a verdict"), Exit::Code(9));
}

fn a_kill_that_comes_too_late_does_not_hide_the_end() {
    let (mut child, _output) = ready("echo ready; read x; exit 9");
    let main = child.id().expect("alive");
    let pid1 = Pid::from_raw(processes::find(main).expect("alive").parent as i32);
    // PID 1 finds both the end and the request when it goes on.
    kill(pid1, Signal::SIGSTOP).expect("a signal");
    let stopped = || fs::read_to_string(format!("/proc/{pid1}/status")).is_ok_and(|s| s.contains("State:\tT"));
    eventually(LONG, "PID 1 stops", stopped);
    child.stdin = None;
    eventually(LONG, "the command ends", || processes::find(main).is_none());
    child.kill().expect("told");
    kill(pid1, Signal::SIGCONT).expect("a signal");
    assert_eq!(child.wait().expect("a verdict"), Exit::Code(9));
}

fn signals_reach_the_main_process() {
    // No `read`: a shell that is told just before it blocks in one doesn't know until it's over.
    let (mut child, mut output) = ready("trap 'echo usr1' USR1; trap 'exit 8' INT; echo ready; while :; do sleep 0.01; done");
    child.signal(libc::SIGUSR1).expect("told");
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "usr1\n");
    child.killer().signal(libc::SIGINT).expect("told");
    assert_eq!(child.wait_timeout(LONG).expect("a verdict"), Some(Exit::Code(8)));
    let mut child = sandbox().spawn(["sleep", "1000"]).expect("it starts");
    child.signal(libc::SIGQUIT).expect("told");
    assert_eq!(child.wait().expect("a verdict"), Exit::Signal(libc::SIGQUIT), "a signal isn't a kill");
    for nonsense in [0, -1, 65] {
        assert_eq!(child.signal(nonsense).expect_err("refused").kind(), ErrorKind::Invalid);
    }
}

fn stop_asks_first_and_kills_after_its_grace() {
    let (mut child, _output) = ready("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done");
    child.stop(LONG).expect("told");
    assert_eq!(child.wait().expect("a verdict"), Exit::Code(3), "it ended by itself");

    let mut child = sandbox().spawn(["sleep", "1000"]).expect("it starts");
    child.stop(LONG).expect("told");
    assert_eq!(child.wait().expect("a verdict"), Exit::Signal(libc::SIGTERM), "the signal was enough");

    let (mut child, _output) = ready("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let (began, grace) = (Instant::now(), Duration::from_millis(100));
    child.killer().stop(grace).expect("told");
    assert_eq!(child.wait().expect("a verdict"), Exit::Killed, "it would not");
    assert!(began.elapsed() >= grace);
}

fn its_id_is_the_hosts_number_until_the_end() {
    let (mut child, _output) = ready("echo ready; read x");
    let id = child.id().expect("alive");
    let line = fs::read_to_string(format!("/proc/{id}/cmdline")).expect("its command line");
    assert_eq!(line, "sh\0-c\0echo ready; read x\0");
    child.kill().expect("told");
    child.wait().expect("a verdict");
    assert_eq!(child.id(), None);
}

fn streams_can_be_opened_again_by_name() {
    let script = "cat < /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr";
    for user in [0, 1000] {
        let out = sandbox().user(user, user).run(Command::new("sh").args(["-c", script]).stdin("in\n")).expect("it runs");
        assert_eq!((out.text().as_ref(), &out.stderr[..]), ("in\nout\n", &b"err\n"[..]), "{out}");
    }
}

fn phases_are_those_of_the_run_however_late_the_host_asks() {
    let begun = Instant::now();
    // It leaves somebody who has to be killed.
    let out = sh("sleep 1000 & sleep 0.05");
    let (took, phases) = (begun.elapsed(), out.phases());
    assert_eq!((phases.setup, phases.run), (out.usage.setup, out.usage.wall));
    assert!(phases.setup > Duration::ZERO && phases.run >= Duration::from_millis(50) && phases.teardown > Duration::ZERO, "{phases:?}");
    assert!(phases.total() <= took, "{phases:?} of {took:?}");
    let instance = sandbox().start().expect("it starts");
    for child in [sandbox().spawn("true").expect("it starts"), instance.spawn("true").expect("it starts")] {
        eventually(LONG, "its end", || child.id().is_none());
        let begun = Instant::now();
        thread::sleep(Duration::from_secs(2));
        let phases = child.wait_with_output().expect("its end").phases();
        assert!(phases.teardown < begun.elapsed(), "{phases:?}");
        assert!(phases.setup > Duration::ZERO && phases.run > Duration::ZERO && phases.teardown > Duration::ZERO, "{phases:?}");
    }
}

fn main() {
    support::main(vec![
        test!(phases_are_those_of_the_run_however_late_the_host_asks),
        test!(streams_can_be_opened_again_by_name),
        test!(input_of_100_mb_arrives_exactly),
        test!(input_is_a_file_a_pipe_or_nothing),
        test!(a_piped_command_can_be_talked_to),
        test!(piped_output_can_be_collected_after_all),
        test!(run_refuses_pipes_that_nobody_could_hold),
        test!(input_that_nobody_reads_hurts_nobody),
        test!(output_beyond_its_limit_ends_the_run),
        test!(without_a_limit_16_mib_are_kept_and_the_rest_counted),
        test!(both_streams_carry_20_mb_at_once),
        test!(a_relay_passes_everything_on_and_counts),
        test!(a_relay_whose_reader_is_gone_swallows),
        test!(streams_can_be_files_and_pipes),
        test!(inherited_streams_are_the_hosts_own),
        test!(further_descriptors_arrive_under_their_numbers),
        test!(a_file_for_reading_is_not_written, Need::Landlock(3)),
        test!(sockets_and_directories_must_be_asked_for_by_name),
        test!(names_may_be_any_bytes),
        test!(arguments_and_environment_of_megabytes_arrive),
        test!(too_many_arguments_are_told_as_such),
        test!(each_failure_to_start_has_its_kind),
        test!(links_in_circles_and_busy_programs_have_their_kinds),
        test!(a_missing_elf_loader_is_a_missing_interpreter, Need::Program("lost")),
        test!(every_exit_code_is_reported_exactly),
        test!(signals_of_its_own_making_are_reported_as_such),
        test!(abort_and_arithmetic_are_their_signals, Need::Program("crash")),
        test!(a_daemon_that_holds_the_output_open_neither_outlives_nor_hangs),
        test!(wall_time_ends_a_run),
        test!(waiting_can_be_limited),
        test!(waiting_is_limited_even_while_output_pours, Need::Program("pour"), Need::Clock),
        test!(an_event_loop_sees_the_end),
        test!(kill_ends_everything),
        test!(a_killer_works_from_another_thread_and_afterwards),
        test!(an_end_before_the_kill_is_the_verdict),
        test!(a_kill_that_comes_too_late_does_not_hide_the_end),
        test!(signals_reach_the_main_process),
        test!(stop_asks_first_and_kills_after_its_grace),
        test!(its_id_is_the_hosts_number_until_the_end),
    ])
}
