//! The demo's live table: drawn over itself on a terminal, one block at the end elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::SystemTime;

use super::load::Progress;
use super::mesh::Mesh;

/// The table.
pub(super) struct Table {
    terminal: bool,
    drawn: bool,
}

const STABLE: &str = "cluster.outbound|9898|stable|podinfo.demo.svc.cluster.local";

impl Table {
    pub(super) fn new() -> Table {
        Table { terminal: std::io::stdout().is_terminal(), drawn: false }
    }

    /// Shows how things stand.
    pub(super) fn show(&mut self, mesh: &Mesh, p: &Progress) {
        if !self.terminal && p.done < p.total {
            return;
        }
        let rows = rows(mesh, p);
        let mut out = String::new();
        if self.drawn && self.terminal {
            out.push_str(&format!("\x1b[{}A", rows.len()));
        }
        for (name, value) in &rows {
            let clear = if self.terminal { "\x1b[K" } else { "" };
            out.push_str(&format!("{name:<22}{value}{clear}\n"));
        }
        if !self.drawn || self.terminal {
            print!("{out}");
            let _ = std::io::stdout().flush();
        }
        self.drawn = true;
    }
}

fn rows(mesh: &Mesh, p: &Progress) -> Vec<(&'static str, String)> {
    let seconds = p.elapsed.as_secs_f64().max(0.001);
    let share = |n: u64| if p.done == 0 { 0.0 } else { n as f64 * 100.0 / p.done as f64 };
    let stat = |name: &str| mesh.client_stat(&format!("{STABLE}.{name}"));
    let rotation = mesh.rotation();
    let next = rotation
        .next_renewal
        .and_then(|t| t.duration_since(SystemTime::now()).ok())
        .map_or_else(|| "now".to_owned(), |d| format!("in {} s", d.as_secs()));
    vec![
        ("requests", format!("{} of {}, {} failed", p.done, p.total, p.failed)),
        ("requests per second", format!("{:.0}", p.done as f64 / seconds)),
        ("split stable/canary", format!("{:.1} % / {:.1} %", share(p.done - p.canary), share(p.canary))),
        (
            "retries",
            format!(
                "{} ({} of them succeeded)",
                stat("upstream_rq_retry"),
                stat("upstream_rq_retry_success")
            ),
        ),
        ("ejected endpoints", format!("{}", stat("outlier_detection.ejections_active"))),
        ("latency p50 / p99", format!("{:.2} ms / {:.2} ms", p.percentile(50.0), p.percentile(99.0))),
        ("mutual TLS", format!("{} handshakes", stat("ssl.handshake"))),
        ("certificates", format!("{} obtained, next {next}", rotation.successes)),
    ]
}
