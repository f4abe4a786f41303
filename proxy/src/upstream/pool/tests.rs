use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::*;
use crate::config::cluster::{Breaker, Cluster as Info, Discovery, UpstreamProtocol};
use crate::head::{Head, HeaderId};
use crate::http::codec::BodyEvent;
use crate::upstream::testing::{Rig, cluster, endpoints, server};
use crate::upstream::{Cluster, ConnectSpec, LbContext};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn to(address: SocketAddr) -> Info {
    cluster(endpoints(&[(address, 1)]))
}

fn one(rig: &Rig) -> (Rc<Cluster>, Arc<Host>) {
    let c = rig.local.get("c").unwrap();
    let host = c.pick(&LbContext::default()).unwrap();
    (c, host)
}

fn head() -> Head {
    let mut h = Head::new();
    h.append_id(HeaderId::Method, b"GET");
    h.append_id(HeaderId::Scheme, b"http");
    h.append_id(HeaderId::Authority, b"a");
    h.append_id(HeaderId::Path, b"/");
    h
}

/// One GET on a lease; the status.
async fn exchange(lease: &mut Lease) -> Result<u16, String> {
    let up = lease.open(&head(), true).map_err(|e| e.to_string())?;
    poll_fn(|cx| up.poll_finish(cx)).await.map_err(|e| e.to_string())?;
    let mut response = Head::new();
    let meta = poll_fn(|cx| up.poll_head(cx, &mut response)).await.map_err(|e| e.to_string())?;
    let mut end = meta.end;
    while !end {
        match poll_fn(|cx| up.poll_body(cx)).await.map_err(|e| e.to_string())? {
            BodyEvent::Data => {
                end = up.data_ends();
                up.consume(up.data().len());
            }
            BodyEvent::Trailers | BodyEvent::End => end = true,
        }
    }
    Ok(meta.status)
}

async fn get(c: &Rc<Cluster>, host: &Arc<Host>) -> Result<(u16, bool), PoolError> {
    let mut lease = c.checkout(host, &ConnectSpec::default()).await?;
    let reused = lease.reused();
    Ok((exchange(&mut lease).await.unwrap(), reused))
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(60)).await;
}

#[test]
fn a_connection_is_reused_and_counted() {
    local(async {
        let rig = Rig::new(to(server(OK, 99).await));
        let (c, host) = one(&rig);
        assert_eq!(get(&c, &host).await, Ok((200, false)));
        assert_eq!(get(&c, &host).await, Ok((200, true)));
        rig.expect(&[
            ("upstream_cx_total", 1),
            ("upstream_cx_active", 1),
            ("upstream_cx_http1_total", 1),
            ("upstream_rq_total", 2),
            ("upstream_rq_active", 0),
            ("upstream_rq_pending_total", 1),
            ("upstream_rq_pending_active", 0),
            ("upstream_cx_rx_bytes_total", 2 * OK.len() as u64),
            ("upstream_cx_destroy", 0),
        ]);
        assert_eq!(host.state.stats.rq_total.get(), 2);
    });
}

