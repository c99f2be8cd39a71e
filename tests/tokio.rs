//! The same behaviour for a program with threads and for one with tasks; and what only the
//! latter is promised.

mod support;

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::io::{Read, Write};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::tokio as tasks;
use cofferdam::{
    Checkpoint, Command, CommitOptions, Conversation, ErrorKind, Exit, Image, Interaction, Limit, MIB, Output, PoolStats, Result, Sandbox,
    Stdio, Verdict, Volume,
};
use support::processes::{eventually, inits, marked, marker};
use support::{Need, Test, host, shell};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(30);

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(support::patience(LONG))
}

fn piped(script: &str) -> Command {
    shell(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// A program with one thread for all.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A host program, of either kind.
trait Host {
    fn run(&self, sandbox: &Sandbox, command: Command) -> Result<Output>;
    fn run_lines(&self, sandbox: &Sandbox, command: Command) -> (Vec<String>, Result<Output>);
    fn spawn(&self, sandbox: &Sandbox, command: Command) -> Result<Box<dyn Running + '_>>;
    fn start(&self, sandbox: &Sandbox) -> Result<Box<dyn Live + '_>>;
    fn talk(&self, talk: Interaction) -> Result<Conversation>;
    /// Has it killed by another thread when `ready` says so.
    fn talk_until(&self, talk: Interaction, ready: Box<dyn Fn() + Send>) -> Result<Conversation>;
    /// One command after the other, in a pool of two, which may reuse them; and how that
    /// served.
    fn run_pooled(&self, sandbox: &Sandbox, reuse: bool, commands: Vec<Command>) -> (Vec<Result<Output>>, PoolStats);
    /// From a pool that's full and has ended since.
    fn take_pooled(&self, sandbox: &Sandbox) -> Result<Box<dyn Live + '_>>;
}

/// Its command that runs.
trait Running {
    fn write(&mut self, bytes: &[u8]);
    fn close_input(&mut self);
    /// The next bytes of standard output, so many.
    fn read(&mut self, count: usize) -> Vec<u8>;
    fn read_errors_to_end(&mut self) -> Vec<u8>;
    fn wait(&mut self) -> Result<Exit>;
    fn wait_timeout(&mut self, limit: Duration) -> Result<Option<Exit>>;
    fn output(self: Box<Self>) -> Result<Output>;
    fn kill(&self);
    fn stop(&self, grace: Duration);
    fn signal(&self, signal: i32);
    fn has_id(&self) -> bool;
}

/// Its live sandbox.
trait Live {
    fn run(&self, command: Command) -> Result<Output>;
    fn spawn(&self, command: Command) -> Result<Box<dyn Running + '_>>;
    /// All of them at once.
    fn run_all(&self, commands: Vec<Command>) -> Vec<Result<Output>>;
    fn write(&self, path: &str, contents: &str);
    fn read(&self, path: &str) -> String;
    fn reset(&mut self);
    fn checkpoint(&mut self) -> Result<Checkpoint>;
    fn commit(&self) -> Result<Image>;
    fn tar_in(&self, tar: &[u8], directory: &str) -> Result<()>;
    fn tar_out(&self, path: &str) -> Result<Vec<u8>>;
    /// Sends a line to a server inside; its answer.
    fn ask(&self, port: u16, line: &str) -> String;
}

struct Threads;

impl Host for Threads {
    fn run(&self, sandbox: &Sandbox, command: Command) -> Result<Output> {
        sandbox.run(command)
    }
    fn run_lines(&self, sandbox: &Sandbox, command: Command) -> (Vec<String>, Result<Output>) {
        let mut lines = Vec::new();
        let output = sandbox.run_lines(command, |line| lines.push(line.text().into_owned()));
        (lines, output)
    }
    fn spawn(&self, sandbox: &Sandbox, command: Command) -> Result<Box<dyn Running + '_>> {
        Ok(Box::new(sandbox.spawn(command)?))
    }
    fn start(&self, sandbox: &Sandbox) -> Result<Box<dyn Live + '_>> {
        Ok(Box::new(sandbox.start()?))
    }
    fn talk(&self, talk: Interaction) -> Result<Conversation> {
        talk.run()
    }
    fn talk_until(&self, talk: Interaction, ready: Box<dyn Fn() + Send>) -> Result<Conversation> {
        let talk = talk.start()?;
        let killer = talk.killer();
        thread::spawn(move || {
            ready();
            killer.kill()
        });
        talk.wait()
    }
    fn run_pooled(&self, sandbox: &Sandbox, reuse: bool, commands: Vec<Command>) -> (Vec<Result<Output>>, PoolStats) {
        let new = if reuse { cofferdam::Pool::reusing } else { cofferdam::Pool::new };
        let pool = new(sandbox.clone(), 2).expect("a pool");
        assert!(pool.wait_full(support::patience(LONG)).expect("prepared"));
        let outputs = commands.into_iter().map(|command| pool.run(command)).collect();
        assert!(pool.spawn("true").expect("it starts").wait().expect("its end").success());
        (outputs, pool.stats())
    }
    fn take_pooled(&self, sandbox: &Sandbox) -> Result<Box<dyn Live + '_>> {
        let pool = cofferdam::InstancePool::new(sandbox.clone(), 2)?;
        assert!(pool.wait_full(support::patience(LONG))?);
        let taken = pool.take()?;
        assert_eq!((pool.stats().hits, pool.stats().misses), (1, 0));
        Ok(Box::new(taken))
    }
}

