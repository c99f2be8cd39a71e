//! The result as a table of Markdown and as a chart.

use std::fmt::Write;

use crate::figures::{Figures, Line};

/// Latencies of launchers, as a table.
pub(crate) fn latencies(rows: &[(&str, Figures)]) -> String {
    let base = rows.first().map(|(_, f)| *f);
    let mut out = String::from("| launcher | min µs | p25 | median | p95 | / first row (p25, median) |\n|---|---|---|---|---|---|\n");
    for (name, f) in rows {
        let ratio = base.map_or(String::new(), |b| format!("{:.2}, {:.2}", f.p25 / b.p25, f.median / b.median));
        let _ = writeln!(out, "| {name} | {:.0} | {:.0} | {:.0} | {:.0} | {ratio} |", f.min, f.p25, f.median, f.p95);
    }
    out
}

/// Ratios and whether they keep their goals.
pub(crate) fn lines(lines: &[Line]) -> String {
    let mut out = String::from("| what | p25 | median | goal | |\n|---|---|---|---|---|\n");
    for line in lines {
        let (p25, median) = line.ratio.map_or((String::new(), String::new()), |(a, b)| (format!("{a:.2}"), format!("{b:.2}")));
        let kept = match line.kept() {
            Some(true) => "kept",
            Some(false) => "**missed**",
            None => "",
        };
        let note = [kept, &line.note].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        let _ = writeln!(out, "| {} | {p25} | {median} | {} | {note} |", line.what, line.goal_text());
    }
    out
}

/// Bars of median latencies, shortest first. Plain enough for any viewer, and legible
/// on light and dark pages.
pub(crate) fn chart(rows: &[(&str, Figures)]) -> String {
    const WIDTH: f64 = 760.0;
    const LABEL: f64 = 230.0;
    const ROW: f64 = 30.0;
    let mut rows: Vec<_> = rows.to_vec();
    rows.sort_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let longest = rows.last().map_or(1.0, |(_, f)| f.median).max(1.0);
    let height = ROW * rows.len() as f64 + 50.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"14\" fill=\"#777\">\n\
         <text x=\"8\" y=\"24\" font-weight=\"bold\">Median latency of `true`, milliseconds</text>\n"
    );
    for (i, (name, f)) in rows.iter().enumerate() {
        let y = 44.0 + ROW * i as f64;
        let width = (f.median / longest * (WIDTH - LABEL - 80.0)).max(1.0);
        let colour = if name.starts_with("cofferdam") { "#2a7ab0" } else { "#a0a0a0" };
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{:.0}\">{name}</text><rect x=\"{LABEL}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\">{:.1}</text>",
            y + 14.0,
            LABEL + width + 6.0,
            y + 14.0,
            f.median / 1000.0
        );
    }
    out + "</svg>\n"
}
