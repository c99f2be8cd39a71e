//! Spans of runs, as a subscriber sees them.

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam::{Command, ErrorKind, MIB, Pool, Sandbox};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::with_default;
use tracing::{Event, Metadata, Subscriber};

/// A span as it was seen.
#[derive(Clone, Debug)]
struct Seen {
    name: &'static str,
    parent: Option<u64>,
    fields: BTreeMap<&'static str, String>,
    handles: usize,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.into());
    }
}

/// What has happened: spans by their number less one, and in which order they were closed.
#[derive(Clone, Debug, Default)]
struct Log {
    spans: Vec<Seen>,
    entered: Vec<u64>,
    closed: Vec<&'static str>,
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Log>>);

impl Collector {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.0.lock().expect("no panic")
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "cofferdam"
    }
    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut log = self.log();
        let parent = match attributes.parent() {
            Some(parent) => Some(parent.into_u64()),
            None if attributes.is_contextual() => log.entered.last().copied(),
            None => None,
        };
        let mut seen = Seen { name: attributes.metadata().name(), parent, fields: BTreeMap::new(), handles: 1 };
        attributes.record(&mut seen);
        log.spans.push(seen);
        Id::from_u64(log.spans.len() as u64)
    }
    fn record(&self, span: &Id, values: &Record<'_>) {
        values.record(&mut self.log().spans[span.into_u64() as usize - 1]);
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, span: &Id) {
        self.log().entered.push(span.into_u64());
    }
    fn exit(&self, span: &Id) {
        assert_eq!(self.log().entered.pop(), Some(span.into_u64()));
    }
    fn clone_span(&self, span: &Id) -> Id {
        self.log().spans[span.into_u64() as usize - 1].handles += 1;
        span.clone()
    }
    fn try_close(&self, span: Id) -> bool {
        let mut log = self.log();
        let seen = &mut log.spans[span.into_u64() as usize - 1];
        seen.handles -= 1;
        let (name, over) = (seen.name, seen.handles == 0);
        if over {
            log.closed.push(name);
        }
        over
    }
}

/// What is seen of it.
fn seen_of(work: impl FnOnce()) -> Log {
    let collector = Collector::default();
    with_default(collector.clone(), work);
    let log = collector.log().clone();
    assert_eq!(log.closed.len(), log.spans.len(), "each span is closed: {log:#?}");
    log
}

fn names(log: &Log) -> Vec<&'static str> {
    log.spans.iter().map(|seen| seen.name).collect()
}

fn a_run_is_a_span_with_its_phases() {
    let sandbox = Sandbox::new().wall_time(support::patience(Duration::from_secs(30))).output(MIB);
    let mut phases = None;
    let log = seen_of(|| phases = Some(sandbox.run(["sh", "-c", "exit 3"]).expect("it runs").phases()));
    assert_eq!(names(&log), ["run", "setup", "execution", "teardown"]);
    assert_eq!(log.closed, ["setup", "execution", "teardown", "run"]);
    assert_eq!(log.spans.iter().map(|seen| seen.parent).collect::<Vec<_>>(), [None, Some(1), Some(1), Some(1)]);
    let (fields, phases) = (&log.spans[0].fields, phases.expect("an output"));
    let limit = support::patience(Duration::from_secs(30)).as_millis().to_string();
    let micros = |time: Duration| time.as_micros().to_string();
    for (name, value) in [
        ("program", "sh"),
        ("limit.output", "1048576"),
        ("limit.wall_time_ms", &limit),
        ("outcome", "exit code 3"),
        ("setup_us", &micros(phases.setup)),
        ("run_us", &micros(phases.run)),
        ("teardown_us", &micros(phases.teardown)),
    ] {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name} in {fields:?}");
    }
    assert!(fields.contains_key("cpu_us") && !fields.contains_key("limit.memory") && !fields.contains_key("error"), "{fields:?}");
}

fn what_fails_says_why() {
    let mut error = None;
    let log = seen_of(|| error = Sandbox::new().run("no-such-program").err());
    let error = error.expect("it can't start");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let fields = &log.spans[0].fields;
    assert_eq!(fields.get("error"), Some(&error.to_string()));
    assert!(!fields.contains_key("outcome"), "{fields:?}");
    assert!(!names(&log).contains(&"execution"), "it never began");
}

fn what_is_dropped_is_called_so() {
    let log = seen_of(|| drop(Sandbox::new().spawn(["sleep", "1000"]).expect("it starts")));
    assert_eq!(log.spans[0].fields.get("outcome").map(String::as_str), Some("dropped"));
    assert_eq!(names(&log), ["run", "setup", "execution", "teardown"]);
}

fn commands_of_an_instance_are_within_its_span() {
    let log = seen_of(|| {
        let instance = Sandbox::new().start().expect("it starts");
        assert!(instance.run(Command::new("true")).expect("it runs").success());
        assert!(instance.run(Command::new("true")).expect("it runs").success());
    });
    let of = |name: &str, parent: u64| log.spans.iter().filter(|seen| seen.name == name && seen.parent == Some(parent)).count();
    assert_eq!((log.spans[0].name, of("setup", 1), of("execution", 1), of("run", 1)), ("instance", 1, 1, 2), "{log:#?}");
    assert_eq!(log.closed.last(), Some(&"instance"));
}

fn a_command_of_a_pool_has_its_own() {
    let pool = Pool::new(Sandbox::new(), 1).expect("a pool");
    let log = seen_of(|| assert!(pool.run("true").expect("it runs").success()));
    assert_eq!(names(&log), ["run", "setup", "execution", "teardown"]);
    assert_eq!(pool.stats().hits, 1);
    assert_eq!(log.spans[0].fields.get("program").map(String::as_str), Some("true"));
    assert_eq!(log.spans[0].fields.get("outcome").map(String::as_str), Some("exit code 0"));
}

fn main() {
    support::main(vec![
        test!(a_run_is_a_span_with_its_phases),
        test!(what_fails_says_why),
        test!(what_is_dropped_is_called_so),
        test!(a_command_of_a_pool_has_its_own),
        test!(commands_of_an_instance_are_within_its_span),
    ]);
}
