//! A proxy from its bootstrap: what `outrigger -c FILE` runs, and what the agent and the demo run inside their process.
//!
//! `Server::start` builds what workers share, fills the store with the static resources, starts discovery, the workers and
//! the admin server. One control runtime carries all that is not traffic.

mod admin;
mod checks;
pub mod discovery;
mod logging;
pub mod secrets;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use outrigger_xds::ads::AdsState;
use outrigger_xds::connector::Connector;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::admin::Life;
use crate::config::apply::Applier;
use crate::config::bootstrap::ConfigSource;
use crate::config::load::Loaded;
use crate::config::snapshot::Store;
use crate::config::watcher::Watcher;
use crate::listener::{self, Draining};
use crate::telemetry::access_log::Files;
use crate::telemetry::stats::Stats;
use crate::telemetry::trace::{ByteStream, Connect, ExportOptions, Exporter};
use crate::upstream::ClusterManager;
use crate::worker::{self, Shared, StartError, Workers};

pub use discovery::{Discovery, DiscoveryError, Extra, SharedApplier, Sources};
pub use logging::{COMPONENTS, LogControl, LogError, start as start_logging};

/// What the command line says beside the bootstrap.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads.
    pub concurrency: usize,
    /// How long a line of an access log may wait.
    pub flush_interval: Duration,
    /// How long draining takes.
    pub drain_time: Duration,
    /// The process's log, for `/logging`.
    pub log: Option<LogControl>,
    /// Where to write the admin server's address.
    pub admin_address_path: Option<PathBuf>,
    /// `-c`, for `/server_info`.
    pub config_path: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            concurrency: std::thread::available_parallelism().map_or(1, usize::from),
            flush_interval: Duration::from_secs(10),
            drain_time: Duration::from_secs(600),
            log: None,
            admin_address_path: None,
            config_path: String::new(),
        }
    }
}

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Start(#[from] StartError),
    /// A static resource that cannot be used.
    #[error("{0}")]
    Static(String),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error("outlier detection event log {path}: {source}")]
    EventLog { path: String, source: std::io::Error },
    #[error(transparent)]
    Admin(#[from] crate::admin::AdminError),
    #[error("admin address path {path}: {source}")]
    AddressFile { path: String, source: std::io::Error },
}

/// A running proxy.
#[derive(Debug)]
pub struct Server {
    pub shared: Arc<Shared>,
    /// Takes dynamic resources, and holds what `config_dump` shows.
    pub applier: SharedApplier,
    /// True once clusters and listeners have come by ADS or from files; `None` where neither comes.
    pub synced: Option<watch::Receiver<bool>>,
    /// The ADS stream's state.
    pub ads: Option<watch::Receiver<AdsState>>,
    /// The admin server's address as bound.
    pub admin_address: Option<String>,
    /// True once `/quitquitquit` was called.
    pub quit: watch::Receiver<bool>,
    /// How far the server's life is.
    pub life: Arc<Life>,
    workers: Workers,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// Starts a proxy. `control` is the runtime for everything but traffic.
    ///
    /// # Errors
    /// A listener that cannot be bound, or a file that cannot be written.
    pub fn start(loaded: Loaded, options: &Options, control: &Handle) -> Result<Server, ServerError> {
        Server::start_with(loaded, options, control, None, Vec::new())
    }

