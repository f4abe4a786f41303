//! The load harness: Outrigger and its peers (Envoy, haproxy, nginx) on equal configurations, in one run on one machine.
//!
//! Proxies are pinned to core 0, load generator and backend to core 1; rounds alternate between the proxies, so that a noisy
//! machine hits all of them. The figure that counts is CPU time per request (`/proc/PID/task/*/schedstat`): requests per
//! second are bounded by core 1. Needs wrk and h2load, and the peers that are to be compared; those that are missing are
//! named and left out.

mod backend;
mod configs;
mod measure;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

/// Compares Outrigger with its peers.
#[derive(Debug, Parser)]
struct Args {
    /// Outrigger's binary (profile `dist`).
    #[arg(long, default_value = "target/dist/outrigger")]
    outrigger: PathBuf,
    /// Envoy's binary.
    #[arg(long, default_value = "envoy")]
    envoy: String,
    /// Scenarios to run; all by default.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Rounds of each proxy in each scenario.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a round.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Also write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One proxy in one scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    scenario: String,
    proxy: String,
    /// Medians over the rounds.
    cpu_us_per_request: f64,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    rss_mb: f64,
    syscalls_per_request: Option<f64>,
    failed: u64,
    rounds: Vec<f64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(rows) => {
            print_table(&rows);
            if let Some(path) = &args.json {
                let text = serde_json::to_string_pretty(&rows).unwrap_or_default();
                if let Err(e) = std::fs::write(path, text) {
                    eprintln!("{}: {e}", path.display());
                    return ExitCode::FAILURE;
                }
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("compare: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Vec<Row>, String> {
    let dir = std::env::temp_dir().join(format!("outrigger-compare-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let backend = backend::start().map_err(|e| format!("backend: {e}"))?;
    let mut rows = Vec::new();
    for scenario in configs::SCENARIOS {
        if !args.scenario.is_empty() && !args.scenario.iter().any(|s| s == scenario.name) {
            continue;
        }
        let mut running = Vec::new();
        for proxy in configs::proxies(args.outrigger.as_path(), &args.envoy) {
            match measure::Running::start(&proxy, scenario, backend, &dir) {
                Ok(Some(r)) => running.push(r),
                Ok(None) => {}
                Err(e) => eprintln!("{} is left out of {}: {e}", proxy.name, scenario.name),
            }
        }
        for round in 0..=args.rounds {
            for r in &mut running {
                // The first round warms up.
                r.round(scenario, args.seconds, round > 0)?;
            }
        }
        rows.extend(running.into_iter().map(|r| r.row(scenario.name)));
    }
    let _ = std::fs::remove_dir_all(&dir);
    Ok(rows)
}

fn print_table(rows: &[Row]) {
    println!(
        "{:<14}{:<12}{:>10}{:>9}{:>9}{:>10}{:>9}{:>9}{:>8}{:>8}",
        "scenario",
        "proxy",
        "CPU us/rq",
        "/envoy",
        "/haproxy",
        "rq/s",
        "p50 ms",
        "p99 ms",
        "RSS MB",
        "failed"
    );
    for r in rows {
        let ratio = |peer: &str| {
            let other = rows.iter().find(|o| o.scenario == r.scenario && o.proxy == peer);
            other.map_or_else(|| "-".to_owned(), |o| format!("{:.2}", paired(&r.rounds, &o.rounds)))
        };
        println!(
            "{:<14}{:<12}{:>10.1}{:>9}{:>9}{:>10.0}{:>9.2}{:>9.2}{:>8.1}{:>8}",
            r.scenario,
            r.proxy,
            r.cpu_us_per_request,
            ratio("envoy"),
            ratio("haproxy"),
            r.requests_per_second,
            r.p50_ms,
            r.p99_ms,
            r.rss_mb,
            r.failed
        );
    }
}

/// The median of the rounds' ratios: both proxies of a pair ran next to each other.
fn paired(a: &[f64], b: &[f64]) -> f64 {
    measure::median(&a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>())
}
