//! A cluster in one worker: its balancer, pools and stats. What the router, the TCP proxy and the filters hold.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use tokio::time::Instant;

use super::breaker::{Permit, Priority, Resource, Resources};
use super::health_check;
use super::host::Host;
use super::host_set::{HostSet, share_levels};
use super::lb::{Balancer, LbContext};
use super::manager::ClusterManager;
use super::original_dst;
use super::outlier::Outcome;
use super::pool::{self, Checkout, Pool, PoolError, PoolKey, ProxyAddresses, Speaks, TcpLease};
use super::shared::SharedCluster;
use super::stats::ClusterStats;
use super::transport::TransportKind;
use crate::config::cluster::{Cluster as Info, Discovery, UpstreamProtocol};
use crate::config::hcm::Protocol;
use crate::config::snapshot::Snapshot;
use crate::http::codec::{DEFAULT_RESPONSE_HEADERS_KB, h1, h2};
use crate::tls::{ConnectOptions, TlsStats};

/// What all clusters of a worker have in common.
#[derive(Debug)]
pub(super) struct WorkerContext {
    manager: Arc<ClusterManager>,
    /// The first worker, which checks the hosts' health for all.
    checks_health: bool,
    pub(super) snapshot: RefCell<Arc<Snapshot>>,
    connections: Cell<u64>,
}

impl WorkerContext {
    pub(super) fn next_connection_id(&self) -> u64 {
        self.connections.set(self.connections.get() + 1);
        self.connections.get()
    }
}

/// What a cluster's connections need, beyond the cluster's own life.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) shared: Arc<SharedCluster>,
    pub(super) stats: Rc<ClusterStats>,
    pub(super) ctx: Rc<WorkerContext>,
    pub(super) h1: Arc<h1::Options>,
    pub(super) h2: Arc<h2::Options>,
    tls: OnceCell<TlsStats>,
}

impl Core {
    pub(super) fn tls_stats(&self) -> &TlsStats {
        self.tls.get_or_init(|| TlsStats::new(self.ctx.manager.stats(), self.stats.prefix()))
    }
}

/// The clusters of one worker, each made on its first use.
pub struct LocalClusters {
    ctx: Rc<WorkerContext>,
    clusters: RefCell<HashMap<Arc<str>, Rc<Cluster>>>,
}

impl LocalClusters {
    /// A worker's view. `worker` tells workers' connection ids apart; number 0 checks health for all, so it must `sync`
    /// with each snapshot for checks to begin before traffic does.
    pub fn new(manager: Arc<ClusterManager>, worker: u16) -> LocalClusters {
        let snapshot = RefCell::new(manager.snapshot());
        let connections = Cell::new(u64::from(worker) << 48);
        let ctx = Rc::new(WorkerContext { manager, checks_health: worker == 0, snapshot, connections });
        LocalClusters { ctx, clusters: RefCell::default() }
    }

    /// Takes in a newer snapshot: clusters that changed or left are let go; what runs on them ends in peace.
    pub fn sync(&self, snapshot: &Arc<Snapshot>) {
        if Arc::ptr_eq(&*self.ctx.snapshot.borrow(), snapshot) {
            return;
        }
        *self.ctx.snapshot.borrow_mut() = snapshot.clone();
        let mut gone = Vec::new();
        self.clusters.borrow_mut().retain(|name, c| {
            let same = snapshot.clusters.get(name).is_some_and(|ir| Arc::ptr_eq(ir, c.info()));
            if same {
                self.ctx.manager.cluster(name, snapshot);
                c.refresh();
            } else {
                gone.push(c.clone());
            }
            same
        });
        gone.iter().for_each(|c| c.drain());
        self.start_health_checks();
    }

    fn start_health_checks(&self) {
        if !self.ctx.checks_health {
            return;
        }
        let snapshot = self.ctx.snapshot.borrow().clone();
        for c in snapshot.clusters.values().filter(|c| !c.health_checks.is_empty()) {
            // Making the cluster starts them.
            self.get(&c.name);
        }
    }

