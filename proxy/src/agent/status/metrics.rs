//! Metrics merging: the agent's own, the proxy's, then the application's, on one page. The application's are fetched from
//! where the pod's prometheus.io annotations, which istiod rewrote, said.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

pub(super) const CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Prometheus' own default for a scrape; a header of the scrape may say less.
const TIMEOUT: Duration = Duration::from_secs(10);
const BODY_LIMIT: usize = 64 << 20;

/// ISTIO_PROMETHEUS_ANNOTATIONS.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Scrape {
    #[serde(default)]
    scrape: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    port: String,
}

/// Merges, and counts what could not be had.
#[derive(Debug)]
pub struct Scraper {
    application: Option<String>,
    client: Client<HttpConnector, Empty<Bytes>>,
    scrapes: AtomicU64,
    failures: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Client(#[from] hyper_util::client::legacy::Error),
    #[error("HTTP status {0}")]
    Status(StatusCode),
    #[error("body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl Scrape {
    /// The application's page, if it has one: what istiod writes when the pod's annotations ask for a scrape. The agent's own
    /// port is none, or each scrape would scrape itself.
    fn url(&self, own_port: u16) -> Option<String> {
        let port = if self.port.is_empty() { 80 } else { self.port.parse::<u16>().ok()? };
        let path = if self.path.is_empty() { "metrics" } else { self.path.trim_start_matches('/') };
        (self.scrape == "true" && port != own_port).then(|| format!("http://127.0.0.1:{port}/{path}"))
    }
}

impl Scraper {
    /// `annotations` is the text of ISTIO_PROMETHEUS_ANNOTATIONS, empty if it is not set.
    ///
    /// # Errors
    /// When the text is not what istiod writes.
    pub fn new(annotations: &str, own_port: u16) -> Result<Self, serde_json::Error> {
        let scrape: Scrape = if annotations.trim().is_empty() {
            Scrape::default()
        } else {
            serde_json::from_str(annotations)?
        };
        Ok(Self {
            application: scrape.url(own_port),
            client: Client::builder(TokioExecutor::new()).build_http(),
            scrapes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// The page. A failing application costs its own metrics and nothing else.
    pub(super) async fn merge(&self, agent: &str, proxy: &str, headers: &HeaderMap) -> String {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        let application = match &self.application {
            Some(url) => self.application(url, headers).await.inspect_err(|error| {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%url, %error, "the application's metrics could not be fetched");
            }),
            None => Ok(String::new()),
        };
        let mut page = String::with_capacity(agent.len() + proxy.len() + 2048);
        self.own(&mut page);
        for part in [agent, proxy, application.as_deref().unwrap_or_default()] {
            // OpenMetrics ends with a line that would end the page for a strict reader.
            page.push_str(part.trim_end().trim_end_matches("# EOF").trim_end());
            if !page.ends_with('\n') {
                page.push('\n');
            }
        }
        page
    }

    async fn application(&self, url: &str, headers: &HeaderMap) -> Result<String, ScrapeError> {
        let told = headers
            .get("x-prometheus-scrape-timeout-seconds")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let timeout = told
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(TIMEOUT)
            .min(TIMEOUT);
        let request =
            Request::get(url).header(ACCEPT, CONTENT).header(USER_AGENT, "istio-agent").body(Empty::new())?;
        let fetch = async {
            let response = self.client.request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(ScrapeError::Status(response.status()));
            }
            let body =
                Limited::new(response.into_body(), BODY_LIMIT).collect().await.map_err(ScrapeError::Body)?;
            Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
        };
        tokio::time::timeout(timeout, fetch).await.unwrap_or(Err(ScrapeError::Timeout(timeout)))
    }

    /// Names and help as Istio's agent has them.
    fn own(&self, page: &mut String) {
        let counters = [
            ("istio_agent_scrapes_total", "The total number of scrapes.", &self.scrapes, ""),
            (
                "istio_agent_scrape_failures_total",
                "The total number of failed scrapes.",
                &self.failures,
                "{type=\"application\"}",
            ),
        ];
        for (name, help, counter, labels) in counters {
            let count = counter.load(Ordering::Relaxed);
            // Writing to a String cannot fail.
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} counter\n{name}{labels} {count}");
        }
        for (name, kind, value) in process() {
            let _ = writeln!(
                page,
                "# TYPE istio_agent_process_{name} {kind}\nistio_agent_process_{name} {value}"
            );
        }
    }
}

/// This process, by proc(5); what cannot be read is left out.
fn process() -> Vec<(&'static str, &'static str, u64)> {
    let mut values = Vec::new();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split(' ').map_while(|word| word.parse::<u64>().ok());
    // Pages of 4 KiB: x86-64 and, as Linux distributions build it for servers, arm64.
    if let (Some(virtual_pages), Some(resident_pages)) = (pages.next(), pages.next()) {
        values.push(("virtual_memory_bytes", "gauge", virtual_pages * 4096));
        values.push(("resident_memory_bytes", "gauge", resident_pages * 4096));
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        values.push(("open_fds", "gauge", descriptors.count() as u64));
    }
    values
}
