//! The JSON object has these members; what doesn't apply is null:
//!
//! * `outcome`: `exited`, `signaled`, `limit`, `killed` or `error`
//! * `code`, `signal` (`"SIGABRT"`; a real-time signal is `"SIG40"`)
//! * `limit`: `wall_time`, `cpu_time`, `idle_time`, `memory`, `output`, `syscall`
//! * `syscall`: for the latter, its `name` (or null) and `number`
//! * `error`: `kind` and `message`. Kinds: `invalid`, `unsupported`, `image`,
//!   `mount`, `setup`, `exhausted`, `lost`, `io`, `failed`, and for a command that
//!   can't be started `not_found`, `permission_denied`, `is_a_directory`,
//!   `exec_format`, `interpreter_not_found`, `argument_list_too_long`,
//!   `text_file_busy`, `filesystem_loop`, `name_too_long`, `bad_working_directory`,
//!   `exec`
//! * `usage`: `wall_us`, `cpu_us`, `user_us`, `system_us`, `setup_us`, `throttled_us`,
//!   `peak_memory`, `peak_resident`, `page_cache`, `peak_processes`, `oom_kills`,
//!   `fork_failures`, `context_switches`, `preemptions`, `read_bytes`, `written_bytes`,
//!   `scratch`, `scratch_files`, `scratch_full`: see the crate's `Usage`
//! * `evidence`: the outcome and what speaks for it, in one line
//! * `stdout`, `stderr`: `bytes` and `truncated`
//! * `layers`: what stood around the run; `missing`: what could not be had

use std::io::{self, Write};
use std::time::Duration;

use cofferdam::{Exit, Limit, StreamEnd};
use serde_json::{Value, json};

use crate::{Done, Problem};

/// The object, if there's an outcome.
pub(crate) fn describe(result: &Result<Done, Problem>) -> Option<Value> {
    let output = match result {
        Ok(Done::Outcome(output)) => output,
        Ok(Done::Answer(_)) => return None,
        Err(problem) => {
            let error = json!({"kind": problem.kind(), "message": problem.message()});
            return Some(json!({
                "outcome": "error", "code": null, "signal": null, "limit": null, "syscall": null, "error": error,
                "usage": null, "evidence": null, "stdout": null, "stderr": null, "layers": null, "missing": null,
            }));
        }
    };
    let (name, code, signal, limit) = match output.status {
        Exit::Code(code) => ("exited", Some(code), None, None),
        Exit::Signal(n) => ("signaled", None, Some(cofferdam::signal_name(n).map_or_else(|| format!("SIG{n}"), String::from)), None),
        Exit::Limit(limit) => ("limit", None, None, Some(limit.name())),
        _ => ("killed", None, None, None),
    };
    let syscall = match output.status {
        Exit::Limit(Limit::Syscall(call)) => json!({"name": call.name(), "number": call.number()}),
        _ => Value::Null,
    };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let usage = &output.usage;
    let stream = |end: StreamEnd| json!({"bytes": end.bytes, "truncated": end.truncated});
    Some(json!({
        "outcome": name, "code": code, "signal": signal, "limit": limit, "syscall": syscall, "error": null,
        "usage": {
            "wall_us": micros(usage.wall), "cpu_us": micros(usage.cpu()), "user_us": micros(usage.user), "system_us": micros(usage.system),
            "setup_us": micros(usage.setup), "throttled_us": usage.throttled.map(micros),
            "peak_memory": usage.peak_memory, "peak_resident": usage.peak_resident, "page_cache": usage.page_cache,
            "peak_processes": usage.peak_processes, "oom_kills": usage.oom_kills, "fork_failures": usage.fork_failures,
            "context_switches": usage.context_switches, "preemptions": usage.preemptions,
            "read_bytes": usage.read_bytes, "written_bytes": usage.written_bytes,
            "scratch": usage.scratch, "scratch_files": usage.scratch_files, "scratch_full": usage.scratch_full,
        },
        "evidence": output.to_string(),
        "stdout": stream(output.stdout_stream), "stderr": stream(output.stderr_stream),
        "layers": output.layers.iter().map(|layer| layer.name()).collect::<Vec<_>>(),
        "missing": output.missing.iter().map(|layer| layer.name()).collect::<Vec<_>>(),
    }))
}

/// Writes it to a file, or to standard output for `-`; there on a line of its own.
pub(crate) fn write(path: &std::path::Path, object: &Value, open_line: bool) -> io::Result<()> {
    if path.as_os_str() == "-" {
        let mut out = io::stdout().lock();
        if open_line {
            out.write_all(b"\n")?;
        }
        writeln!(out, "{object}")?;
        out.flush()
    } else {
        std::fs::write(path, format!("{object}\n"))
    }
}
