//! Times, and what is told of them.

use std::time::Duration;

/// Minimum, p25, median and p95 in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) min: f64,
    pub(crate) p25: f64,
    pub(crate) median: f64,
    pub(crate) p95: f64,
}

impl Figures {
    pub(crate) fn of(times: &[Duration]) -> Figures {
        let mut sorted: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN);
        Figures { min: at(0.0), p25: at(0.25), median: at(0.5), p95: at(0.95) }
    }
}

/// A bound on a ratio.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Told, not judged.
    None,
}

/// One line of the result.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) what: String,
    /// At p25 and at the median; the same twice where there's only one figure.
    pub(crate) ratio: Option<(f64, f64)>,
    pub(crate) goal: Goal,
    /// Instead of a ratio, or beside it.
    pub(crate) note: String,
}

impl Line {
    /// How many times `b` the latency of `a` is.
    pub(crate) fn ratio(what: &str, a: Figures, b: Figures, goal: Goal) -> Line {
        Line { what: what.into(), ratio: Some((a.p25 / b.p25, a.median / b.median)), goal, note: String::new() }
    }

    pub(crate) fn single(what: &str, ratio: f64, goal: Goal, note: String) -> Line {
        Line { what: what.into(), ratio: Some((ratio, ratio)), goal, note }
    }

    pub(crate) fn told(what: &str, note: String) -> Line {
        Line { what: what.into(), ratio: None, goal: Goal::None, note }
    }

    /// Whether the goal is kept at p25, the figure that a busy machine disturbs least.
    pub(crate) fn kept(&self) -> Option<bool> {
        let (p25, _) = self.ratio?;
        match self.goal {
            Goal::AtMost(bound) => Some(p25 <= bound),
            Goal::AtLeast(bound) => Some(p25 >= bound),
            Goal::None => None,
        }
    }

    pub(crate) fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtMost(bound) => format!("≤ {bound}"),
            Goal::AtLeast(bound) => format!("≥ {bound}"),
            Goal::None => String::new(),
        }
    }
}
