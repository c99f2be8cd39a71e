//! Streams: terminals, lines, order, head and tail.

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use cofferdam::{Child, Command, ErrorKind, Exit, Line, Pty, Sandbox, Source, Stdio};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use support::Need;

const LONG: Duration = Duration::from_secs(60);

/// A terminal with all that has come out of it.
struct Screen {
    child: Child,
    pty: Pty,
    text: String,
    seen: usize,
}

impl Screen {
    fn of(mut child: Child) -> Screen {
        let pty = child.pty.take().expect("a terminal");
        Screen { child, pty, text: String::new(), seen: 0 }
    }

    fn spawn(command: Command) -> Screen {
        Screen::of(Sandbox::new().wall_time(support::patience(LONG)).spawn(command).expect("it starts"))
    }

    fn bash() -> Screen {
        let command = Command::new("bash").args(["--norc", "--noprofile", "-i"]).env("PS1", "prompt> ").env("TERM", "dumb");
        let mut screen = Screen::spawn(command.pty(24, 80));
        screen.expect("prompt> ");
        screen
    }

    fn send(&mut self, text: &str) {
        self.pty.write_all(text.as_bytes()).expect("typed");
    }

    /// Waits until `what` appears behind all that was expected before.
    #[track_caller]
    fn expect(&mut self, what: &str) {
        loop {
            if let Some(at) = self.text[self.seen..].find(what) {
                self.seen += at + what.len();
                return;
            }
            let mut polled = [PollFd::new(self.pty.as_fd(), PollFlags::POLLIN)];
            assert!(poll(&mut polled, PollTimeout::from(30_000u16)).expect("poll") > 0, "no {what:?} in {:?}", self.text);
            let mut buffer = [0; 4096];
            let n = self.pty.read(&mut buffer).expect("output");
            assert!(n > 0, "ended without {what:?}: {:?}", self.text);
            self.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }
}

fn a_shell_has_a_prompt_job_control_and_an_end() {
    let mut screen = Screen::bash();
    assert!(!screen.text.contains("no job control"), "{}", screen.text);
    screen.send("tty; stty size\n");
    screen.expect("/dev/pts/0\r\n24 80\r\n");
    screen.expect("prompt> ");
    // What it prints by itself shows that it has the terminal.
    let program = "bash -c 'echo begun; while read x; do echo got $x; done'\n";
    screen.send(program);
    screen.expect("begun\r\n");
    screen.pty.write_all(b"\x03").expect("Ctrl-C");
    screen.expect("prompt> ");
    screen.send("echo $?\n");
    screen.expect("130\r\n");
    screen.send(program);
    screen.expect("begun\r\n");
    screen.send("two\n");
    screen.expect("got two\r\n");
    screen.pty.write_all(b"\x1a").expect("Ctrl-Z");
    screen.expect("Stopped");
    screen.expect("prompt> ");
    screen.send("fg\n");
    screen.expect("fg\r\n");
    // What the shell says when it has handed the terminal over.
    screen.expect("bash -c");
    screen.send("three\n");
    screen.expect("got three\r\n");
    screen.pty.write_all(b"\x04").expect("the end of input");
    screen.expect("prompt> ");
    screen.send("exit 5\n");
    assert_eq!(screen.child.wait().expect("its end"), Exit::Code(5));
}

fn a_resize_reaches_the_program() {
    let mut screen = Screen::spawn(
        Command::new("bash").args(["-c", "trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done"]).pty(24, 80),
    );
    screen.expect("ready");
    screen.pty.resize(50, 132).expect("another size");
    screen.expect("50 132");
    assert_eq!(screen.child.wait().expect("its end"), Exit::Code(4));
}

fn the_end_of_a_command_ends_its_terminal() {
    let mut screen = Screen::spawn(Command::new("sh").args(["-c", "(sleep 1000 &) ; echo done"]).pty(24, 80));
    let mut rest = String::new();
    screen.pty.read_to_string(&mut rest).expect("its end");
    assert_eq!(rest, "done\r\n");
    assert_eq!(screen.child.wait().expect("its end"), Exit::Code(0));
}

fn dropping_the_terminal_hangs_up() {
    let mut screen = Screen::spawn(Command::new("sh").args(["-c", "echo ready; exec sleep 1000"]).pty(24, 80));
    screen.expect("ready");
    let Screen { mut child, pty, .. } = screen;
    drop(pty);
    assert_eq!(child.wait().expect("its end"), Exit::Signal(1), "SIGHUP");
}

fn commands_of_an_instance_have_terminals_of_their_own() {
    let instance = Sandbox::new().wall_time(support::patience(LONG)).user(1, 1).start().expect("it starts");
    let spawn = || {
        Screen::of(instance.spawn(Command::new("sh").args(["-c", "tty; ls -l $(tty); read x; echo got $x"]).pty(5, 7)).expect("it starts"))
    };
    let (mut one, mut other) = (spawn(), spawn());
    one.expect("/dev/pts/0\r\n");
    other.expect("/dev/pts/1\r\n");
    one.send("a\n");
    other.send("b\n");
    one.expect("got a");
    other.expect("got b");
    assert!(one.child.wait().expect("its end").success() && other.child.wait().expect("its end").success());
}

fn some_streams_can_be_a_terminal_and_others_not() {
    let command = Command::new("sh").args(["-c", "test -t 0 && ! test -t 1 && test -t 2 && echo right; echo error >&2"]);
    let mut child = Sandbox::new().spawn(command.stdin(Stdio::pty()).stderr(Stdio::pty())).expect("it starts");
    let mut pty = child.pty.take().expect("a terminal");
    let mut screen = String::new();
    pty.read_to_string(&mut screen).expect("its end");
    let out = child.wait_with_output().expect("its end");
    assert_eq!((out.text().as_ref(), screen.as_str()), ("right\n", "error\r\n"));
    let refused = Sandbox::new().run(Command::new("true").pty(1, 1)).expect_err("nobody could use it");
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

fn merged_output_is_in_the_order_of_writing() {
    let script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done";
    let out = Sandbox::new().run(Command::new("sh").args(["-c", script]).stderr(Stdio::stdout())).expect("it runs");
    let wanted: String = (1..=5).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_eq!(out.text(), wanted);
    assert_eq!(out.stderr, b"");
    assert_eq!(Sandbox::new().run(Command::new("true").stdout(Stdio::stdout())).expect_err("itself").kind(), ErrorKind::Invalid);
}

fn merged_lines_have_their_times() {
    let script = "for i in 1 2 3; do echo out $i; sleep 0.1; echo err $i >&2; done";
    let mut lines = Vec::new();
    let merged = Command::new("sh").args(["-c", script]).stderr(Stdio::stdout());
    Sandbox::new().run_lines(merged, |line| lines.push((line.at, line.text().into_owned()))).expect("it runs");
    let texts: Vec<&str> = lines.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["out 1\n", "err 1\n", "out 2\n", "err 2\n", "out 3\n", "err 3\n"]);
    assert!(lines.is_sorted_by_key(|(at, _)| *at) && lines[5].0 >= lines[0].0 + Duration::from_millis(200), "{lines:?}");
}

fn lines_are_told_as_they_come() {
    let script = "echo a; sleep 0.3; printf 'b\\nc'; echo err >&2";
    let instance = Sandbox::new().start().expect("it starts");
    for live in [false, true] {
        let (mut out, mut err, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let mut on_line = |line: Line<'_>| {
            if line.source == Source::Stdout {
                out.push(line.text().into_owned());
                times.push(line.at);
            } else {
                err.push(line.text().into_owned());
            }
        };
        let command = Command::new("sh").args(["-c", script]);
        let output = if live { instance.run_lines(command, &mut on_line) } else { Sandbox::new().run_lines(command, &mut on_line) };
        assert_eq!(output.expect("it runs").text(), "a\nb\nc");
        assert_eq!((out, err), (vec!["a\n".into(), "b\n".into(), "c".to_string()], vec!["err\n".to_string()]));
        assert!(times[1] >= times[0] + Duration::from_millis(200), "{times:?}");
    }
    let mut longest = 0;
    let long = Command::new("sh").args(["-c", "head -c 300000 /dev/zero"]);
    let output = Sandbox::new().run_lines(long, |line| longest = longest.max(line.bytes.len())).expect("it runs");
    assert_eq!(output.stdout.len(), 300_000);
    assert!((65_536..=131_072).contains(&longest), "{longest}");
}

fn head_and_tail_of_a_long_output_are_kept() {
    let sandbox = Sandbox::new().keep_output(10).keep_tail(12);
    let out = sandbox.run(["sh", "-c", "seq 100000; printf 0123456789abc >&2"]).expect("it runs");
    assert_eq!((out.text().as_ref(), &out.stdout_tail[..]), ("1\n2\n3\n4\n5\n", &b"99999\n100000\n"[1..]));
    assert_eq!((out.stdout_stream.bytes, out.stdout_stream.truncated, out.stdout_stream.last_byte), (588_895, true, Some(b'\n')));
    assert_eq!((&out.stderr[..], &out.stderr_tail[..], out.stderr_stream.truncated), (&b"0123456789"[..], &b"abc"[..], false));
}

fn main() {
    support::main(vec![
        test!(a_shell_has_a_prompt_job_control_and_an_end, Need::Tool("bash")),
        test!(a_resize_reaches_the_program, Need::Tool("bash")),
        test!(the_end_of_a_command_ends_its_terminal),
        test!(dropping_the_terminal_hangs_up),
        test!(commands_of_an_instance_have_terminals_of_their_own),
        test!(some_streams_can_be_a_terminal_and_others_not),
        test!(merged_output_is_in_the_order_of_writing),
        test!(merged_lines_have_their_times),
        test!(lines_are_told_as_they_come),
        test!(head_and_tail_of_a_long_output_are_kept),
    ]);
}
