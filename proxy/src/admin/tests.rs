use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::config::address::Address;
use crate::config::apply::Applier;
use crate::config::load::bootstrap_from_yaml;
use crate::config::snapshot::Store;
use crate::listener::Draining;
use crate::telemetry::access_log::Files;
use crate::telemetry::stats::Stats;
use crate::upstream::ClusterManager;

const BOOTSTRAP: &str = r#"
node: {id: nid, cluster: cl, locality: {zone: z}, metadata: {K: v}}
layered_runtime: {layers: [{name: s, static_layer: {a.b: 7}}]}
stats_config: {use_all_default_tags: true}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: 27501}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.echo
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}
  clusters:
  - name: up
    load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 27502}}}}]}]}
"#;

#[derive(Default)]
struct Levels(Mutex<Vec<(String, String)>>);

impl LogLevels for Levels {
    fn levels(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap().clone()
    }
    fn set_all(&self, level: &str) -> bool {
        self.set("http", level)
    }
    fn set(&self, component: &str, level: &str) -> bool {
        if level == "loud" || component != "http" {
            return false;
        }
        *self.0.lock().unwrap() = vec![(component.to_owned(), level.to_owned())];
        true
    }
}

fn state() -> Arc<AdminState> {
    let loaded = bootstrap_from_yaml(BOOTSTRAP).unwrap();
    let stats = Stats::default();
    let store = Arc::new(Store::default());
    let _applied = Applier::new(store.clone(), &loaded, &stats, Instant::now());
    let control = tokio::runtime::Handle::current();
    let listeners = crate::listener::Shared::new(store.clone(), stats.clone(), Duration::from_secs(1), None);
    let shared = worker::Shared {
        clusters: ClusterManager::new(store.clone(), stats.clone(), control, None).unwrap(),
        spans: None,
        logs: Files::new(Duration::from_secs(1), &stats),
        store,
        listeners,
        health_failed: AtomicBool::new(false),
        local_ip: Ipv4Addr::LOCALHOST.into(),
        node: loaded.bootstrap.node.clone(),
        stats: stats.clone(),
    };
    Arc::new(AdminState {
        shared: Arc::new(shared),
        tagger: Tagger::new(&loaded.bootstrap.stats),
        life: Life::new(),
        server_stats: ServerStats::of(&stats, 2, 1),
        levels: Box::new(Levels::default()),
        config_dump: None,
        options: serde_json::Map::new(),
        runtime: loaded.bootstrap.runtime.clone(),
        quit: watch::Sender::new(false),
        drain_time: Duration::from_secs(600),
        access_log: Vec::new(),
    })
}

fn get(state: &Arc<AdminState>, target: &str) -> (u16, String) {
    let page = routes::dispatch(state, "GET", target);
    (page.status, page.body)
}

fn post(state: &Arc<AdminState>, target: &str) -> (u16, String) {
    let page = routes::dispatch(state, "POST", target);
    (page.status, page.body)
}

#[tokio::test]
async fn readiness_follows_the_servers_life() {
    let s = state();
    assert_eq!(get(&s, "/ready"), (503, "PRE_INITIALIZING\n".to_owned()));
    s.life.set(Phase::Live);
    assert_eq!(get(&s, "/ready"), (200, "LIVE\n".to_owned()));
    assert_eq!(post(&s, "/healthcheck/fail"), (200, "OK\n".to_owned()));
    assert_eq!(get(&s, "/ready"), (503, "DRAINING\n".to_owned()));
    post(&s, "/healthcheck/ok");
    assert_eq!(get(&s, "/ready").0, 200);
}

#[tokio::test]
async fn what_changes_state_wants_a_post() {
    let s = state();
    for path in [
        "/quitquitquit",
        "/healthcheck/fail",
        "/drain_listeners?graceful",
        "/reset_counters",
        "/logging",
        "/reopen_logs",
    ] {
        assert_eq!(get(&s, path), (405, "Method GET not allowed, POST required.".to_owned()), "{path}");
    }
    assert!(!*s.quit.borrow());
    assert_eq!(post(&s, "/quitquitquit").0, 200);
    assert!(*s.quit.borrow());
    let (status, body) = get(&s, "/nope");
    assert_eq!(status, 404);
    assert!(body.starts_with(
        "invalid path. admin commands are:\n  /: Admin home page\n  /certs: print certs on machine\n"
    ));
    assert!(body.contains("  /quitquitquit (POST): exit the server\n"));
}

#[tokio::test(start_paused = true)]
async fn draining_stops_listeners_at_once_or_after_the_drain_time() {
    let s = state();
    let now = s.shared.listeners.draining();
    post(&s, "/drain_listeners?inboundonly&graceful");
    assert_eq!(*now.borrow(), Draining::Graceful { inbound_only: true });
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(*now.borrow(), Draining::Stopped { inbound_only: true });
    post(&s, "/drain_listeners");
    assert_eq!(*now.borrow(), Draining::Stopped { inbound_only: false });
}

