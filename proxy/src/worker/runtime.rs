//! Worker threads: start, bind, run until told to stop. A worker that cannot bind says so before any of them serves.

use std::rc::Rc;
use std::sync::Arc;

use rand::Rng as _;
use tokio::sync::watch;

use super::{Shared, Worker};
use crate::config::access_log::AccessLog;
use crate::config::bootstrap::Node;
use crate::config::filter::{Rbac, TcpProxy};
use crate::config::hcm::Hcm;
use crate::http;
use crate::listener::{self, BindError, Connection, Draining, Handler, Serving};
use crate::rbac::NetworkRbac;
use crate::stream_info::StreamInfo;
use crate::tcp;
use crate::telemetry::access_log::{AccessLogger, WorkerFiles};
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stats::Stats;
use crate::upstream::LocalClusters;

/// Running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

/// Why workers did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Workers {
    /// Asks all workers to end and waits for them. Connections that are still open are closed.
    pub fn stop(self) {
        self.stop.send_replace(true);
        for t in self.threads {
            if t.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

/// Starts `count` workers.
///
/// # Errors
/// The first listener that could not be bound, or no thread.
pub fn spawn(shared: &Arc<Shared>, count: usize) -> Result<Workers, StartError> {
    let (stop, _) = watch::channel(false);
    let mut workers = Workers { threads: Vec::new(), stop };
    let mut failed = None;
    for id in 0..count.max(1) {
        let shared = shared.clone();
        let stopped = workers.stop.subscribe();
        let (ready, answer) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("wrk:{id}")).spawn(move || {
            run(id, shared, stopped, &ready);
        })?;
        workers.threads.push(thread);
        match answer.recv() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                failed = Some(e);
                break;
            }
            Err(_) => {
                failed = Some(StartError::Thread(std::io::Error::other("the worker ended at its start")));
                break;
            }
        }
    }
    match failed {
        Some(e) => {
            workers.stop();
            Err(e)
        }
        None => Ok(workers),
    }
}

fn run(
    id: usize,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    ready: &std::sync::mpsc::Sender<Result<(), StartError>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    let runtime = match runtime {
        Ok(r) => r,
        Err(e) => {
            let _ = ready.send(Err(e.into()));
            return;
        }
    };
    runtime.block_on(async move {
        let worker = Worker::new(id, shared.clone());
        let manager = listener::Manager::new(id, shared.listeners.clone(), Rc::new(Serve(worker.clone())));
        let started = manager.start().map_err(StartError::from);
        let failed = started.is_err();
        let _ = ready.send(started);
        if failed {
            return;
        }
        tokio::task::spawn_local(worker.logs.clone().flush_periodically());
        // Before the listeners: a route or TCP proxy that a new listener brings finds its cluster.
        tokio::task::spawn_local(follow_clusters(worker.clone()));
        tokio::task::spawn_local(manager.run());
        let mut draining = shared.listeners.draining();
        let drains = worker.clone();
        tokio::task::spawn_local(async move {
            let _ = draining.wait_for(|d| *d != Draining::Serving).await;
            drains.begin_drain();
        });
        let _ = stopped.wait_for(|s| *s).await;
    });
}

/// Takes each new snapshot's clusters in: those that changed or left are let go.
async fn follow_clusters(worker: Rc<Worker>) {
    let store = worker.shared.store.clone();
    let mut changed = store.subscribe();
    loop {
        worker.clusters.sync(&store.load());
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Hands connections from the listener to what serves them.
struct Serve(Rc<Worker>);

impl Handler for Serve {
    fn http(&self, connection: Connection, _hcm: Arc<Hcm>) -> Serving {
        Box::pin(http::connection::serve(connection, self.0.clone()))
    }

    fn tcp_proxy(&self, connection: Connection, config: Arc<TcpProxy>, info: StreamInfo) -> Serving {
        Box::pin(tcp::serve(connection, config, info, self.0.clone()))
    }

    fn rbac(&self, config: &Arc<Rbac>, info: &mut StreamInfo) -> bool {
        self.0.network_rbac(config).allows(info)
    }

    fn log(&self, logs: &[AccessLog], info: &StreamInfo) {
        let logger = AccessLogger::new(logs, &self.0.logs);
        logger.log(&FormatContext { log_type: LogType::NotSet, ..FormatContext::new(None, info) });
    }
}

impl tcp::Env for Worker {
    fn clusters(&self) -> &LocalClusters {
        &self.clusters
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }

    fn logs(&self) -> &Rc<WorkerFiles> {
        &self.logs
    }

    fn random(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    fn node(&self) -> &Node {
        &self.shared.node
    }
}

impl Worker {
    /// The runtime form of a network RBAC filter, built at its first use.
    fn network_rbac(&self, config: &Arc<Rbac>) -> Rc<NetworkRbac> {
        self.rbacs.get_or_build(config, || NetworkRbac::new(config, &self.stats))
    }
}
