//! TCP proxies from YAML over real sockets: relay, half-close, failures with their flags, timers, metadata exchange.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::config::access_log::AccessLog;
use crate::config::filter::{Rbac, TcpProxy};
use crate::config::hcm::Hcm;
use crate::config::load::bootstrap_from_yaml;
use crate::config::snapshot::Store;
use crate::listener::{Connection, Handler, Manager, Serving, Shared};
use crate::stream_info::StreamInfo;
use crate::telemetry::access_log::Files;
use crate::upstream::ClusterManager;

struct TestEnv {
    clusters: LocalClusters,
    stats: Stats,
    logs: Rc<WorkerFiles>,
    node: Node,
}

impl Env for TestEnv {
    fn clusters(&self) -> &LocalClusters {
        &self.clusters
    }
    fn stats(&self) -> &Stats {
        &self.stats
    }
    fn logs(&self) -> &Rc<WorkerFiles> {
        &self.logs
    }
    fn random(&self) -> u64 {
        7
    }
    fn node(&self) -> &Node {
        &self.node
    }
}

struct Serve(Rc<TestEnv>);

impl Handler for Serve {
    fn http(&self, _: Connection, _: Arc<Hcm>) -> Serving {
        Box::pin(async {})
    }
    fn tcp_proxy(&self, c: Connection, config: Arc<TcpProxy>, info: StreamInfo) -> Serving {
        Box::pin(serve(c, config, info, self.0.clone()))
    }
    fn rbac(&self, _: &Arc<Rbac>, _: &mut StreamInfo) -> bool {
        true
    }
    fn log(&self, _: &[AccessLog], _: &StreamInfo) {}
}

struct Bench {
    stats: Stats,
    address: SocketAddr,
    env: Rc<TestEnv>,
    files: Arc<Files>,
    log: tempfile::NamedTempFile,
}

