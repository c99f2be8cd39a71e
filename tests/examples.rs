//! The example programs, as somebody's scripts would use them.

mod support;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use support::{Need, copy_for_all, fresh_dir};

/// An example that `cargo test` has built.
fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a path of our own");
    let built = own.ancestors().nth(2).expect("the target directory").join("examples").join(name);
    if built.exists() {
        return built;
    }
    // An ordinary user's copy of the tests has one of the examples beside it.
    own.with_file_name(name)
}

fn run(arguments: &[&str]) -> Output {
    Command::new(example("run")).args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

/// The object of `--json -`: the last line.
fn json(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().expect("a line")).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn exit_codes_say_what_happened() {
    let cases: &[(&[&str], i32)] = &[
        (&["true"], 0),
        (&["--", "sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -ABRT $$"], 134),
        (&["--wall-time", "0.2", "sleep", "10"], 124),
        (&["--output", "1K", "yes"], 124),
        (&["/no/such/program"], 125),
        (&["--rootfs", "/no/such/root", "true"], 125),
        (&["--nonsense", "true"], 125),
        (&["--wall-time", "soon", "true"], 125),
        (&["--syscalls", "/no/such/profile", "true"], 125),
        (&[], 125),
        (&["--check"], 0),
        (&["--explain"], 0),
    ];
    for (arguments, code) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(*code == 125, output.stderr.starts_with(b"run: "), "{arguments:?}: the message goes to standard error");
    }
}

fn json_has_every_member_and_null_where_it_does_not_apply() {
    let members = ["outcome", "code", "signal", "limit", "syscall", "error", "usage", "stdout", "stderr", "layers", "missing"];
    let cases: &[(&[&str], &str, &str)] = &[
        (&["sh", "-c", "printf hi; exit 3"], "exited", "code"),
        (&["sh", "-c", "kill -SEGV $$"], "signaled", "signal"),
        (&["--wall-time", "0.2", "sleep", "9"], "limit", "limit"),
        (&["/nope"], "error", "error"),
    ];
    for (arguments, outcome, member) in cases {
        let output = run(&[&["--json", "-"], *arguments].concat());
        let object = json(&output);
        for name in members {
            assert!(object.get(name).is_some(), "{arguments:?}: {name}");
        }
        assert_eq!(object["outcome"], *outcome);
        for name in ["code", "signal", "limit", "error"] {
            assert_eq!(object[name].is_null(), name != *member, "{arguments:?}: {name} in {object}");
        }
    }
    let object = json(&run(&["--json", "-", "sh", "-c", "printf hi; exit 3"]));
    assert_eq!((&object["code"], &object["stdout"]["bytes"], &object["stdout"]["truncated"]), (&3.into(), &2.into(), &false.into()));
    for name in ["wall_us", "cpu_us", "user_us", "system_us", "setup_us", "peak_memory", "peak_resident", "context_switches", "scratch"] {
        assert!(object["usage"][name].is_u64(), "{name}: {object}");
    }
    // What takes a control group or a limit may be null, but it's there.
    for name in ["throttled_us", "page_cache", "peak_processes", "oom_kills", "fork_failures", "read_bytes", "written_bytes"] {
        assert!(object["usage"].get(name).is_some(), "{name}: {object}");
    }
    assert_eq!((&object["usage"]["scratch_full"], &object["evidence"]), (&false.into(), &"exit code 3".into()));
    assert_eq!(json(&run(&["--json", "-", "sh", "-c", "kill -SEGV $$"]))["signal"], "SIGSEGV");
    assert_eq!(json(&run(&["--json", "-", "/nope"]))["error"]["kind"], "not_found");
}

fn json_starts_on_a_fresh_line() {
    for (printed, lines) in [("printf open", 2), ("echo closed", 2), ("true", 1), ("printf 'a\\nb'", 3)] {
        let output = run(&["--json", "-", "sh", "-c", printed]);
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), lines, "{printed}");
        json(&output);
    }
}

fn streams_go_where_they_are_told() {
    let directory = fresh_dir("streams-");
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    std::fs::write(path("in"), "from a file\n").expect("written");
    let (input, out, err, json) = (path("in"), path("out"), path("err"), path("json"));
    let script = "cat; echo error >&2";
    let output = run(&["--stdin", &input, "--stdout", &out, "--stderr", &err, "--json", &json, "sh", "-c", script]);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(std::fs::read_to_string(out).expect("there"), "from a file\n");
    assert_eq!(std::fs::read_to_string(err).expect("there"), "error\n");
    let object: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).expect("there")).expect("JSON");
    assert_eq!(object["stderr"]["bytes"], 6);
    // Without --stdin its own is passed on.
    let mut child = Command::new(example("run")).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    Write::write_all(&mut child.stdin.take().expect("piped"), b"through a pipe").expect("written");
    assert_eq!(child.wait_with_output().expect("it ends").stdout, b"through a pipe");
}

