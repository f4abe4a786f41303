//! The stats of updates: `cluster_manager.cds.*`, `listener_manager.lds.*` and what stands beside them.
//! Source: Envoy's "Cluster manager", "Listener manager" and "Subscription statistics" pages.

use super::Kind;
use crate::stats_struct;
use crate::telemetry::stats::Stats;

stats_struct! {
    struct Subscription {
        shared_counter update_attempt,
        shared_counter update_success,
        shared_counter update_rejected,
        shared_counter update_failure,
        shared_gauge version,
    }
}

stats_struct! {
    struct Clusters {
        shared_counter cluster_added,
        shared_counter cluster_modified,
        shared_counter cluster_removed,
        shared_gauge active_clusters,
        shared_gauge warming_clusters,
    }
}

stats_struct! {
    struct Listeners {
        shared_counter listener_added,
        shared_counter listener_modified,
        shared_counter listener_removed,
        shared_gauge total_listeners_active,
        shared_gauge total_listeners_warming,
    }
}

pub(super) struct Counters {
    cds: Subscription,
    lds: Subscription,
    clusters: Clusters,
    listeners: Listeners,
    /// Resources whose last version was refused.
    rejected: crate::telemetry::stats::SharedGauge,
}

impl Counters {
    pub(super) fn new(stats: &Stats) -> Counters {
        Counters {
            cds: Subscription::new(stats, "cluster_manager.cds."),
            lds: Subscription::new(stats, "listener_manager.lds."),
            clusters: Clusters::new(stats, "cluster_manager."),
            listeners: Listeners::new(stats, "listener_manager."),
            rejected: stats.shared_gauge("control_plane.rejected_resources"),
        }
    }

    fn subscription(&self, kind: Kind) -> Option<&Subscription> {
        match kind {
            Kind::Cluster => Some(&self.cds),
            Kind::Listener => Some(&self.lds),
            Kind::Endpoints | Kind::Routes | Kind::Secret => None,
        }
    }

    pub(super) fn attempt(&self, kind: Kind) {
        if let Some(s) = self.subscription(kind) {
            s.update_attempt.inc();
        }
    }

    /// One update ended. `version` is the hash of the version's text, as Envoy shows it.
    pub(super) fn outcome(&self, kind: Kind, good: bool, version: &str) {
        let Some(s) = self.subscription(kind) else { return };
        if good {
            s.update_success.inc();
            s.version.set(xxhash_rust::xxh64::xxh64(version.as_bytes(), 0));
        } else {
            s.update_rejected.inc();
        }
    }

    pub(super) fn failed(&self, kind: Kind) {
        if let Some(s) = self.subscription(kind) {
            s.update_failure.inc();
        }
    }

    pub(super) fn taken(&self, kind: Kind, known: bool) {
        match (kind, known) {
            (Kind::Cluster, false) => self.clusters.cluster_added.inc(),
            (Kind::Cluster, true) => self.clusters.cluster_modified.inc(),
            (Kind::Listener, false) => self.listeners.listener_added.inc(),
            (Kind::Listener, true) => self.listeners.listener_modified.inc(),
            _ => {}
        }
    }

    pub(super) fn removed(&self, kind: Kind) {
        match kind {
            Kind::Cluster => self.clusters.cluster_removed.inc(),
            Kind::Listener => self.listeners.listener_removed.inc(),
            _ => {}
        }
    }

    pub(super) fn gauges(&self, clusters: (usize, usize), listeners: (usize, usize), rejected: usize) {
        self.clusters.active_clusters.set(clusters.0 as u64);
        self.clusters.warming_clusters.set(clusters.1 as u64);
        self.listeners.total_listeners_active.set(listeners.0 as u64);
        self.listeners.total_listeners_warming.set(listeners.1 as u64);
        self.rejected.set(rejected as u64);
    }
}
