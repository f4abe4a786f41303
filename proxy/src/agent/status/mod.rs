//! The agent's page on 15020: readiness, the application's probes, merged metrics, drain and quit. Follows Istio's health
//! checking ("probe rewrite") and "metrics merging" pages.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

mod metrics;
mod probe;
#[cfg(test)]
mod tests;
mod tls;

pub use metrics::{Scrape, Scraper};
pub use probe::{ProbeError, Probers};

/// What the page asks of the proxy that it stands for.
pub trait Proxy: Send + Sync + 'static {
    /// `Err` with the reason while the proxy must not be sent traffic.
    ///
    /// # Errors
    /// What is missing, for people.
    fn ready(&self) -> Result<(), String>;
    /// Envoy's and Istio's metrics in Prometheus' text format: what 15090 serves.
    fn metrics(&self) -> String;
    /// The agent's own, `istio_agent_*`, in the same format.
    fn agent_metrics(&self) -> String;
    /// Ask clients to go elsewhere from now on.
    fn drain(&self);
    /// End the process after the drain.
    fn quit(&self);
    /// The DNS proxy's table as JSON; none if DNS is not captured.
    fn name_table(&self) -> Option<String>;
}

/// The page and what it needs.
pub struct Status {
    proxy: Arc<dyn Proxy>,
    probers: Probers,
    scraper: Scraper,
}

type Answer = Response<Full<Bytes>>;

impl Status {
    #[must_use]
    pub fn new(proxy: Arc<dyn Proxy>, probers: Probers, scraper: Scraper) -> Self {
        Self { proxy, probers, scraper }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                // Out of descriptors, most likely: a pause instead of a spin.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            let status = Arc::clone(&self);
            let service = service_fn(move |request| {
                let status = Arc::clone(&status);
                async move { Ok::<_, Infallible>(status.answer(peer, request).await) }
            });
            tokio::spawn(async move {
                // A probe's connection that breaks is its sender's concern.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/healthz/ready" => match self.proxy.ready() {
                Ok(()) => text(StatusCode::OK, ""),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/stats/prometheus" | "/metrics" => {
                let merged = self
                    .scraper
                    .merge(&self.proxy.agent_metrics(), &self.proxy.metrics(), request.headers())
                    .await;
                let mut answer = text(StatusCode::OK, merged);
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT));
                answer
            }
            "/quitquitquit" | "/drain" => self.command(&path, peer, request.method()),
            "/debug/ndsz" => match self.proxy.name_table() {
                Some(table) => {
                    let mut answer = text(StatusCode::OK, table);
                    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                    answer
                }
                None => text(StatusCode::NOT_FOUND, "{}"),
            },
            path if path.starts_with("/app-health/") => self.probers.relay(path, request.headers()).await,
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    /// Only what runs in the pod may end or drain its proxy.
    fn command(&self, path: &str, peer: SocketAddr, method: &Method) -> Answer {
        if !peer.ip().to_canonical().is_loopback() {
            return text(StatusCode::FORBIDDEN, "Only requests from localhost are allowed\n");
        }
        if method != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        }
        if path == "/drain" {
            self.proxy.drain();
        } else {
            self.proxy.quit();
        }
        text(StatusCode::OK, "OK")
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
