//! A cluster's stats under `cluster.<stat_name>.`, as Envoy's "Cluster manager statistics" page lists them: those of
//! connections and of the pool are counted here, those about requests by the router through methods.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::stats_struct;
use crate::telemetry::stats::{Counter, Histogram, Stats, Unit};

stats_struct! {
    /// What a worker counts of a cluster's traffic.
    pub struct TrafficStats {
        counter bind_errors,
        counter original_dst_host_invalid,
        counter retry_or_shadow_abandoned,
        counter upstream_cx_close_notify,
        counter upstream_cx_connect_fail,
        counter upstream_cx_connect_attempts_exceeded,
        counter upstream_cx_connect_timeout,
        counter upstream_cx_connect_with_0_rtt,
        counter upstream_cx_destroy,
        counter upstream_cx_destroy_local,
        counter upstream_cx_destroy_local_with_active_rq,
        counter upstream_cx_destroy_remote,
        counter upstream_cx_destroy_remote_with_active_rq,
        counter upstream_cx_destroy_with_active_rq,
        counter upstream_cx_http1_total,
        counter upstream_cx_http2_total,
        counter upstream_cx_http3_total,
        counter upstream_cx_idle_timeout,
        counter upstream_cx_max_duration_reached,
        counter upstream_cx_max_requests,
        counter upstream_cx_none_healthy,
        counter upstream_cx_overflow,
        counter upstream_cx_pool_overflow,
        counter upstream_cx_preconnect_skipped,
        counter upstream_cx_protocol_error,
        counter upstream_cx_rx_bytes_total,
        counter upstream_cx_total,
        counter upstream_cx_tx_bytes_total,
        counter upstream_flow_control_backed_up_total,
        counter upstream_flow_control_drained_total,
        counter upstream_flow_control_paused_reading_total,
        counter upstream_flow_control_resumed_reading_total,
        counter upstream_internal_redirect_failed_total,
        counter upstream_internal_redirect_succeeded_total,
        counter upstream_queue_overloaded,
        counter upstream_http3_broken,
        counter upstream_rq_0rtt,
        counter upstream_rq_active_overflow,
        counter upstream_rq_cancelled,
        counter upstream_rq_completed,
        counter upstream_rq_maintenance_mode,
        counter upstream_rq_max_duration_reached,
        counter upstream_rq_pending_failure_eject,
        counter upstream_rq_pending_overflow,
        counter upstream_rq_pending_total,
        counter upstream_rq_per_try_idle_timeout,
        counter upstream_rq_per_try_timeout,
        counter upstream_rq_retry,
        counter upstream_rq_retry_backoff_exponential,
        counter upstream_rq_retry_backoff_ratelimited,
        counter upstream_rq_retry_limit_exceeded,
        counter upstream_rq_retry_overflow,
        counter upstream_rq_retry_success,
        counter upstream_rq_rx_reset,
        counter upstream_rq_rx_reset_no_error,
        counter upstream_rq_timeout,
        counter upstream_rq_total,
        counter upstream_rq_tx_reset,
        counter lb_healthy_panic,
        counter lb_local_cluster_not_ok,
        counter lb_recalculate_zone_structures,
        counter lb_subsets_created,
        counter lb_subsets_fallback,
        counter lb_subsets_fallback_panic,
        counter lb_subsets_removed,
        counter lb_subsets_selected,
        counter lb_zone_cluster_too_small,
        counter lb_zone_no_capacity_left,
        counter lb_zone_routing_all_directly,
        counter lb_zone_routing_cross_zone,
        counter lb_zone_routing_sampled,
        gauge lb_subsets_active,
        gauge upstream_cx_active,
        gauge upstream_cx_rx_bytes_buffered,
        gauge upstream_cx_tx_bytes_buffered,
        gauge upstream_rq_active,
        gauge upstream_rq_pending_active,
        histogram(Milliseconds) upstream_cx_connect_ms,
        histogram(Milliseconds) upstream_cx_length_ms,
        histogram(Unspecified) upstream_rq_per_cx,
    }
}

stats_struct! {
    /// What is counted once for all workers: membership and discovery.
    pub struct MembershipStats {
        shared_counter membership_change,
        shared_gauge membership_degraded,
        shared_gauge membership_excluded,
        shared_gauge membership_healthy,
        shared_gauge membership_total,
        shared_gauge max_host_weight,
        shared_gauge version,
        shared_gauge warming_state,
        shared_counter assignment_stale,
        shared_counter assignment_timeout_received,
        shared_counter assignment_use_cached,
        shared_counter update_attempt,
        shared_counter update_empty,
        shared_counter update_failure,
        shared_counter update_no_rebuild,
        shared_counter update_success,
    }
}