    /// The cluster, if the snapshot has it. An aggregate cluster stands for the one of its members whose turn it is.
    pub fn get(&self, name: &str) -> Option<Rc<Cluster>> {
        self.get_nested(name, AGGREGATE_DEPTH)
    }

    fn get_nested(&self, name: &str, depth: usize) -> Option<Rc<Cluster>> {
        let found = self.clusters.borrow().get(name).cloned();
        let cluster = match found {
            Some(c) => c,
            None => self.build(name)?,
        };
        match &cluster.info().discovery {
            Discovery::Aggregate(members) if depth > 0 => {
                let members = members.iter().filter_map(|m| self.get_nested(m, depth - 1)).collect();
                Some(self.member(&cluster, members).unwrap_or(cluster))
            }
            _ => Some(cluster),
        }
    }

    /// The member that takes a request: their priority levels count as one cluster's, in the members' order.
    fn member(&self, aggregate: &Cluster, members: Vec<Rc<Cluster>>) -> Option<Rc<Cluster>> {
        let mut owners = Vec::new();
        let mut levels = Vec::new();
        for (i, m) in members.iter().enumerate() {
            for level in &m.hosts().health {
                owners.push(i);
                levels.push(*level);
            }
        }
        if levels.is_empty() {
            return members.into_iter().next();
        }
        let load = share_levels(&levels, aggregate.info().lb_common.panic_threshold);
        let (level, _) = load.choose(rand::random());
        members.into_iter().nth(*owners.get(level)?)
    }

    fn build(&self, name: &str) -> Option<Rc<Cluster>> {
        let snapshot = self.ctx.snapshot.borrow().clone();
        let shared = self.ctx.manager.cluster(name, &snapshot)?;
        let cluster = Rc::new(Cluster::new(shared, self.ctx.clone()));
        self.clusters.borrow_mut().insert(cluster.info().name.clone(), cluster.clone());
        if self.ctx.checks_health && !cluster.info().health_checks.is_empty() {
            tokio::task::spawn_local(health_check::run(Rc::downgrade(&cluster)));
        }
        Some(cluster)
    }

    /// The shared manager.
    pub fn manager(&self) -> &Arc<ClusterManager> {
        &self.ctx.manager
    }
}

/// How deep aggregate clusters may be nested; one that names itself ends here without a host.
const AGGREGATE_DEPTH: usize = 8;

/// A cluster in this worker.
pub struct Cluster {
    core: Rc<Core>,
    hosts: RefCell<Cache<Arc<ArcSwap<HostSet>>, Arc<HostSet>>>,
    balancer: RefCell<Balancer>,
    /// By the address of the host's state, which the pool keeps alive.
    pools: RefCell<HashMap<usize, Vec<Rc<Pool>>>>,
    original: original_dst::Hosts,
}

/// No host can take the request: flag UH, `upstream_cx_none_healthy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no healthy upstream")]
pub struct NoHost;

/// What a request asks of its connection.
#[derive(Clone, Debug, Default)]
pub struct ConnectSpec {
    pub priority: Priority,
    /// The downstream's protocol, for `use_downstream_protocol_config`.
    pub downstream: Option<Protocol>,
    /// The request's authority, for `auto_sni` and `auto_san_validation`.
    pub authority: Option<Arc<str>>,
    /// Instead of the cluster's ALPN (`istio.alpn`).
    pub alpn: Option<Arc<[Arc<str>]>>,
    /// What a PROXY protocol transport socket announces.
    pub proxied: Option<ProxyAddresses>,
}

impl Cluster {
    fn new(shared: Arc<SharedCluster>, ctx: Rc<WorkerContext>) -> Cluster {
        let info = shared.info().clone();
        let stats = Rc::new(ClusterStats::new(ctx.manager.stats(), &info.stat_name));
        let max_headers_kb = info.http.max_response_headers_kb.unwrap_or(DEFAULT_RESPONSE_HEADERS_KB);
        let max_headers_count = info.http.max_headers_count;
        let h1 = h1::Options { http1: info.http.http1.clone(), max_headers_kb, max_headers_count };
        let h2 = h2::Options { http2: info.http.http2.clone(), max_headers_kb, max_headers_count };
        let set = shared.hosts();
        let cache = Cache::new(shared.hosts.clone());
        let core = Core { shared, stats, ctx, h1: Arc::new(h1), h2: Arc::new(h2), tls: OnceCell::new() };
        Cluster {
            hosts: RefCell::new(cache),
            balancer: RefCell::new(Balancer::new(info, set, rand::random(), &core.stats.traffic)),
            core: Rc::new(core),
            pools: RefCell::default(),
            original: original_dst::Hosts::default(),
        }
    }

