//! `server.*`: what Envoy counts of the process (Envoy docs: configuration/observability/statistics). Read when somebody looks.

use std::sync::atomic::Ordering::Relaxed;

use super::AdminState;
use crate::stats_struct;
use crate::telemetry::stats::Stats;

stats_struct! {
    /// Gauges of the process.
    pub struct ServerStats {
        shared_gauge uptime,
        shared_gauge concurrency,
        shared_gauge memory_allocated,
        shared_gauge memory_heap_size,
        shared_gauge memory_physical_size,
        shared_gauge live,
        shared_gauge state,
        shared_gauge parent_connections,
        shared_gauge total_connections,
        shared_gauge version,
        shared_gauge days_until_first_cert_expiring,
        shared_gauge hot_restart_epoch,
    }
}

impl ServerStats {
    /// Under `server.`, with what does not change.
    pub fn of(stats: &Stats, concurrency: usize) -> ServerStats {
        let all = ServerStats::new(stats, "server.");
        all.concurrency.set(concurrency as u64);
        all
    }

    /// Brings the gauges up to date.
    pub(super) fn refresh(&self, state: &AdminState) {
        let resident = resident_bytes();
        self.uptime.set(state.life.uptime().as_secs());
        self.memory_allocated.set(resident);
        self.memory_heap_size.set(resident);
        self.memory_physical_size.set(resident);
        self.live.set(u64::from(!state.shared.health_failed.load(Relaxed)));
        self.state.set(state.phase() as u64);
        self.total_connections.set(state.shared.listeners.connections());
        self.days_until_first_cert_expiring.set(super::certs::days_until_first_expiry(state));
    }
}

/// Resident memory, bytes; 0 where the kernel does not tell.
pub(super) fn resident_bytes() -> u64 {
    /// Page size of every platform that we run on.
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * PAGE
}
