//! A worker: one thread, one single-threaded runtime, its own listeners' sockets, pools and view of the snapshot.
//! Everything here is `!Send`; what workers share is in `Shared`.

mod drain;
mod per_config;
mod runtime;

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::config::bootstrap::Node;
use crate::config::filter::Rbac;
use crate::config::hcm::Hcm;
use crate::config::listener::Direction;
use crate::config::snapshot::{Snapshot, Store};
use crate::http::hcm::HcmRuntime;
use crate::listener;
use crate::rbac::NetworkRbac;
use crate::telemetry::access_log::{Files, WorkerFiles};
use crate::telemetry::stats::Stats;
use crate::telemetry::trace::SpanSender;
use crate::upstream::{ClusterManager, LocalClusters};

pub use drain::Signal;
pub use per_config::PerConfig;
pub use runtime::{StartError, Workers, spawn};

/// What all workers and the control runtime share.
#[derive(Debug)]
pub struct Shared {
    pub store: Arc<Store>,
    pub stats: Stats,
    pub clusters: Arc<ClusterManager>,
    pub listeners: Arc<listener::Shared>,
    /// Access log files.
    pub logs: Arc<Files>,
    /// Where finished spans go; `None`: nothing is exported.
    pub spans: Option<SpanSender>,
    /// `/healthcheck/fail`.
    pub health_failed: AtomicBool,
    /// The node's own address: stands for loopback peers in `x-forwarded-for`.
    pub local_ip: IpAddr,
    pub node: Node,
}

/// One worker's state.
pub struct Worker {
    pub id: usize,
    pub shared: Arc<Shared>,
    pub stats: Stats,
    pub clusters: LocalClusters,
    /// Access log buffers.
    pub logs: Rc<WorkerFiles>,
    pub rng: RefCell<SmallRng>,
    snapshot: RefCell<arc_swap::Cache<Arc<arc_swap::ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    hcms: PerConfig<Hcm, HcmRuntime>,
    rbacs: PerConfig<Rbac, NetworkRbac>,
    drains: Rc<drain::Drains>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker over what all share. Belongs to the thread that calls it.
    pub fn new(id: usize, shared: Arc<Shared>) -> Rc<Worker> {
        Rc::new(Worker {
            id,
            stats: shared.stats.clone(),
            clusters: LocalClusters::new(shared.clusters.clone(), id as u16),
            logs: WorkerFiles::new(shared.logs.clone()),
            rng: RefCell::new(SmallRng::from_os_rng()),
            snapshot: RefCell::new(arc_swap::Cache::new(shared.store.cell().clone())),
            hcms: PerConfig::default(),
            rbacs: PerConfig::default(),
            drains: Rc::default(),
            shared,
        })
    }

    /// Reads the current snapshot without touching a counter that other workers touch.
    pub fn with_snapshot<R>(&self, read: impl FnOnce(&Snapshot) -> R) -> R {
        let mut cache = self.snapshot.borrow_mut();
        let snapshot = cache.load();
        // A comparison of pointers, unless the snapshot is new to this worker.
        self.clusters.sync(snapshot);
        read(snapshot)
    }

    /// The runtime form of a connection manager.
    pub fn hcm(&self, config: &Arc<Hcm>, listener: &str, direction: Direction) -> Rc<HcmRuntime> {
        self.hcms.get_or_build(config, || HcmRuntime::new(config, self, listener, direction))
    }

    /// Whether the process drains.
    pub fn is_draining(&self) -> bool {
        self.drains.begun()
    }

    /// Draining begins: connections are woken to end when they can.
    pub fn begin_drain(&self) {
        self.drains.begin();
    }

    /// A signal to poll for the beginning of the drain.
    pub fn drain_signal(&self) -> Signal {
        Signal::new(&self.drains)
    }
}
