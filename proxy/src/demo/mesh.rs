//! Brings the demo's mesh up: control plane and CA, workloads, two sidecars. Each part is what a real mesh runs, but for the
//! control plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use outrigger_certs::ca::CertificateAuthority;
use outrigger_certs::ca_client::CaClient;
use outrigger_certs::ca_server::CertificateService;
use outrigger_certs::rotation::{Rotation, RotationConfig, RotationStatus};
use outrigger_certs::spiffe::SpiffeId;
use outrigger_certs::store::{SecretStore, WORKLOAD};
use outrigger_xds::connector::{Connector, Target, tls_from_roots};
use outrigger_xds::json::{Schema, yaml_to_json};
use outrigger_xds::server::{ControlPlane, Scope, tls_incoming};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use super::resources::{self, Places, Resource};
use super::workload::{self, WorkloadOptions};
use crate::config::load;
use crate::server::{Options, Server, secrets};

/// What may be chosen.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// Lifetime of the workloads' certificates.
    pub certificate_ttl: Duration,
}

/// Why the mesh did not come up.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    #[error("certificate authority: {0}")]
    Authority(String),
    #[error("resource {0}: {1}")]
    Resource(String, String),
    #[error(transparent)]
    Bootstrap(#[from] load::LoadError),
    #[error("the {0} sidecar did not start: {1}")]
    Sidecar(&'static str, String),
    #[error("the mesh was not ready within {0:?}")]
    NotReady(Duration),
}

/// A running mesh.
pub struct Mesh {
    control_plane: SocketAddr,
    places: Places,
    /// The map that the sidecars follow: publish to it and they change.
    pub plane: ControlPlane,
    client: Sidecar,
    server: Sidecar,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("control_plane", &self.control_plane).finish_non_exhaustive()
    }
}

struct Sidecar {
    server: Server,
    rotation: Rotation,
    admin: SocketAddr,
    follower: tokio::task::JoinHandle<()>,
}

/// Longest time that the mesh may take to be ready.
const READY: Duration = Duration::from_secs(20);
/// What the demo's workloads show to the control plane, as a service account's token.
const TOKEN: &str = "demo-token";
/// The control plane's name in its certificate.
const SERVER_NAME: &str = "istiod.istio-system.svc";

impl Mesh {
    /// Starts everything and waits until requests can flow.
    ///
    /// # Errors
    /// What did not start.
    pub async fn start(options: MeshOptions) -> Result<Mesh, MeshError> {
        let authority = CertificateAuthority::generate("cluster.local")
            .map_err(|e| MeshError::Authority(e.to_string()))?;
        let authority = Arc::new(authority);
        let mut tasks = Vec::new();
        let mut inbound = Vec::new();
        // Two stable workloads, one that answers 503 whatever it is asked, and a canary.
        for (name, version, faults) in [
            ("stable-1", "v1", None),
            ("stable-2", "v1", None),
            ("faulty", "v1", Some("1/1:503")),
            ("canary", "v2", None),
        ] {
            let listener = bind().await?;
            let at = local(&listener)?;
            let workload = WorkloadOptions {
                version: version.into(),
                hostname: Some(name.into()),
                fail_sequence: faults.map(Into::into),
                ..WorkloadOptions::default()
            };
            tasks.push(tokio::spawn(async move {
                if let Err(e) = workload::serve_on(listener, workload).await {
                    tracing::error!("workload: {e}");
                }
            }));
            inbound.push((free_address().await?, at));
        }
        let places = Places { entry: free_address().await?, inbound };

        let plane = ControlPlane::new();
        publish(&plane, "client", resources::client(&places))?;
        publish(&plane, "server", resources::server(&places))?;
        let listener = bind().await?;
        let control_plane = local(&listener)?;
        tasks.push(serve_control_plane(listener, &plane, &authority, options.certificate_ttl)?);

        let roots: Arc<[u8]> = authority.root_pem().into_bytes().into();
        let ttl = options.certificate_ttl;
        let server = Sidecar::start("server", "podinfo", control_plane, &roots, ttl).await?;
        let client = Sidecar::start("client", "frontend", control_plane, &roots, ttl).await?;
        let mesh = Mesh { control_plane, places, plane, client, server, tasks };
        tokio::time::timeout(READY, mesh.wait_ready()).await.map_err(|_| MeshError::NotReady(READY))?;
        Ok(mesh)
    }

