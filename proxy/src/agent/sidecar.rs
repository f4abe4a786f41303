//! `proxy sidecar` (and `proxy router`): the whole of a pod's proxy in one process. Starts the data path from the agent's bootstrap,
//! obtains the certificate, follows istiod, serves 15020 and 15053, drains at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use outrigger_certs::rotation::RotationStatus;
use outrigger_certs::store::SecretStore;
use outrigger_xds::ads::{AdsState, Response};
use outrigger_xds::connector::{ConnectError, token_from_file};
use outrigger_xds::type_url::NAME_TABLE;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use super::bootstrap::bootstrap;
use super::dns::{DnsProxy, NameTable, Resolver, Sockets};
use super::environment::{Environment, EnvironmentError, Source};
use super::secrets;
use super::status::{ProbeError, Probers, Proxy, Scraper, Status};
use crate::config::apply::Kind;
use crate::config::load::{self, LoadError};
use crate::listener::Draining;
use crate::server::{
    self, Extra, LogControl, LogError, Options, Server, ServerError, SharedApplier, start_logging,
};
use crate::telemetry::stats::Query;
use crate::telemetry::stats::Tagger;
use crate::worker::Shared;

const DNS_PORT: u16 = 15053;
/// How often the connections are counted that EXIT_ON_ZERO_ACTIVE_CONNECTIONS waits for.
const POLL: Duration = Duration::from_secs(1);

/// `proxy [ROLE] [OPTIONS]`, by Istio's names.
#[derive(Debug, Clone, clap::Args)]
pub struct ProxyOptions {
    /// sidecar, or router for a gateway.
    #[arg(default_value = "sidecar", value_parser = ["sidecar", "router"])]
    pub role: String,
    /// DNS domain of the pod's namespace.
    #[arg(long)]
    pub domain: Option<String>,
    /// Level of the proxy's log.
    #[arg(long = "proxyLogLevel", default_value = "warning")]
    pub proxy_log_level: String,
    /// Levels of single components, as Envoy's `--component-log-level`.
    #[arg(long = "proxyComponentLogLevel", default_value = "")]
    pub proxy_component_log_level: String,
    /// Level of the agent's log: `default:info`, `info`.
    #[arg(long = "log_output_level", default_value = "default:info")]
    pub log_output_level: String,
    /// Worker threads, over what PROXY_CONFIG says; 0 leaves it to that.
    #[arg(long, default_value_t = 0)]
    pub concurrency: usize,
    /// Accepted: the cluster's name comes from the pod's labels.
    #[arg(long = "serviceCluster", hide = true)]
    pub service_cluster: Option<String>,
    /// Accepted: the log has one form.
    #[arg(long = "log_as_json", hide = true)]
    pub log_as_json: bool,
}