#[tokio::test]
async fn clusters_and_listeners_have_envoys_shapes() {
    let s = state();
    let json = |target: &str| serde_json::from_str::<Value>(&get(&s, target).1).unwrap();
    assert_eq!(get(&s, "/listeners").1, "web::127.0.0.1:27501\n");
    assert_eq!(
        json("/listeners?format=json"),
        serde_json::json!({"listener_statuses": [{"name": "web", "local_address":
            {"socket_address": {"address": "127.0.0.1", "port_value": 27501}}}]})
    );
    assert!(
        get(&s, "/clusters")
            .1
            .starts_with("up::observability_name::up\nup::default_priority::max_connections::1024\n")
    );
    assert_eq!(get(&s, "/clusters?filter=^x").1, "");
    assert_eq!(get(&s, "/clusters?filter=(").0, 400);
    let thresholds = serde_json::json!([
        {"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024, "max_retries": 3},
        {"priority": "HIGH", "max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024, "max_retries": 3},
    ]);
    assert_eq!(
        json("/clusters?format=json").to_string(),
        serde_json::json!({"cluster_statuses": [{
            "name": "up",
            "host_statuses": [{
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": 27502}},
                "stats": [
                    {"name": "cx_connect_fail"}, {"name": "cx_total"}, {"name": "rq_error"}, {"name": "rq_success"},
                    {"name": "rq_timeout"}, {"name": "rq_total"}, {"type": "GAUGE", "name": "cx_active"},
                    {"type": "GAUGE", "name": "rq_active"}, {"type": "GAUGE", "name": "rq_pending_active"},
                ],
                "health_status": {"eds_health_status": "HEALTHY"},
                "weight": 1,
                "locality": {},
            }],
            "circuit_breakers": {"thresholds": thresholds},
            "observability_name": "up",
        }]})
        .to_string()
    );
    assert_eq!(get(&s, "/certs").1, "{\n \"certificates\": []\n}\n");
}

#[tokio::test]
async fn server_pages_have_envoys_shapes() {
    let s = state();
    s.life.set(Phase::Live);
    let json = |target: &str| serde_json::from_str::<Value>(&get(&s, target).1).unwrap();
    let info = json("/server_info");
    assert_eq!((&info["state"], &info["node"]["id"]), (&"LIVE".into(), &"nid".into()));
    assert_eq!(info["version"].as_str().unwrap().split('/').count(), 5);
    assert_eq!(info["node"]["user_agent_build_version"]["version"]["minor_number"], 40);
    assert_eq!(
        json("/runtime"),
        serde_json::json!({"layers": ["static"], "entries": {"a.b": {"layer_values": ["7"], "final_value": "7"}}})
    );
    assert!(json("/memory")["allocated"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(get(&s, "/hot_restart_version").1, "11.104");
    assert_eq!(get(&s, "/config_dump").0, 404);
    assert_eq!(post(&s, "/logging?level=debug").1, "active loggers:\n  http: debug\n\n");
    assert_eq!(post(&s, "/logging?paths=http:info").1, "active loggers:\n  http: info\n\n");
    for bad in [
        "/logging?level=loud",
        "/logging?paths=x:info",
        "/logging?paths=x",
        "/logging?level=info&paths=http:info",
    ] {
        assert_eq!(post(&s, bad).0, 400, "{bad}");
    }
}

#[tokio::test]
async fn stats_are_filtered_typed_and_reset() {
    let s = state();
    s.shared.stats.counter("cluster.up.upstream_rq_200").add(2);
    assert_eq!(get(&s, "/stats?filter=upstream_rq_200").1, "cluster.up.upstream_rq_200: 2\n");
    assert_eq!(get(&s, "/stats?filter=server.concurrency&type=Gauges").1, "server.concurrency: 2\n");
    assert_eq!(get(&s, "/stats?filter=server.concurrency&type=Counters").1, "");
    let (_, prometheus) = get(&s, "/stats/prometheus?usedonly&filter=upstream_rq%5F");
    assert_eq!(
        prometheus,
        "# TYPE envoy_cluster_upstream_rq counter\nenvoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"up\"} 2\n"
    );
    assert_eq!(get(&s, "/stats?format=prometheus&usedonly&filter=upstream_rq%5F").1, prometheus);
    assert_eq!(post(&s, "/reset_counters").0, 200);
    assert_eq!(get(&s, "/stats?filter=upstream_rq_200").1, "cluster.up.upstream_rq_200: 0\n");
    for bad in ["/stats?filter=(", "/stats?type=x", "/stats?format=x", "/stats?histogram_buckets=x"] {
        assert_eq!(get(&s, bad).0, 400, "{bad}");
    }
}

#[tokio::test]
async fn answers_carry_envoys_headers() {
    let s = state();
    let listener = bind(&Address::Socket("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let address = listener.address();
    let server = tokio::spawn(serve(listener, s));
    let mut io = tokio::net::TcpStream::connect(&address).await.unwrap();
    io.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    io.read_to_string(&mut text).await.unwrap();
    server.abort();
    for line in [
        "HTTP/1.1 503 Service Unavailable\r\n",
        "\r\ncontent-type: text/plain; charset=UTF-8\r\n",
        "\r\ncache-control: no-cache, max-age=0\r\n",
        "\r\nx-content-type-options: nosniff\r\n",
        "\r\nserver: envoy\r\n",
        "\r\ndate: ",
        "\r\n\r\nPRE_INITIALIZING\n",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
}
