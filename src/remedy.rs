//! Why user namespaces are refused here: the settings that distributions and container
//! engines refuse them by, each with what to do about it.

use std::fs;

/// The remedy for a user namespace that can't be made, or in which nothing can be done.
pub(crate) fn user_namespaces() -> &'static str {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_string());
    diagnose(setting)
}

fn diagnose(setting: impl Fn(&str) -> Option<String>) -> &'static str {
    let is = |path: &str, value: &str| setting(path).is_some_and(|text| text == value);
    // Debian's and Arch's hardened kernels; 0 refuses all but root.
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "kernel.unprivileged_userns_clone is 0: set it to 1 with sysctl";
    }
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return "user.max_user_namespaces is 0: raise it with sysctl; inside a sandbox of this library `Sandbox::nesting` does";
    }
    // Ubuntu from 23.10: the namespace is made, and then has no capabilities.
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return "AppArmor restricts user namespaces: give the program a profile with `userns,`, or set kernel.apparmor_restrict_unprivileged_userns=0";
    }
    // Any filter around this program: that of a container, most likely.
    let filtered = setting("/proc/self/status").is_some_and(|text| text.lines().any(|line| line == "Seccomp:\t2"));
    if filtered {
        return "a system call filter around this program refuses them: start its container with --security-opt seccomp=unconfined (Docker), or seccompProfile: Unconfined and hostUsers: false (Kubernetes), or allow clone, unshare, mount and pivot_root in its profile";
    }
    "user namespaces are refused: a chrooted process can't have them, nor one that a security module confines; see the kernel's log"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_refuses_is_named() {
        let with = |path: &'static str, value: &'static str| diagnose(move |asked| (asked == path).then(|| value.to_string()));
        assert!(with("/proc/sys/kernel/unprivileged_userns_clone", "0").contains("unprivileged_userns_clone is 0"));
        assert!(with("/proc/sys/user/max_user_namespaces", "0").contains("max_user_namespaces is 0"));
        assert!(with("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1").contains("AppArmor"));
        assert!(with("/proc/self/status", "Name:\tx\nSeccomp:\t2\n").contains("seccomp=unconfined"));
        assert!(with("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0").contains("chrooted"));
    }
}
