//! What the tests of this folder share: clusters without a configuration file, a manager over them, scripted servers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{ClusterManager, LocalClusters};
use crate::config::address::Address;
use crate::config::cluster::*;
use crate::config::hcm::{Http1Options, Http2Options};
use crate::config::snapshot::Store;
use crate::config::tls::TransportSocket;
use crate::telemetry::stats::Stats;

/// A STATIC cluster named `c` with Envoy's defaults.
pub(super) fn cluster(endpoints: Endpoints) -> Cluster {
    Cluster {
        name: "c".into(),
        stat_name: "c".into(),
        discovery: Discovery::Static(Arc::new(endpoints)),
        connect_timeout: Duration::from_secs(5),
        lb: LbPolicy::RoundRobin { slow_start: None },
        lb_common: LbCommon {
            panic_threshold: 50.0,
            fail_traffic_on_panic: false,
            locality_weighted: false,
            zone_aware: None,
            update_merge_window: Duration::from_secs(1),
            ignore_new_hosts_until_first_hc: false,
            close_on_host_set_change: false,
            hash_by_hostname: false,
            hash_balance_factor: 0,
            override_host_statuses: Vec::new(),
            subset: None,
        },
        outlier: None,
        health_checks: Vec::new(),
        breakers: [Breaker::default(), Breaker::default()],
        transport: TransportSocket::RawBuffer,
        transport_matches: Vec::new(),
        protocol: UpstreamProtocol::Http1,
        http: UpstreamHttp {
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_response_headers_kb: None,
            max_headers_count: 100,
            auto_sni: false,
            auto_san_validation: false,
            override_auto_sni_header: None,
            reject_underscores: None,
        },
        per_connection_buffer_limit: 1 << 20,
        max_requests_per_connection: None,
        tcp_keepalive: None,
        bind: None,
        metadata: None,
        respect_dns_ttl: false,
        dns_refresh: Duration::from_secs(5),
        dns_failure_refresh: (Duration::from_secs(5), Duration::from_secs(5)),
        dns_jitter: Duration::ZERO,
        dns_family: DnsFamily::Auto,
        dns_resolvers: Vec::new(),
        wait_for_warm_on_init: true,
        ignore_health_on_host_removal: false,
        close_on_health_failure: false,
        preconnect_ratio: 1.0,
        predictive_preconnect_ratio: 1.0,
        timeout_budget_stats: false,
        request_response_size_stats: false,
        per_endpoint_stats: false,
        metadata_exchange: None,
        is_static: true,
    }
}

/// Endpoints of one locality, weights given.
pub(super) fn endpoints(hosts: &[(SocketAddr, u32)]) -> Endpoints {
    Endpoints {
        localities: vec![locality("", 0, None, hosts)],
        overprovisioning: 140,
        ..Endpoints::default()
    }
}

/// A locality named by its zone.
pub(super) fn locality(
    zone: &str,
    priority: u32,
    weight: Option<u32>,
    hosts: &[(SocketAddr, u32)],
) -> LocalityEndpoints {
    let endpoint = |(address, weight): &(SocketAddr, u32)| Endpoint {
        address: Address::Socket(*address),
        additional: Vec::new(),
        hostname: None,
        weight: *weight,
        health: EdsHealth::Unknown,
        metadata: None,
        health_check_port: None,
        health_check_hostname: None,
        health_check_address: None,
        disable_active_health_check: false,
    };
    let endpoints = hosts.iter().map(endpoint).collect();
    LocalityEndpoints {
        region: "".into(),
        zone: zone.into(),
        sub_zone: "".into(),
        priority,
        weight,
        endpoints,
    }
}

/// Addresses that nobody connects to.
pub(super) fn addresses(n: u8) -> Vec<SocketAddr> {
    (1..=n).map(|i| SocketAddr::from(([10, 0, 0, i], 80))).collect()
}

/// A worker over one cluster.
pub(super) struct Rig {
    pub(super) store: Arc<Store>,
    pub(super) stats: Stats,
    pub(super) local: LocalClusters,
}

impl Rig {
    pub(super) fn new(cluster: Cluster) -> Rig {
        let (store, stats) = (Arc::new(Store::default()), Stats::default());
        put(&store, cluster);
        let control = tokio::runtime::Handle::current();
        let manager = ClusterManager::new(store.clone(), stats.clone(), control, None).expect("no log");
        let local = LocalClusters::new(manager, 0);
        Rig { store, stats, local }
    }

    /// Adds or replaces a cluster, and lets the worker see it.
    pub(super) fn put(&self, cluster: Cluster) {
        put(&self.store, cluster);
        self.local.sync(&self.store.load());
    }

    pub(super) fn stat(&self, name: &str) -> u64 {
        self.stats.value(&format!("cluster.c.{name}")).unwrap_or_else(|| panic!("no stat {name}"))
    }

    #[track_caller]
    pub(super) fn expect(&self, expected: &[(&str, u64)]) {
        for (name, value) in expected {
            assert_eq!(self.stat(name), *value, "{name}");
        }
    }
}

fn put(store: &Store, cluster: Cluster) {
    store.update(|s| {
        Arc::make_mut(&mut s.clusters).insert(cluster.name.clone(), Arc::new(cluster));
    });
}

/// A server that answers each head with `response`, and closes a connection after `requests` of them.
pub(super) async fn server(response: &'static [u8], requests: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(answer(stream, response, requests));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, response: &'static [u8], requests: usize) {
    let mut buffer = Vec::new();
    for _ in 0..requests {
        while !buffer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        buffer.clear();
        if stream.write_all(response).await.is_err() {
            return;
        }
    }
}