impl Running for cofferdam::Child {
    fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("a pipe").write_all(bytes).expect("written");
    }
    fn close_input(&mut self) {
        self.stdin = None;
    }
    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stdout.as_mut().expect("a pipe").read_exact(&mut bytes).expect("read");
        bytes
    }
    fn read_errors_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.stderr.as_mut().expect("a pipe").read_to_end(&mut bytes).expect("read");
        bytes
    }
    fn wait(&mut self) -> Result<Exit> {
        self.wait()
    }
    fn wait_timeout(&mut self, limit: Duration) -> Result<Option<Exit>> {
        self.wait_timeout(limit)
    }
    fn output(self: Box<Self>) -> Result<Output> {
        self.wait_with_output()
    }
    fn kill(&self) {
        self.kill().expect("a signal");
    }
    fn stop(&self, grace: Duration) {
        self.stop(grace).expect("a signal");
    }
    fn signal(&self, signal: i32) {
        self.signal(signal).expect("a signal");
    }
    fn has_id(&self) -> bool {
        self.id().is_some()
    }
}

impl Live for cofferdam::Instance {
    fn run(&self, command: Command) -> Result<Output> {
        self.run(command)
    }
    fn spawn(&self, command: Command) -> Result<Box<dyn Running + '_>> {
        Ok(Box::new(self.spawn(command)?))
    }
    fn run_all(&self, commands: Vec<Command>) -> Vec<Result<Output>> {
        thread::scope(|scope| {
            let runs: Vec<_> = commands.into_iter().map(|command| scope.spawn(move || self.run(command))).collect();
            runs.into_iter().map(|run| run.join().expect("no panic")).collect()
        })
    }
    fn write(&self, path: &str, contents: &str) {
        self.write(path, contents).expect("written");
    }
    fn read(&self, path: &str) -> String {
        String::from_utf8(self.read(path, MIB).expect("read")).expect("text")
    }
    fn reset(&mut self) {
        self.reset().expect("fresh");
    }
    fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.checkpoint()
    }
    fn commit(&self) -> Result<Image> {
        self.commit(&CommitOptions::new())
    }
    fn tar_in(&self, tar: &[u8], directory: &str) -> Result<()> {
        self.tar_in(tar, directory)
    }
    fn tar_out(&self, path: &str) -> Result<Vec<u8>> {
        let mut tar = Vec::new();
        self.tar_out(path, &mut tar)?;
        Ok(tar)
    }
    fn ask(&self, port: u16, line: &str) -> String {
        let mut stream = self.connect(([127, 0, 0, 1], port).into(), support::patience(LONG)).expect("connected");
        stream.write_all(line.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }
}

/// Each call is awaited by itself, in a runtime with one thread.
struct Tasks(Runtime);

