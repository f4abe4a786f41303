//! The demo's load: requests through both sidecars over kept-alive connections, counted by what answered.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) total: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) canary: u64,
    pub(super) elapsed: Duration,
    /// Microseconds; sorted by `percentile`.
    latencies: Vec<u32>,
    pub(super) first_failure: Option<String>,
}

impl Progress {
    /// A latency percentile in milliseconds.
    pub(super) fn percentile(&self, p: f64) -> f64 {
        let mut all = self.latencies.clone();
        if all.is_empty() {
            return 0.0;
        }
        let at = ((all.len() - 1) as f64 * p / 100.0) as usize;
        let (_, v, _) = all.select_nth_unstable(at);
        f64::from(*v) / 1000.0
    }
}

/// Requests under way.
pub(super) struct Run {
    shared: Arc<Mutex<Progress>>,
    start: Instant,
    running: watch::Receiver<usize>,
}

impl Run {
    /// Sends `total` requests over `concurrency` connections.
    pub(super) fn start(to: SocketAddr, total: u64, concurrency: usize) -> Run {
        let shared = Arc::new(Mutex::new(Progress { total, ..Progress::default() }));
        let concurrency = concurrency.clamp(1, 1024);
        let (alive, running) = watch::channel(concurrency);
        let alive = Arc::new(alive);
        for i in 0..concurrency as u64 {
            let share = total / concurrency as u64 + u64::from(i < total % concurrency as u64);
            let (shared, alive) = (shared.clone(), alive.clone());
            tokio::spawn(async move {
                let mut connection = None;
                for _ in 0..share {
                    let begun = Instant::now();
                    let answer = one(&mut connection, to, "/version").await;
                    let mut p = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    p.done += 1;
                    p.latencies.push(begun.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
                    match answer {
                        Ok(body) if body.contains("\"v2\"") => p.canary += 1,
                        Ok(_) => {}
                        Err(e) => {
                            p.failed += 1;
                            p.first_failure.get_or_insert(e);
                        }
                    }
                }
                alive.send_modify(|n| *n -= 1);
            });
        }
        Run { shared, start: Instant::now(), running }
    }

    /// What has happened so far.
    pub(super) fn progress(&self) -> Progress {
        let mut p = self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        p.elapsed = self.start.elapsed();
        p
    }

    /// Resolves once all requests are through.
    pub(super) async fn finished(&self) {
        let _ = self.running.clone().wait_for(|n| *n == 0).await;
    }
}

type Sender = SendRequest<Empty<Bytes>>;

async fn one(connection: &mut Option<Sender>, to: SocketAddr, path: &str) -> Result<String, String> {
    let mut sender = match connection.take() {
        Some(s) if !s.is_closed() => s,
        _ => connect(to).await?,
    };
    let request = Request::get(path)
        .header("host", "podinfo.demo:9898")
        .body(Empty::new())
        .map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    *connection = Some(sender);
    if status == StatusCode::OK { Ok(body) } else { Err(format!("{status}: {body}")) }
}

async fn connect(to: SocketAddr) -> Result<Sender, String> {
    let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One request; the body of a 200.
pub(super) async fn get(to: SocketAddr, path: &str) -> Result<String, String> {
    one(&mut None, to, path).await
}

/// Who is at the two ends of the mutual TLS, as the server's sidecar tells its application.
pub(super) struct Identities {
    pub(super) client: String,
    pub(super) server: String,
}

/// Reads `x-forwarded-client-cert` as the workload received it.
pub(super) async fn identities(to: SocketAddr) -> Result<Identities, String> {
    let headers = get(to, "/headers").await?;
    let field = |key: &str| {
        let at = headers.find(key).map(|i| i + key.len())?;
        let rest = &headers[at..];
        Some(rest[..rest.find([';', '"', ',', '\\']).unwrap_or(rest.len())].to_owned())
    };
    match (field("URI="), field("By=")) {
        (Some(client), Some(server)) => Ok(Identities { client, server }),
        _ => Err(format!("no x-forwarded-client-cert among the request's headers: {headers}")),
    }
}
