//! What each label of Istio's metrics says (Istio docs: reference/config/metrics#labels), in the order in which the
//! `istio.stats` filter gives them.

use std::sync::{Arc, LazyLock};

use super::super::peer;
use crate::head::HeaderId;
use crate::stream_info::{FLAGS, Peer, StreamInfo};
use crate::telemetry::format::FormatContext;
use crate::telemetry::node;
use crate::telemetry::stats::Tags;

/// Who reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    /// An outbound listener: `source`.
    ClientSidecar,
    /// An inbound listener: `destination`.
    ServerSidecar,
    /// A gateway for a set of workloads: `waypoint`.
    ServerGateway,
}

/// All standard labels, for overrides.
pub(super) const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// The labels' names, interned.
static NAMES: LazyLock<Vec<Arc<str>>> = LazyLock::new(|| LABELS.iter().map(|l| (*l).into()).collect());

fn label(name: &str) -> Arc<str> {
    NAMES.iter().find(|n| ***n == *name).cloned().unwrap_or_else(|| name.into())
}

/// The proxy's own labels.
struct Own {
    workload: Arc<str>,
    namespace: Arc<str>,
    canonical_name: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
    app: Arc<str>,
    version: Arc<str>,
}

/// A string of the node's metadata, empty if it has none of that name.
pub(super) fn node_text(key: &str) -> Arc<str> {
    let metadata = node::get().metadata.as_deref();
    metadata.and_then(|m| m.get(key)).and_then(|v| v.as_str()).unwrap_or_default().into()
}

impl Own {
    fn new() -> Own {
        let labels = node::get().metadata.as_deref().and_then(|m| m.get("LABELS"));
        let label = |key: &str| -> Arc<str> {
            labels.and_then(|l| l.get(key)).and_then(|v| v.as_str()).unwrap_or_default().into()
        };
        Own {
            workload: node_text("WORKLOAD_NAME"),
            namespace: node_text("NAMESPACE"),
            canonical_name: label("service.istio.io/canonical-name"),
            canonical_revision: label("service.istio.io/canonical-revision"),
            cluster: node_text("CLUSTER_ID"),
            app: label("app"),
            version: label("version"),
        }
    }
}

/// The destination service as the cluster's metadata tells it.
pub(super) struct Service<'a> {
    pub(super) host: Option<&'a str>,
    name: Option<&'a str>,
    namespace: Option<&'a str>,
}

/// The first of `istio.services` in the cluster's metadata.
pub(super) fn service(info: &StreamInfo) -> Option<Service<'_>> {
    let services = info.upstream.cluster_metadata.as_deref()?.get("istio")?.get("services")?;
    let first = services.as_array()?.first()?;
    let text = |key: &str| first.get(key).and_then(|v| v.as_str());
    Some(Service { host: text("host"), name: text("name"), namespace: text("namespace") })
}

/// First URI names of the peer's and of our certificate; empty without.
pub(super) fn sans(reporter: Reporter, info: &StreamInfo) -> (&str, &str) {
    let tls = match reporter {
        Reporter::ClientSidecar => info.upstream.tls.as_deref(),
        Reporter::ServerSidecar | Reporter::ServerGateway => info.conn.tls.as_deref(),
    };
    match tls {
        Some(t) => (t.peer_uri_sans.first().map_or("", |s| s), t.local_uri_sans.first().map_or("", |s| s)),
        None => ("", ""),
    }
}

/// Labels about the two sides.
pub(super) struct PeerLabels {
    pub(super) tags: Tags,
    mutual_tls: Option<bool>,
}