impl Host for Tasks {
    fn run(&self, sandbox: &Sandbox, command: Command) -> Result<Output> {
        self.0.block_on(tasks::run(sandbox, command))
    }
    fn run_lines(&self, sandbox: &Sandbox, command: Command) -> (Vec<String>, Result<Output>) {
        let mut lines = Vec::new();
        let output = self.0.block_on(tasks::run_lines(sandbox, command, |line| lines.push(line.text().into_owned())));
        (lines, output)
    }
    fn spawn(&self, sandbox: &Sandbox, command: Command) -> Result<Box<dyn Running + '_>> {
        Ok(Box::new(In(&self.0, self.0.block_on(tasks::spawn(sandbox, command))?)))
    }
    fn start(&self, sandbox: &Sandbox) -> Result<Box<dyn Live + '_>> {
        Ok(Box::new(In(&self.0, self.0.block_on(tasks::Instance::start(sandbox))?)))
    }
    fn talk(&self, talk: Interaction) -> Result<Conversation> {
        self.0.block_on(async { tasks::Talk::start(talk).await?.wait().await })
    }
    fn talk_until(&self, talk: Interaction, ready: Box<dyn Fn() + Send>) -> Result<Conversation> {
        self.0.block_on(async {
            let talk = tasks::Talk::start(talk).await?;
            let killer = talk.killer();
            tokio::task::spawn_blocking(move || {
                ready();
                killer.kill()
            });
            talk.wait().await
        })
    }
    fn run_pooled(&self, sandbox: &Sandbox, reuse: bool, commands: Vec<Command>) -> (Vec<Result<Output>>, PoolStats) {
        self.0.block_on(async {
            let pool = match reuse {
                true => tasks::Pool::reusing(sandbox.clone(), 2).await,
                false => tasks::Pool::new(sandbox.clone(), 2).await,
            };
            let pool = pool.expect("a pool");
            assert!(pool.wait_full(support::patience(LONG)).await.expect("prepared"));
            let mut outputs = Vec::new();
            for command in commands {
                outputs.push(pool.run(command).await);
            }
            assert!(pool.spawn("true").await.expect("it starts").wait().await.expect("its end").success());
            (outputs, pool.stats())
        })
    }
    fn take_pooled(&self, sandbox: &Sandbox) -> Result<Box<dyn Live + '_>> {
        let taken = self.0.block_on(async {
            let pool = tasks::InstancePool::new(sandbox.clone(), 2).await?;
            assert!(pool.wait_full(support::patience(LONG)).await?);
            let taken = pool.take().await?;
            assert_eq!((pool.stats().hits, pool.stats().misses), (1, 0));
            Ok::<_, cofferdam::Error>(taken)
        });
        Ok(Box::new(In(&self.0, taken?)))
    }
}

/// Something in a runtime.
struct In<'a, T>(&'a Runtime, T);

impl Running for In<'_, tasks::Child> {
    fn write(&mut self, bytes: &[u8]) {
        self.0.block_on(self.1.stdin.as_mut().expect("a pipe").write_all(bytes)).expect("written");
    }
    fn close_input(&mut self) {
        self.1.stdin = None;
    }
    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.block_on(self.1.stdout.as_mut().expect("a pipe").read_exact(&mut bytes)).expect("read");
        bytes
    }
    fn read_errors_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.block_on(self.1.stderr.as_mut().expect("a pipe").read_to_end(&mut bytes)).expect("read");
        bytes
    }
    fn wait(&mut self) -> Result<Exit> {
        self.0.block_on(self.1.wait())
    }
    fn wait_timeout(&mut self, limit: Duration) -> Result<Option<Exit>> {
        self.0.block_on(async { timeout(limit, self.1.wait()).await.ok().transpose() })
    }
    fn output(self: Box<Self>) -> Result<Output> {
        let In(runtime, child) = *self;
        runtime.block_on(child.wait_with_output())
    }
    fn kill(&self) {
        self.1.kill().expect("a signal");
    }
    fn stop(&self, grace: Duration) {
        self.1.stop(grace).expect("a signal");
    }
    fn signal(&self, signal: i32) {
        self.1.signal(signal).expect("a signal");
    }
    fn has_id(&self) -> bool {
        self.1.id().is_some()
    }
}

impl Live for In<'_, tasks::Instance> {
    fn run(&self, command: Command) -> Result<Output> {
        self.0.block_on(self.1.run(command))
    }
    fn spawn(&self, command: Command) -> Result<Box<dyn Running + '_>> {
        Ok(Box::new(In(self.0, self.0.block_on(self.1.spawn(command))?)))
    }
    fn run_all(&self, commands: Vec<Command>) -> Vec<Result<Output>> {
        self.0.block_on(all(commands.into_iter().map(|command| self.1.run(command))))
    }
    fn write(&self, path: &str, contents: &str) {
        self.0.block_on(self.1.write(path, contents)).expect("written");
    }
    fn read(&self, path: &str) -> String {
        String::from_utf8(self.0.block_on(self.1.read(path, MIB)).expect("read")).expect("text")
    }
    fn reset(&mut self) {
        self.0.block_on(self.1.reset()).expect("fresh");
    }
    fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.0.block_on(self.1.checkpoint())
    }
    fn commit(&self) -> Result<Image> {
        self.0.block_on(self.1.commit(&CommitOptions::new()))
    }
    fn tar_in(&self, tar: &[u8], directory: &str) -> Result<()> {
        self.0.block_on(self.1.tar_in(tar, directory))
    }
    fn tar_out(&self, path: &str) -> Result<Vec<u8>> {
        let mut tar = Vec::new();
        self.0.block_on(self.1.tar_out(path, &mut tar))?;
        Ok(tar)
    }
    fn ask(&self, port: u16, line: &str) -> String {
        self.0.block_on(async {
            let stream = self.1.connect(([127, 0, 0, 1], port).into(), support::patience(LONG)).await.expect("connected");
            let mut stream = tokio::net::TcpStream::from_std(stream).expect("non-blocking");
            stream.write_all(line.as_bytes()).await.expect("written");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("read");
            answer
        })
    }
}