#[test]
fn a_connection_closed_by_the_server_is_never_handed_out() {
    local(async {
        let rig = Rig::new(to(server(OK, 1).await));
        let (c, host) = one(&rig);
        for _ in 0..3 {
            assert_eq!(get(&c, &host).await, Ok((200, false)));
            // The close may be on its way still: it is seen at the checkout, or by the task before.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        settle().await;
        rig.expect(&[("upstream_cx_total", 3), ("upstream_cx_active", 0), ("upstream_cx_destroy_remote", 3)]);
    });
}

#[test]
fn who_waits_gets_a_freed_connection() {
    local(async {
        let mut info = to(server(OK, 99).await);
        info.breakers[0].max_connections = 1;
        let rig = Rig::new(info);
        let (c, host) = one(&rig);
        let mut first = c.checkout(&host, &ConnectSpec::default()).await.unwrap();
        let second = tokio::task::spawn_local({
            let (c, host) = (c.clone(), host.clone());
            async move { get(&c, &host).await }
        });
        settle().await;
        rig.expect(&[
            ("upstream_cx_overflow", 1),
            ("upstream_rq_pending_active", 1),
            ("upstream_cx_total", 1),
        ]);
        assert_eq!(exchange(&mut first).await, Ok(200));
        drop(first);
        assert_eq!(second.await.unwrap(), Ok((200, true)));
        rig.expect(&[("upstream_cx_total", 1), ("upstream_rq_pending_active", 0)]);
    });
}

#[test]
fn breakers_overflow() {
    local(async {
        let mut info = to(server(OK, 99).await);
        info.breakers[0] =
            Breaker { max_connections: 1, max_pending: 1, max_requests: 5, ..Breaker::default() };
        let rig = Rig::new(info);
        let (c, host) = one(&rig);
        let spec = ConnectSpec::default();
        let held = c.checkout(&host, &spec).await.unwrap();
        let waiting = c.checkout(&host, &spec);
        assert_eq!(c.checkout(&host, &spec).await.err(), Some(PoolError::Overflow));
        rig.expect(&[("upstream_rq_pending_overflow", 1), ("circuit_breakers.default.rq_pending_open", 1)]);
        drop(waiting);
        rig.expect(&[("upstream_rq_cancelled", 1), ("circuit_breakers.default.rq_pending_open", 0)]);
        drop(held);
        rig.expect(&[("circuit_breakers.default.cx_open", 1), ("upstream_rq_active", 0)]);
    });
}

#[test]
fn the_request_breaker_counts_apart_from_the_queue() {
    local(async {
        let mut info = to(server(OK, 99).await);
        info.breakers[0].max_requests = 1;
        let rig = Rig::new(info);
        let (c, host) = one(&rig);
        let held = c.checkout(&host, &ConnectSpec::default()).await.unwrap();
        assert_eq!(c.checkout(&host, &ConnectSpec::default()).await.err(), Some(PoolError::Overflow));
        rig.expect(&[("upstream_rq_active_overflow", 1), ("upstream_rq_pending_overflow", 0)]);
        rig.expect(&[("circuit_breakers.default.rq_open", 1)]);
        drop(held);
        rig.expect(&[("circuit_breakers.default.rq_open", 0)]);
    });
}

#[test]
fn a_refused_connection_fails_all_who_wait() {
    local(async {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let rig = Rig::new(to(closed));
        let (c, host) = one(&rig);
        let spec = ConnectSpec::default();
        let (a, b) = (c.checkout(&host, &spec), c.checkout(&host, &spec));
        let refused = PoolError::Remote("delayed connect error: Connection refused".into());
        assert_eq!(a.await.err(), Some(refused.clone()));
        assert_eq!(b.await.err(), Some(refused));
        settle().await;
        rig.expect(&[("upstream_cx_active", 0), ("upstream_rq_pending_failure_eject", 2)]);
        assert_eq!(rig.stat("upstream_cx_connect_fail"), rig.stat("upstream_cx_total"));
        assert_eq!(rig.stat("upstream_cx_http1_total"), rig.stat("upstream_cx_total"));
        assert!(host.state.stats.cx_connect_fail.get() > 0);
    });
}

#[test]
fn connecting_times_out() {
    local(async {
        // A full accept queue: the SYN is never answered.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let _fill: Vec<_> = (0..4)
            .map(|_| {
                let s = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                s.set_nonblocking(true).unwrap();
                let _ = s.connect(&address.into());
                s
            })
            .collect();
        settle().await;
        let rig = Rig::new(Info { connect_timeout: Duration::from_millis(50), ..to(address) });
        let (c, host) = one(&rig);
        assert_eq!(c.checkout(&host, &ConnectSpec::default()).await.err(), Some(PoolError::Timeout));
        settle().await;
        rig.expect(&[("upstream_cx_connect_timeout", 1), ("upstream_cx_connect_fail", 1)]);
    });
}

#[test]
fn max_requests_per_connection_closes_it() {
    local(async {
        let info = Info { max_requests_per_connection: Some(2), ..to(server(OK, 99).await) };
        let rig = Rig::new(info);
        let (c, host) = one(&rig);
        for reused in [false, true, false] {
            assert_eq!(get(&c, &host).await, Ok((200, reused)));
        }
        rig.expect(&[
            ("upstream_cx_total", 2),
            ("upstream_cx_max_requests", 1),
            ("upstream_cx_destroy_local", 1),
            ("upstream_cx_destroy_local_with_active_rq", 0),
        ]);
    });
}

#[test]
fn idle_connections_time_out() {
    local(async {
        let mut info = to(server(OK, 99).await);
        info.http.idle_timeout = Some(Duration::from_millis(100));
        let rig = Rig::new(info);
        let (c, host) = one(&rig);
        get(&c, &host).await.unwrap();
        settle().await;
        rig.expect(&[("upstream_cx_active", 1)]);
        tokio::time::sleep(Duration::from_millis(120)).await;
        rig.expect(&[
            ("upstream_cx_active", 0),
            ("upstream_cx_idle_timeout", 1),
            ("upstream_cx_destroy_local", 1),
        ]);
        // The pool goes on afterwards.
        assert_eq!(get(&c, &host).await, Ok((200, false)));
    });
}

#[test]
fn an_idle_close_is_noticed_without_traffic() {
    local(async {
        let rig = Rig::new(to(server(OK, 1).await));
        let (c, host) = one(&rig);
        get(&c, &host).await.unwrap();
        settle().await;
        rig.expect(&[("upstream_cx_active", 0), ("upstream_cx_destroy_remote", 1)]);
    });
}

#[test]
fn a_dropped_exchange_closes_its_connection() {
    local(async {
        let rig = Rig::new(to(server(OK, 99).await));
        let (c, host) = one(&rig);
        let mut lease = c.checkout(&host, &ConnectSpec::default()).await.unwrap();
        lease.open(&head(), true).unwrap();
        drop(lease);
        rig.expect(&[
            ("upstream_cx_active", 0),
            ("upstream_cx_destroy_local_with_active_rq", 1),
            ("upstream_cx_destroy_with_active_rq", 1),
            ("upstream_rq_active", 0),
        ]);
        // A lease that was never used goes back.
        drop(c.checkout(&host, &ConnectSpec::default()).await.unwrap());
        rig.expect(&[("upstream_cx_active", 1)]);
    });
}

#[test]
fn a_host_that_left_is_drained() {
    local(async {
        let (a, b) = (server(OK, 99).await, server(OK, 99).await);
        let mut info = to(a);
        info.discovery = Discovery::Eds { service_name: "c".into() };
        let rig = Rig::new(info);
        let eds = |address| {
            rig.store.update(|s| {
                let e = endpoints(&[(address, 1)]);
                Arc::make_mut(&mut s.endpoints).insert("c".into(), Arc::new(e));
            });
            rig.local.sync(&rig.store.load());
        };
        eds(a);
        let (c, host) = one(&rig);
        let mut busy = c.checkout(&host, &ConnectSpec::default()).await.unwrap();
        get(&c, &host).await.unwrap();
        rig.expect(&[("upstream_cx_active", 2), ("membership_total", 1)]);
        eds(b);
        // The idle one is closed, the busy one carries its request to the end.
        rig.expect(&[("upstream_cx_active", 1), ("membership_change", 2)]);
        assert_eq!(exchange(&mut busy).await, Ok(200));
        drop(busy);
        rig.expect(&[("upstream_cx_active", 0)]);
        assert_eq!(c.pick(&LbContext::default()).unwrap().socket(), Some(b));
    });
}

#[test]
fn an_unchanged_host_keeps_state_and_connections() {
    local(async {
        let a = server(OK, 99).await;
        let mut info = to(a);
        info.discovery = Discovery::Eds { service_name: "c".into() };
        let rig = Rig::new(info);
        for weight in [1, 2] {
            rig.store.update(|s| {
                let e = endpoints(&[(a, weight)]);
                Arc::make_mut(&mut s.endpoints).insert("c".into(), Arc::new(e));
            });
            rig.local.sync(&rig.store.load());
            let (c, host) = one(&rig);
            assert_eq!(host.weight, weight);
            assert_eq!(get(&c, &host).await, Ok((200, weight == 2)));
        }
        rig.expect(&[("membership_change", 1), ("max_host_weight", 2), ("upstream_rq_pending_active", 0)]);
    });
}

#[test]
fn a_changed_cluster_takes_over_while_old_requests_end() {
    local(async {
        let a = server(OK, 99).await;
        let rig = Rig::new(to(a));
        let (c, host) = one(&rig);
        let mut busy = c.checkout(&host, &ConnectSpec::default()).await.unwrap();
        get(&c, &host).await.unwrap();
        rig.put(Info { max_requests_per_connection: Some(7), ..to(a) });
        let (new, same) = one(&rig);
        assert_eq!(new.info().max_requests_per_connection, Some(7));
        assert!(same.same(&host), "the host keeps its state");
        rig.expect(&[("upstream_cx_active", 1)]);
        assert_eq!(exchange(&mut busy).await, Ok(200));
        drop((busy, c));
        rig.expect(&[("upstream_cx_active", 0), ("upstream_rq_active", 0)]);
    });
}

/// An HTTP/2 server that answers every stream with 200, and takes `streams` at once.
async fn h2_server(streams: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut builder = ::h2::server::Builder::new();
                builder.max_concurrent_streams(streams);
                let mut conn = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
                while let Some(Ok((_request, mut respond))) = conn.accept().await {
                    let _ = respond.send_response(::http::Response::new(()), true);
                }
            });
        }
    });
    address
}

