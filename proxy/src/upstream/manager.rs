//! The cluster manager: which clusters have been built, and keeping them in step with the snapshot. Shared by all workers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use super::dns;
use super::outlier::EventLog;
use super::shared::SharedCluster;
use super::stats;
use crate::config::cluster::{Cluster, Discovery};
use crate::config::snapshot::{Snapshot, Store};
use crate::telemetry::stats::Stats;

/// What every cluster needs of its surroundings.
pub struct Common {
    pub(super) stats: Stats,
    /// Where timers, DNS and health checks run.
    pub(super) control: Handle,
    pub(super) event_log: Option<EventLog>,
    pub(super) resolvers: dns::Resolvers,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").finish_non_exhaustive()
    }
}

/// The shared half of all clusters.
#[derive(Debug)]
pub struct ClusterManager {
    store: Arc<Store>,
    pub(super) common: Arc<Common>,
    clusters: Mutex<HashMap<Arc<str>, Arc<SharedCluster>>>,
}

impl ClusterManager {
    /// A manager over the snapshots of `store`. `control` runs timers, DNS and health checks; `outlier_log` is the
    /// bootstrap's `cluster_manager.outlier_detection.event_log_path`.
    ///
    /// # Errors
    /// When the event log cannot be opened.
    pub fn new(
        store: Arc<Store>,
        stats: Stats,
        control: Handle,
        outlier_log: Option<&Path>,
    ) -> std::io::Result<Arc<ClusterManager>> {
        let event_log = outlier_log.map(EventLog::open).transpose()?;
        let common = Arc::new(Common { stats, control, event_log, resolvers: dns::Resolvers::default() });
        Ok(Arc::new(ClusterManager { store, common, clusters: Mutex::default() }))
    }

    /// Follows the store until it is dropped: endpoints reach clusters that have been built, clusters that left are let go,
    /// those that resolve names or check health start at once. Run it on the control runtime.
    pub async fn run(self: Arc<Self>) {
        let mut changed = self.store.subscribe();
        loop {
            changed.mark_unchanged();
            self.sync(&self.store.load());
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Brings what has been built in step with `snapshot`.
    pub fn sync(&self, snapshot: &Snapshot) {
        let built: Vec<Arc<SharedCluster>> = self.lock().values().cloned().collect();
        for shared in built {
            let name = &shared.info.name;
            match snapshot.clusters.get(name) {
                Some(ir) if Arc::ptr_eq(ir, &shared.info) => sync_one(&shared, snapshot),
                Some(_) => {
                    self.cluster(name, snapshot);
                }
                None => {
                    self.lock().remove(name);
                    self.common.stats.remove_scope(&stats::prefix(&shared.info.stat_name));
                }
            }
        }
        for ir in snapshot.clusters.values().filter(|c| is_eager(c)) {
            self.cluster(&ir.name, snapshot);
        }
    }

    /// The shared half of a cluster of the snapshot, built now if need be.
    pub fn cluster(&self, name: &str, snapshot: &Snapshot) -> Option<Arc<SharedCluster>> {
        let ir = snapshot.clusters.get(name)?;
        let mut clusters = self.lock();
        let before = clusters.get(name);
        if let Some(shared) = before.filter(|s| Arc::ptr_eq(&s.info, ir)) {
            let shared = shared.clone();
            drop(clusters);
            sync_one(&shared, snapshot);
            return Some(shared);
        }
        let shared = SharedCluster::new(ir, &self.common, &snapshot.secrets, before.map(|b| &**b));
        clusters.insert(ir.name.clone(), shared.clone());
        drop(clusters);
        sync_one(&shared, snapshot);
        dns::start(&shared);
        Some(shared)
    }

    /// The cluster if it has been built.
    pub fn built(&self, name: &str) -> Option<Arc<SharedCluster>> {
        self.lock().get(name).cloned()
    }

    /// The registry.
    pub fn stats(&self) -> &Stats {
        &self.common.stats
    }

    /// The snapshot now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.store.load()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<SharedCluster>>> {
        // A panic while a cluster is built leaves the map without it.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a cluster works before its first request.
fn is_eager(c: &Cluster) -> bool {
    matches!(c.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_)) || !c.health_checks.is_empty()
}

fn sync_one(shared: &SharedCluster, snapshot: &Snapshot) {
    if let Discovery::Eds { service_name } = &shared.info.discovery {
        shared.sync_endpoints(snapshot.endpoints.get(service_name), snapshot.version);
    }
}
