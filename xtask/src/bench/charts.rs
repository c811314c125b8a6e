//! The charts, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::report::median;
use super::scenarios::{Run, Scenario};
use super::{Measured, Results};

const SIZE: (u32, u32) = (900, 520);
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(127, 127, 127),
];

/// Points of one line.
type Line = (String, Vec<(f64, f64)>);

pub fn draw(folder: &Path, scenarios: &[Scenario], results: &Results) -> Result<()> {
    let rate = |m: &Measured| m.ops_per_second / 1e3;
    let by_clients = |run: &Run| f64::from(run.clients);
    let throughput =
        |name: &str| lines(scenarios, results, name, |run, rounds| (by_clients(run), median(rounds, rate)));
    chart(&folder.join("writes.svg"), "Writes of 100 bytes", "clients", "thousand a second", &throughput("writes"))?;
    chart(&folder.join("reads.svg"), "Linearizable reads", "clients", "thousand a second", &throughput("reads"))?;
    let batching = throughput("batching");
    chart(
        &folder.join("batching.svg"),
        "Writes, by how the server gathers commands",
        "clients",
        "thousand a second",
        &batching,
    )?;
    let latency = lines(scenarios, results, "writes", |_, rounds| {
        (median(rounds, |m| m.ops_per_second), median(rounds, |m| m.latency_us.p50 as f64 / 1e3))
    });
    chart(
        &folder.join("latency.svg"),
        "Median latency against throughput, writes of 100 bytes",
        "writes a second",
        "ms",
        &latency,
    )?;
    // Percentiles, by how rare what is slower is: one in two, ten, a hundred, a thousand.
    let mut distribution = Vec::new();
    for scenario in scenarios.iter().filter(|scenario| scenario.name == "writes") {
        for (number, run) in scenario.runs.iter().enumerate().filter(|(_, run)| run.clients == 50) {
            let Some(rounds) = results.get(&(scenario.name, number)) else { continue };
            let ms = |pick: fn(&Measured) -> u64| median(rounds, |m| pick(m) as f64 / 1e3);
            let points = vec![
                (2.0, ms(|m| m.latency_us.p50)),
                (10.0, ms(|m| m.latency_us.p90)),
                (100.0, ms(|m| m.latency_us.p99)),
                (1_000.0, ms(|m| m.latency_us.p999)),
            ];
            distribution.push((run.line.to_owned(), points));
        }
    }
    let title = "Latency of the writes of 50 clients";
    chart(&folder.join("distribution.svg"), title, "one in so many is slower", "ms", &distribution)
}

/// The points of a scenario, one for each run, by the lines that they are on.
fn lines(
    scenarios: &[Scenario],
    results: &Results,
    name: &str,
    point: impl Fn(&Run, &[Measured]) -> (f64, f64),
) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for scenario in scenarios.iter().filter(|scenario| scenario.name == name) {
        for (number, run) in scenario.runs.iter().enumerate() {
            let Some(rounds) = results.get(&(scenario.name, number)) else { continue };
            let point = point(run, rounds);
            match lines.iter_mut().find(|(line, _)| line == run.line) {
                Some((_, points)) => points.push(point),
                None => lines.push((run.line.to_owned(), vec![point])),
            }
        }
    }
    lines
}

/// Both axes are logarithmic: a line that is twice as high is twice as much everywhere.
fn chart(path: &Path, title: &str, across: &str, up: &str, lines: &[Line]) -> Result<()> {
    let all = || lines.iter().flat_map(|(_, points)| points);
    if all().next().is_none() {
        return Ok(());
    }
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let least = all().map(pick).fold(f64::INFINITY, f64::min);
        let most = all().map(pick).fold(0.0, f64::max);
        (least * 0.8).max(1e-3)..most * 1.3
    };
    let failed = |e: &dyn std::fmt::Display| anyhow!("{}: {e}", path.display());
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(range(|p| p.0).log_scale(), range(|p| p.1).log_scale())
        .map_err(|e| failed(&e))?;
    let show = |value: &f64| if *value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc(up)
        .label_style(("sans-serif", 14))
        .x_label_formatter(&show)
        .y_label_formatter(&show)
        .light_line_style(WHITE)
        .draw()
        .map_err(|e| failed(&e))?;
    for (number, (name, points)) in lines.iter().enumerate() {
        let color = COLORS[number % COLORS.len()];
        let style = color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style).point_size(4))
            .map_err(|e| failed(&e))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 14))
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
        .map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))
}
