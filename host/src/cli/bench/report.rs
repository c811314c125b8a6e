//! What a bench found, for people and for machines. Pure: `mod.rs` runs it, `clients.rs` measures.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::out::table;

/// One finished run. As JSON it is one object of exactly these members.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub setup: Setup,
    /// Operations that were sent.
    pub ops: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Those of them that were refused for want of room. None: no rate was offered, and a refusal is an error.
    pub refused: Option<u64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Successful ones.
    pub ops_per_second: f64,
    /// Of successful requests; with a rate, from when each was due.
    pub latency_us: Latency,
    /// Of the reads and of the writes among them. None: not both were made.
    pub read_latency_us: Option<Latency>,
    pub write_latency_us: Option<Latency>,
    /// Commands per sealed batch, while the operations ran. None: the nodes' metrics don't say.
    pub mean_batch: Option<f64>,
    /// Keys that were read back and had the right value. None: not asked for.
    pub verified: Option<u64>,
    /// How often a request was sent again, because nobody took it or its outcome was unknown. None: not asked for.
    pub retries: Option<u64>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Setup {
    /// `raftlet` or `etcd`.
    pub target: &'static str,
    /// `batched` (the client crate), `direct` (a connection for each client), or `grpc`.
    pub client: &'static str,
    pub clients: u32,
    /// Those that the clients share, to each node. None: each client has its own.
    pub connections: Option<usize>,
    pub value_bytes: usize,
    pub read_percent: u8,
    /// Commands of one request.
    pub bulk: u64,
    /// Requests that were sent each second, whether or not they were answered. None: closed loop.
    pub rate: Option<u64>,
    /// Keys that were written to in turn. None: each write had a new one.
    pub keys: Option<u64>,
}

/// Microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Latency {
            mean: rounded(histogram.mean()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// Operations without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    pub errors: u64,
    pub refused: u64,
}

impl Report {
    /// `read_us` and `write_us`: of requests that were answered.
    pub fn new(
        setup: Setup,
        ops: u64,
        failed: Failures,
        seconds: f64,
        read_us: &Histogram<u64>,
        write_us: &Histogram<u64>,
    ) -> Report {
        let mut all_us = read_us.clone();
        all_us.add(write_us).expect("both have the same bounds");
        let mixed = !read_us.is_empty() && !write_us.is_empty();
        let Failures { errors, refused } = failed;
        let succeeded = ops - errors - refused;
        let per_second = if seconds > 0.0 { succeeded as f64 / seconds } else { 0.0 };
        Report {
            refused: setup.rate.is_some().then_some(refused),
            setup,
            ops,
            errors,
            seconds: (seconds * 1e6).round() / 1e6,
            ops_per_second: rounded(per_second),
            latency_us: Latency::of(&all_us),
            read_latency_us: mixed.then(|| Latency::of(read_us)),
            write_latency_us: mixed.then(|| Latency::of(write_us)),
            mean_batch: None,
            verified: None,
            retries: None,
        }
    }

    pub fn to_table(&self) -> String {
        let ms = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
        let l = &self.latency_us;
        let Setup { target, client, clients, connections, .. } = &self.setup;
        let shared = connections.map_or(String::new(), |n| format!(" sharing {n} connections to a node"));
        let mut rows = vec![
            ["target".to_string(), format!("{target}, {clients} {client} clients{shared}")],
            ["operations".into(), grouped(self.ops)],
            ["errors".into(), grouped(self.errors)],
            ["seconds".into(), format!("{:.2}", self.seconds)],
            ["throughput".into(), format!("{} ops/s", grouped(self.ops_per_second.round() as u64))],
            ["latency mean".into(), format!("{:.2} ms", l.mean / 1000.0)],
            ["latency p50".into(), ms(l.p50)],
            ["latency p90".into(), ms(l.p90)],
            ["latency p99".into(), ms(l.p99)],
            ["latency p99.9".into(), ms(l.p999)],
            ["latency max".into(), ms(l.max)],
        ];
        for (name, latency) in [("reads", &self.read_latency_us), ("writes", &self.write_latency_us)] {
            if let Some(l) = latency {
                rows.push([format!("{name} p50, p99"), format!("{}, {}", ms(l.p50), ms(l.p99))]);
            }
        }
        if let Some(refused) = self.refused {
            rows.push(["refused".into(), grouped(refused)]);
        }
        if let Some(retries) = self.retries {
            rows.push(["retries".into(), grouped(retries)]);
        }
        if let Some(mean) = self.mean_batch {
            rows.push(["mean batch".into(), format!("{mean:.1} commands")]);
        }
        if let Some(verified) = self.verified {
            rows.push(["verified".into(), format!("{} keys", grouped(verified))]);
        }
        table(["", "result"], rows)
    }
}

/// To one thousandth: more digits would only be noise.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// `50000` as `50,000`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What a node counted about its batches since it started.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BatchCounts {
    pub sealed: f64,
    pub commands: f64,
}