impl Bench {
    /// A proxy to `upstream`, with `more` in its TCP proxy's configuration.
    fn new(upstream: SocketAddr, more: &str) -> Bench {
        let log = tempfile::NamedTempFile::new().unwrap();
        let yaml = format!(
            r#"
node: {{id: n, cluster: c}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: t
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          access_log:
          - name: f
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {path}
              log_format: {{text_format_source: {{inline_string: "%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER%\n"}}}}
          {more}
  clusters:
  - name: up
    connect_timeout: 1s
    load_assignment:
      cluster_name: up
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
  - name: empty
    load_assignment: {{cluster_name: empty}}
"#,
            path = log.path().display(),
            port = upstream.port(),
        );
        let bootstrap = bootstrap_from_yaml(&yaml).unwrap().bootstrap;
        let (store, stats) = (Arc::new(Store::default()), Stats::default());
        store.update(|s| {
            s.listeners = Arc::new(bootstrap.listeners.iter().map(|l| (l.name.clone(), l.clone())).collect());
            s.clusters = Arc::new(bootstrap.clusters.iter().map(|c| (c.name.clone(), c.clone())).collect());
        });
        let control = tokio::runtime::Handle::current();
        let clusters = ClusterManager::new(store.clone(), stats.clone(), control, None).unwrap();
        let files = Files::new(Duration::from_secs(60), &stats);
        let env = Rc::new(TestEnv {
            clusters: LocalClusters::new(clusters, 0),
            stats: stats.clone(),
            logs: WorkerFiles::new(files.clone()),
            node: bootstrap.node,
        });
        let shared = Shared::new(store, stats.clone(), Duration::from_secs(1), None);
        let manager = Manager::new(0, shared.clone(), Rc::new(Serve(env.clone())));
        manager.start().unwrap();
        tokio::task::spawn_local(manager.run());
        let address = shared.view()[0].addresses[0].socket().unwrap();
        Bench { stats, address, env, files, log }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The log's lines once there are `n`.
    async fn lines(&self, n: usize) -> Vec<String> {
        for _ in 0..200 {
            self.env.logs.flush();
            self.files.sync();
            let text = std::fs::read_to_string(self.log.path()).unwrap();
            if text.lines().count() >= n {
                return text.lines().map(Into::into).collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {n} lines");
    }
}

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

async fn upstream() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn bytes_pass_both_ways_and_each_end_is_passed_on_alone() {
    local(async {
        let (listener, address) = upstream().await;
        let bench = Bench::new(address, "cluster: up");
        let mut client = bench.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        let big = vec![7; 300_000];
        let (sent, got) = tokio::join!(
            async {
                client.write_all(&big).await.unwrap();
                client.shutdown().await.unwrap();
            },
            async {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.unwrap();
                got
            }
        );
        let () = sent;
        assert_eq!(got.len(), big.len());
        // The client's end arrived; the other way is still open.
        server.write_all(b"late answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "late answer");
        assert_eq!(bench.lines(1).await, ["- 300000 11 up"]);
        assert_eq!(bench.stats.value("tcp.t.downstream_cx_rx_bytes_total"), Some(300_000));
        assert_eq!(bench.stats.value("tcp.t.downstream_cx_tx_bytes_total"), Some(11));
        assert_eq!(bench.stats.value("cluster.up.upstream_cx_total"), Some(1));
        assert_eq!(bench.stats.value("cluster.up.upstream_cx_active"), Some(0));
    });
}

#[test]
fn failures_are_told_by_flags() {
    local(async {
        let (listener, address) = upstream().await;
        drop(listener);
        for (more, expected) in [
            ("cluster: up\n          max_connect_attempts: 2", "UF,URX 0 0 up"),
            ("cluster: empty", "UH 0 0 empty"),
            ("cluster: missing", "NC 0 0 -"),
        ] {
            let bench = Bench::new(address, more);
            let mut client = bench.connect().await;
            assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
            assert_eq!(bench.lines(1).await, [expected]);
            if expected.starts_with("UF") {
                assert_eq!(bench.stats.value("cluster.up.upstream_cx_connect_fail"), Some(2));
                assert_eq!(bench.stats.value("cluster.up.upstream_cx_connect_attempts_exceeded"), Some(1));
            }
        }
    });
}

#[test]
fn idle_and_total_time_are_limited() {
    local(async {
        let (listener, address) = upstream().await;
        for (more, stat, expected) in [
            ("cluster: up\n          idle_timeout: 0.05s", "idle_timeout", "- 0 0 up"),
            (
                "cluster: up\n          max_downstream_connection_duration: 0.05s",
                "max_downstream_connection_duration",
                "DT 0 0 up",
            ),
        ] {
            let bench = Bench::new(address, more);
            let mut client = bench.connect().await;
            let (_server, _) = listener.accept().await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
            assert_eq!(bench.lines(1).await, [expected]);
            assert_eq!(bench.stats.value(&format!("tcp.t.{stat}")), Some(1));
        }
    });
}

#[test]
fn traffic_keeps_an_idle_timeout_away() {
    local(async {
        let (listener, address) = upstream().await;
        let bench = Bench::new(address, "cluster: up\n          idle_timeout: 0.2s");
        let mut client = bench.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(500) {
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
        assert!(begin.elapsed() >= Duration::from_millis(600));
    });
}

#[test]
fn a_reset_arrives_as_a_reset() {
    local(async {
        let (listener, address) = upstream().await;
        let bench = Bench::new(address, "cluster: up");
        let mut client = bench.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"x").await.unwrap();
        client.read_u8().await.unwrap();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let e = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn weights_choose_the_cluster() {
    local(async {
        let (listener, address) = upstream().await;
        // The test's random number is 7, the total 10: the second cluster.
        let more = "weighted_clusters: {clusters: [{name: missing, weight: 5}, {name: up, weight: 5}]}";
        let bench = Bench::new(address, more);
        let client = bench.connect().await;
        let (server, _) = listener.accept().await.unwrap();
        drop((client, server));
        assert_eq!(bench.lines(1).await, ["- 0 0 up"]);
    });
}

/// A relay between two socket pairs, the client side with `strip`.
#[test]
fn a_metadata_header_is_taken_off_and_answered() {
    local(async {
        let pair = || async {
            let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let a = TcpStream::connect(l.local_addr().unwrap()).await.unwrap();
            let (b, _) = l.accept().await.unwrap();
            (a, crate::net::Io::from(crate::net::Raw::from(b)))
        };
        let ((mut client, mut down), (mut host, mut up)) = (pair().await, pair().await);
        let header = exchange::own(&Node { id: "peer".into(), ..Node::default() });
        let seen = RefCell::new(None);
        let mut relay = relay::Relay::new(
            pump::Pump::new(Vec::new(), true),
            pump::Pump::new(Vec::new(), false),
            None,
            None,
            None,
        );
        let relaying = relay.run(&mut down, &mut up, |to_up, to_down| {
            if let Some(header) = to_up.exchanged.take() {
                to_down.set_lead(b"<own>".to_vec());
                *seen.borrow_mut() = Some(header.is_some());
            }
        });
        let talk = async {
            // Split in the middle of the header.
            client.write_all(&header[..5]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.write_all(&header[5..]).await.unwrap();
            client.write_all(b"data").await.unwrap();
            let mut got = [0; 4];
            host.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"data");
            host.write_all(b"reply").await.unwrap();
            let mut got = [0; 10];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"<own>reply");
            drop((client, host));
        };
        tokio::join!(relaying, talk);
        assert_eq!(*seen.borrow(), Some(true));
        let framing = relay.to_upstream.framing.read;
        assert_eq!(framing, header.len() as u64);
    });
}

#[test]
fn the_future_of_a_connection_is_small() {
    fn size<T>(_: impl FnOnce(Connection, Arc<TcpProxy>, StreamInfo, Rc<TestEnv>) -> T) -> usize {
        size_of::<T>()
    }
    let bytes = size(serve);
    assert!(bytes < 4096, "{bytes}");
}