    /// The configuration.
    pub fn info(&self) -> &Arc<Info> {
        self.core.shared.info()
    }

    /// This worker's stats of the cluster.
    pub fn stats(&self) -> &ClusterStats {
        &self.core.stats
    }

    /// The half that all workers share.
    pub fn shared(&self) -> &Arc<SharedCluster> {
        &self.core.shared
    }

    /// The hosts now.
    pub fn hosts(&self) -> Arc<HostSet> {
        self.refresh();
        self.balancer.borrow().set().clone()
    }

    /// Chooses a host.
    ///
    /// # Errors
    /// When there is none; `upstream_cx_none_healthy` counts it.
    pub fn pick(&self, ctx: &LbContext<'_>) -> Result<Arc<Host>, NoHost> {
        let chosen = match &self.info().discovery {
            Discovery::OriginalDst { use_header, port_override, .. } => {
                let to = original_dst::target(ctx, use_header.as_ref(), *port_override);
                if to.is_none() {
                    self.stats().traffic.original_dst_host_invalid.inc();
                }
                to.map(|a| self.original.host(a, &self.core.shared, Instant::now()))
            }
            Discovery::Static(_)
            | Discovery::StrictDns(_)
            | Discovery::LogicalDns(_)
            | Discovery::Eds { .. }
            | Discovery::Aggregate(_) => {
                self.refresh();
                self.balancer.borrow_mut().choose(ctx, &self.stats().traffic)
            }
        };
        chosen.ok_or_else(|| {
            self.stats().traffic.upstream_cx_none_healthy.inc();
            NoHost
        })
    }

    /// Takes a newer host set in, and closes the pools of hosts that left.
    fn refresh(&self) {
        let mut cache = self.hosts.borrow_mut();
        let set = cache.load();
        let mut balancer = self.balancer.borrow_mut();
        if Arc::ptr_eq(balancer.set(), set) {
            return;
        }
        balancer.update(set, &self.core.stats.traffic);
        let mut pools = self.pools.borrow_mut();
        if pools.is_empty() || matches!(self.info().discovery, Discovery::OriginalDst { .. }) {
            return;
        }
        let close_unhealthy = self.info().lb_common.close_on_host_set_change;
        let live: std::collections::HashSet<usize> = set.hosts().map(|h| host_key(h)).collect();
        pools.retain(|host, of_host| {
            let keep = live.contains(host) && !close_unhealthy;
            if !keep {
                of_host.iter().for_each(|p| p.drain());
            }
            keep
        });
    }

    /// Closes the connections to a host: the idle ones now, the busy ones when their requests end.
    pub(super) fn drain_host(&self, host: &Host) {
        if let Some(pools) = self.pools.borrow_mut().remove(&host_key(host)) {
            pools.iter().for_each(|p| p.drain());
        }
    }

    pub(super) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    pub(super) fn manager(&self) -> &Arc<ClusterManager> {
        &self.core.ctx.manager
    }

    fn drain(&self) {
        self.pools.borrow_mut().drain().for_each(|(_, pools)| pools.iter().for_each(|p| p.drain()));
    }

    /// Asks for a connection to `host`. Dropping the future gives up.
    pub fn checkout(&self, host: &Arc<Host>, spec: &ConnectSpec) -> Checkout {
        let (transport, tls, is_tls) = self.tls_options(host, spec);
        let speaks = match (&self.info().protocol, spec.downstream) {
            (UpstreamProtocol::Http1, _) => Speaks::H1,
            (UpstreamProtocol::Http2, _) | (UpstreamProtocol::Downstream, Some(Protocol::Http2)) => {
                Speaks::H2
            }
            (UpstreamProtocol::Downstream, _) => Speaks::H1,
            (UpstreamProtocol::Auto, _) if is_tls => Speaks::Negotiated,
            (UpstreamProtocol::Auto, _) => Speaks::H1,
        };
        let tls = if speaks == Speaks::Negotiated && tls.alpn.is_none() {
            ConnectOptions { alpn: Some(auto_alpn()), ..tls }
        } else {
            tls
        };
        let key = PoolKey { priority: spec.priority, speaks, transport, tls, proxied: spec.proxied };
        self.pool(host, key).checkout()
    }

