//! Dynamic configuration over ADS: what the stream brings goes to the applier, the applier's verdict back as ACK or NACK, and
//! what the resources need is subscribed to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_xds::ads::{AdsConfig, AdsEvent, AdsHandle, AdsState, Variant};
use outrigger_xds::connector::{Connector, Target};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::address::Address;
use crate::config::apply::{Applier, Kind};
use crate::config::bootstrap::{Ads, Bootstrap, ConfigSource, Node};
use crate::config::cluster::{Cluster, Discovery as Discovered};
use crate::config::tls::TransportSocket;

/// Type URLs of the resources that ADS brings.
pub mod type_url {
    /// CDS.
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// LDS.
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// EDS.
    pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// RDS.
    pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// SDS.
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
}

/// The applier, shared by the sources of configuration and the admin server. Only the control runtime takes it.
#[derive(Clone, Debug)]
pub struct SharedApplier(Arc<Mutex<Applier>>);

impl SharedApplier {
    /// Shares it.
    pub fn new(applier: Applier) -> SharedApplier {
        SharedApplier(Arc::new(Mutex::new(applier)))
    }

    /// The applier, for one step.
    pub fn lock(&self) -> MutexGuard<'_, Applier> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resources that are not the proxy's: the agent's name table comes over the same stream.
pub trait Extra: Send + 'static {
    /// The type to subscribe to as a whole.
    fn type_url(&self) -> &'static str;
    /// Takes a response; a reason refuses it.
    fn apply(&mut self, response: &outrigger_xds::ads::Response) -> Result<(), String>;
}

/// The ADS stream of a proxy.
pub struct Discovery {
    applier: SharedApplier,
    handle: AdsHandle,
    events: mpsc::Receiver<AdsEvent>,
    extra: Vec<Box<dyn Extra>>,
    /// Ready once listeners and clusters have come for the first time.
    synced: watch::Sender<bool>,
    seen: (bool, bool),
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").finish_non_exhaustive()
    }
}

impl Discovery {
    /// Opens the stream and subscribes to what the bootstrap takes from ADS. Belongs into the control runtime.
    pub fn start(
        config: AdsConfig,
        connector: Connector,
        bootstrap: Sources,
        applier: SharedApplier,
        extra: Vec<Box<dyn Extra>>,
    ) -> Discovery {
        let (handle, events) = outrigger_xds::ads::AdsClient::spawn(config, connector);
        if bootstrap.cds {
            handle.subscribe_wildcard(type_url::CLUSTER);
        }
        if bootstrap.lds {
            handle.subscribe_wildcard(type_url::LISTENER);
        }
        for e in &extra {
            handle.subscribe_wildcard(e.type_url());
        }
        let seen = (!bootstrap.cds, !bootstrap.lds);
        let mut discovery = Discovery {
            applier,
            handle,
            events,
            extra,
            synced: watch::Sender::new(seen == (true, true)),
            seen,
        };
        discovery.subscribe();
        discovery
    }

    /// True once the first clusters and listeners have been applied.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// The stream's state.
    pub fn state(&self) -> watch::Receiver<AdsState> {
        self.handle.state()
    }

