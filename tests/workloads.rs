//! Programs that people really run, as Debian has them: all of them under the default
//! system call policy, and what judges run under the strict one.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam::{Command, GIB, Output, Sandbox, Syscalls};
use support::{Need, fresh_dir};

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(support::patience(Duration::from_secs(120))).writable(GIB).user(1000, 1000)
}

fn sh(sandbox: &Sandbox, script: &str) -> Output {
    let out = sandbox.run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir("/tmp")).expect("it runs");
    assert!(out.success(), "{script}\n{out}\n{}\n{}", out.text(), String::from_utf8_lossy(&out.stderr));
    out
}

fn said(sandbox: &Sandbox, script: &str) -> String {
    sh(sandbox, script).text().into_owned()
}

fn compilers() {
    let sandbox = sandbox()
        .file("/work/main.c", "#include <stdio.h>\nint main(void) { puts(\"C\"); }\n")
        .file(
            "/work/main.cc",
            "#include <iostream>\n#include <thread>\nint main() { std::thread([] { std::cout << \"C++\\n\"; }).join(); }\n",
        )
        .file(
            "/work/Makefile",
            "all: c cc\nc: main.c\n\tgcc -O2 -flto=auto -pipe -o /tmp/c main.c\ncc: main.cc\n\tg++ -O2 -pthread -o /tmp/cc main.cc\n",
        );
    let build = "if command -v make >/dev/null; then make -s -j2 -C /work; else cd /work; gcc -O2 -o /tmp/c main.c; g++ -pthread -o /tmp/cc main.cc; fi";
    assert_eq!(said(&sandbox, &format!("{build}; /tmp/c; /tmp/cc")), "C\nC++\n");
}

fn python() {
    let program = "import asyncio, ctypes, multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading\n\
        def square(n): return n * n\n\
        if __name__ == '__main__':\n\
        \x20   with multiprocessing.Pool(3) as pool: assert pool.map(square, range(4)) == [0, 1, 4, 9]\n\
        \x20   queue = multiprocessing.Queue(); queue.put(1); assert queue.get() == 1\n\
        \x20   threads = [threading.Thread(target=square, args=(i,)) for i in range(20)]\n\
        \x20   [t.start() for t in threads]; [t.join() for t in threads]\n\
        \x20   assert subprocess.run(['echo', 'x'], capture_output=True).stdout == b'x\\n'\n\
        \x20   async def server():\n\
        \x20       async def answer(reader, writer): writer.write(await reader.readline()); writer.close()\n\
        \x20       listening = await asyncio.start_server(answer, '127.0.0.1', 0)\n\
        \x20       reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())\n\
        \x20       writer.write(b'hello\\n'); assert await reader.readline() == b'hello\\n'\n\
        \x20   asyncio.run(server())\n\
        \x20   sqlite3.connect('/tmp/database').execute('create table t (x)')\n\
        \x20   with tempfile.TemporaryFile() as f: f.write(b'x')\n\
        \x20   os.getpid(); ctypes.CDLL(None).getpid(); print('python')\n";
    assert_eq!(said(&sandbox().file("/work/main.py", program), "python3 /work/main.py"), "python\n");
}

fn node() {
    let program = "const { Worker } = require('worker_threads'), { execFileSync } = require('child_process'), http = require('http');\n\
        const worker = new Worker(`require('worker_threads').parentPort.postMessage(6 * 7)`, { eval: true });\n\
        worker.on('message', (n) => {\n\
          const server = http.createServer((_, answer) => answer.end(String(n))).listen(0, '127.0.0.1', () =>\n\
            http.get({ port: server.address().port }, (a) => a.on('data', (d) => { console.log(d + execFileSync('echo', ['!'])); server.close(); })));\n\
        });\n";
    assert_eq!(said(&sandbox().file("/work/main.js", program), "node /work/main.js"), "42!\n\n");
}

fn java() {
    let program = "public class Main { public static void main(String[] a) throws Exception {\n\
        var pool = java.util.concurrent.Executors.newFixedThreadPool(4);\n\
        System.out.println(pool.submit(() -> 6 * 7).get()); pool.shutdown();\n\
        var server = new java.net.ServerSocket(0, 1, java.net.InetAddress.getLoopbackAddress());\n\
        new java.net.Socket(server.getInetAddress(), server.getLocalPort()).close();\n\
        System.out.println(new ProcessBuilder(\"echo\", \"x\").start().waitFor()); } }\n";
    assert_eq!(said(&sandbox().file("/work/Main.java", program), "javac -d /tmp /work/Main.java; java -cp /tmp Main"), "42\n0\n");
}

fn shells_and_perl() {
    assert_eq!(
        said(&sandbox(), "seq 1000 | sort -rn | (head -1; cat >/dev/null) | tee /tmp/x | wc -l; cat <(echo a) <(echo b); wait"),
        "1\na\nb\n"
    );
    assert_eq!(
        said(&sandbox(), "perl -e 'use Socket; if (my $pid = fork) { waitpid $pid, 0; print `echo perl` } else { exit 0 }'"),
        "perl\n"
    );
}

fn git() {
    let script = "export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a\n\
        git init -q a; cd a; seq 5000 > f; git add f; git commit -q -m one; git gc -q; cd ..; git clone -q a b; git -C b log --format=%s";
    assert_eq!(said(&sandbox(), script), "one\n");
}