/// Awaits them all in this task.
async fn all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}

fn ends_are_told(host: &dyn Host) {
    let end = |script: &str| host.run(&sandbox(), shell(script)).expect("it runs").status;
    assert_eq!(end("exit 0"), Exit::Code(0));
    assert_eq!(end("exit 3"), Exit::Code(3));
    assert_eq!(end("kill -ABRT $$"), Exit::Signal(6));
    let missing = host.run(&sandbox(), Command::new("no-such-program")).expect_err("it can't start");
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    let invalid = host.run(&Sandbox::new().processes(0), shell("true")).expect_err("nonsense");
    assert_eq!(invalid.kind(), ErrorKind::Invalid, "{invalid}");
    let useless = host.run(&sandbox(), piped("true")).expect_err("nobody could use it");
    assert_eq!(useless.kind(), ErrorKind::Invalid, "{useless}");
}

fn limits_end_a_run(host: &dyn Host) {
    let limit = |sandbox: Sandbox, script: &str| host.run(&sandbox, shell(script)).expect("it runs").status.limit();
    assert_eq!(limit(Sandbox::new().wall_time(Duration::from_millis(50)), "sleep 1000"), Some(Limit::WallTime));
    assert_eq!(limit(sandbox().output(1000), "yes"), Some(Limit::Output));
}

/// Which an ordinary user may have no control groups for.
fn limits_of_groups_end_a_run(host: &dyn Host) {
    let limit = |sandbox: Sandbox, script: &str| host.run(&sandbox, shell(script)).expect("it runs").status.limit();
    assert_eq!(limit(sandbox().cpu_time(Duration::from_millis(100)), "while :; do :; done"), Some(Limit::CpuTime));
    assert_eq!(limit(sandbox().idle_time(Duration::from_millis(200)), "sleep 1000"), Some(Limit::IdleTime));
    assert_eq!(limit(sandbox().memory(32 * MIB), "head -c 100000000 /dev/zero | tail"), Some(Limit::Memory));
}

fn output_is_captured(host: &dyn Host) {
    let out = host.run(&sandbox(), shell("cat; echo err >&2").stdin("input")).expect("it runs");
    assert_eq!((out.text().as_ref(), &out.stderr[..]), ("input", &b"err\n"[..]));
    // More than pipes and buffers hold.
    let out = host.run(&sandbox(), shell("yes | head -c 3000000")).expect("it runs");
    assert_eq!((out.stdout.len(), out.stdout_stream.bytes), (3_000_000, 3_000_000));
    let (lines, out) = host.run_lines(&sandbox(), shell("echo one; echo two; printf three"));
    assert_eq!(lines, ["one\n", "two\n", "three"]);
    assert_eq!(out.expect("it runs").text(), "one\ntwo\nthree");
}

fn output_is_relayed(host: &dyn Host) {
    let path = support::fresh_dir("relay-").join("file");
    let file = fs::File::create(&path).expect("a file");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let read = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("read");
        bytes
    });
    let command = shell("yes | head -c 300000; yes no | head -c 300000 >&2");
    let out = host.run(&sandbox(), command.stdout(Stdio::relay(file)).stderr(Stdio::relay(writer))).expect("it runs");
    assert!(out.success(), "{out}");
    assert_eq!(fs::read(&path).expect("the file").len(), 300_000);
    assert_eq!(read.join().expect("no panic").len(), 300_000);
}

fn streams_go_both_ways(host: &dyn Host) {
    let script = "while read line; do echo \"<$line>\"; done; echo over >&2; exit 4";
    let mut child = host.spawn(&sandbox(), piped(script)).expect("it starts");
    for word in ["one", "two"] {
        child.write(format!("{word}\n").as_bytes());
        assert_eq!(child.read(word.len() + 3), format!("<{word}>\n").as_bytes());
    }
    assert!(child.has_id());
    child.close_input();
    assert_eq!(child.read_errors_to_end(), b"over\n");
    assert_eq!(child.wait().expect("its end"), Exit::Code(4));
    assert_eq!(child.wait().expect("once more"), Exit::Code(4));
}

fn piped_output_can_be_collected(host: &dyn Host) {
    let child = host.spawn(&sandbox(), piped("cat; yes | head -c 200000; echo err >&2")).expect("it starts");
    let out = child.output().expect("its end");
    assert_eq!((out.stdout.len(), &out.stderr[..]), (200_000, &b"err\n"[..]));
    // Also of one that has ended before.
    let mut child = host.spawn(&sandbox(), piped("echo early")).expect("it starts");
    assert_eq!(child.wait().expect("its end"), Exit::Code(0));
    assert_eq!(child.output().expect("its end").text(), "early\n");
}

