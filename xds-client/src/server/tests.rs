//! Client and control plane over real sockets on the loopback.

use std::io::ErrorKind;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;

use super::*;
use crate::ads::{AdsClient, AdsConfig, AdsEvent, AdsHandle, Response, Variant, Verdict};
use crate::backoff::BackoffConfig;
use crate::connector::{Connector, Target, tls_from_roots, token_from_file};
use crate::type_url::{CLUSTER, ENDPOINT};

fn cluster(name: &str, alt: &str) -> Cluster {
    Cluster { name: name.to_owned(), alt_stat_name: alt.to_owned(), ..Default::default() }
}

fn endpoints(name: &str) -> ClusterLoadAssignment {
    ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() }
}

fn config(variant: Variant) -> AdsConfig {
    let backoff = BackoffConfig { base: Duration::from_millis(20), max: Duration::from_millis(100) };
    let node = Node { id: "sidecar~10.0.0.1~web.demo~demo.svc".to_owned(), ..Default::default() };
    AdsConfig { node, variant, backoff, ..Default::default() }
}

async fn serve(
    plane: &ControlPlane,
    address: &str,
) -> (String, JoinHandle<Result<(), tonic::transport::Error>>) {
    // A server that has just ended may still hold the port for a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(e) => {
                assert!(e.kind() == ErrorKind::AddrInUse && Instant::now() < deadline, "{address}: {e}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let address = listener.local_addr().unwrap().to_string();
    let server = Server::builder().add_service(plane.service());
    (address, tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener))))
}

/// The next response, answered with what `judge` says of it.
async fn respond(
    handle: &AdsHandle,
    events: &mut mpsc::Receiver<AdsEvent>,
    judge: impl Fn(&Response) -> Verdict,
) -> Response {
    loop {
        let event =
            tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("an event").unwrap();
        if let AdsEvent::Response(response) = event {
            handle.ack(&response.type_url, &response.nonce, judge(&response));
            return response;
        }
    }
}

fn added(response: &Response) -> Vec<&str> {
    response.added.iter().map(|resource| resource.name.as_str()).collect()
}

