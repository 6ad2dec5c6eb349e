//! Results: medians over rounds, and each target's ratio to nginx.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::kills::Kill;
use crate::load::{Slice, TEXT_BYTES};
use crate::process::Memory;
use crate::targets::{Starts, median};

/// One target at one number of connections.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    connections: usize,
    calls: u64,
    calls_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us_per_call: Option<f64>,
    load_us_per_call: f64,
}

impl Row {
    pub(crate) fn from_slices(
        name: &str,
        connections: usize,
        slices: &[(Slice, Option<f64>)],
    ) -> Self {
        let over = |value: &dyn Fn(&Slice) -> f64| {
            median(&mut slices.iter().map(|(slice, _)| value(slice)).collect::<Vec<_>>())
        };
        let mut cpu: Vec<f64> = slices
            .iter()
            .filter_map(|(slice, cpu)| Some(cpu.as_ref()? * 1e6 / slice.calls as f64))
            .collect();
        Self {
            name: name.to_owned(),
            connections,
            calls: slices.iter().map(|(slice, _)| slice.calls).sum(),
            calls_per_second: over(&|slice| slice.calls as f64 / slice.seconds),
            p50_us: over(&|slice| slice.quantile_us(0.5)),
            p99_us: over(&|slice| slice.quantile_us(0.99)),
            load_us_per_call: over(&|slice| slice.own_cpu_seconds * 1e6 / slice.calls as f64),
            cpu_us_per_call: (!cpu.is_empty()).then(|| median(&mut cpu)),
        }
    }
}

#[derive(Debug)]
struct MemoryRow {
    name: String,
    idle: Option<Memory>,
    loaded: Option<Memory>,
}

/// What was lost by one router that was killed again and again.
#[derive(Debug)]
struct KillsRow {
    name: String,
    connections: usize,
    calls_per_second: f64,
    /// Per kill, sorted.
    lost: Vec<u64>,
    newest_ms: Vec<f64>,
}

/// Everything one run found.
#[derive(Debug)]
pub(crate) struct Report {
    rounds: usize,
    seconds: f64,
    starts: Option<Starts>,
    sync_ms: f64,
    rows: Vec<Row>,
    memory: Vec<MemoryRow>,
    kills: Vec<KillsRow>,
}