fn signals_arrive(host: &dyn Host) {
    let waits = "trap 'exit 7' USR1; trap 'exit 8' TERM; echo ready; while :; do sleep 0.01; done";
    let ready = || {
        let mut child = host.spawn(&sandbox(), piped(waits)).expect("it starts");
        assert_eq!(child.read(6), b"ready\n");
        child
    };
    let mut child = ready();
    assert_eq!(child.wait_timeout(Duration::from_millis(20)).expect("no end"), None);
    child.signal(10);
    assert_eq!(child.wait().expect("its end"), Exit::Code(7));
    let mut child = ready();
    child.stop(LONG);
    assert_eq!(child.wait().expect("its end"), Exit::Code(8));
    let mut child = ready();
    child.kill();
    assert_eq!(child.wait().expect("its end"), Exit::Killed);
}

fn a_wait_can_be_given_up_and_begun_again(host: &dyn Host) {
    let mut child = host.spawn(&sandbox(), shell("yes | head -c 200000; sleep 0.3; exit 5").stdin(Stdio::null())).expect("it starts");
    let mut waits = 0;
    let exit = loop {
        waits += 1;
        if let Some(exit) = child.wait_timeout(Duration::from_millis(10)).expect("a status") {
            break exit;
        }
    };
    assert_eq!(exit, Exit::Code(5));
    assert!(waits > 1);
    assert_eq!(child.output().expect("its end").stdout.len(), 200_000, "what was read while waiting is there");
}

fn dropping_a_child_kills_it(host: &dyn Host) {
    let name = marker();
    let child = host.spawn(&sandbox(), shell(&format!("sleep {name} & exec sleep {name}"))).expect("it starts");
    eventually(LONG, "they run", || marked(&name).len() == 2);
    drop(child);
    eventually(LONG, "they are dead", || marked(&name).is_empty());
}

fn commands_share_an_instance(host: &dyn Host) {
    let mut instance = host.start(&sandbox()).expect("it starts");
    assert!(instance.run(shell("echo one >/tmp/file")).expect("it runs").success());
    assert_eq!(instance.run(shell("cat /tmp/file")).expect("it runs").text(), "one\n");
    let missing = instance.run(Command::new("no-such-program")).expect_err("it can't start");
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    // Each waits for all the others to have begun.
    let meet = |i: usize| shell(&format!("touch /tmp/at.{i}; until [ \"$(ls /tmp/at.* | wc -l)\" = 12 ]; do sleep 0.01; done; exit {i}"));
    let ends = instance.run_all((0..12).map(meet).collect());
    let ends: Vec<Exit> = ends.into_iter().map(|out| out.expect("it runs").status).collect();
    assert_eq!(ends, (0..12).map(Exit::Code).collect::<Vec<_>>());
    instance.write("/tmp/in", "written");
    assert_eq!(instance.read("/tmp/in"), "written");
    let server = instance.spawn(shell("exec sleep 1000")).expect("it starts");
    drop(server);
    instance.reset();
    assert!(!instance.run(shell("cat /tmp/file")).expect("it runs").success(), "another's files");
}

fn checkpoints_are_kept(host: &dyn Host) {
    let mut instance = host.start(&sandbox()).expect("it starts");
    assert!(instance.run(shell("echo one >/tmp/file")).expect("it runs").success());
    let checkpoint = instance.checkpoint().expect("a checkpoint");
    assert!(instance.run(shell("echo two >/tmp/file")).expect("it runs").success());
    let copy = host.start(&checkpoint.sandbox()).expect("it starts");
    assert_eq!(copy.run(shell("cat /tmp/file")).expect("it runs").text(), "one\n");
    instance.reset();
    assert_eq!(instance.run(shell("cat /tmp/file")).expect("it runs").text(), "one\n");
}

fn connections_reach_servers(host: &dyn Host) {
    let instance = host.start(&sandbox()).expect("it starts");
    let serve = "import socket; s = socket.create_server(('127.0.0.1', 7777)); c = s.accept()[0]; c.sendall(c.recv(9).upper())";
    let mut server = instance.spawn(Command::new("python3").args(["-c", serve])).expect("it starts");
    assert_eq!(instance.ask(7777, "hello"), "HELLO");
    assert_eq!(server.wait().expect("its end"), Exit::Code(0));
}

