//! The page against a workload that stands for the application.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use http::Method;
use tokio::net::TcpListener;

use super::{Probers, Proxy, Scraper, Status};
use crate::agent::request::ask;
use crate::demo::workload::{WorkloadOptions, serve_on};

#[derive(Default)]
struct Fake {
    ready: AtomicBool,
    told: Mutex<Vec<&'static str>>,
}

impl Proxy for Fake {
    fn ready(&self) -> Result<(), String> {
        if self.ready.load(Ordering::Relaxed) { Ok(()) } else { Err("listeners: not yet".into()) }
    }
    fn metrics(&self) -> String {
        "# TYPE envoy_server_live gauge\nenvoy_server_live 1\n# EOF\n".into()
    }
    fn agent_metrics(&self) -> String {
        "istio_agent_cert_expiry_seconds{resource_name=\"default\"} 5".into()
    }
    fn drain(&self) {
        self.told.lock().unwrap().push("drain");
    }
    fn quit(&self) {
        self.told.lock().unwrap().push("quit");
    }
    fn name_table(&self) -> Option<String> {
        None
    }
}

async fn workload() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve_on(listener, WorkloadOptions::default()));
    port
}

/// The page, and the fake behind it.
async fn page(probers: &str, annotations: &str) -> (u16, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let proxy: Arc<dyn Proxy> = Arc::<Fake>::clone(&fake);
    let probers = Probers::parse(probers, Some(Ipv4Addr::LOCALHOST.into())).unwrap();
    let status = Arc::new(Status::new(proxy, probers, Scraper::new(annotations, 15020).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(status.serve(listener));
    (port, fake)
}

async fn get(port: u16, path: &str) -> (u16, String) {
    let (status, body) = ask(port, &Method::GET, path, "").await.unwrap();
    (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let (port, fake) = page("", "").await;
    assert_eq!(get(port, "/healthz/ready").await, (503, "listeners: not yet".into()));
    fake.ready.store(true, Ordering::Relaxed);
    assert_eq!(get(port, "/healthz/ready").await, (200, String::new()));
    assert_eq!(get(port, "/debug/ndsz").await, (404, "{}".into()));
    assert_eq!(get(port, "/nothing").await.0, 404);
}

#[tokio::test]
async fn probes_reach_the_application_and_carry_its_status() {
    let app = workload().await;
    let probers = format!(
        r#"{{"/app-health/web/readyz":{{"httpGet":{{"path":"/readyz","port":{app},"scheme":"HTTP"}},"timeoutSeconds":1}},
            "/app-health/web/livez":{{"httpGet":{{"path":"status/418","port":{app},"httpHeaders":[{{"name":"X-A","value":"b"}}]}}}},
            "/app-health/slow/livez":{{"httpGet":{{"path":"/delay/5","port":{app}}},"timeoutSeconds":1}},
            "/app-health/tcp/livez":{{"tcpSocket":{{"port":{app}}}}},
            "/app-health/tls/livez":{{"httpGet":{{"path":"/","port":{app},"scheme":"HTTPS"}}}},
            "/app-health/grpc/livez":{{"grpc":{{"port":{app},"service":null}}}},
            "/app-health/gone/livez":{{"tcpSocket":{{"port":1}}}}}}"#
    );
    let (port, _) = page(&probers, "").await;
    assert_eq!(get(port, "/app-health/web/readyz").await, (200, r#"{"status":"OK"}"#.into()));
    ask(app, &Method::POST, "readyz/disable", "").await.unwrap();
    assert_eq!(get(port, "/app-health/web/readyz").await.0, 503);
    assert_eq!(get(port, "/app-health/web/livez").await.0, 418);
    assert_eq!(get(port, "/app-health/tcp/livez").await.0, 200);
    for (path, reason) in [("slow", "no answer"), ("gone", "127.0.0.1:1"), ("tls", "TLS"), ("grpc", "gRPC")] {
        let (status, body) = get(port, &format!("/app-health/{path}/livez")).await;
        assert!(status == 500 && body.contains(reason), "{path}: {status} {body}");
    }
    assert_eq!(get(port, "/app-health/other/readyz").await.0, 404);
}

#[tokio::test]
async fn metrics_of_agent_proxy_and_application_are_one_page() {
    let app = workload().await;
    get(app, "/version").await;
    let (port, _) = page("", &format!(r#"{{"scrape":"true","path":"/metrics","port":"{app}"}}"#)).await;
    let (status, text) = get(port, "/stats/prometheus").await;
    assert_eq!(status, 200);
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
    assert!(at("istio_agent_cert_expiry_seconds") < at("envoy_server_live 1\n"), "{text}");
    assert!(at("envoy_server_live 1\n") < at("http_requests_total{"), "{text}");
    assert!(!text.contains("# EOF") && text.ends_with('\n'), "{text}");
    assert!(text.contains("istio_agent_scrapes_total 1"), "{text}");
}

#[tokio::test]
async fn failing_application_costs_only_its_own_metrics() {
    let (port, _) = page("", r#"{"scrape":"true","path":"/metrics","port":"1"}"#).await;
    get(port, "/stats/prometheus").await;
    let (status, text) = get(port, "/stats/prometheus").await;
    assert_eq!(status, 200);
    assert!(text.contains("envoy_server_live 1"), "{text}");
    assert!(text.contains("istio_agent_scrape_failures_total{type=\"application\"} 2"), "{text}");
}

#[tokio::test]
async fn drain_and_quit_are_posts_from_this_pod() {
    let (port, fake) = page("", "").await;
    assert_eq!(get(port, "/drain").await.0, 405);
    for path in ["/drain", "/quitquitquit"] {
        let (status, body) = ask(port, &Method::POST, path, "").await.unwrap();
        assert_eq!((status.as_u16(), &body[..]), (200, &b"OK"[..]));
    }
    assert_eq!(*fake.told.lock().unwrap(), ["drain", "quit"]);

    let other: SocketAddr = "10.1.2.3:4".parse().unwrap();
    let proxy: Arc<dyn Proxy> = Arc::<Fake>::clone(&fake);
    let status = Status::new(proxy, Probers::default(), Scraper::new("", 15020).unwrap());
    assert_eq!(status.command("/quitquitquit", other, &Method::POST).status(), 403);
    assert_eq!(fake.told.lock().unwrap().len(), 2);
}

#[test]
fn malformed_variables_are_named() {
    assert!(Probers::parse("{", None).unwrap_err().to_string().starts_with("ISTIO_KUBE_APP_PROBERS: "));
    assert!(Scraper::new("{", 15020).is_err());
}
