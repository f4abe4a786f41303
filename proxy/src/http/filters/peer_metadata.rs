//! Istio's peer metadata exchange (`io.istio.http.peer_metadata`): who calls and who is called, by the
//! `x-envoy-peer-metadata` headers, else by the endpoint's metadata. Istio's metrics read the result.

use std::sync::Arc;

use super::{Ctx, Flow};
use crate::config::filter::{PeerMetadata as Config, PeerMethod};
use crate::head::{Head, HeaderId};
use crate::telemetry::istio::peer;
use crate::worker::Worker;

/// The filter.
#[derive(Debug)]
pub struct PeerMetadata {
    config: Arc<Config>,
    /// Own id and metadata, as header values.
    own: (Arc<str>, Arc<str>),
}

/// Kept between the hooks.
#[derive(Debug, Default)]
pub struct State {
    /// The caller exchanges headers: it gets ours in the response.
    caller_asks: bool,
}

impl PeerMetadata {
    pub(super) fn new(config: &Arc<Config>, worker: &Worker) -> PeerMetadata {
        let own = peer::own_headers(&worker.shared.node, &config.additional_labels);
        PeerMetadata { config: config.clone(), own }
    }

    pub(super) fn request_head(&self, head: &mut Head, ctx: &mut Ctx<'_>) -> Flow {
        let c = &self.config;
        for m in &c.downstream_discovery {
            if let PeerMethod::IstioHeaders { .. } = m
                && let Some(value) = head.get(HeaderId::XEnvoyPeerMetadata)
            {
                let id = head.get(HeaderId::XEnvoyPeerMetadataId);
                ctx.state.peer.caller_asks = true;
                if ctx.info.downstream_peer.is_none() {
                    ctx.info.downstream_peer = peer::decode(id, value, &c.additional_labels);
                }
            }
        }
        if uses_headers(&c.downstream_discovery) {
            head.remove(HeaderId::XEnvoyPeerMetadata);
            head.remove(HeaderId::XEnvoyPeerMetadataId);
        }
        if c.upstream_propagation && !self.skips(&c.upstream_discovery, ctx) {
            head.set(HeaderId::XEnvoyPeerMetadataId, self.own.0.as_bytes());
            head.set(HeaderId::XEnvoyPeerMetadata, self.own.1.as_bytes());
        }
        Flow::Continue
    }

    pub(super) fn response_head(&self, head: &mut Head, ctx: &mut Ctx<'_>) {
        let c = &self.config;
        for m in &c.upstream_discovery {
            if ctx.info.upstream_peer.is_some() {
                break;
            }
            ctx.info.upstream_peer = match m {
                PeerMethod::IstioHeaders { .. } => head.get(HeaderId::XEnvoyPeerMetadata).and_then(|v| {
                    peer::decode(head.get(HeaderId::XEnvoyPeerMetadataId), v, &c.additional_labels)
                }),
                PeerMethod::WorkloadDiscovery => {
                    ctx.info.upstream.host_metadata.as_deref().and_then(peer::of_endpoint).map(Arc::new)
                }
                PeerMethod::Baggage => None,
            };
        }
        if uses_headers(&c.upstream_discovery) {
            head.remove(HeaderId::XEnvoyPeerMetadata);
            head.remove(HeaderId::XEnvoyPeerMetadataId);
        }
        if c.downstream_propagation && ctx.state.peer.caller_asks {
            head.set(HeaderId::XEnvoyPeerMetadataId, self.own.0.as_bytes());
            head.set(HeaderId::XEnvoyPeerMetadata, self.own.1.as_bytes());
        }
    }

    /// `skip_external_clusters`: services outside the mesh get no metadata.
    fn skips(&self, methods: &[PeerMethod], ctx: &Ctx<'_>) -> bool {
        let wanted =
            methods.iter().any(|m| matches!(m, PeerMethod::IstioHeaders { skip_external_clusters: true }));
        if !wanted {
            return false;
        }
        let Some(name) = &ctx.info.upstream.cluster else { return true };
        if matches!(&**name, "PassthroughCluster" | "BlackHoleCluster" | "InboundPassthroughCluster") {
            return true;
        }
        ctx.worker.with_snapshot(|s| {
            s.clusters.get(name).and_then(|c| c.metadata.as_deref()?.get("istio")?.get("external")?.as_bool())
        }) == Some(true)
    }
}

fn uses_headers(methods: &[PeerMethod]) -> bool {
    methods.iter().any(|m| matches!(m, PeerMethod::IstioHeaders { .. }))
}