async fn answers(plane: &ControlPlane, count: usize) -> Vec<Answer> {
    let wait = async {
        while plane.answers().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        plane.answers()
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("answers")
}

fn accept(_: &Response) -> Verdict {
    Verdict::accepted()
}

#[tokio::test]
async fn delta_brings_changes_and_records_nacks() {
    let plane = ControlPlane::new();
    plane.publish(Scope::Everyone, "a", &cluster("a", "1"));
    plane.publish(Scope::Everyone, "b", &cluster("b", "1"));
    plane.publish(Scope::Node("other".to_owned()), "hidden", &cluster("hidden", ""));
    let (address, _server) = serve(&plane, "127.0.0.1:0").await;
    let (handle, mut events) = AdsClient::spawn(config(Variant::Delta), Connector::plain(&address));
    handle.subscribe_wildcard(CLUSTER);
    let first = respond(&handle, &mut events, accept).await;
    assert_eq!(added(&first), ["a", "b"]);

    plane.publish(Scope::Everyone, "b", &cluster("b", "2"));
    let second = respond(&handle, &mut events, |_| {
        let mut verdict = Verdict::accepted();
        verdict.reject("b", "alt_stat_name: 2 is no good");
        verdict
    })
    .await;
    assert_eq!(added(&second), ["b"]);
    plane.remove(&Scope::Everyone, CLUSTER, "a");
    let third = respond(&handle, &mut events, accept).await;
    assert_eq!((added(&third).len(), third.removed.as_slice()), (0, ["a".to_owned()].as_slice()));

    let answers = answers(&plane, 3).await;
    assert_eq!(answers[0].error, None);
    assert_eq!(answers[1].error.as_deref(), Some("Cluster b: alt_stat_name: 2 is no good"));
    assert_eq!((answers[1].nonce.as_str(), answers[2].error.as_deref()), (second.nonce.as_str(), None));
    assert_eq!(answers[1].node, "sidecar~10.0.0.1~web.demo~demo.svc");
}

#[tokio::test]
async fn names_come_and_go_and_missing_ones_are_told() {
    let plane = ControlPlane::new();
    plane.publish(Scope::Everyone, "a", &endpoints("a"));
    let (address, _server) = serve(&plane, "127.0.0.1:0").await;
    let (handle, mut events) = AdsClient::spawn(config(Variant::Delta), Connector::plain(&address));
    handle.subscribe(ENDPOINT, ["a", "missing"]);
    let first = respond(&handle, &mut events, accept).await;
    assert_eq!((added(&first), first.removed.as_slice()), (vec!["a"], ["missing".to_owned()].as_slice()));
    plane.publish(Scope::Everyone, "missing", &endpoints("missing"));
    assert_eq!(added(&respond(&handle, &mut events, accept).await), ["missing"]);
    plane.publish(Scope::Everyone, "c", &endpoints("c"));
    handle.set_names(ENDPOINT, ["c"]);
    assert_eq!(added(&respond(&handle, &mut events, accept).await), ["c"]);
}

#[tokio::test]
async fn reconnect_resumes_with_versions() {
    let plane = ControlPlane::new();
    for name in ["a", "b", "c"] {
        plane.publish(Scope::Everyone, name, &cluster(name, "1"));
    }
    // A runtime of its own takes the server's connections with it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first_plane = plane.clone();
    let serving = runtime.spawn(async move { serve(&first_plane, "127.0.0.1:0").await.0 });
    let address = serving.await.unwrap();
    let (handle, mut events) = AdsClient::spawn(config(Variant::Delta), Connector::plain(&address));
    handle.subscribe_wildcard(CLUSTER);
    let verdict = |_: &Response| {
        let mut verdict = Verdict::accepted();
        verdict.reject("c", "no");
        verdict
    };
    assert_eq!(added(&respond(&handle, &mut events, verdict).await), ["a", "b", "c"]);
    answers(&plane, 1).await;
    let mut state = handle.state();
    assert!(state.borrow().connected_since.is_some());

    // The control plane goes away, and changes while it is away.
    runtime.shutdown_background();
    let lost = tokio::time::timeout(
        Duration::from_secs(10),
        state.wait_for(|state| state.connected_since.is_none()),
    );
    lost.await.expect("a lost stream").unwrap();
    plane.publish(Scope::Everyone, "b", &cluster("b", "2"));
    plane.remove(&Scope::Everyone, CLUSTER, "a");
    let (_, _server) = serve(&plane, &address).await;

    let again = respond(&handle, &mut events, accept).await;
    // `b` has changed, `c` was refused and comes again, `a` is gone.
    assert_eq!((added(&again), again.removed.as_slice()), (vec!["b", "c"], ["a".to_owned()].as_slice()));
    let state = state.borrow().clone();
    assert!(state.successes >= 2 && state.attempts >= state.successes, "{state:?}");
    assert!(state.last_error.unwrap().starts_with(&address));
}

#[tokio::test]
async fn service_that_the_control_plane_does_not_have_is_told() {
    let plane = ControlPlane::new();
    let (address, _server) = serve(&plane, "127.0.0.1:0").await;
    let config = AdsConfig { service: crate::ads::Service::Secret, ..config(Variant::Delta) };
    let (handle, mut events) = AdsClient::spawn(config, Connector::plain(&address));
    handle.subscribe(crate::type_url::SECRET, ["default"]);
    let Some(AdsEvent::Disconnected { reason, .. }) = events.recv().await else { panic!("a disconnect") };
    assert!(reason.contains("Unimplemented (12)"), "{reason}");
}

#[tokio::test]
async fn state_of_the_world_sends_everything_each_time() {
    let plane = ControlPlane::new();
    plane.publish(Scope::Everyone, "a", &cluster("a", "1"));
    plane.publish(Scope::Everyone, "b", &cluster("b", "1"));
    let (address, _server) = serve(&plane, "127.0.0.1:0").await;
    let (handle, mut events) = AdsClient::spawn(config(Variant::StateOfTheWorld), Connector::plain(&address));
    handle.subscribe_wildcard(CLUSTER);
    assert_eq!(added(&respond(&handle, &mut events, accept).await), ["a", "b"]);
    answers(&plane, 1).await;
    plane.remove(&Scope::Everyone, CLUSTER, "a");
    let second = respond(&handle, &mut events, accept).await;
    assert_eq!((added(&second), second.removed.as_slice()), (vec!["b"], ["a".to_owned()].as_slice()));
}

#[tokio::test]
async fn unreachable_control_plane_is_named_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (handle, mut events) = AdsClient::spawn(config(Variant::Delta), Connector::plain(&address));
    handle.subscribe_wildcard(CLUSTER);
    for _ in 0..3 {
        let Some(AdsEvent::Disconnected { reason, .. }) = events.recv().await else { panic!("a disconnect") };
        assert!(reason.starts_with(&address) && reason.contains("refused"), "{reason}");
    }
    assert!(handle.state().borrow().attempts >= 3);
}

