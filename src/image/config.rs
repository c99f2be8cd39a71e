//! How an image wants to be run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use super::json::{ConfigDocument, RunConfig};
use super::platform::Platform;
use super::user::User;

/// What an image says about running it (OCI image-spec, "Image Configuration").
///
/// A [`Sandbox`](crate::Sandbox) whose root file system is such an image follows it as
/// `docker run` does; what the recipe or the command says itself comes first.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    run: RunConfig,
    platform: Option<Platform>,
    /// Whom `User` is, or why that's nobody.
    account: Result<User, String>,
}

impl ImageConfig {
    pub(crate) fn new(document: &ConfigDocument, account: Result<User, String>) -> ImageConfig {
        ImageConfig { run: document.config.clone().unwrap_or_default(), platform: document.platform(), account }
    }

    /// What the image is for.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// The program that every command is an argument of, with its first arguments.
    pub fn entrypoint(&self) -> &[String] {
        self.run.entrypoint.as_deref().unwrap_or_default()
    }

    /// The command, or arguments of the entrypoint, unless the caller gives others.
    pub fn cmd(&self) -> &[String] {
        self.run.cmd.as_deref().unwrap_or_default()
    }

    /// Variables of the environment. Entries without `=` or without a name are left out.
    pub fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.run.env.iter().flatten().filter_map(|entry| entry.split_once('='));
        pairs.filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
    }

    /// The working directory, absolute; it's made where it's missing.
    pub fn working_dir(&self) -> Option<&Path> {
        self.run.working_dir.as_deref().filter(|path| path.starts_with('/') && !path.contains('\0')).map(Path::new)
    }

    /// The user as the image has it: `name`, `name:group`, `uid` or `uid:gid`; empty for
    /// root.
    pub fn user(&self) -> &str {
        self.run.user.as_deref().unwrap_or_default()
    }

    /// Directories that are meant for data: they are made where they're missing, and
    /// not kept when a run is committed.
    pub fn volumes(&self) -> impl Iterator<Item = &Path> {
        let paths = self.run.volumes.iter().flat_map(|volumes| &volumes.0);
        paths.filter(|path| path.starts_with('/') && !path.contains('\0')).map(Path::new)
    }

    /// The signal that [`Child::stop`](crate::Child::stop) sends.
    pub fn stop_signal(&self) -> Option<i32> {
        signal_number(self.run.stop_signal.as_deref()?)
    }

    /// Labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.run.labels.as_ref().map_or(&NONE, |labels| &labels.0)
    }

    /// The user's ids and home in the image's own `/etc/passwd`.
    pub(crate) fn account(&self) -> &Result<User, String> {
        &self.account
    }

    /// The whole command line: the entrypoint of the caller or of the image, and the
    /// caller's arguments or, unless there's an entrypoint of the caller's, the image's.
    pub(crate) fn arguments(&self, entrypoint: Option<&[OsString]>, given: &[OsString]) -> Vec<OsString> {
        let own = |list: &[String]| list.iter().map(OsString::from).collect::<Vec<OsString>>();
        let mut all = entrypoint.map_or_else(|| own(self.entrypoint()), <[OsString]>::to_vec);
        if !given.is_empty() {
            all.extend_from_slice(given);
        } else if entrypoint.is_none() {
            all.extend(own(self.cmd()));
        }
        all
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn signal_number(text: &str) -> Option<i32> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    if let Ok(number) = text.parse::<i32>() {
        return (1..=last).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest).map(|n| first + n).filter(|n| (first..=last).contains(n));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest).map(|n| last + n).filter(|n| (first..=last).contains(n));
    }
    let full = format!("SIG{name}");
    (1..=31).find(|number| crate::outcome::signal_name(*number) == Some(full.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ImageConfig {
        let document = ConfigDocument::parse(format!(r#"{{"config":{json}}}"#).as_bytes()).expect("a configuration");
        ImageConfig::new(&document, Ok(User::root()))
    }

    #[test]
    fn the_callers_command_overrides_as_docker_run_does() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let both = config(r#"{"Entrypoint":["/e","-x"],"Cmd":["c"]}"#);
        let only_cmd = config(r#"{"Entrypoint":null,"Cmd":["c","d"]}"#);
        for (config, entrypoint, given, line) in [
            (&both, None, &[][..], &["/e", "-x", "c"][..]),
            (&both, None, &["a", "b"], &["/e", "-x", "a", "b"]),
            (&both, Some(vec!["/n"]), &[], &["/n"]),
            (&both, Some(vec!["/n"]), &["a"], &["/n", "a"]),
            (&both, Some(vec![]), &["a"], &["a"]),
            (&only_cmd, None, &[], &["c", "d"]),
            (&only_cmd, None, &["a"], &["a"]),
        ] {
            let entrypoint = entrypoint.map(|e| words(&e));
            assert_eq!(config.arguments(entrypoint.as_deref(), &words(given)), words(line), "{given:?}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", Some(libc::SIGTERM)),
            ("QUIT", Some(libc::SIGQUIT)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(libc::SIGRTMIN() + 3)),
            ("RTMAX-1", Some(libc::SIGRTMAX() - 1)),
            ("0", None),
            ("-9", None),
            ("999", None),
            ("SIGNOTHING", None),
            ("SIGRTMIN+99", None),
            ("", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }

    #[test]
    fn what_no_kernel_takes_is_left_out() {
        let odd = config(r#"{"Env":["A=1=2","=x","B","C=\u0000"],"WorkingDir":"relative","Volumes":{"v":{},"/v":{}}}"#);
        assert_eq!(odd.env().collect::<Vec<_>>(), [("A", "1=2")]);
        assert_eq!(odd.working_dir(), None);
        assert_eq!(odd.volumes().collect::<Vec<_>>(), [Path::new("/v")]);
    }
}
