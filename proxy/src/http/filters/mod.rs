//! HTTP filters: an enum built once per connection manager, hooks that are synchronous, a future only on a pause.
//!
//! Each filter has a file: config, request path, response path, stats, tests. Request hooks run in the configured order,
//! response hooks in reverse. A route's override is looked up when the route is known (`Ctx::override_for`).

mod alpn;
mod cors;
mod fault;
pub(super) mod grpc_stats;
mod header_mutation;
mod health_check;
mod local_ratelimit;
mod peer_metadata;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::filter::{FilterOverride, HttpFilterConfig, Router};
use crate::config::hcm::Hcm;
use crate::config::route::{Route, RouteConfig, VirtualHost, WeightedCluster};
use crate::head::Head;
use crate::http::local_reply::LocalReply;
use crate::stream_info::StreamInfo;
use crate::telemetry::format::{FormatContext, LogType};
use crate::worker::Worker;

/// What a filter wants to happen next.
pub enum Flow {
    /// On to the next filter.
    Continue,
    /// Answer this instead.
    Local(Box<LocalReply>),
    /// Wait, then as the future says.
    Await(Pin<Box<dyn Future<Output = Flow>>>),
}

/// One filter of a chain, ready to run.
#[derive(Debug)]
pub struct Filter {
    /// Its name in the connection manager: overrides are found by it.
    pub name: Arc<str>,
    pub disabled: bool,
    pub kind: Kind,
}

/// The filters that there are.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a few values a filter chain, never moved")]
pub enum Kind {
    Cors(cors::Cors),
    Fault(fault::Fault),
    GrpcStats(grpc_stats::GrpcStats),
    PeerMetadata(peer_metadata::PeerMetadata),
    IstioStats(crate::telemetry::istio::metrics::IstioMetrics),
    Alpn(alpn::Alpn),
    Rbac(crate::rbac::HttpRbac),
    HeaderMutation(header_mutation::HeaderMutation),
    HealthCheck(health_check::HealthCheck),
    LocalRateLimit(local_ratelimit::LocalRateLimit),
    SetMetadata(crate::config::route::Metadata),
}

/// The chain of a connection manager: the filters before the router, and the router's options.
#[derive(Debug)]
pub struct Chain {
    pub filters: Vec<Filter>,
    pub router: Router,
}

/// What a filter sees of a request beside its head.
pub struct Ctx<'a> {
    pub worker: &'a Rc<Worker>,
    pub info: &'a mut StreamInfo,
    pub route: Option<&'a Matched>,
    /// State that filters keep between their hooks.
    pub state: &'a mut State,
}

/// The route that a request has.
#[derive(Clone, Debug)]
pub struct Matched {
    pub config: Arc<RouteConfig>,
    pub vhost: Arc<VirtualHost>,
    pub route: Arc<Route>,
    /// Index of the weighted cluster that was chosen.
    pub weighted: Option<usize>,
}

impl Matched {
    /// The weighted cluster's entry.
    pub fn weighted(&self) -> Option<&WeightedCluster> {
        let crate::config::route::Action::Forward(f) = &self.route.action else { return None };
        let crate::config::route::ClusterChoice::Weighted(w) = &f.cluster else { return None };
        w.clusters.get(self.weighted?)
    }
}

/// Per-request state of filters. One struct for all, so that a request pays for no box.
#[derive(Debug, Default)]
pub struct State {
    pub cors: cors::State,
    pub fault: fault::State,
    pub grpc: grpc_stats::State,
    pub peer: peer_metadata::State,
    /// ALPN protocols to offer upstream instead of the cluster's.
    pub alpn_override: Option<Arc<[Arc<str>]>>,
}

impl Ctx<'_> {
    /// The route's override for a filter: weighted cluster, route, virtual host, route configuration, the first that has one.
    pub fn override_for(&self, name: &str) -> Option<&FilterOverride> {
        let m = self.route?;
        let find = |o: &'_ crate::config::route::Overrides| o.iter().position(|(n, _)| &**n == name);
        if let Some(w) = m.weighted()
            && let Some(i) = find(&w.overrides)
        {
            return Some(&w.overrides[i].1);
        }
        for o in [&m.route.overrides, &m.vhost.overrides, &m.config.overrides] {
            if let Some(i) = find(o) {
                return Some(&o[i].1);
            }
        }
        None
    }
}

impl Filter {
    fn on(&self, ctx: &Ctx<'_>) -> bool {
        match ctx.override_for(&self.name) {
            Some(FilterOverride::Disabled) => false,
            Some(_) => true,
            None => !self.disabled,
        }
    }