/// The labels about source and destination.
pub(super) fn peer(reporter: Reporter, ctx: &FormatContext<'_>, host_fallback: bool) -> PeerLabels {
    let info = ctx.info;
    let own = Own::new();
    let (san, local_san) = sans(reporter, info);
    let client = reporter == Reporter::ClientSidecar;
    let endpoint = || info.upstream.host_metadata.as_deref().and_then(peer::of_endpoint).map(Arc::new);
    let known =
        if client { info.upstream_peer.clone().or_else(endpoint) } else { info.downstream_peer.clone() };
    let san: Arc<str> = match &info.upstream_peer {
        Some(p) if client && san.is_empty() => p.identity.clone(),
        _ => san.into(),
    };
    let peer_namespace = san_namespace(&san)
        .map(Arc::from)
        .or_else(|| known.as_ref().map(|p| p.namespace.clone()).filter(|n| !n.is_empty()));
    let destination = Destination::new(ctx, host_fallback);
    let mut t = Builder(Vec::with_capacity(LABELS.len()));
    t.set(
        "reporter",
        match reporter {
            Reporter::ClientSidecar => "source",
            Reporter::ServerSidecar => "destination",
            Reporter::ServerGateway => "waypoint",
        },
    );
    if client {
        t.source_own(&own, local_san);
        t.destination_peer(known.as_deref(), peer_namespace.as_ref(), &san, "latest", |t| {
            t.or_unknown("destination_service", &destination.host);
            (
                destination.name.clone(),
                if destination.namespace.is_empty() {
                    peer_namespace.clone().unwrap_or_default()
                } else {
                    destination.namespace.clone()
                },
            )
        });
    } else {
        t.source_peer(known.as_deref(), peer_namespace.as_ref(), &san);
        if reporter == Reporter::ServerGateway {
            let other = info.upstream_peer.as_deref();
            let namespace = other.map(|p| p.namespace.clone());
            let identity = other.map(|p| p.identity.clone()).unwrap_or_default();
            t.destination_peer(other, namespace.as_ref(), &identity, "unknown", |t| {
                t.or_unknown("destination_service", &destination.host);
                (destination.name.clone(), destination.namespace.clone())
            });
        } else {
            t.destination_own(&own, local_san, &destination);
        }
    }
    PeerLabels { tags: t.0.into(), mutual_tls: (!client).then_some(!san.is_empty() && !local_san.is_empty()) }
}

impl PeerLabels {
    /// With an HTTP stream's labels. `grpc`: `Some` for gRPC.
    pub(super) fn for_http(&self, info: &StreamInfo, grpc: Option<Option<u32>>) -> Tags {
        let mut t = Builder(self.tags.to_vec());
        t.set("request_protocol", if grpc.is_some() { "grpc" } else { "http" });
        t.set("response_code", &info.response_code.unwrap_or(0).to_string());
        t.set("grpc_response_status", &grpc.flatten().map(|s| s.to_string()).unwrap_or_default());
        t.flags_and_policy(info, self.mutual_tls);
        t.0.into()
    }

    /// With a TCP connection's labels.
    pub(super) fn for_tcp(&self, info: &StreamInfo) -> Tags {
        let mut t = Builder(self.tags.to_vec());
        t.set("request_protocol", "tcp");
        t.flags_and_policy(info, self.mutual_tls);
        t.0.into()
    }
}

/// The service that is called.
struct Destination {
    host: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

impl Destination {
    fn new(ctx: &FormatContext<'_>, host_fallback: bool) -> Destination {
        let info = ctx.info;
        let authority = ctx.request.and_then(|h| h.get(HeaderId::Authority)).filter(|_| host_fallback);
        let authority = authority.map(String::from_utf8_lossy).unwrap_or_default();
        let (mut host, mut name, mut namespace) = (&*authority, &*authority, "");
        let cluster = info.upstream.cluster.as_deref();
        match (info.route_name.as_deref(), cluster) {
            (Some("block_all"), _) => name = "BlackHoleCluster",
            (Some("allow_any"), _) => name = "PassthroughCluster",
            (_, Some(special))
                if matches!(
                    special,
                    "BlackHoleCluster"
                        | "PassthroughCluster"
                        | "InboundPassthroughCluster"
                        | "InboundPassthroughClusterIpv4"
                        | "InboundPassthroughClusterIpv6"
                ) =>
            {
                name = special;
            }
            (_, Some(_)) => {
                if let Some(service) = service(info) {
                    host = service.host.unwrap_or(host);
                    namespace = service.namespace.unwrap_or_default();
                    name = service.name.unwrap_or_else(|| host.split('.').next().unwrap_or_default());
                }
            }
            (_, None) => {}
        }
        Destination { host: host.into(), name: name.into(), namespace: namespace.into() }
    }
}

/// The namespace in a SPIFFE name `…/ns/NAMESPACE/sa/…`.
fn san_namespace(san: &str) -> Option<&str> {
    let rest = &san[san.find("/ns/")? + 4..];
    Some(&rest[..rest.find('/').unwrap_or(rest.len())]).filter(|n| !n.is_empty())
}

struct Builder(Vec<(Arc<str>, Arc<str>)>);

impl Builder {
    fn set(&mut self, name: &str, value: &str) {
        self.0.push((label(name), value.into()));
    }

