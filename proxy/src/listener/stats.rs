//! `listener.<address>.…` and `listener_manager.…`. Follows "Listener stats".

use crate::config::address::Address;
use crate::config::listener::Listener;
use crate::stats_struct;
use crate::telemetry::stats::Stats;

stats_struct! {
    /// A listener's stats, one worker's part.
    #[allow(dead_code, reason = "downstream_cx_overload_reject stands in /stats as in Envoy's and never counts")]
    pub(super) struct ListenerStats {
        counter downstream_cx_destroy,
        counter downstream_cx_overflow,
        counter downstream_cx_overload_reject,
        counter downstream_cx_total,
        counter downstream_cx_transport_socket_connect_timeout,
        counter downstream_global_cx_overflow,
        counter downstream_listener_filter_error,
        counter downstream_listener_filter_remote_close,
        counter downstream_pre_cx_timeout,
        counter no_filter_chain_match,
        gauge downstream_cx_active,
        gauge downstream_pre_cx_active,
        histogram(Milliseconds) downstream_cx_length_ms,
    }
}

stats_struct! {
    /// `listener.<address>.worker_N.…`.
    pub(super) struct WorkerStats {
        counter downstream_cx_total,
        gauge downstream_cx_active,
    }
}

stats_struct! {
    /// The manager's; what counts listeners as configured is the applier's. Kept by the first worker alone, but for creations.
    pub(super) struct ManagerStats {
        counter listener_stopped,
        counter listener_in_place_updated,
        counter listener_create_success,
        counter listener_create_failure,
        gauge total_listeners_draining,
        gauge total_filter_chains_draining,
        gauge workers_started,
    }
}

/// `listener.<stat_prefix or address>.`: colons are no part of a stat's name.
pub(super) fn scope(listener: &Listener) -> String {
    format!("listener.{}.", place(listener))
}

/// The part between the dots.
pub(super) fn place(listener: &Listener) -> String {
    let place = match (&listener.stat_prefix, listener.addresses.first()) {
        (Some(prefix), _) => prefix.to_string(),
        (None, Some(Address::Socket(a))) => a.to_string(),
        (None, Some(a)) => a.to_string(),
        (None, None) => listener.name.to_string(),
    };
    place.replace(':', "_")
}

/// Both structs of one worker.
#[derive(Debug)]
pub(super) struct AllStats {
    pub listener: ListenerStats,
    pub worker: WorkerStats,
}

impl AllStats {
    pub(super) fn new(stats: &Stats, listener: &Listener, worker: usize) -> AllStats {
        let scope = scope(listener);
        AllStats {
            worker: WorkerStats::new(stats, &format!("{scope}worker_{worker}.")),
            listener: ListenerStats::new(stats, &scope),
        }
    }
}
