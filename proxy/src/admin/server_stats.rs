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
        shared_gauge hot_restart_generation,
        shared_gauge seconds_until_first_ocsp_response_expiring,
        shared_gauge stats_recent_lookups,
        shared_gauge fips_mode = "compilation_settings.fips_mode",
        shared_counter debug_assertion_failures,
        shared_counter dropped_stat_flushes,
        shared_counter dynamic_unknown_fields,
        shared_counter envoy_bug_failures,
        shared_counter envoy_notifications,
        shared_counter static_unknown_fields,
        shared_counter wip_protos,
    }
}

stats_struct! {
    /// `runtime.*`: the layers are static, nothing is ever loaded again.
    pub struct RuntimeStats {
        shared_gauge admin_overrides_active,
        shared_gauge deprecated_feature_seen_since_process_start,
        shared_gauge num_keys,
        shared_gauge num_layers,
        shared_counter deprecated_feature_use,
        shared_counter load_error,
        shared_counter load_success,
        shared_counter override_dir_exists,
        shared_counter override_dir_not_exists,
    }
}

impl ServerStats {
    /// Under `server.`, with what does not change.
    pub fn of(stats: &Stats, concurrency: usize, runtime_keys: usize) -> ServerStats {
        let runtime = RuntimeStats::new(stats, "runtime.");
        runtime.load_success.inc();
        runtime.override_dir_not_exists.inc();
        runtime.num_keys.set(runtime_keys as u64);
        runtime.num_layers.set(u64::from(runtime_keys > 0));
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