    fn pool(&self, host: &Arc<Host>, key: PoolKey) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let of_host = pools.entry(host_key(host)).or_default();
        if let Some(p) = of_host.iter().find(|p| p.key == key) {
            return p.clone();
        }
        // Variants by name or address come and go; those without a connection are of no use.
        of_host.retain(|p| !p.is_empty());
        let pool = Pool::new(self.core.clone(), host.clone(), key);
        of_host.push(pool.clone());
        pool
    }

    /// Connects to `host` for a TCP proxy. Dropping the future gives up.
    pub fn connect_tcp(
        &self,
        host: &Arc<Host>,
        spec: &ConnectSpec,
    ) -> impl Future<Output = Result<TcpLease, PoolError>> + use<> {
        let (transport, tls, _) = self.tls_options(host, spec);
        let (proxied, priority) = (spec.proxied, spec.priority);
        Box::pin(pool::connect_tcp(self.core.clone(), host.clone(), transport, tls, proxied, priority))
    }

    fn tls_options(&self, host: &Arc<Host>, spec: &ConnectSpec) -> (usize, ConnectOptions, bool) {
        let (index, transport) = self.core.shared.transports.select(host);
        let TransportKind::Tls(_, ir) = &transport.kind else {
            return (index, ConnectOptions::default(), transport.is_tls());
        };
        let http = &self.info().http;
        let authority = spec.authority.as_deref().map(host_name);
        let auto = authority.filter(|a| http.auto_sni && a.parse::<IpAddr>().is_err() && !a.is_empty());
        let sni = match auto {
            Some(name) => Some(Arc::from(name)),
            None if ir.auto_host_sni && !host.hostname.is_empty() => Some(host.hostname.clone()),
            None => None,
        };
        let verify = authority.filter(|a| http.auto_san_validation && !a.is_empty());
        let verify_names = verify.map(|a| vec![Arc::from(a)]).unwrap_or_default();
        (index, ConnectOptions { sni, alpn: spec.alpn.clone(), verify_names }, true)
    }

    /// The resources of a priority, for the router's own checks and for retries.
    pub fn breaker(&self, priority: Priority) -> &Arc<Resources> {
        self.core.shared.breaker(priority)
    }

    /// Takes a retry from the breaker; `upstream_rq_retry_overflow` counts a refusal.
    pub fn acquire_retry(&self, priority: Priority) -> Option<Permit> {
        let permit = self.breaker(priority).acquire(Resource::Retries);
        if permit.is_none() {
            self.stats().traffic.upstream_rq_retry_overflow.inc();
        }
        permit
    }

    /// Tells outlier detection how an exchange or a connection went.
    pub fn report(&self, host: &Host, outcome: Outcome) {
        self.core.shared.report(host, outcome);
    }
}

fn host_key(host: &Host) -> usize {
    Arc::as_ptr(&host.state).cast::<()>() as usize
}

/// `h2`, `http/1.1`: what `auto_config` offers.
fn auto_alpn() -> Arc<[Arc<str>]> {
    thread_local! {
        static ALPN: Arc<[Arc<str>]> = Arc::from([Arc::from("h2"), Arc::from("http/1.1")]);
    }
    ALPN.with(Arc::clone)
}

/// An authority without its port.
fn host_name(authority: &str) -> &str {
    if let Ok(a) = authority.parse::<SocketAddr>() {
        // `[::1]:80` and `1.2.3.4:80`: the slice before the last colon, without brackets.
        let end = authority.len() - a.port().to_string().len() - 1;
        return authority.get(..end).unwrap_or(authority).trim_matches(['[', ']']);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}