impl BatchCounts {
    /// Reads the Prometheus text of `/_/metrics`. None if these counters aren't in it.
    pub fn parse(metrics: &str) -> Option<BatchCounts> {
        let sum = |name: &str| {
            let values = metrics.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                // Labels may contain spaces and braces only inside quotes, and ours contain neither.
                let value = if rest.starts_with('{') { rest.split_once('}')?.1 } else { rest };
                value.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
            });
            values.fold(None, |total: Option<f64>, value| Some(total.unwrap_or(0.0) + value))
        };
        Some(BatchCounts {
            sealed: sum("raftlet_batches_sealed_total")?,
            commands: sum("raftlet_batch_commands_total")?,
        })
    }

    /// Commands per batch between two readings of the same nodes.
    pub fn mean_batch(before: &[Option<BatchCounts>], after: &[Option<BatchCounts>]) -> Option<f64> {
        let mut total = BatchCounts::default();
        for (before, after) in before.iter().zip(after) {
            let (before, after) = ((*before)?, (*after)?);
            total.sealed += after.sealed - before.sealed;
            total.commands += after.commands - before.commands;
        }
        (total.sealed > 0.0).then(|| rounded(total.commands / total.sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        Setup { target: "raftlet", client: "batched", clients: 50, connections: Some(2), ..Setup::default() }
    }

    fn report() -> Report {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
        for us in 1..=1000 {
            histogram.record(us).unwrap();
        }
        Report::new(
            setup(),
            1010,
            Failures { errors: 10, refused: 0 },
            0.05,
            &Histogram::new_from(&histogram),
            &histogram,
        )
    }

    #[test]
    fn figures_come_from_the_histogram() {
        let Report { ops_per_second, latency_us: l, .. } = report();
        assert_eq!(ops_per_second, 20_000.0);
        assert_eq!((l.p50, l.p90, l.p99, l.p999, l.max), (500, 900, 990, 999, 1000));
        assert!((l.mean - 500.5).abs() < 0.5, "{}", l.mean);
    }

    #[test]
    fn nothing_measured_is_no_division_by_zero() {
        let histogram = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
        let nothing = Report::new(setup(), 5, Failures { errors: 5, refused: 0 }, 0.0, &histogram, &histogram);
        assert_eq!((nothing.ops_per_second, nothing.latency_us.mean, nothing.latency_us.max), (0.0, 0.0, 0));
    }

    #[test]
    fn the_object_has_exactly_the_promised_members() {
        let names = |value: &serde_json::Value| {
            let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names.join(" ")
        };
        let object = serde_json::to_value(report()).unwrap();
        assert_eq!(
            names(&object),
            "bulk client clients connections errors keys latency_us mean_batch ops ops_per_second rate read_latency_us read_percent \
             refused retries seconds target value_bytes verified write_latency_us"
        );
        assert_eq!(names(&object["latency_us"]), "max mean p50 p90 p99 p999");
        assert!(object["read_latency_us"].is_null() && object["write_latency_us"].is_null());
        assert!(object["mean_batch"].is_null() && object["verified"].is_null());
        let verified = Report { verified: Some(1000), mean_batch: Some(12.5), ..report() };
        assert_eq!(serde_json::to_value(verified).unwrap()["verified"], 1000);
    }

    #[test]
    fn what_is_refused_is_no_throughput() {
        let histogram = Histogram::new_with_bounds(1, 1000, 3).unwrap();
        let setup = Setup { rate: Some(100), ..setup() };
        let report = Report::new(setup, 100, Failures { errors: 10, refused: 40 }, 1.0, &histogram, &histogram);
        assert_eq!((report.ops_per_second, report.refused), (50.0, Some(40)));
        assert!(report.to_table().contains("refused"));
    }

    #[test]
    fn reads_and_writes_are_told_apart_if_there_are_both() {
        let histogram = |us: u64| {
            let mut histogram = Histogram::new_with_bounds(1, 10_000, 3).unwrap();
            histogram.record(us).unwrap();
            histogram
        };
        let report = Report::new(setup(), 2, Failures::default(), 1.0, &histogram(200), &histogram(2_000));
        assert_eq!((report.latency_us.p50, report.latency_us.max), (200, 2_000));
        assert_eq!(report.read_latency_us.as_ref().map(|l| l.p99), Some(200));
        assert_eq!(report.write_latency_us.as_ref().map(|l| l.p99), Some(2_000));
        let text = report.to_table();
        assert!(text.contains("reads p50, p99") && text.contains("writes p50, p99"), "{text}");
    }

    #[test]
    fn the_table_has_units() {
        let text = Report { mean_batch: Some(12.34), verified: Some(1000), retries: Some(2345), ..report() }.to_table();
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "raftlet, 50 batched clients sharing 2 connections to a node",
            "operations 1,010",
            "20,000 ops/s",
            "p99.9 1.00 ms",
            "mean batch 12.3 commands",
            "1,000 keys",
            "retries 2,345",
        ] {
            assert!(flat.contains(part), "no {part:?} in {text}");
        }
        assert!(!report().to_table().contains("verified") && !report().to_table().contains("retries"));
    }

    #[test]
    fn digits_are_grouped() {
        let all = [0, 12, 999, 1000, 50_000, 1_234_567];
        assert_eq!(all.map(grouped).join(" "), "0 12 999 1,000 50,000 1,234,567");
    }

    #[test]
    fn batch_counters_are_summed_over_reasons_and_nodes() {
        let text = "# TYPE raftlet_batches_sealed counter\nraftlet_batches_sealed_total{reason=\"idle\"} 3\n\
                    raftlet_batches_sealed_total{reason=\"delay\"} 4 1700000000\nraftlet_batch_commands_total 70\n\
                    raftlet_batch_commands_total_other 9\n# EOF\n";
        let after = BatchCounts::parse(text);
        assert_eq!(after, Some(BatchCounts { sealed: 7.0, commands: 70.0 }));
        let before = Some(BatchCounts { sealed: 2.0, commands: 10.0 });
        assert_eq!(BatchCounts::mean_batch(&[before, before], &[after, after]), Some(12.0));
        assert_eq!(BatchCounts::mean_batch(&[before, None], &[after, after]), None);
        assert_eq!(BatchCounts::mean_batch(&[after], &[after]), None);
        assert_eq!(BatchCounts::parse("raftlet_batch_commands_total 70\n"), None);
    }
}