fn programs_talk(host: &dyn Host) {
    let verdict = |judge: &str, player: &str| {
        let mut talk = Interaction::new();
        let judge = talk.judge(sandbox(), shell(judge));
        let player = talk.player(sandbox(), shell(player));
        talk.connect(judge, player);
        host.talk(talk).expect("it runs").verdict
    };
    assert_eq!(verdict("echo 20; read n; test $n = 400", "read n; echo $((n * n))"), Verdict::Accepted);
    assert_eq!(verdict("echo 20; read n; test $n = 400", "read n; echo 1"), Verdict::Rejected(1));
    assert!(matches!(verdict("read n", "kill -SEGV $$"), Verdict::Failed(_, Exit::Signal(11))));
    assert_eq!(verdict("read n", "read n"), Verdict::Idle);
    // Much more than pipes hold.
    assert_eq!(verdict("test $(wc -c) = 3000000", "yes | head -c 3000000"), Verdict::Accepted);
    let mut talk = Interaction::new();
    talk.player(sandbox(), "true");
    talk.player(sandbox(), "no-such-program");
    assert_eq!(host.talk(talk).expect_err("it can't start").kind(), ErrorKind::NotFound);
}

fn a_talk_can_be_killed(host: &dyn Host) {
    let name = marker();
    let mut talk = Interaction::new();
    let judge = talk.judge(sandbox(), "cat");
    let player = talk.player(sandbox(), ["sleep", &name]);
    talk.connect(judge, player);
    let runs = {
        let name = name.clone();
        move || eventually(LONG, "it runs", || !marked(&name).is_empty())
    };
    assert_eq!(host.talk_until(talk, Box::new(runs)).expect("a verdict").verdict, Verdict::Killed);
    assert_eq!(marked(&name), []);
}

fn pools_serve(host: &dyn Host) {
    for reuse in [false, true] {
        let commands = ["exit 3", "touch /tmp/left; ls /tmp", "ls /tmp", "kill -ABRT $$"].map(shell);
        let long = shell("sleep 1000").wall_time(Duration::from_millis(50));
        let commands = commands.into_iter().chain([long, Command::new("no-such-program")]).collect();
        let (outputs, stats) = host.run_pooled(&sandbox(), reuse, commands);
        let ends: Vec<_> = outputs.iter().map(|out| out.as_ref().map(|out| out.status).map_err(|error| error.kind())).collect();
        let code = |code| Ok(Exit::Code(code));
        let wanted = [code(3), code(0), code(0), Ok(Exit::Signal(6)), Ok(Exit::Limit(Limit::WallTime)), Err(ErrorKind::NotFound)];
        assert_eq!(ends, wanted);
        assert_eq!(outputs[2].as_ref().expect("it ran").text(), "", "another's files");
        assert!(stats.hits >= 2 && stats.misses >= 1 && stats.hits + stats.misses == 7, "{stats:?}");
        assert_eq!(stats.reused > 0, reuse, "{stats:?}");
    }
    let live = host.take_pooled(&sandbox()).expect("one that's ready");
    assert!(live.run(shell("touch /tmp/file; test -e /tmp/file")).expect("it runs").success());
}

fn trees_travel(host: &dyn Host) {
    let (from, to) = (host.start(&sandbox()).expect("it starts"), host.start(&sandbox()).expect("it starts"));
    // More than a pipe holds, and less than one file's whole.
    assert!(from.run(shell("mkdir -p /tmp/d/e; yes | head -c 3000000 >/tmp/d/e/f; echo small >/tmp/d/g")).expect("it runs").success());
    let tar = from.tar_out("/tmp/d").expect("packed");
    to.tar_in(&tar, "/tmp/copy").expect("unpacked");
    assert_eq!(to.read("/tmp/copy/g"), "small\n");
    assert_eq!(to.run(shell("wc -c </tmp/copy/e/f")).expect("it runs").text().trim(), "3000000");
    // What follows the archive's end is nobody's.
    to.tar_in(&[&tar[..], &[1; 1 << 20]].concat(), "/tmp/again").expect("unpacked");
    assert_eq!(to.read("/tmp/again/g"), "small\n");
    let torn = to.tar_in(&tar[..1_000_000], "/tmp/torn").expect_err("it's torn");
    let garbage = to.tar_in(&[7; 1 << 20], "/tmp/garbage").expect_err("it's none");
    let missing = from.tar_out("/tmp/missing").expect_err("there's none");
    assert_eq!(
        (torn.kind(), garbage.kind(), missing.kind()),
        (ErrorKind::Image, ErrorKind::Image, ErrorKind::NotFound),
        "{torn}, {garbage}"
    );
    let nothing = from.commit().expect_err("its root isn't an image's");
    assert_eq!(nothing.kind(), ErrorKind::Invalid, "{nothing}");
}

/// The same for both kinds of host.
macro_rules! both {
    ($($body:ident $(, $need:expr)*;)*) => {
        vec![$(
            of_host(concat!("threads::", stringify!($body)), &[$($need),*], || $body(&Threads)),
            of_host(concat!("tasks::", stringify!($body)), &[$($need),*], || $body(&Tasks(runtime()))),
        )*]
    };
}

fn of_host(name: &'static str, needs: &'static [Need], body: fn()) -> Test {
    let both = !needs.iter().any(|need| matches!(need, Need::Root));
    Test { name, needs, both, body }
}

