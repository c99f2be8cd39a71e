//! Real interpreters under limits: they start threads, reserve address space and handle
//! signals in ways of their own, and their verdicts must be as plain as a C program's.

mod support;

use std::time::Duration;

use cofferdam::{Command, Exit, Layer, Limit, MIB, Sandbox};
use support::Need;

fn sandbox() -> Sandbox {
    // What can't be had without a control group is left out, and rows that need it with it.
    let limits = Sandbox::new().wall_time(Duration::from_secs(20)).cpu_time(Duration::from_secs(4)).memory(200 * MIB).processes(100);
    limits.prefer(Layer::MemoryLimit).prefer(Layer::CpuAccount).user(1000, 1000)
}

fn limited() -> bool {
    sandbox().run("true").expect("it runs").missing.is_empty()
}

fn check(interpreter: &str, arguments: &[&str], program: &str, name: &str, expected: Exit) {
    let recipe = sandbox().file(name, program);
    let recipe = if expected == Exit::Limit(Limit::WallTime) { recipe.wall_time(Duration::from_secs(2)) } else { recipe };
    let recipe = if expected == Exit::Limit(Limit::CpuTime) { recipe.cpu_time(Duration::from_secs(1)) } else { recipe };
    let out = recipe.run(Command::new(interpreter).args(arguments).arg(name)).expect("it runs");
    assert_eq!(out.status, expected, "{interpreter}: {program}\n{out}, {:?}\n{}", out.usage, String::from_utf8_lossy(&out.stderr));
}

const CPU: Exit = Exit::Limit(Limit::CpuTime);
const WALL: Exit = Exit::Limit(Limit::WallTime);
const MEMORY: Exit = Exit::Limit(Limit::Memory);

fn python() {
    let python = |program: &str, expected| check("/usr/bin/python3", &[], program, "/work/main.py", expected);
    python("print(sum(range(10)))", Exit::Code(0));
    python("raise SystemExit(3)", Exit::Code(3));
    python("1/0", Exit::Code(1));
    python("import os; os.abort()", Exit::Signal(libc::SIGABRT));
    python("while True: pass", CPU);
    python("import threading\ndef f():\n  while True: pass\nfor _ in range(4): threading.Thread(target=f).start()", CPU);
    python(
        "import multiprocessing as m\ndef f():\n  while True: pass\nfor _ in range(3): m.Process(target=f).start()",
        if limited() { CPU } else { WALL },
    );
    python("import time; time.sleep(1000)", WALL);
    if limited() {
        python("x = bytearray(1 << 30)", MEMORY);
        python("import os\nif os.fork() == 0: x = bytearray(1 << 30)\nelse: os.wait()", MEMORY);
    }
}

fn node() {
    let node = |program: &str, expected| check("node", &[], program, "/work/main.js", expected);
    node("console.log(6 * 7)", Exit::Code(0));
    node("process.exit(7)", Exit::Code(7));
    node("throw new Error('on purpose')", Exit::Code(1));
    node("process.kill(process.pid, 'SIGABRT'); setTimeout(() => {}, 1e6)", Exit::Signal(libc::SIGABRT));
    node("for (;;) {}", CPU);
    node("const w = require('worker_threads'); new w.Worker('for (;;) {}', { eval: true })", CPU);
    node("setTimeout(() => {}, 1e6)", WALL);
    if limited() {
        node("const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1))", MEMORY);
    }
}

fn java() {
    let main = |body: &str| format!("public class Main {{ public static void main(String[] a) throws Exception {{ {body} }} }}");
    // Runs the source: the compiler and the program in one.
    let java =
        |body: &str, expected| check("java", &["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"], &main(body), "/work/Main.java", expected);
    java("System.out.println(6 * 7);", Exit::Code(0));
    java("System.exit(5);", Exit::Code(5));
    java("throw new IllegalStateException();", Exit::Code(1));
    java("Thread.sleep(1000000);", WALL);
    if limited() {
        java(
            "var all = new java.util.ArrayList<byte[]>(); for (;;) { var b = new byte[1 << 20]; java.util.Arrays.fill(b, (byte) 1); all.add(b); }",
            MEMORY,
        );
    }
    let endless = sandbox().cpu_time(Duration::from_secs(3)).file("/work/Main.java", main("for (;;) {}"));
    assert_eq!(endless.run(["java", "-XX:+UseSerialGC", "/work/Main.java"]).expect("it runs").status, CPU);
}

fn main() {
    support::main(vec![test!(python, Need::Tool("/usr/bin/python3")), test!(node, Need::Tool("node")), test!(java, Need::Tool("javac"))])
}