/// Everything that one worker counts of one cluster. Dropped with the last connection of the cluster.
#[derive(Debug)]
pub struct ClusterStats {
    pub traffic: TrafficStats,
    stats: Stats,
    prefix: String,
    codes: RefCell<HashMap<CodeKey, CodeCells>>,
    times: RefCell<HashMap<Origin, Histogram>>,
    retry_codes: RefCell<HashMap<&'static str, HashMap<u16, [Counter; 2]>>>,
}

/// Whether the request was internal (`x-envoy-internal`) and whether the host is a canary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    pub internal: bool,
    pub canary: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CodeKey {
    code: u16,
    origin: Origin,
}

/// `upstream_rq_<code>` and `upstream_rq_<class>xx` under each prefix that the request counts for.
#[derive(Debug)]
struct CodeCells(Vec<Counter>);

impl ClusterStats {
    /// The cells of one worker for `cluster.<stat_name>.`; a colon in the name becomes an underscore, as in Envoy.
    pub fn new(stats: &Stats, stat_name: &str) -> ClusterStats {
        let prefix = prefix(stat_name);
        ClusterStats {
            traffic: TrafficStats::new(stats, &prefix),
            stats: stats.clone(),
            prefix,
            codes: RefCell::default(),
            times: RefCell::default(),
            retry_codes: RefCell::default(),
        }
    }

    /// `cluster.<stat_name>.`
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A request ended with this status: `upstream_rq_completed`, `upstream_rq_<code>`, `upstream_rq_<class>xx`, again
    /// under `internal.` or `external.` and, for a canary host, under `canary.`.
    pub fn response_code(&self, code: u16, origin: Origin) {
        let mut codes = self.codes.borrow_mut();
        let cells = codes.entry(CodeKey { code, origin }).or_insert_with(|| {
            let mut cells = Vec::new();
            for scope in scopes(origin) {
                cells.push(self.stats.counter(&format!("{}{scope}upstream_rq_completed", self.prefix)));
                cells.push(self.stats.counter(&format!(
                    "{}{scope}upstream_rq_{}xx",
                    self.prefix,
                    code / 100
                )));
                cells.push(self.stats.counter(&format!("{}{scope}upstream_rq_{code}", self.prefix)));
            }
            CodeCells(cells)
        });
        cells.0.iter().for_each(Counter::inc);
    }

    /// The time from the request's end to the response's end: `upstream_rq_time`, and under the same prefixes.
    pub fn response_time(&self, time: Duration, origin: Origin) {
        let mut times = self.times.borrow_mut();
        let mut record = |key: Origin, scope: &str| {
            times
                .entry(key)
                .or_insert_with(|| {
                    self.stats
                        .histogram(&format!("{}{scope}upstream_rq_time", self.prefix), Unit::Milliseconds)
                })
                .record_time(time, Unit::Milliseconds);
        };
        // The three keys name the three scopes that one request can count for; see `scopes`.
        record(Origin { internal: false, canary: false }, "");
        if origin.internal {
            record(Origin { internal: true, canary: false }, "internal.");
        } else {
            record(Origin { internal: false, canary: true }, "external.");
        }
        if origin.canary {
            record(Origin { internal: true, canary: true }, "canary.");
        }
    }

    /// `retry.upstream_rq_<code>` and `…_<class>xx`: a response that was answered with a retry.
    pub fn retried_code(&self, code: u16) {
        let mut all = self.retry_codes.borrow_mut();
        let cells = all.entry("retry.").or_default().entry(code).or_insert_with(|| {
            let mut name = String::new();
            let mut cell = |text: std::fmt::Arguments<'_>| {
                name.clear();
                // Writing to a string does not fail.
                let _ = write!(name, "{}retry.upstream_rq_{text}", self.prefix);
                self.stats.counter(&name)
            };
            [cell(format_args!("{code}")), cell(format_args!("{}xx", code / 100))]
        });
        cells.iter().for_each(Counter::inc);
    }
}

/// `cluster.<stat_name>.`
pub fn prefix(stat_name: &str) -> String {
    format!("cluster.{}.", stat_name.replace(':', "_"))
}

fn scopes(origin: Origin) -> impl Iterator<Item = &'static str> {
    let side = if origin.internal { "internal." } else { "external." };
    ["", side].into_iter().chain(origin.canary.then_some("canary."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_count_under_their_origins() {
        let stats = Stats::default();
        let c = ClusterStats::new(&stats, "outbound|80||a.b:1");
        c.response_code(503, Origin { internal: false, canary: true });
        c.response_code(200, Origin { internal: true, canary: false });
        for (name, value) in [
            ("upstream_rq_503", Some(1)),
            ("upstream_rq_5xx", Some(1)),
            ("external.upstream_rq_503", Some(1)),
            ("canary.upstream_rq_5xx", Some(1)),
            ("internal.upstream_rq_200", Some(1)),
            ("external.upstream_rq_200", None),
            ("upstream_rq_completed", Some(2)),
        ] {
            assert_eq!(stats.value(&format!("cluster.outbound|80||a.b_1.{name}")), value, "{name}");
        }
    }
}