/// So many descriptors at once as this takes.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a higher limit");
}

fn two_hundred_sandboxes_live_in_one_thread() {
    host::alone("two_hundred_sandboxes_live_in_one_thread", || {
        raise_open_files();
        const MANY: usize = 200;
        // Without a time limit: the first must still live when the last has started.
        let sandbox = Sandbox::new();
        runtime().block_on(async {
            let start = async || {
                let mut child = tasks::spawn(&sandbox, piped("echo ready; read line; echo \"$line\"")).await.expect("it starts");
                let mut ready = [0; 6];
                child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).await.expect("read");
                assert_eq!(&ready, b"ready\n");
                child
            };
            let children = all((0..MANY).map(|_| start())).await;
            // All of them live now.
            let ends = all(children.into_iter().enumerate().map(|(i, mut child)| async move {
                let mut input = child.stdin.take().expect("a pipe");
                input.write_all(format!("{i}\n").as_bytes()).await.expect("written");
                child.wait_with_output().await.expect("its end").text().into_owned()
            }));
            assert_eq!(ends.await, (0..MANY).map(|i| format!("{i}\n")).collect::<Vec<_>>());
            // And some that are dropped in the middle, all at once.
            let children = all((0..MANY / 4).map(|_| start())).await;
            drop(children);
        });
        assert!(cofferdam::quiesce(support::patience(LONG)).expect("an answer"), "nothing is left");
    });
}

/// Whenever it is: the future is dropped after so many polls.
fn a_future_can_be_dropped_at_any_point() {
    host::alone("a_future_can_be_dropped_at_any_point", || {
        let runtime = runtime();
        let name = marker();
        let command = || shell(&format!("sleep {name} & exec sleep {name}"));
        runtime.block_on(async {
            let instance = tasks::Instance::start(&sandbox()).await.expect("it starts");
            for polls in 0..12 {
                give_up(tasks::run(&sandbox(), command()), polls).await;
                give_up(instance.run(command()), polls).await;
                give_up(tasks::Instance::start(&sandbox()), polls).await;
            }
            assert!(instance.run("true").await.expect("it goes on").success());
            assert!(tasks::run(&sandbox(), "true").await.expect("it goes on").success());
        });
        eventually(LONG, "all are dead", || marked(&name).is_empty());
        drop(runtime);
        assert!(cofferdam::quiesce(support::patience(LONG)).expect("an answer"), "nothing is left");
    });
}

/// Polls a future so often, each time when it has asked for it, and drops it.
async fn give_up<T>(future: impl Future<Output = T>, polls: usize) {
    let mut future = pin!(future);
    let mut left = polls;
    let some = std::future::poll_fn(|context| {
        if left == 0 || future.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        if left == 0 { Poll::Ready(()) } else { Poll::Pending }
    });
    // It may be waiting for its command.
    let _ = timeout(Duration::from_millis(100), some).await;
}