    /// Runs the request hook.
    pub fn request_head(&self, head: &mut Head, ctx: &mut Ctx<'_>) -> Flow {
        if !self.on(ctx) {
            return Flow::Continue;
        }
        match &self.kind {
            Kind::Cors(f) => f.request_head(&self.name, head, ctx),
            Kind::Fault(f) => f.request_head(&self.name, head, ctx),
            Kind::GrpcStats(f) => f.request_head(head, ctx),
            Kind::PeerMetadata(f) => f.request_head(head, ctx),
            Kind::IstioStats(_) => Flow::Continue,
            Kind::Alpn(f) => f.request_head(ctx),
            Kind::Rbac(f) => f.request_head(&self.name, head, ctx),
            Kind::HeaderMutation(f) => f.request_head(&self.name, head, ctx),
            Kind::HealthCheck(f) => f.request_head(head, ctx),
            Kind::LocalRateLimit(f) => f.request_head(&self.name, head, ctx),
            Kind::SetMetadata(m) => {
                for (ns, v) in m.iter().flat_map(|m| m.iter()) {
                    ctx.info.metadata.get_or_insert_default().insert(ns.clone(), v.clone());
                }
                Flow::Continue
            }
        }
    }

    /// Runs the response hook.
    pub fn response_head(&self, request: &Head, head: &mut Head, ctx: &mut Ctx<'_>) {
        if !self.on(ctx) {
            return;
        }
        match &self.kind {
            Kind::Cors(f) => f.response_head(head, ctx),
            Kind::Fault(f) => f.response_head(head, ctx),
            Kind::GrpcStats(f) => f.response_head(head, ctx),
            Kind::PeerMetadata(f) => f.response_head(head, ctx),
            Kind::HeaderMutation(f) => f.response_head(&self.name, request, head, ctx),
            Kind::LocalRateLimit(f) => f.response_head(head, ctx),
            Kind::HealthCheck(_)
            | Kind::IstioStats(_)
            | Kind::Alpn(_)
            | Kind::Rbac(_)
            | Kind::SetMetadata(_) => {}
        }
    }

    /// The stream is over: what is counted or released at its end.
    pub fn complete(
        &self,
        request: &Head,
        response: Option<&Head>,
        trailers: Option<&Head>,
        ctx: &mut Ctx<'_>,
    ) {
        match &self.kind {
            Kind::IstioStats(f) => {
                let c = FormatContext {
                    response,
                    trailers,
                    log_type: LogType::DownstreamEnd,
                    ..FormatContext::new(Some(request), ctx.info)
                };
                let grpc = crate::router::matching::is_grpc(request);
                f.request(&c, grpc);
                if ctx.state.grpc.on {
                    f.grpc_messages(&c, ctx.state.grpc.request.count, ctx.state.grpc.response.count);
                }
            }
            Kind::GrpcStats(f) => f.complete(response, trailers, ctx),
            Kind::Fault(f) => f.complete(ctx),
            _ => {}
        }
    }
}

impl Chain {
    /// Builds the chain of a connection manager.
    pub fn new(hcm: &Hcm, worker: &Worker, direction: crate::config::listener::Direction) -> Chain {
        let mut router = Router {
            dynamic_stats: true,
            start_child_span: false,
            suppress_envoy_headers: false,
            respect_expected_rq_timeout: false,
            suppress_grpc_failure_stats: false,
            upstream_log: Vec::new(),
            strict_check_headers: Vec::new(),
        };
        let mut filters = Vec::new();
        for f in &hcm.filters {
            let kind = match &f.config {
                HttpFilterConfig::Router(r) => {
                    router = r.clone();
                    continue;
                }
                config => build(config, hcm, worker, direction),
            };
            filters.push(Filter { name: f.name.clone(), disabled: f.disabled, kind });
        }
        Chain { filters, router }
    }
}

fn build(
    config: &HttpFilterConfig,
    hcm: &Hcm,
    worker: &Worker,
    direction: crate::config::listener::Direction,
) -> Kind {
    match config {
        HttpFilterConfig::Cors => Kind::Cors(cors::Cors::new(&hcm.stat_prefix, &worker.stats)),
        HttpFilterConfig::Fault(c) => Kind::Fault(fault::Fault::new(c, &hcm.stat_prefix, &worker.stats)),
        HttpFilterConfig::GrpcStats(c) => Kind::GrpcStats(grpc_stats::GrpcStats::new(c)),
        HttpFilterConfig::PeerMetadata(c) => Kind::PeerMetadata(peer_metadata::PeerMetadata::new(c, worker)),
        HttpFilterConfig::IstioStats(c) => {
            Kind::IstioStats(crate::telemetry::istio::metrics::IstioMetrics::new(c, direction, &worker.stats))
        }
        HttpFilterConfig::IstioAlpn(c) => Kind::Alpn(alpn::Alpn::new(c)),
        HttpFilterConfig::Rbac(c) => {
            Kind::Rbac(crate::rbac::HttpRbac::new(c, &hcm.stat_prefix, &worker.stats))
        }
        HttpFilterConfig::HeaderMutation(c) => Kind::HeaderMutation(header_mutation::HeaderMutation::new(c)),
        HttpFilterConfig::HealthCheck(c) => Kind::HealthCheck(health_check::HealthCheck::new(c)),
        HttpFilterConfig::LocalRateLimit(c) => {
            Kind::LocalRateLimit(local_ratelimit::LocalRateLimit::new(c, &worker.stats))
        }
        HttpFilterConfig::SetMetadata(m) => Kind::SetMetadata(m.clone()),
        // The router is taken out of the chain by the caller.
        HttpFilterConfig::Router(_) | HttpFilterConfig::Compressor(_) => Kind::SetMetadata(None),
    }
}
