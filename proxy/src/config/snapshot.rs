//! The snapshot that all workers read: one immutable value behind an `ArcSwap`, replaced as a whole at each applied update.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::cluster::{Cluster, Endpoints};
use super::listener::Listener;
use super::route::RouteConfig;
use super::tls::Secret;

/// Everything that the data path reads of the configuration. Maps share their values with the snapshot before.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each applied update.
    pub version: u64,
    pub listeners: Arc<HashMap<Arc<str>, Arc<Listener>>>,
    pub clusters: Arc<HashMap<Arc<str>, Arc<Cluster>>>,
    /// By EDS service name.
    pub endpoints: Arc<HashMap<Arc<str>, Arc<Endpoints>>>,
    pub routes: Arc<HashMap<Arc<str>, Arc<RouteConfig>>>,
    pub secrets: Arc<HashMap<Arc<str>, Secret>>,
}

/// The shared cell. Only the control runtime stores; workers load.
#[derive(Debug, Default)]
pub struct Store {
    current: Arc<ArcSwap<Snapshot>>,
    changed: tokio::sync::watch::Sender<u64>,
    /// Serialises writers: an update reads, changes and stores as one step.
    writer: parking::Mutex<()>,
}

/// The standard mutex, poisoning waved through: the guarded value is `()`.
mod parking {
    #[derive(Debug, Default)]
    pub(super) struct Mutex<T>(std::sync::Mutex<T>);
    impl<T> Mutex<T> {
        pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }
}

impl Store {
    /// The current snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// For `arc_swap::Cache`, which workers use to read without touching a shared counter.
    pub fn cell(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.current
    }

    /// Changes the snapshot: `edit` gets a copy (maps are shared until written with `Arc::make_mut`) whose version is already
    /// the next one.
    pub fn update(&self, edit: impl FnOnce(&mut Snapshot)) {
        let _guard = self.writer.lock();
        let mut next = Snapshot::clone(&self.current.load());
        next.version += 1;
        edit(&mut next);
        let version = next.version;
        self.current.store(Arc::new(next));
        self.changed.send_replace(version);
    }

    /// Wakes at each new version.
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