#[tokio::test]
async fn unix_socket_serves_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xds.sock");
    let plane = ControlPlane::new();
    plane.publish(Scope::Everyone, "a", &cluster("a", "1"));
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(
        Server::builder().add_service(plane.service()).serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let (handle, mut events) =
        AdsClient::spawn(config(Variant::Delta), Connector::new(Target::Unix { path }));
    handle.subscribe_wildcard(CLUSTER);
    assert_eq!(added(&respond(&handle, &mut events, accept).await), ["a"]);
}

/// A control plane behind TLS whose certificate is for `istiod.test`; gives its address and its root.
async fn serve_tls(plane: &ControlPlane) -> (String, String) {
    let own = rcgen::generate_simple_self_signed(vec!["istiod.test".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Server::builder().add_service(plane.service());
    tokio::spawn(server.serve_with_incoming(tls_incoming(listener, tls)));
    (address, own.cert.pem())
}

#[tokio::test]
async fn tls_checks_the_roots_and_the_name_and_reads_them_again() {
    let plane = ControlPlane::new();
    plane.publish(Scope::Everyone, "a", &cluster("a", "1"));
    let (address, root) = serve_tls(&plane).await;
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("root-cert.pem");
    let token = dir.path().join("token");
    let foreign = rcgen::generate_simple_self_signed(vec!["istiod.test".to_owned()]).unwrap();
    std::fs::write(&roots, foreign.cert.pem()).unwrap();
    let target = |name: &str| Target::Tls {
        address: address.clone(),
        server_name: name.to_owned(),
        tls: crate::connector::tls_from_roots_file(roots.clone()),
    };
    let connector = Connector::new(target("istiod.test")).with_token(token_from_file(token.clone()));
    let (handle, mut events) = AdsClient::spawn(config(Variant::Delta), connector);
    handle.subscribe_wildcard(CLUSTER);
    let Some(AdsEvent::Disconnected { reason, .. }) = events.recv().await else { panic!("a disconnect") };
    assert!(
        reason.contains("TLS with istiod.test") && reason.contains("invalid peer certificate"),
        "{reason}"
    );

    // The roots are renewed on disk; next the token is missed.
    std::fs::write(&roots, &root).unwrap();
    loop {
        let Some(AdsEvent::Disconnected { reason, .. }) = events.recv().await else { panic!("a disconnect") };
        if reason.contains("token") {
            assert!(reason.contains("No such file"), "{reason}");
            break;
        }
    }
    std::fs::write(&token, "secret\n").unwrap();
    assert_eq!(added(&respond(&handle, &mut events, accept).await), ["a"]);

    let wrong = Connector::new(target("other.test")).connect().await.unwrap_err().to_string();
    assert!(wrong.contains("not valid for name"), "{wrong}");
    assert!(tls_from_roots(b"none").unwrap_err().contains("no certificate"));
}

#[test]
fn bad_addresses_are_named() {
    for address in ["no-port", "a b:1", ""] {
        let error = Connector::plain(address).connect_lazy().unwrap_err().to_string();
        assert!(error.contains(address) && error.contains("host:port"), "{error}");
    }
}