    /// The same with a connection to the control plane of the caller's own making, and with resources of its own.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_with(
        loaded: Loaded,
        options: &Options,
        control: &Handle,
        connector: Option<Connector>,
        extra: Vec<Box<dyn Extra>>,
    ) -> Result<Server, ServerError> {
        let stats =
            Stats::new(loaded.bootstrap.stats.matcher.clone(), loaded.bootstrap.stats.buckets.clone());
        let store = Arc::new(Store::default());
        let mut applier = Applier::new(store.clone(), &loaded, &stats, tokio::time::Instant::now());
        applier.set_checks(checks::CHECKS);
        let applier = SharedApplier::new(applier);
        let bootstrap = loaded.bootstrap;
        checks::statics(&bootstrap).map_err(ServerError::Static)?;
        let sources = Sources::of(&bootstrap);
        crate::telemetry::node::set(bootstrap.node.clone());
        let event_log = bootstrap.outlier_event_log.as_deref().map(Path::new);
        let clusters = ClusterManager::new(store.clone(), stats.clone(), control.clone(), event_log)
            .map_err(|source| ServerError::EventLog {
                path: event_log.map(|p| p.display().to_string()).unwrap_or_default(),
                source,
            })?;
        let listeners = listener::Shared::new(
            store.clone(),
            stats.clone(),
            options.drain_time,
            bootstrap.max_downstream_connections,
        );
        let manager = clusters.clone();
        let connect: Connect = Arc::new(move |name| {
            let connecting = manager.clone().connect(name);
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn ByteStream>) })
        });
        let (spans, exporter) =
            Exporter::new(ExportOptions::from_runtime(&bootstrap.runtime), connect, &stats);
        let shared = Arc::new(Shared {
            store,
            spans: Some(spans),
            logs: Files::new(options.flush_interval, &stats),
            stats,
            clusters,
            listeners,
            health_failed: AtomicBool::new(false),
            local_ip: local_ip(),
            node: bootstrap.node,
        });
        let mut tasks = vec![control.spawn(shared.clusters.clone().run()), control.spawn(exporter.run())];
        let mut synced = None;
        let mut ads = None;
        if let Some(config) = &bootstrap.ads {
            let connector = match connector {
                Some(c) => c,
                None => discovery::connector(config, &bootstrap.clusters)?,
            };
            let _entered = control.enter();
            let started = Discovery::start(
                discovery::ads_config(config, &shared.node)?,
                connector,
                sources,
                applier.clone(),
                extra,
            );
            synced = Some(started.synced());
            ads = Some(started.state());
            tasks.push(control.spawn(started.run()));
        }
        let watcher = Watcher::new(applier.clone(), bootstrap.cds.clone(), bootstrap.lds.clone());
        let from_file = |s: &Option<ConfigSource>| matches!(s, Some(ConfigSource::Path { .. }));
        if synced.is_none() && (from_file(&bootstrap.cds) || from_file(&bootstrap.lds)) {
            synced = Some(watcher.synced());
        }
        tasks.push(control.spawn(watcher.run()));
        let parts = admin::Parts {
            admin: bootstrap.admin,
            stats: bootstrap.stats,
            runtime: bootstrap.runtime,
            config_dump: Some(Box::new(crate::config::dump::Source(applier.clone()))),
        };
        let admin = admin::start(parts, &shared, options, control)?;
        tasks.extend(admin.task);
        let workers = worker::spawn(&shared, options.concurrency)?;
        let flush = bootstrap.stats_flush_interval;
        tasks.push(control.spawn(admin::live(admin.life.clone(), synced.clone(), shared.clone(), flush)));
        Ok(Server {
            shared,
            applier,
            synced,
            ads,
            admin_address: admin.address,
            quit: admin.quit,
            life: admin.life,
            workers,
            tasks,
        })
    }

    /// Asks clients to go: responses say `connection: close`, idle connections end. With `stop_accepting` the sockets close.
    pub fn drain(&self, to: Draining) {
        self.shared.listeners.drain(to);
    }

    /// Ends the workers and writes out what is buffered.
    pub fn stop(self) {
        self.workers.stop();
        for t in self.tasks {
            t.abort();
        }
        self.shared.logs.sync();
    }
}

/// The address by which this machine would reach others: Envoy's local address. A UDP socket that sends nothing tells.
fn local_ip() -> IpAddr {
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|s| {
        s.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        s.local_addr()
    });
    match probe {
        Ok(a) if !a.ip().is_unspecified() => a.ip(),
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}