/// Why the sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("bootstrap: {0}")]
    Bootstrap(#[from] LoadError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Probers(#[from] ProbeError),
    #[error("ISTIO_PROMETHEUS_ANNOTATIONS: {0}")]
    Annotations(serde_json::Error),
    #[error("istiod: {0}")]
    Connect(#[from] ConnectError),
    #[error("port {port}: {source}")]
    Listen { port: u16, source: io::Error },
    #[error("{0}")]
    Runtime(#[from] io::Error),
}

/// Runs until SIGTERM or `/quitquitquit`, then drains.
///
/// # Errors
/// What kept it from starting. Once it runs, nothing that istiod does ends it.
pub fn run(options: &ProxyOptions) -> Result<(), SidecarError> {
    let variables: BTreeMap<String, String> = std::env::vars().collect();
    let source = Source { variables: &variables, root: Path::new("/") };
    let mut environment = Environment::read(&source, options.domain.as_deref())?;
    if options.concurrency > 0 {
        environment.proxy_config.concurrency = Some(options.concurrency);
    }
    let agent_level = options.log_output_level.split(',').next().unwrap_or_default();
    let agent_level = agent_level.rsplit(':').next().unwrap_or("info");
    let components = format!(
        "agent:{},{}",
        if agent_level == "none" { "off" } else { agent_level },
        options.proxy_component_log_level
    );
    let log = start_logging(&options.proxy_log_level, components.trim_end_matches(','), None)?;
    for name in environment.proxy_config.without_effect() {
        tracing::warn!(%name, "PROXY_CONFIG has a field that nothing here acts on");
    }
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()?;
    control.block_on(sidecar(environment, &options.role, log, control.handle()))
}

async fn sidecar(
    environment: Environment,
    role: &str,
    log: LogControl,
    control: &tokio::runtime::Handle,
) -> Result<(), SidecarError> {
    let terminated = terminated()?;
    let loaded = load::bootstrap_from_yaml(&bootstrap(&environment, role).to_string())?;
    let tagger = Tagger::new(&loaded.bootstrap.stats);
    let server_options = Options {
        concurrency: environment.concurrency(),
        flush_interval: Duration::from_secs(1),
        drain_time: environment.proxy_config.drain_duration(),
        log: Some(log),
        ..Options::default()
    };
    tracing::info!(
        pod = %environment.pod,
        namespace = %environment.namespace,
        discovery = %environment.proxy_config.discovery_address,
        workers = server_options.concurrency,
        "sidecar starts"
    );
    let dns = if environment.dns_capture { Some(dns(&environment).await?) } else { None };
    let names = dns.clone().map(|dns| Box::new(Names(dns)) as Box<dyn Extra>);
    let connector = secrets::connector(&environment, &environment.proxy_config.discovery_address)
        .with_token(token_from_file(environment.token.clone()))
        .with_metadata("clusterid", &environment.cluster_id)?;
    let server =
        Server::start_with(loaded, &server_options, control, Some(connector), names.into_iter().collect())?;

    let secrets = SecretStore::new();
    let rotation = secrets::rotate(&environment, secrets.clone());
    tokio::spawn(log_rotation(rotation.status()));
    tokio::spawn(secrets::watch_files(server.applier.clone(), secrets.clone()));
    tokio::spawn(server::secrets::follow(secrets, Arc::clone(&server.shared.store), server.applier.clone()));
    if std::fs::read(&environment.crl).is_ok_and(|pem| !pem.is_empty()) {
        tracing::warn!(path = %environment.crl.display(), "a revocation list is mounted; it is not applied");
    }
    let quit = Arc::new(Notify::new());
    let pod = Arc::new(Pod {
        shared: Arc::clone(&server.shared),
        tagger,
        applier: server.applier.clone(),
        synced: server.synced.clone(),
        warmed: AtomicBool::new(false),
        rotation: rotation.status(),
        ads: server.ads.clone(),
        dns,
        quit: Arc::clone(&quit),
    });

    let port = environment.proxy_config.status_port;
    let probers = Probers::parse(&environment.probers, Some(environment.ip))?;
    let scraper =
        Scraper::new(&environment.prometheus_annotations, port).map_err(SidecarError::Annotations)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .map_err(|source| SidecarError::Listen { port, source })?;
    tokio::spawn(Arc::new(Status::new(pod, probers, scraper)).serve(listener));

    let mut quit_by_admin = server.quit.clone();
    tokio::select! {
        () = terminated => {}
        () = quit.notified() => {}
        Ok(_) = quit_by_admin.wait_for(|quit| *quit) => {}
    }
    drain(&environment, &server).await;
    server.stop();
    Ok(())
}

/// Istio's end of a pod: inbound connections are asked to go, and have `terminationDrainDuration` for it; or, if so configured,
/// as long as any is left.
async fn drain(environment: &Environment, server: &Server) {
    let wait = environment.proxy_config.termination_drain();
    tracing::info!(?wait, "draining");
    server.drain(Draining::Graceful { inbound_only: true });
    if !environment.exit_on_zero_connections {
        tokio::time::sleep(wait).await;
        return;
    }
    tokio::time::sleep(environment.minimum_drain).await;
    while server.shared.listeners.connections() > 0 {
        tokio::time::sleep(POLL).await;
    }
}

async fn dns(environment: &Environment) -> Result<Arc<DnsProxy>, SidecarError> {
    let resolver = Resolver::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let dns = Arc::new(DnsProxy::new(resolver, &environment.namespace));
    let sockets =
        Sockets::bind(DNS_PORT).await.map_err(|source| SidecarError::Listen { port: DNS_PORT, source })?;
    tokio::spawn(Arc::clone(&dns).serve(sockets));
    Ok(dns)
}

async fn log_rotation(mut status: watch::Receiver<RotationStatus>) {
    let mut successes = 0;
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        if let Some(error) = &now.last_error {
            tracing::warn!(%error, failures = now.failures, "no workload certificate");
        } else if now.successes > successes {
            let seconds = |at: Option<SystemTime>| {
                at.and_then(|at| at.duration_since(SystemTime::now()).ok()).map(|left| left.as_secs())
            };
            tracing::info!(
                expires_in = seconds(now.not_after),
                renewal_in = seconds(now.next_renewal),
                "workload certificate obtained"
            );
        }
        successes = now.successes;
    }
}

/// The first SIGTERM or SIGINT.
fn terminated() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// What 15020 tells of this proxy.
struct Pod {
    shared: Arc<Shared>,
    tagger: Tagger,
    applier: SharedApplier,
    synced: Option<watch::Receiver<bool>>,
    /// The first configuration has been in use: what warms later does not make the pod unready.
    warmed: AtomicBool,
    rotation: watch::Receiver<RotationStatus>,
    ads: Option<watch::Receiver<AdsState>>,
    dns: Option<Arc<DnsProxy>>,
    quit: Arc<Notify>,
}

impl Proxy for Pod {
    fn ready(&self) -> Result<(), String> {
        if *self.shared.listeners.draining().borrow() != Draining::Serving {
            return Err("draining".to_owned());
        }
        if self.warmed.load(Relaxed) {
            return Ok(());
        }
        let synced = self.synced.as_ref().is_some_and(|synced| *synced.borrow());
        let warming = {
            let applier = self.applier.lock();
            [Kind::Cluster, Kind::Listener].map(|kind| applier.warming(kind)).concat()
        };
        if synced && warming.is_empty() {
            self.warmed.store(true, Relaxed);
            return Ok(());
        }
        let mut reason = if synced {
            format!("warming: {}", warming.join(", "))
        } else {
            "nothing from istiod yet".to_owned()
        };
        if let Some(error) = self.ads.as_ref().and_then(|ads| ads.borrow().last_error.clone()) {
            let _ = write!(reason, "; stream: {error}");
        }
        if let Some(error) = &self.rotation.borrow().last_error {
            let _ = write!(reason, "; certificate: {error}");
        }
        Err(reason)
    }

    fn metrics(&self) -> String {
        self.shared.stats.prometheus_page(&Query::default(), &self.tagger)
    }

    fn agent_metrics(&self) -> String {
        let rotation = self.rotation.borrow().clone();
        let ads = self.ads.as_ref().map(|ads| ads.borrow().clone()).unwrap_or_default();
        let mut page = String::new();
        let mut metric = |name: &str, kind: &str, labels: &str, value: f64| {
            // Writing to a String cannot fail.
            let _ = writeln!(page, "# TYPE istio_agent_{name} {kind}\nistio_agent_{name}{labels} {value}");
        };
        if let Some(end) = rotation.not_after {
            // Negative once it has expired.
            let left = match end.duration_since(SystemTime::now()) {
                Ok(left) => left.as_secs_f64(),
                Err(past) => -past.duration().as_secs_f64(),
            };
            metric("cert_expiry_seconds", "gauge", "{resource_name=\"default\"}", left);
        }
        let (csr, failed) = ((rotation.successes + rotation.failures) as f64, rotation.failures as f64);
        metric("num_outgoing_requests", "counter", "{request_type=\"csr\"}", csr);
        metric("num_failed_outgoing_requests", "counter", "{request_type=\"csr\"}", failed);
        metric(
            "istiod_connection_failures",
            "counter",
            "",
            (ads.attempts - ads.successes.min(ads.attempts)) as f64,
        );
        metric("istiod_connected", "gauge", "", f64::from(u8::from(ads.connected_since.is_some())));
        page
    }

    fn drain(&self) {
        self.shared.listeners.drain(Draining::Graceful { inbound_only: true });
    }

    fn quit(&self) {
        self.quit.notify_one();
    }

    fn name_table(&self) -> Option<String> {
        self.dns.as_ref().map(|dns| dns.table_json())
    }
}

/// The name table, which comes over the same stream.
struct Names(Arc<DnsProxy>);

impl Extra for Names {
    fn type_url(&self) -> &'static str {
        NAME_TABLE
    }

    fn apply(&mut self, response: &Response) -> Result<(), String> {
        for resource in &response.added {
            self.0.update(&NameTable::decode(resource.body.clone()).map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}
