//! The workload over real sockets, as a sidecar would call it.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::state::{Faults, State};
use super::{WorkloadError, WorkloadOptions, serve, serve_on};

async fn start(options: WorkloadOptions) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_on(listener, options));
    address
}

fn options() -> WorkloadOptions {
    WorkloadOptions { hostname: Some("pod-1".into()), version: "canary".into(), ..WorkloadOptions::default() }
}

async fn ask(
    http2: bool,
    method: Method,
    url: &str,
    body: &str,
    header: (&str, &str),
) -> (StatusCode, String) {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
    let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    let body = Full::new(Bytes::from(body.to_owned()));
    let request = Request::builder()
        .method(method)
        .uri(url)
        .version(version)
        .header(header.0, header.1)
        .body(body)
        .unwrap();
    let response = client.request(request).await.unwrap();
    let status = response.status();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

async fn get(address: SocketAddr, path: &str) -> (u16, Value) {
    let (status, body) =
        ask(false, Method::GET, &format!("http://{address}{path}"), "", ("x-none", "1")).await;
    (status.as_u16(), serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

async fn post(address: SocketAddr, path: &str, body: &str) -> (u16, String) {
    let (status, body) =
        ask(false, Method::POST, &format!("http://{address}{path}"), body, ("x-none", "1")).await;
    (status.as_u16(), body)
}

#[tokio::test]
async fn serves_http1_and_http2_on_one_port() {
    let address = start(options()).await;
    for http2 in [false, true] {
        let (status, body) =
            ask(http2, Method::GET, &format!("http://{address}/"), "", ("x-none", "1")).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (status.as_u16(), &body["version"], &body["hostname"]),
            (200, &json!("canary"), &json!("pod-1"))
        );
    }
}

#[tokio::test]
async fn podinfo_routes_answer_with_podinfo_statuses() {
    let address = start(options()).await;
    assert_eq!(get(address, "/version").await.1["version"], "canary");
    assert_eq!(get(address, "/healthz").await, (200, json!({"status": "OK"})));
    assert_eq!(get(address, "/status/418").await, (418, json!({"status": 418})));
    assert_eq!(get(address, "/status/101").await.0, 400);
    assert_eq!(get(address, "/delay/0.01").await, (200, json!({"delay": 0.01})));
    assert_eq!(get(address, "/delay/-1").await.0, 400);
    assert_eq!(get(address, "/chunked/0").await, (200, json!({"delay": 0.0})));
    assert_eq!(get(address, "/nothing").await.0, 404);
    assert_eq!(get(address, "/echo").await.0, 405);
    assert_eq!(post(address, "/echo", "hello").await, (202, "hello".into()));
    assert_eq!(get(address, "/headers").await.1["x-none"], json!(["1"]));
}

#[tokio::test]
async fn readiness_is_switched_off_and_on() {
    let address = start(options()).await;
    assert_eq!(post(address, "/readyz/disable", "").await.0, 202);
    assert_eq!(get(address, "/readyz").await.0, 503);
    assert_eq!(post(address, "/readyz/enable", "").await.0, 202);
    assert_eq!(get(address, "/readyz").await.0, 200);
}

#[tokio::test]
async fn cache_keeps_and_forgets() {
    let address = start(options()).await;
    assert_eq!(get(address, "/cache/a").await.0, 404);
    assert_eq!(post(address, "/cache/a", "1").await.0, 202);
    assert_eq!(get(address, "/cache/a").await, (200, json!(1)));
}

#[tokio::test]
async fn echo_forwards_to_backends_with_the_trace_context() {
    let end = start(options()).await;
    let middle =
        start(WorkloadOptions { backend_url: vec![format!("http://{end}/echo")], ..options() }).await;
    assert_eq!(post(middle, "/echo", "ping").await, (202, json!(["ping"]).to_string()));

    let shows =
        start(WorkloadOptions { backend_url: vec![format!("http://{end}/headers")], ..options() }).await;
    let parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let (_, body) = ask(false, Method::POST, &format!("http://{shows}/echo"), "", parent).await;
    assert!(body.contains("0af7651916cd43dd8448eb211c80319c"), "{body}");

    let lost = start(WorkloadOptions { backend_url: vec!["http://127.0.0.1:1/".into()], ..options() }).await;
    assert_eq!(post(lost, "/echo", "ping").await.0, 502);
}

#[tokio::test]
async fn failing_sequence_fails_the_first_of_each_group_and_spares_probes() {
    let address = start(WorkloadOptions { fail_sequence: Some("1/3:500".into()), ..options() }).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        assert_eq!(get(address, "/healthz").await.0, 200);
        statuses.push(get(address, "/").await.0);
    }
    assert_eq!(statuses, [500, 200, 200, 500, 200, 200]);
    assert_eq!(post(address, "/faults?status=429", "").await.0, 200);
    assert_eq!(get(address, "/").await.0, 429);
    assert_eq!(post(address, "/faults?status=abc", "").await.0, 400);
    ask(false, Method::DELETE, &format!("http://{address}/faults"), "", ("x-none", "1")).await;
    assert_eq!(get(address, "/").await.0, 200);
}

#[test]
fn fail_sequence_names_what_it_does_not_understand() {
    for text in ["", "1", "1/0", "a/2", "1/2:99", "1/2:x"] {
        assert!(
            matches!(Faults::parse(text), Err(WorkloadError::FailSequence(shown)) if shown == text),
            "{text}"
        );
    }
    assert_eq!(Faults::parse("2/5").unwrap(), Faults { fail: 2, of: 5, status: 503, delay_ms: 0 });
}

#[test]
fn random_errors_are_about_a_third() {
    let state = State::new(WorkloadOptions { random_error: true, ..options() }).unwrap();
    let failed = (0..3000).filter(|_| state.judge().status.is_some()).count();
    assert!((800..1200).contains(&failed), "{failed}");
}

#[tokio::test]
async fn metrics_count_by_status_and_by_pattern() {
    let address = start(options()).await;
    get(address, "/status/503").await;
    get(address, "/status/503?x=1").await;
    let Value::String(text) = get(address, "/metrics").await.1 else { panic!("not text") };
    assert!(text.contains("http_requests_total{app_version=\"canary\",status=\"503\"} 2"), "{text}");
    let count =
        "http_request_duration_seconds_count{method=\"GET\",path=\"/status/{code}\",status=\"503\"} 2";
    assert!(text.contains(count), "{text}");
}

#[tokio::test]
async fn load_counts_versions_statuses_and_connections() {
    let address = start(options()).await;
    let load = start(WorkloadOptions { version: "v1".into(), ..options() }).await;
    let (status, report) =
        get(load, &format!("/load?url=http://{address}/&connections=4&requests=200&header=x-a:b")).await;
    assert_eq!((status, &report["requests"], &report["connects"]), (200, &json!(200), &json!(4)), "{report}");
    assert_eq!((&report["versions"]["canary"], &report["statuses"]["200"]), (&json!(200), &json!(200)));
    assert_eq!(report["errors"], json!({}));

    let report = get(load, "/load?url=http://127.0.0.1:1/&requests=2").await.1;
    assert_eq!(report["requests"], 0);
    assert!(report["errors"].to_string().contains("connect: "), "{report}");
    for wrong in ["", "?url=https://a/", "?url=http://a/&connections=0", "?url=http://a/&bogus=1"] {
        assert_eq!(get(load, &format!("/load{wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn panic_ends_the_workload_with_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workload = tokio::spawn(serve_on(listener, options()));
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    // The answer may or may not make it out.
    let _ = client.get(format!("http://{address}/panic").parse().unwrap()).await;
    assert!(matches!(workload.await.unwrap(), Err(WorkloadError::PanicRequested)));
}

#[tokio::test]
async fn stopping_lets_open_requests_finish() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let ended = async move { stopped.await.unwrap() };
    let workload = tokio::spawn(serve::serve(listener, options(), ended));
    let slow = tokio::spawn(async move { get(address, "/delay/0.3").await.0 });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    stop.send(()).unwrap();
    assert_eq!(slow.await.unwrap(), 200);
    workload.await.unwrap().unwrap();
}