/// A crate without dependencies, by the toolchain that compiled this test.
fn rustc() {
    let output = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc runs");
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let sandbox = sandbox()
        .bind(&sysroot, "/rust")
        .file("/work/Cargo.toml", "[package]\nname = \"x\"\nversion = \"0.1.0\"\nedition = \"2024\"\n")
        .file("/work/src/main.rs", "fn main() { println!(\"rust\") }\n");
    let script = "export PATH=/rust/bin:$PATH HOME=/tmp CARGO_HOME=/tmp/cargo; cp -r /work /tmp/x; cd /tmp/x; cargo -q run --offline";
    assert_eq!(said(&sandbox, script), "rust\n");
}

fn redis() {
    let script = "redis-server --port 6379 --dir /tmp --daemonize no --save '' >/tmp/log & server=$!\n\
        for _ in $(seq 400); do redis-cli ping >/dev/null 2>&1 && break; sleep 0.05; done\n\
        redis-cli set key value; redis-cli get key; redis-cli save; redis-cli shutdown nosave; wait $server";
    assert_eq!(said(&sandbox(), script).lines().collect::<Vec<_>>(), ["OK", "value", "OK"]);
}

fn postgres() {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("Debian's place for them").flatten();
    let directory = versions.map(|version| version.path().join("bin")).find(|bin| bin.join("initdb").is_file()).expect("a server");
    let script = format!(
        "export PATH={}:$PATH; initdb -D /tmp/data -U me --auth=trust >/tmp/log\n\
         pg_ctl -D /tmp/data -o '-h 127.0.0.1 -k /tmp' -l /tmp/server -w start >>/tmp/log || {{ cat /tmp/server >&2; exit 1; }}\n\
         psql -h 127.0.0.1 -U me -qAt postgres -c 'create table t (x int); insert into t select generate_series(1, 1000); select sum(x) from t'\n\
         pg_ctl -D /tmp/data -m fast -w stop >>/tmp/log",
        directory.display()
    );
    assert_eq!(said(&sandbox(), &script), "500500\n");
}

fn stress() {
    for stressor in ["cpu", "vm", "pipe", "timer"] {
        let bytes = if stressor == "vm" { " --vm-bytes 32m" } else { "" };
        sh(&sandbox(), &format!("stress-ng --{stressor} 2{bytes} --timeout 1 --temp-path /tmp --quiet"));
    }
}

/// C++, Python, Java and node as a judge runs them: compiled before, no network.
fn strict() {
    let built = fresh_dir("built-");
    fs::write(built.join("main.cc"), "#include <cstdio>\n#include <thread>\n#include <vector>\nint main() { int a, b; if (scanf(\"%d %d\", &a, &b) != 2) return 1; std::vector<int> v(1 << 20, 1); std::thread([&] { printf(\"%d\\n\", a + b); }).join(); }\n").expect("a source");
    let class = "import java.util.*; public class Main { public static void main(String[] x) { var in = new Scanner(System.in); var l = new ArrayList<Integer>(); l.add(in.nextInt() + in.nextInt()); l.parallelStream().forEach(System.out::println); } }";
    fs::write(built.join("Main.java"), class).expect("a source");
    let compile = |program: &str, words: &[&str]| {
        assert!(std::process::Command::new(program).args(words).current_dir(&built).status().expect("it runs").success(), "{program}");
    };
    compile("g++", &["-O2", "-pthread", "-o", "main", "main.cc"]);
    compile("javac", &["Main.java"]);
    let python = "import math, random, collections, itertools, heapq, re, json, sys, threading, datetime, os, tempfile, getpass, time\n\
        time.sleep(0.01)\nprint(sum(map(int, sys.stdin.read().split())))\n";
    let node = "const lines = require('fs').readFileSync(0, 'utf8'); setTimeout(() => console.log(lines.split(' ').map(Number).reduce((a, b) => a + b)), 5)";
    let sandbox = sandbox().syscalls(Syscalls::Strict).bind(&built, "/built").file("/work/main.py", python).file("/work/main.js", node);
    for words in
        [vec!["/built/main"], vec!["python3", "/work/main.py"], vec!["java", "-cp", "/built", "Main"], vec!["node", "/work/main.js"]]
    {
        for _ in 0..3 {
            let out = sandbox.run(Command::from(words.as_slice()).stdin("40 2")).expect("it runs");
            assert!(out.success() && out.text() == "42\n", "{words:?}: {out}, {}\n{}", out.text(), String::from_utf8_lossy(&out.stderr));
        }
    }
}

fn main() {
    support::main(vec![
        test!(compilers, Need::Tool("gcc"), Need::Tool("g++"), Need::Tool("bash")),
        test!(python, Need::Tool("python3"), Need::Tool("bash")),
        test!(node, Need::Tool("node"), Need::Tool("bash")),
        test!(java, Need::Tool("javac"), Need::Tool("bash")),
        test!(shells_and_perl, Need::Tool("perl"), Need::Tool("bash")),
        test!(git, Need::Tool("git"), Need::Tool("bash")),
        test!(rustc, root, Need::Tool("cargo"), Need::Tool("gcc"), Need::Tool("bash")),
        test!(redis, Need::Tool("redis-server"), Need::Tool("bash")),
        test!(postgres, Need::Tool("pg_ctlcluster"), Need::Tool("bash")),
        test!(stress, Need::Tool("stress-ng"), Need::Tool("bash")),
        test!(strict, Need::Tool("g++"), Need::Tool("python3"), Need::Tool("javac"), Need::Tool("node")),
    ])
}