    fn set_arc(&mut self, name: &str, value: &Arc<str>) {
        self.0.push((label(name), value.clone()));
    }

    fn or_unknown(&mut self, name: &str, value: &Arc<str>) {
        self.or(name, value, "unknown");
    }

    fn or(&mut self, name: &str, value: &Arc<str>, instead: &str) {
        if value.is_empty() { self.set(name, instead) } else { self.set_arc(name, value) }
    }

    fn source_own(&mut self, own: &Own, san: &str) {
        self.set_arc("source_workload", &own.workload);
        self.set_arc("source_canonical_service", &own.canonical_name);
        self.set_arc("source_canonical_revision", &own.canonical_revision);
        self.set_arc("source_workload_namespace", &own.namespace);
        self.or_unknown("source_principal", &san.into());
        self.set_arc("source_app", &own.app);
        self.set_arc("source_version", &own.version);
        self.set_arc("source_cluster", &own.cluster);
    }

    fn source_peer(&mut self, peer: Option<&Peer>, namespace: Option<&Arc<str>>, san: &Arc<str>) {
        let none = Peer::default();
        let p = peer.unwrap_or(&none);
        self.or_unknown("source_workload", &p.workload);
        self.or_unknown("source_canonical_service", &p.canonical_service);
        self.or("source_canonical_revision", &p.canonical_revision, "latest");
        self.or_unknown("source_workload_namespace", namespace.unwrap_or(&none.namespace));
        self.or_unknown("source_principal", san);
        self.or_unknown("source_app", &p.app);
        self.or_unknown("source_version", &p.version);
        self.or_unknown("source_cluster", &p.cluster_id);
    }

    fn destination_own(&mut self, own: &Own, san: &str, service: &Destination) {
        self.set_arc("destination_workload", &own.workload);
        self.set_arc("destination_workload_namespace", &own.namespace);
        self.or_unknown("destination_principal", &san.into());
        self.set_arc("destination_app", &own.app);
        self.set_arc("destination_version", &own.version);
        self.or("destination_service", &service.host, &own.canonical_name);
        self.set_arc("destination_canonical_service", &own.canonical_name);
        self.set_arc("destination_canonical_revision", &own.canonical_revision);
        self.or("destination_service_name", &service.name, &own.canonical_name);
        self.set_arc("destination_service_namespace", &own.namespace);
        self.set_arc("destination_cluster", &own.cluster);
    }

    /// `service` writes the service's host and tells its name and namespace.
    fn destination_peer(
        &mut self,
        peer: Option<&Peer>,
        namespace: Option<&Arc<str>>,
        san: &Arc<str>,
        no_revision: &str,
        service: impl FnOnce(&mut Builder) -> (Arc<str>, Arc<str>),
    ) {
        let none = Peer::default();
        let p = peer.unwrap_or(&none);
        self.or_unknown("destination_workload", &p.workload);
        self.or_unknown("destination_workload_namespace", namespace.unwrap_or(&none.namespace));
        self.or_unknown("destination_principal", san);
        self.or_unknown("destination_app", &p.app);
        self.or_unknown("destination_version", &p.version);
        let (name, service_namespace) = service(self);
        self.or_unknown("destination_canonical_service", &p.canonical_service);
        self.or("destination_canonical_revision", &p.canonical_revision, no_revision);
        self.or_unknown("destination_service_name", &name);
        self.or_unknown("destination_service_namespace", &service_namespace);
        self.or_unknown("destination_cluster", &p.cluster_id);
    }

    fn flags_and_policy(&mut self, info: &StreamInfo, mutual_tls: Option<bool>) {
        let names: Vec<&str> = FLAGS.iter().filter(|f| info.flags.has(f.0)).map(|f| f.1).collect();
        self.set("response_flags", if names.is_empty() { "-" } else { "" });
        if let (Some(last), false) = (self.0.last_mut(), names.is_empty()) {
            last.1 = names.join(",").into();
        }
        self.set(
            "connection_security_policy",
            match mutual_tls {
                Some(true) => "mutual_tls",
                Some(false) => "none",
                None => "unknown",
            },
        );
    }
}