/// With an init that stands still no end is ever told, and a drop that waits for it is seen.
fn no_drop_waits() {
    host::alone("no_drop_waits", || {
        let signal = |signal| {
            let init = inits(std::process::id()).pop().expect("an init");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(init.pid as i32), signal).expect("a signal");
        };
        let directory = support::fresh_dir("volume-");
        let volume = Volume::dir(&directory).expect("a volume");
        let holds = sandbox().volume(&volume.exclusive(Duration::ZERO), "/data");
        runtime().block_on(async {
            let child = tasks::spawn(&holds, shell("exec sleep 1000")).await.expect("it starts");
            let instance = tasks::Instance::start(&sandbox()).await.expect("it starts");
            let own = instance.spawn(shell("exec sleep 1000")).await.expect("it starts");
            let pool = tasks::Pool::new(sandbox(), 1).await.expect("a pool");
            let mut talk = Interaction::new();
            for _ in 0..2 {
                talk.player(sandbox(), shell("exec sleep 1000"));
            }
            let talk = tasks::Talk::start(talk).await.expect("it starts");
            signal(nix::sys::signal::SIGSTOP);
            let begun = Instant::now();
            drop((child, own, talk, pool));
            drop(instance);
            let took = begun.elapsed();
            // Others take their turns, and what isn't known to be dead keeps its lock.
            sleep(Duration::from_millis(50)).await;
            // Locks come before the sandbox, so this asks nobody who stands still.
            let busy = tasks::run(&holds, "true").await.err().map(|error| error.kind());
            signal(nix::sys::signal::SIGCONT);
            assert!(took < Duration::from_millis(1500), "they would have waited for two seconds: {took:?}");
            assert_eq!(busy, Some(ErrorKind::Busy));
            let deadline = Instant::now() + support::patience(LONG);
            loop {
                match tasks::run(&holds, "true").await {
                    Ok(out) => break assert!(out.success(), "{out}"),
                    Err(error) => assert!(error.kind() == ErrorKind::Busy && Instant::now() < deadline, "{error}"),
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
    });
}

fn a_workload_that_never_stops_printing_leaves_room() {
    let sandbox = Sandbox::new().wall_time(support::patience(Duration::from_secs(10))).keep_output(1000);
    runtime().block_on(async {
        let begun = Cell::new(false);
        let ticks = async {
            while !begun.get() {
                sleep(Duration::from_millis(1)).await;
            }
            for _ in 0..6 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        // Each line is about a read, and when it has been told the pipe is full again.
        let flood = shell("yes \"$(head -c 50000 /dev/zero | tr '\\0' x)\"");
        let flood = tasks::run_lines(&sandbox, flood, |_| {
            begun.set(true);
            thread::sleep(Duration::from_millis(4));
        });
        tokio::select! {
            biased;
            end = flood => panic!("others had no turn until the end: {}", end.expect("it runs")),
            () = ticks => {}
        }
    });
}

fn waiting_for_a_volume_is_no_standstill() {
    let volume = Volume::dir(support::fresh_dir("volume-")).expect("a volume");
    let sandbox = sandbox().volume(&volume.exclusive(support::patience(LONG)), "/data");
    runtime().block_on(async {
        let ends = all((0..4).map(|_| tasks::run(&sandbox, shell("sleep 0.05")))).await;
        for end in ends {
            assert!(end.expect("it runs").success());
        }
    });
}

fn terminals_are_streams() {
    runtime().block_on(async {
        let command = shell("stty size; read x; echo got $x; stty size").pty(24, 80);
        let mut child = tasks::spawn(&sandbox(), command).await.expect("it starts");
        let terminal = child.pty.take().expect("a terminal");
        let mut seen = vec![0; 7];
        let (mut reader, mut writer) = tokio::io::split(terminal);
        reader.read_exact(&mut seen).await.expect("read");
        assert_eq!(seen, b"24 80\r\n");
        writer.write_all(b"this\n").await.expect("written");
        reader.read_to_end(&mut seen).await.expect("read");
        assert!(String::from_utf8_lossy(&seen).contains("got this\r\n24 80"), "{}", String::from_utf8_lossy(&seen));
        assert_eq!(child.wait().await.expect("its end"), Exit::Code(0));
    });
}

fn tasks_may_move_between_threads() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let instance = std::sync::Arc::new(tasks::Instance::start(&sandbox()).await.expect("it starts"));
        let tasks: Vec<_> = (0..8)
            .map(|i| {
                let instance = instance.clone();
                tokio::spawn(async move {
                    let own = tasks::run(&sandbox(), shell(&format!("echo {i}"))).await?;
                    let (mut lines, mut child) = (Vec::new(), instance.spawn(piped("cat")).await?);
                    instance.run_lines(shell("echo line"), |line| lines.push(line.text().into_owned())).await?;
                    child.wait().await?;
                    Ok::<_, cofferdam::Error>((own.text().into_owned(), lines))
                })
            })
            .collect();
        for (i, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.expect("no panic").expect("they run"), (format!("{i}\n"), vec!["line\n".into()]));
        }
    });
}

/// What a program does that polls once and forgets.
fn a_future_that_is_never_finished_starts_nothing_that_stays() {
    let name = marker();
    let runtime = runtime();
    let _entered = runtime.enter();
    let sandbox = sandbox();
    let mut future = Box::pin(tasks::run(&sandbox, shell(&format!("exec sleep {name}"))));
    let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(future);
    drop(_entered);
    drop(runtime);
    eventually(LONG, "it's dead", || marked(&name).is_empty());
}

fn main() {
    let mut tests = both! {
        ends_are_told;
        limits_end_a_run;
        limits_of_groups_end_a_run, Need::Root;
        output_is_captured;
        output_is_relayed;
        streams_go_both_ways;
        piped_output_can_be_collected;
        signals_arrive;
        a_wait_can_be_given_up_and_begun_again;
        dropping_a_child_kills_it;
        commands_share_an_instance;
        checkpoints_are_kept, Need::Checkpoint;
        programs_talk;
        a_talk_can_be_killed;
        pools_serve;
        trees_travel;
        connections_reach_servers, Need::Tool("python3");
    };
    tests.extend([
        test!(two_hundred_sandboxes_live_in_one_thread),
        test!(a_future_can_be_dropped_at_any_point),
        test!(no_drop_waits),
        test!(a_workload_that_never_stops_printing_leaves_room),
        test!(waiting_for_a_volume_is_no_standstill),
        test!(terminals_are_streams),
        test!(tasks_may_move_between_threads),
        test!(a_future_that_is_never_finished_starts_nothing_that_stays),
    ]);
    support::main(tests)
}