#[test]
fn http2_streams_share_a_connection() {
    local(async {
        let rig = Rig::new(Info { protocol: UpstreamProtocol::Http2, ..to(h2_server(100).await) });
        let (c, host) = one(&rig);
        let spec = ConnectSpec::default();
        let (mut a, mut b) = tokio::join!(c.checkout(&host, &spec), c.checkout(&host, &spec));
        let (a, b) = (a.as_mut().unwrap(), b.as_mut().unwrap());
        assert_eq!((exchange(a).await, exchange(b).await), (Ok(200), Ok(200)));
        rig.expect(&[("upstream_cx_total", 1), ("upstream_cx_http2_total", 1), ("upstream_rq_total", 2)]);
        rig.expect(&[("upstream_rq_active", 2)]);
    });
}

#[test]
fn http2_grows_past_the_peer_s_streams() {
    local(async {
        let rig = Rig::new(Info { protocol: UpstreamProtocol::Http2, ..to(h2_server(1).await) });
        let (c, host) = one(&rig);
        // The first exchange brings the peer's settings.
        get(&c, &host).await.unwrap();
        let held = c.checkout(&host, &ConnectSpec::default()).await.unwrap();
        let mut other = c.checkout(&host, &ConnectSpec::default()).await.unwrap();
        assert_eq!(exchange(&mut other).await, Ok(200));
        rig.expect(&[("upstream_cx_total", 2)]);
        drop(held);
    });
}

#[test]
fn tcp_connections_are_counted() {
    local(async {
        let rig = Rig::new(to(server(OK, 1).await));
        let (c, host) = one(&rig);
        let lease = c.connect_tcp(&host, &ConnectSpec::default()).await.unwrap();
        lease.count(3, 4);
        rig.expect(&[("upstream_cx_active", 1), ("upstream_rq_total", 1), ("upstream_cx_tx_bytes_total", 4)]);
        lease.closed_by_peer();
        drop(lease);
        rig.expect(&[("upstream_cx_active", 0), ("upstream_cx_destroy_remote", 1)]);
    });
}

#[test]
fn futures_stay_small() {
    assert!(size_of::<Checkout>() <= 256, "{}", size_of::<Checkout>());
    assert!(size_of::<Lease>() <= 128, "{}", size_of::<Lease>());
}