    /// Follows the stream until it is dropped.
    pub async fn run(mut self) {
        loop {
            let deadline = self.applier.lock().next_deadline();
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.handle_event(event),
                    None => return,
                },
                () = sleep_until(deadline) => {
                    self.applier.lock().settle(Instant::now());
                }
            }
        }
    }

    fn handle_event(&mut self, event: AdsEvent) {
        match event {
            AdsEvent::Connected => tracing::info!("connected to the control plane"),
            AdsEvent::Disconnected { reason, retry_in } => {
                tracing::warn!("control plane: {reason}; next attempt in {retry_in:?}");
                let applier = self.applier.lock();
                for (seen, kind) in [(self.seen.0, Kind::Cluster), (self.seen.1, Kind::Listener)] {
                    if !seen {
                        applier.fetch_failed(kind);
                    }
                }
            }
            AdsEvent::Response(response) => {
                let mut verdict = outrigger_xds::ads::Verdict::accepted();
                match self.extra.iter_mut().find(|e| e.type_url() == response.type_url) {
                    Some(extra) => {
                        if let Err(reason) = extra.apply(&response) {
                            verdict.reject("", reason);
                        }
                    }
                    None => verdict = self.applier.lock().apply_response(&response, Instant::now()),
                }
                for r in &verdict.rejected {
                    tracing::warn!("{}: {} is refused: {}", response.type_url, r.name, r.reason);
                }
                // What the new resources need is asked for before they are acknowledged, as istiod's own agent does.
                self.subscribe();
                self.handle.ack(&response.type_url, &response.nonce, verdict);
                self.note(&response.type_url);
            }
            AdsEvent::Expired { type_url, names } => {
                let update = crate::config::apply::Update {
                    type_url: &type_url,
                    version: "",
                    added: Vec::new(),
                    removed: names,
                    complete: false,
                };
                let _ = self.applier.lock().apply(update, Instant::now());
                self.subscribe();
            }
        }
    }

    fn subscribe(&mut self) {
        let needed = self.applier.lock().needed();
        for (url, names) in [
            (type_url::ENDPOINTS, needed.endpoints),
            (type_url::ROUTES, needed.routes),
            (type_url::SECRET, needed.secrets),
        ] {
            self.handle.set_names(url, names.iter().map(|n| n.to_string()));
        }
    }

    fn note(&mut self, url: &str) {
        match url {
            type_url::CLUSTER => self.seen.0 = true,
            type_url::LISTENER => self.seen.1 = true,
            _ => return,
        }
        if self.seen == (true, true) {
            self.synced.send_replace(true);
        }
    }
}

/// What the bootstrap takes from ADS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    pub cds: bool,
    pub lds: bool,
}

impl Sources {
    /// As the bootstrap says.
    pub fn of(bootstrap: &Bootstrap) -> Sources {
        Sources {
            cds: bootstrap.cds == Some(ConfigSource::Ads),
            lds: bootstrap.lds == Some(ConfigSource::Ads),
        }
    }
}

/// A bootstrap whose ADS cannot be spoken to as configured.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("dynamic_resources.ads_config: cluster {0} is not among the static clusters")]
    NoCluster(Arc<str>),
    #[error(
        "dynamic_resources.ads_config: cluster {0} must have a static endpoint (address or pipe) without TLS: the agent makes \
         TLS connections to the control plane"
    )]
    Unreachable(Arc<str>),
    #[error("dynamic_resources.ads_config: {0}")]
    Config(String),
}

/// The connection to the control plane of a bootstrap's `ads_config`: its static cluster's first endpoint.
pub fn connector(ads: &Ads, clusters: &[Arc<Cluster>]) -> Result<Connector, DiscoveryError> {
    let found = clusters.iter().find(|c| c.name == ads.cluster);
    let cluster = found.ok_or_else(|| DiscoveryError::NoCluster(ads.cluster.clone()))?;
    let unreachable = || DiscoveryError::Unreachable(ads.cluster.clone());
    if !matches!(cluster.transport, TransportSocket::RawBuffer) {
        return Err(unreachable());
    }
    let endpoints = match &cluster.discovery {
        Discovered::Static(e) | Discovered::StrictDns(e) | Discovered::LogicalDns(e) => e,
        Discovered::Eds { .. } | Discovered::OriginalDst { .. } | Discovered::Aggregate(_) => {
            return Err(unreachable());
        }
    };
    let first = endpoints.localities.iter().flat_map(|l| &l.endpoints).next().ok_or_else(unreachable)?;
    let target = match &first.address {
        Address::Pipe(p) => Target::Unix { path: p.to_string().into() },
        Address::Internal(_) => return Err(unreachable()),
        other => Target::Plain { address: other.to_string() },
    };
    let mut connector = Connector::new(target);
    for (name, value) in &ads.headers {
        connector =
            connector.with_metadata(name, value).map_err(|e| DiscoveryError::Config(e.to_string()))?;
    }
    Ok(connector)
}

/// Node and variant of the stream.
pub fn ads_config(ads: &Ads, node: &Node) -> Result<AdsConfig, DiscoveryError> {
    let node =
        prost::Message::decode(&*node.raw).map_err(|e| DiscoveryError::Config(format!("node: {e}")))?;
    let variant = if ads.delta { Variant::Delta } else { Variant::StateOfTheWorld };
    Ok(AdsConfig { node, variant, ..AdsConfig::default() })
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(d) => tokio::time::sleep_until(d).await,
        None => std::future::pending().await,
    }
}
