//! In a container, as Docker makes them by default and as CI runners have them: each layer
//! that can't be had there is named with what would help, and with that it can be had.
//!
//! runc makes the container. In it this test binary runs one test again, which looks at
//! what `check` says there.

mod support;

use std::fs;
use std::process::Command;

use cofferdam::{Layer, LayerState, MIB, Report, Sandbox};
use serde_json::{Value, json};
use support::{Need, debian_root, fresh_dir, is_again, which, world_readable_copy};

/// What Docker's documentation of its default profile lists as refused, of what a sandbox
/// needs; the flags are those of clone(2) that make namespaces.
fn docker_filter() -> Value {
    let refused =
        ["mount", "umount2", "unshare", "setns", "pivot_root", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr"];
    const NAMESPACES: u64 = 0x7e02_0000;
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM },
        { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS },
        { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
    ]})
}

/// A container of Docker's, with what its command line could change.
#[derive(Clone, Copy)]
struct Container {
    user: u32,
    /// What a sandbox needs beyond Docker's fourteen.
    administration: bool,
    filter: bool,
    /// The opposite of systempaths=unconfined.
    masked: bool,
    writable_groups: bool,
}

const DOCKER: Container = Container { user: 0, administration: false, filter: true, masked: true, writable_groups: false };

impl Container {
    fn capabilities(self) -> Vec<String> {
        const DOCKER: &str =
            "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE";
        const MORE: &str = "SYS_ADMIN SYS_PTRACE";
        let more = if self.administration { MORE } else { "" };
        DOCKER.split(' ').chain(more.split_terminator(' ')).map(|name| format!("CAP_{name}")).collect()
    }

    fn config(self, name: &str) -> Value {
        let mount =
            |place: &str, kind: &str, options: &[&str]| json!({ "destination": place, "type": kind, "source": kind, "options": options });
        // What the library asks for where a v2 group has processes.
        let make_room = if self.writable_groups {
            "cd /sys/fs/cgroup && test -e cgroup.procs && mkdir host && for p in $(cat cgroup.procs); do echo $p >host/cgroup.procs; done; exec \"$0\" \"$@\""
        } else {
            "exec \"$0\" \"$@\""
        };
        let groups = if self.writable_groups { "rw" } else { "ro" };
        let own = json!({ "destination": "/run/test", "type": "bind", "source": world_readable_copy(), "options": ["bind", "ro"] });
        // As Docker, containerd and podman fill them.
        const MASKED: [&str; 10] =
            ["asound", "acpi", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi", "interrupts"];
        const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
        let paths = |names: &[&str]| names.iter().filter(|_| self.masked).map(|name| format!("/proc/{name}")).collect::<Vec<_>>();
        let (own_set, none) = (if self.user == 0 { self.capabilities() } else { Vec::new() }, Vec::<String>::new());
        let again = format!("{}=1", support::AGAIN);
        let environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=/tmp", "HOME=/tmp", &again];
        let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
        let mut linux = json!({ "namespaces": namespaces, "maskedPaths": paths(&MASKED), "readonlyPaths": paths(&READ_ONLY) });
        if self.filter {
            linux["seccomp"] = docker_filter();
        }
        json!({
            "ociVersion": "1.0.2",
            "root": { "path": debian_root().expect("a root file system"), "readonly": true },
            "hostname": "container",
            "process": {
                "terminal": false, "cwd": "/", "env": environment, "noNewPrivileges": false,
                "user": { "uid": self.user, "gid": self.user },
                "args": ["sh", "-c", make_room, "/run/test", name, "--exact", "--test-threads=1", "--nocapture"],
                "capabilities": { "bounding": self.capabilities(), "permitted": own_set, "effective": own_set, "inheritable": none, "ambient": none },
            },
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
                mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", groups]),
                mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
                mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755"]),
                own,
            ],
            "linux": linux,
        })
    }