    async fn wait_ready(&self) {
        let all =
            std::iter::once(self.places.entry).chain(self.places.inbound.iter().map(|(sidecar, _)| *sidecar));
        for address in all {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        while let Err(e) = super::load::get(self.places.entry, "/healthz").await {
            tracing::debug!("not ready: {e}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where the control plane listens.
    pub fn control_plane(&self) -> SocketAddr {
        self.control_plane
    }

    /// The client sidecar's outbound listener: requests for podinfo go here.
    pub fn entry(&self) -> SocketAddr {
        self.places.entry
    }

    /// The client sidecar's admin page.
    pub fn client_admin(&self) -> SocketAddr {
        self.client.admin
    }

    /// The server sidecar's admin page.
    pub fn server_admin(&self) -> SocketAddr {
        self.server.admin
    }

    /// A stat of the client sidecar; 0 if there is none yet.
    pub fn client_stat(&self, name: &str) -> u64 {
        self.client.server.shared.stats.value(name).unwrap_or(0)
    }

    /// What the server sidecar's certificate rotation has done and will do.
    pub fn rotation(&self) -> RotationStatus {
        self.server.rotation.status().borrow().clone()
    }

    /// Ends everything.
    pub async fn stop(self) {
        for sidecar in [self.client, self.server] {
            sidecar.follower.abort();
            drop(sidecar.rotation);
            // Joining the workers' threads blocks.
            let _ = tokio::task::spawn_blocking(move || sidecar.server.stop()).await;
        }
        for t in self.tasks {
            t.abort();
        }
    }
}

impl Sidecar {
    async fn start(
        name: &'static str,
        account: &str,
        control_plane: SocketAddr,
        roots: &Arc<[u8]>,
        ttl: Duration,
    ) -> Result<Sidecar, MeshError> {
        let failed = |e: &dyn std::fmt::Display| MeshError::Sidecar(name, e.to_string());
        let tls = tls_from_roots(roots).map_err(|e| failed(&e))?;
        let token: outrigger_xds::connector::TokenSource = Arc::new(|| Ok(TOKEN.to_owned()));
        let connector = Connector::new(Target::Tls {
            address: control_plane.to_string(),
            server_name: SERVER_NAME.to_owned(),
            tls: Arc::new(move || Ok(tls.clone())),
        })
        .with_token(token.clone());

        let store = SecretStore::new();
        let to_ca = connector.clone();
        let channel = Arc::new(move || to_ca.connect_lazy().map_err(|e| e.to_string()));
        let issuer = CaClient::new(control_plane.to_string(), channel).with_token(token);
        let mut config = RotationConfig::new(SpiffeId::workload("cluster.local", "demo", account));
        config.ttl = ttl;
        let rotation = Rotation::spawn(config, issuer, store.clone());
        tokio::time::timeout(READY, store.wait_for(WORKLOAD))
            .await
            .map_err(|_| MeshError::NotReady(READY))?;

        let admin = free_address().await?;
        let loaded = load::bootstrap_from_yaml(&resources::bootstrap(name, admin))?;
        let options = Options { concurrency: 1, ..Options::default() };
        let server = Server::start_with(loaded, &options, &Handle::current(), Some(connector), Vec::new())
            .map_err(|e| failed(&e))?;
        let follower =
            tokio::spawn(secrets::follow(store, server.shared.store.clone(), server.applier.clone()));
        Ok(Sidecar { server, rotation, admin, follower })
    }
}

fn serve_control_plane(
    listener: TcpListener,
    plane: &ControlPlane,
    authority: &Arc<CertificateAuthority>,
    ttl: Duration,
) -> Result<tokio::task::JoinHandle<()>, MeshError> {
    let bad = |e: &dyn std::fmt::Display| MeshError::Authority(e.to_string());
    let own = authority.issue_dns(&[SERVER_NAME], Duration::from_secs(24 * 3600)).map_err(|e| bad(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(&e))?
        .with_no_client_auth()
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(|e| bad(&e))?;
    let certificates = CertificateService::new(authority.clone(), ttl).with_token(TOKEN);
    let incoming = tls_incoming(listener, tls);
    let server = tonic::transport::Server::builder()
        .add_service(plane.service())
        .add_service(certificates)
        .serve_with_incoming(incoming);
    Ok(tokio::spawn(async move {
        if let Err(e) = server.await {
            tracing::error!("control plane: {e}");
        }
    }))
}

fn publish(plane: &ControlPlane, node: &str, all: Vec<Resource>) -> Result<(), MeshError> {
    let schema = Schema::load();
    for (kind, name, yaml) in all {
        let bad = |e: &dyn std::fmt::Display| MeshError::Resource(name.clone(), e.to_string());
        let value = yaml_to_json(&yaml).map_err(|e| bad(&e))?;
        let bytes = schema.encode(kind, &value).map_err(|e| bad(&e))?;
        let any = Any { type_url: format!("type.googleapis.com/{kind}"), value: bytes };
        plane.publish_any(Scope::Node(node.to_owned()), &name, any);
    }
    Ok(())
}

async fn bind() -> Result<TcpListener, MeshError> {
    TcpListener::bind("127.0.0.1:0").await.map_err(|e| MeshError::Io("bind", e))
}

fn local(listener: &TcpListener) -> Result<SocketAddr, MeshError> {
    listener.local_addr().map_err(|e| MeshError::Io("local address", e))
}

/// An address that was free a moment ago, for a listener that is configured by address.
async fn free_address() -> Result<SocketAddr, MeshError> {
    local(&bind().await?)
}