fn options_reach_the_sandbox() {
    let options = [
        "--env",
        "A=b=c",
        "--workdir",
        "/tmp",
        "--user",
        "7:8",
        "--hostname",
        "box",
        "--tmpfs",
        "/t:1M",
        "--disk",
        "10M",
        "--open-files",
        "99",
        "--stack",
        "4M",
        "--file-size",
        "1M",
        "--network",
        "none",
        "--syscalls",
        "default",
        "--processes",
        "20",
        "--prefer",
        "syscall_filter",
    ];
    let script = "echo $A; pwd; id -u; id -g; hostname; df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2; ulimit -n; ulimit -s";
    let output = run(&[&options[..], &["sh", "-c", script]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "b=c\n/tmp\n7\n8\nbox\n1024\n99\n4096\n", "{}", String::from_utf8_lossy(&output.stderr));
    let directory = fresh_dir("bind-");
    std::fs::write(directory.join("file"), "bound").expect("written");
    let bind = format!("{}:/b", directory.display());
    assert_eq!(run(&["--bind", &bind, "cat", "/b/file"]).stdout, b"bound");
}

fn images(arguments: &[&str]) -> Output {
    Command::new(example("images")).args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

fn images_are_managed_and_run() {
    use support::image::{Layout, busybox, file, tar};
    let mut layout = Layout::new();
    for name in ["first", "second"] {
        let layer = tar(&[busybox(), vec![file("name", name)]].concat());
        let manifest = layout.manifest(&[layer], serde_json::json!({"Cmd": ["cat", "/name"], "Env": ["A=1"]}));
        layout.add(manifest, name);
    }
    let directory = fresh_dir("images-");
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let (store, image, committed) = (path("store"), layout.path.to_string_lossy().into_owned(), path("committed.tar"));
    let named = |name: &str| format!("{image}#{name}");
    let prints = |arguments: &[&str]| {
        let output = run(&[&["--store", &store][..], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(prints(&["--rootfs", &named("first")]), "first", "its own command");
    assert_eq!(prints(&["--rootfs", &named("second"), "sh", "-c", "echo $A"]), "1\n");
    assert_eq!(prints(&["--rootfs", &named("second"), "--entrypoint", "echo", "x"]), "x\n");
    assert_eq!(prints(&["--rootfs", &named("first"), "--commit", &committed, "sh", "-c", "echo third > /name"]), "");
    assert_eq!(prints(&["--rootfs", &committed]), "third\n");
    for reference in ["", "#third"] {
        let output = run(&["--store", &store, "--rootfs", &format!("{image}{reference}"), "true"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(125) && said.contains("first, second"), "{said}");
    }

    let says = |arguments: &[&str]| {
        let output = images(&[&["--store", &store][..], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(says(&["list"]).lines().count(), 4, "two images, one made of a run, and a heading");
    assert!(says(&["inspect", "first"]).contains("A=1"));
    let id = says(&["import", "--ref", "second", &image]);
    assert!(id.starts_with("sha256:"));
    says(&["save", "--format", "docker", "second", &path("saved.tar")]);
    assert_eq!(prints(&["--rootfs", &path("saved.tar")]), "second");
    says(&["unpack", "--ref", "first", "--platform", "linux/amd64", "--max-bytes", "100M", &image, &path("tree")]);
    assert_eq!(std::fs::read_to_string(directory.join("tree/name")).expect("it"), "first");
    for name in ["first", "second", "committed"] {
        says(&["remove", name]);
    }
    assert!(says(&["prune"]).starts_with("3 layers"), "two and the run's");
    assert_eq!(says(&["list"]).lines().count(), 1);
    let refused: &[&[&str]] = &[
        &["unpack", "--ref", "first", "--max-bytes", "1K", &image, &path("small")],
        &["unpack", "--ref", "first", "--max-inodes", "3", &image, &path("small")],
        &["unpack", &image, &path("small")],
        &["import", &path("nothing")],
        &["inspect", "first"],
        &["frobnicate"],
        &["--nonsense"],
    ];
    for arguments in refused {
        let output = images(&[&["--store", &store][..], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.starts_with("images: ") && said.lines().count() == 1, "{arguments:?}: {said}");
        assert!(!directory.join("small").exists());
    }
}

/// What the README's main job prints: each submission with the verdict that its name
/// promises.
fn the_judge_is_right() {
    let directory = std::env::var_os("COFFERDAM_JUDGE_DIRECTORY")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/judge"), PathBuf::from);
    let output = Command::new(example("judge")).arg(directory).output().expect("it starts");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in table.lines().skip(1) {
        let (name, rest) = line.split_at(17);
        let stem = name.split('.').next().expect("a name").to_lowercase();
        let verdict = rest.split("  ").next().expect("a verdict").trim();
        let expected: &[&str] = match stem.as_str() {
            "right" | "snoop" | "leaver" => &["accepted"],
            "wrong" | "overflow" => &["wrong answer"],
            "broken" => &["compile error"],
            "crash" => &["runtime error: exit code 1", "runtime error: SIGSEGV", "runtime error: SIGABRT"],
            "loop" => &["CPU time limit"],
            "sleep" => &["wall time limit"],
            "flood" => &["output limit"],
            "forkbomb" => &["wall time limit", "CPU time limit"],
            // Without a control group its own data limit gets it, or time does.
            "hog" => &["memory limit", "runtime error: exit code 1", "CPU time limit"],
            other => panic!("{other} promises nothing"),
        };
        assert!(expected.contains(&verdict) || verdict.starts_with("no "), "{line}");
    }
    assert!(table.lines().count() > 20, "{table}");
}

/// A call that hangs costs the worker, not the host.
fn a_plugin_that_hangs_is_started_again() {
    let output = Command::new(example("plugin")).stdin(Stdio::null()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        text, "7: 49\n12: 144\nhang: no answer, killed by the caller\nbabble: no answer, killed by the caller\n9: 81\n",
        "{output:?}"
    );
    assert!(output.status.success());
}

fn a_shell_is_interactive_and_hands_on_its_exit_code() {
    let mut child =
        Command::new(example("shell")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let input = child.stdin.as_mut().expect("a pipe");
    input.write_all(b"test -t 0 && echo a terminal: $(tty)\nexit 3\n").expect("typed");
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("a terminal: /dev/pts/0\r\n"), "{text}");
    assert_eq!(output.status.code(), Some(3), "{text}");
}

fn volumes_outlive_runs() {
    let store = fresh_dir("store-").join("store");
    let run = |volume: &str, script: &str| run(&["--store", store.to_str().expect("text"), "--volume", volume, "sh", "-c", script]);
    assert!(run("cache:/c", "echo kept > /c/file").status.success());
    let output = run("cache:/c:ro", "cat /c/file; echo more > /c/file || echo refused");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kept\nrefused\n");
    for wrong in ["cache", "cache:/c:rx", "../cache:/c", "cache:relative"] {
        let output = run(wrong, "true");
        assert_eq!(output.status.code(), Some(125), "{wrong}: {output:?}");
    }
}

fn a_terminal_is_there_when_asked_for() {
    let typed = |arguments: &[&str], text: &str| {
        let mut child =
            Command::new(example("run")).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("typed");
        child.wait_with_output().expect("its end")
    };
    let output = typed(&["--tty", "sh", "-c", "tty; read x; echo got $x; exit 4"], "word\n");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/dev/pts/0\r\n") && text.contains("got word\r\n"), "{text}");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(typed(&["--tty", "--wall-time", "0.3", "sleep", "100"], "").status.code(), Some(124));
    assert_eq!(run(&["tty"]).status.code(), Some(1), "and not when it isn't");
    assert_eq!(run(&["--tty", "--stdout", "/dev/null", "true"]).status.code(), Some(125));
}

fn an_interactive_problem_is_judged() {
    let output = Command::new(example("interactive")).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let verdicts: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
    let wanted = [
        "bisects: accepted",
        "counts: rejected by the judge with exit code 1",
        "crashes: player 1 failed: SIGSEGV",
        "gives up: rejected by the judge with exit code 1",
        "waits: everybody waited for somebody",
    ];
    assert_eq!(verdicts, wanted, "{text}");
    assert!(text.contains("player 1: 500") && text.contains("the judge: higher"), "{text}");
    assert!(text.ends_with("    player 1 waits for input of the judge\n"), "{text}");
}

fn a_build_finds_its_cache_again() {
    let store = fresh_dir("store-").join("store");
    for first in ["downloading", "cached"] {
        let output = Command::new(example("ci")).arg(&store).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().collect();
        assert!(output.status.success() && lines[0].ends_with(&format!("s   {first}")), "{output:?}");
        assert!(
            text.contains(" ! warning: no compiler\n") && lines[lines.len() - 1].trim_start().starts_with("publish done in "),
            "{text}"
        );
    }
}

fn main() {
    // For the ordinary user's copy of this test.
    if support::is_root() {
        for name in ["run", "judge", "images", "plugin", "shell", "interactive", "ci"] {
            copy_for_all(&example(name));
        }
    }
    support::main(vec![
        test!(exit_codes_say_what_happened),
        test!(json_has_every_member_and_null_where_it_does_not_apply),
        test!(json_starts_on_a_fresh_line),
        test!(streams_go_where_they_are_told),
        test!(options_reach_the_sandbox),
        test!(images_are_managed_and_run, Need::Tool("busybox"), Need::Overlay),
        test!(the_judge_is_right, Need::Tool("gcc"), Need::Checkpoint),
        test!(a_plugin_that_hangs_is_started_again),
        test!(a_shell_is_interactive_and_hands_on_its_exit_code),
        test!(volumes_outlive_runs),
        test!(a_terminal_is_there_when_asked_for),
        test!(an_interactive_problem_is_judged),
        test!(a_build_finds_its_cache_again),
    ])
}