    /// Runs `look` in it, as the test `name`.
    fn see(self, name: &str, look: impl FnOnce()) {
        if is_again() {
            return look();
        }
        let bundle = fresh_dir("bundle-");
        fs::write(bundle.join("config.json"), self.config(name).to_string()).expect("its configuration");
        let id = format!("cofferdam-{name}-{}", std::process::id());
        let output = Command::new(which("runc").expect("runc"))
            .arg("--root")
            .arg(bundle.join("state"))
            .arg("run")
            .arg("--bundle")
            .arg(&bundle)
            .arg(&id)
            .stdin(std::process::Stdio::null())
            .output()
            .expect("runc runs");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}

/// A recipe that has a use for what containers keep back.
fn recipe() -> Sandbox {
    Sandbox::new().memory(64 * MIB).processes(16).cpus(0.5)
}

#[track_caller]
fn missing(report: &Report, layer: Layer) -> &str {
    match report.state(layer) {
        LayerState::Missing(why) => why,
        other => panic!("{layer} is {other:?}:\n{report}"),
    }
}

/// The control groups are read-only; which words help depends on their version.
#[track_caller]
fn groups_are_missing(report: &Report) {
    for layer in [Layer::MemoryLimit, Layer::CpuBandwidth] {
        let why = missing(report, layer);
        assert!(why.contains("mount it writable") && why.contains("/sys/fs/cgroup:rw"), "{why}");
    }
}

fn dockers_root_lacks_capabilities() {
    DOCKER.see("dockers_root_lacks_capabilities", || {
        let report = recipe().check().expect("a report");
        println!("{report}");
        let why = missing(&report, Layer::UserNamespace);
        assert!(why.contains("CAP_SYS_ADMIN") && why.contains("ordinary user"), "{why}");
        groups_are_missing(&report);
        assert!(!report.works());
        assert!(recipe().run("true").expect_err("it can't run").to_string().contains("CAP_SYS_ADMIN"));
    });
}

fn dockers_filter_is_named() {
    Container { user: 1000, ..DOCKER }.see("dockers_filter_is_named", || {
        let report = recipe().check().expect("a report");
        println!("{report}");
        let why = missing(&report, Layer::UserNamespace);
        assert!(why.contains("seccomp=unconfined") && why.contains("seccompProfile"), "{why}");
        groups_are_missing(&report);
        assert!(!report.works());
    });
}

/// One thing is missing, and all that comes after it is still tried.
#[track_caller]
fn only_proc_and_groups_are_missing(report: &Report) {
    let why = missing(report, Layer::PidNamespace);
    assert!(why.contains("systempaths=unconfined") && why.contains("procMount"), "{why}");
    groups_are_missing(report);
    for layer in
        [Layer::UserNamespace, Layer::MountNamespace, Layer::NetworkNamespace, Layer::Capabilities, Layer::SyscallFilter, Layer::ReadBack]
    {
        assert_eq!(*report.state(layer), LayerState::Works, "{layer}:\n{report}");
    }
    assert!(report.layers().all(|(_, state)| *state != LayerState::Untried), "{report}");
    assert!(!report.works());
}

fn masked_paths_are_named() {
    Container { user: 1000, filter: false, ..DOCKER }.see("masked_paths_are_named", || {
        let report = recipe().check().expect("a report");
        println!("{report}");
        only_proc_and_groups_are_missing(&report);
        for _ in 0..10 {
            // Not only the first time.
            let error = Sandbox::new().run("true").expect_err("it can't run").to_string();
            assert!(error.contains("systempaths=unconfined"), "{error}");
        }
    });
}

fn masked_paths_are_named_for_root() {
    Container { administration: true, filter: false, ..DOCKER }.see("masked_paths_are_named_for_root", || {
        let report = recipe().check().expect("a report");
        println!("{report}");
        only_proc_and_groups_are_missing(&report);
    });
}

/// With what was named.
fn remedies_help() {
    Container { user: 1000, filter: false, masked: false, ..DOCKER }.see("remedies_help", || {
        let report = recipe().check().expect("a report");
        println!("{report}");
        groups_are_missing(&report);
        assert!(Sandbox::new().run("true").expect("it runs").success());
    });
}

fn remedies_help_root() {
    Container { administration: true, filter: false, masked: false, writable_groups: true, ..DOCKER }.see("remedies_help_root", || {
        let report = recipe().check().expect("a report");
        println!("{report}");
        assert!(report.works(), "{report}");
        assert!(recipe().run("true").expect("it runs").success());
    });
}

fn main() {
    const NEEDS: [Need; 2] = [Need::Tool("runc"), Need::DebianRoot];
    support::main(vec![
        test!(dockers_root_lacks_capabilities, root, NEEDS[0], NEEDS[1]),
        test!(dockers_filter_is_named, root, NEEDS[0], NEEDS[1]),
        test!(masked_paths_are_named, root, NEEDS[0], NEEDS[1]),
        test!(masked_paths_are_named_for_root, root, NEEDS[0], NEEDS[1]),
        test!(remedies_help, root, NEEDS[0], NEEDS[1]),
        test!(remedies_help_root, root, NEEDS[0], NEEDS[1]),
    ])
}