impl Report {
    pub(crate) fn new(rounds: usize, seconds: f64, starts: Option<Starts>, sync_ms: f64) -> Self {
        Self {
            rounds,
            seconds,
            starts,
            sync_ms,
            rows: Vec::new(),
            memory: Vec::new(),
            kills: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn idle(&mut self, name: &str, idle: Option<Memory>) {
        self.memory.push(MemoryRow { name: name.to_owned(), idle, loaded: None });
    }

    pub(crate) fn loaded(&mut self, name: &str, loaded: Option<Memory>) {
        if let Some(row) = self.memory.iter_mut().find(|row| row.name == name) {
            row.loaded = loaded;
        }
    }

    pub(crate) fn killed(&mut self, name: &str, connections: usize, kills: &[Kill]) {
        if kills.is_empty() {
            return;
        }
        let mut calls: Vec<f64> = kills.iter().map(|kill| kill.calls_per_second).collect();
        let mut lost: Vec<u64> = kills.iter().map(|kill| kill.lost).collect();
        let mut newest_ms: Vec<f64> = kills.iter().map(|kill| kill.newest_ms).collect();
        lost.sort_unstable();
        newest_ms.sort_by(f64::total_cmp);
        self.kills.push(KillsRow {
            name: name.to_owned(),
            connections,
            calls_per_second: median(&mut calls),
            lost,
            newest_ms,
        });
    }

    fn nginx(&self, connections: usize) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == "nginx" && row.connections == connections)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "legacy tools/call of a {TEXT_BYTES}-byte echo, every answer checked; {} rounds of {} s, interleaved, medians\n\n",
            self.rounds, self.seconds
        );
        let mut line = |line: std::fmt::Arguments<'_>| {
            let _infallible = text.write_fmt(line);
        };
        line(format_args!(
            "{:<12} {:>5} {:>10} {:>9} {:>9} {:>12} {:>7} {:>9}   {}\n",
            "target",
            "conns",
            "calls/s",
            "p50 us",
            "p99 us",
            "cpu us/call",
            "(load)",
            "calls",
            "against nginx: calls/s, p50, cpu"
        ));
        for row in &self.rows {
            line(format_args!(
                "{:<12} {:>5} {:>10.0} {:>9.1} {:>9.1} {:>12} {:>7.1} {:>9}",
                row.name,
                row.connections,
                row.calls_per_second,
                row.p50_us,
                row.p99_us,
                row.cpu_us_per_call.map_or("-".to_owned(), |cpu| format!("{cpu:.1}")),
                row.load_us_per_call,
                row.calls,
            ));
            if let Some(nginx) = self.nginx(row.connections).filter(|nginx| nginx.name != row.name)
            {
                let cpu = row.cpu_us_per_call.zip(nginx.cpu_us_per_call);
                line(format_args!(
                    "   {:.2}, {:.2}, {}",
                    row.calls_per_second / nginx.calls_per_second,
                    row.p50_us / nginx.p50_us,
                    cpu.map_or("-".to_owned(), |(own, nginx)| format!("{:.2}", own / nginx)),
                ));
            }
            line(format_args!("\n"));
        }
        line(format_args!(
            "\n{:<12} {:>10} {:>10} {:>10}   MiB resident; nginx summed over its processes\n",
            "target", "idle", "after", "peak"
        ));
        for row in &self.memory {
            let mib = |kib: Option<u64>| {
                kib.map_or("-".to_owned(), |kib| format!("{:.1}", kib as f64 / 1024.0))
            };
            line(format_args!(
                "{:<12} {:>10} {:>10} {:>10}\n",
                row.name,
                mib(row.idle.map(|memory| memory.resident_kib)),
                mib(row.loaded.map(|memory| memory.resident_kib)),
                mib(row.loaded.map(|memory| memory.peak_kib)),
            ));
        }
        line(format_args!("\nthe disk syncs a small write in {:.2} ms (median)\n", self.sync_ms));
        if let Some(starts) = self.starts {
            line(format_args!(
                "from exec to the first routed call: {:.1} ms on a new data folder, {:.1} ms on an existing one\n",
                starts.fresh_ms, starts.existing_ms
            ));
        }
        for row in &self.kills {
            let list = |values: Vec<String>| values.join(" ");
            line(format_args!(
                "\n{} killed {} times at {:.0} calls/s of {} connections:\n  calls lost: {}\n  age of the newest call on record, ms: {}\n",
                row.name,
                row.lost.len(),
                row.calls_per_second,
                row.connections,
                list(row.lost.iter().map(u64::to_string).collect()),
                list(row.newest_ms.iter().map(|ms| format!("{ms:.0}")).collect()),
            ));
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let nginx = self.nginx(row.connections);
                let ratio = |value: f64, of: Option<f64>| of.map(|of| value / of);
                json!({
                    "target": row.name,
                    "connections": row.connections,
                    "calls": row.calls,
                    "calls_per_second": row.calls_per_second,
                    "p50_us": row.p50_us,
                    "p99_us": row.p99_us,
                    "cpu_us_per_call": row.cpu_us_per_call,
                    "load_generator_cpu_us_per_call": row.load_us_per_call,
                    "against_nginx": {
                        "calls_per_second": ratio(row.calls_per_second, nginx.map(|n| n.calls_per_second)),
                        "p50": ratio(row.p50_us, nginx.map(|n| n.p50_us)),
                        "cpu": row.cpu_us_per_call.and_then(|cpu| ratio(cpu, nginx.and_then(|n| n.cpu_us_per_call))),
                    },
                })
            })
            .collect();
        let memory: Vec<Value> = self
            .memory
            .iter()
            .map(|row| {
                json!({
                    "target": row.name,
                    "idle_kib": row.idle.map(|memory| memory.resident_kib),
                    "after_kib": row.loaded.map(|memory| memory.resident_kib),
                    "peak_kib": row.loaded.map(|memory| memory.peak_kib),
                })
            })
            .collect();
        let kills: Vec<Value> = self
            .kills
            .iter()
            .map(|row| {
                json!({
                    "target": row.name,
                    "connections": row.connections,
                    "calls_per_second": row.calls_per_second,
                    "lost": row.lost,
                    "newest_age_ms": row.newest_ms,
                })
            })
            .collect();
        json!({
            "workload": {"era": "legacy", "method": "tools/call", "text_bytes": TEXT_BYTES},
            "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "disk_sync_ms": self.sync_ms,
            "calls": rows,
            "memory": memory,
            "kills": kills,
            "exec_to_first_call_ms": self.starts.map(|starts| {
                json!({"new_data_folder": starts.fresh_ms, "existing_data_folder": starts.existing_ms})
            }),
        })
    }
}
