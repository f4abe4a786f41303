use std::net::SocketAddr;

use super::*;
use crate::config::cluster::{Cluster as Info, HealthCheckKind};
use crate::upstream::testing::{Rig, addresses, cluster, endpoints, server};
use crate::upstream::{Cluster, LbContext};

fn config(kind: HealthCheckKind) -> HealthCheck {
    let short = Duration::from_millis(20);
    HealthCheck {
        timeout: Duration::from_millis(500),
        interval: short,
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        no_traffic_interval: short,
        no_traffic_healthy_interval: short,
        unhealthy_interval: short,
        unhealthy_edge_interval: short,
        healthy_edge_interval: short,
        reuse_connection: true,
        always_log_failures: false,
        kind,
        alpn: Vec::new(),
    }
}

fn http() -> HealthCheckKind {
    HealthCheckKind::Http {
        host: None,
        path: "/healthz".into(),
        method: "GET".into(),
        headers: Vec::new(),
        remove: Vec::new(),
        expected: vec![(200, 201)],
        retriable: vec![(503, 504)],
        service_name: None,
        http2: false,
    }
}

#[test]
fn thresholds_decide() {
    use Change::{BecameHealthy as Up, BecameUnhealthy as Down, None as Same};
    let ok = Verdict::Success { degraded: false };
    let bad = Verdict::Failure { exclude: false };
    let config = config(http());
    for (steps, name) in [
        (vec![(ok, Up), (ok, Same)], "the first success is enough"),
        (vec![(bad, Same), (ok, Same), (ok, Up)], "after a failure the threshold counts"),
        (
            vec![(ok, Up), (Verdict::Network, Same), (ok, Same), (Verdict::Network, Same)],
            "a success starts anew",
        ),
        (vec![(ok, Up), (Verdict::Network, Same), (Verdict::Timeout, Down)], "network failures count"),
        (vec![(ok, Up), (bad, Down), (ok, Same), (bad, Same), (ok, Same), (ok, Up)], "a bad answer is final"),
    ] {
        let mut checker = Checker::default();
        for (i, (verdict, change)) in steps.into_iter().enumerate() {
            assert_eq!(checker.on_verdict(verdict, &config), change, "{name}, step {i}");
        }
    }
}

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn checked(address: SocketAddr, kind: HealthCheckKind) -> (Rig, Rc<Cluster>) {
    let mut info: Info = cluster(endpoints(&[(address, 1)]));
    info.health_checks = vec![config(kind)];
    info.lb_common.panic_threshold = 0.0;
    let rig = Rig::new(info);
    let c = rig.local.get("c").unwrap();
    (rig, c)
}

async fn flags_after(c: &Cluster, ms: u64) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    c.hosts().hosts().next().unwrap().state.flags().text()
}

#[test]
fn http_checks_bring_a_host_up_and_take_it_down() {
    local(async {
        let good = server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 999).await;
        let (rig, c) = checked(good, http());
        assert_eq!(flags_after(&c, 150).await, "healthy");
        assert!(c.pick(&LbContext::default()).is_ok());
        assert!(rig.stat("health_check.success") > 1);
        rig.expect(&[("health_check.healthy", 1), ("health_check.failure", 0), ("membership_healthy", 1)]);

        let bad = server(b"HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n", 999).await;
        let (rig, c) = checked(bad, http());
        assert_eq!(flags_after(&c, 150).await, "/failed_active_hc");
        assert!(c.pick(&LbContext::default()).is_err());
        assert!(rig.stat("health_check.failure") > 1);
        rig.expect(&[("health_check.healthy", 0), ("health_check.network_failure", 0)]);
    });
}

#[test]
fn tcp_checks_look_for_their_bytes() {
    local(async {
        let answers = server(b"+PONG\r\n", 999).await;
        let ping: Arc<[u8]> = Arc::from(&b"PING\r\n\r\n"[..]);
        for (receive, flags) in
            [(vec![Arc::from(&b"PO"[..]), Arc::from(&b"NG"[..])], "healthy"), (vec![], "healthy")]
        {
            let (_rig, c) = checked(answers, HealthCheckKind::Tcp { send: Some(ping.clone()), receive });
            assert_eq!(flags_after(&c, 150).await, flags);
        }
        let closed = addresses(1)[0];
        let gone = SocketAddr::from(([127, 0, 0, 1], closed.port().wrapping_add(1) % 1024 + 1));
        let (rig, c) = checked(gone, HealthCheckKind::Tcp { send: None, receive: Vec::new() });
        assert_eq!(flags_after(&c, 150).await, "/failed_active_hc");
        assert!(rig.stat("health_check.network_failure") > 0);
    });
}

/// A gRPC health service that answers with `status`.
async fn grpc_server(status: u8) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut conn = ::h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = conn.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let head = ::http::Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap();
                    let mut body = respond.send_response(head, false).unwrap();
                    body.send_data(bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false)
                        .unwrap();
                    let trailers =
                        [("grpc-status", "0")].map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()));
                    body.send_trailers(::http::HeaderMap::from_iter(trailers)).unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn grpc_checks_ask_for_serving() {
    local(async {
        for (status, flags) in [(1, "healthy"), (2, "/failed_active_hc")] {
            let kind = HealthCheckKind::Grpc { service: "pod".into(), authority: None };
            let (_rig, c) = checked(grpc_server(status).await, kind);
            assert_eq!(flags_after(&c, 200).await, flags, "status {status}");
        }
    });
}
