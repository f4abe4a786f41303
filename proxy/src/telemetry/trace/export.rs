//! The exporter: collects finished spans of all workers on the control runtime and sends them by OTLP, over gRPC or HTTP,
//! through the proxy's own clusters. Batching follows Envoy: `tracing.opentelemetry.flush_interval_ms` (5000) and
//! `min_flush_spans` (5).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::otlp;
use super::span::Finished;
use crate::config::trace::Provider;
use crate::stats_struct;
use crate::telemetry::stats::Stats;

/// A connection to a cluster's host, TLS done.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Opens a connection to a host of the named cluster.
pub type Connect = Arc<
    dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = std::io::Result<Box<dyn ByteStream>>> + Send>>
        + Send
        + Sync,
>;

/// Batching.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    pub flush_interval: Duration,
    pub min_flush_spans: usize,
    /// Spans that may wait; more are dropped.
    pub max_waiting: usize,
}

impl Default for ExportOptions {
    fn default() -> Self {
        ExportOptions { flush_interval: Duration::from_secs(5), min_flush_spans: 5, max_waiting: 1024 }
    }
}

impl ExportOptions {
    /// The defaults with what the static runtime layers say.
    pub fn from_runtime(runtime: &[(Arc<str>, serde_json::Value)]) -> ExportOptions {
        let number = |key: &str| {
            let found = runtime.iter().find(|(k, _)| **k == *key);
            found.and_then(|(_, v)| v.as_u64().or_else(|| v.as_f64().map(|f| f as u64)))
        };
        let mut options = ExportOptions::default();
        if let Some(ms) = number("tracing.opentelemetry.flush_interval_ms") {
            options.flush_interval = Duration::from_millis(ms.max(1));
        }
        if let Some(n) = number("tracing.opentelemetry.min_flush_spans") {
            options.min_flush_spans = usize::try_from(n).unwrap_or(usize::MAX).max(1);
        }
        options
    }
}

/// Where workers put finished spans. Never waits: a full queue costs the span.
#[derive(Clone, Debug)]
pub struct SpanSender(mpsc::Sender<Finished>);

impl SpanSender {
    pub(super) fn send(&self, span: Finished) {
        // Envoy drops spans over `max_cache_size`, too. The exporter cannot count what it never sees.
        let _ = self.0.try_send(span);
    }
}

stats_struct! {
    /// `tracing.opentelemetry.*`.
    struct ExportStats {
        counter spans_sent,
        counter spans_dropped,
        counter timer_flushed,
    }
}

/// The exporter's end of the queue.
pub struct Exporter {
    spans: mpsc::Receiver<Finished>,
    options: ExportOptions,
    connect: Connect,
    stats: ExportStats,
    connections: HashMap<Arc<str>, Connection>,
}

enum Connection {
    Grpc(http2::SendRequest<Full<Bytes>>),
    Http(http1::SendRequest<Full<Bytes>>),
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("request: {0}")]
    Request(#[from] http::Error),
    #[error("no answer in {0} ms")]
    Timeout(u64),
    #[error("answered {0}")]
    Refused(String),
}

impl Exporter {
    /// An exporter and the sender that workers clone.
    pub fn new(options: ExportOptions, connect: Connect, stats: &Stats) -> (SpanSender, Exporter) {
        let (sender, spans) = mpsc::channel(options.max_waiting.max(1));
        let stats = ExportStats::new(stats, "tracing.opentelemetry.");
        (SpanSender(sender), Exporter { spans, options, connect, stats, connections: HashMap::new() })
    }

    /// Exports until every sender is gone, then sends what is left.
    pub async fn run(mut self) {
        let mut waiting = Vec::new();
        let mut flush_at = Instant::now() + self.options.flush_interval;
        loop {
            tokio::select! {
                span = self.spans.recv() => match span {
                    Some(span) => waiting.push(span),
                    None => break,
                },
                () = sleep_until(flush_at) => {
                    self.stats.timer_flushed.inc();
                    self.export(&mut waiting).await;
                    flush_at = Instant::now() + self.options.flush_interval;
                }
            }
            if waiting.len() >= self.options.min_flush_spans {
                self.export(&mut waiting).await;
            }
        }
        self.export(&mut waiting).await;
    }

    async fn export(&mut self, waiting: &mut Vec<Finished>) {
        for (provider, spans) in otlp::by_provider(std::mem::take(waiting)) {
            let count = spans.len() as u64;
            match self.send(&provider, spans).await {
                Ok(()) => self.stats.spans_sent.add(count),
                Err(error) => {
                    self.stats.spans_dropped.add(count);
                    tracing::warn!(%error, spans = count, "OTLP export failed");
                }
            }
        }
    }

    async fn send(&mut self, provider: &Provider, spans: Vec<Finished>) -> Result<(), ExportError> {
        let Some(cluster) = provider.cluster.clone() else { return Ok(()) };
        let body = otlp::request(provider, spans).encode_to_vec();
        let limit =
            Duration::from_millis(if provider.timeout_ms == 0 { 10_000 } else { provider.timeout_ms });
        let call = self.call(provider, &cluster, body);
        let outcome = timeout(limit, call).await.unwrap_or(Err(ExportError::Timeout(provider.timeout_ms)));
        if outcome.is_err() {
            // The next export starts on a new connection.
            self.connections.remove(&cluster);
        }
        outcome
    }

    async fn call(
        &mut self,
        provider: &Provider,
        cluster: &Arc<str>,
        body: Vec<u8>,
    ) -> Result<(), ExportError> {
        let mut connection = match self.connections.remove(cluster) {
            Some(c) if c.is_open() => c,
            _ => {
                Connection::open((self.connect)(cluster.clone()).await?, provider.http_path.is_some()).await?
            }
        };
        let authority = provider.authority.as_deref().unwrap_or(cluster);
        connection.post(authority, provider.http_path.as_deref(), body).await?;
        self.connections.insert(cluster.clone(), connection);
        Ok(())
    }
}

impl Connection {
    async fn open(io: Box<dyn ByteStream>, http: bool) -> Result<Connection, ExportError> {
        let io = TokioIo::new(io);
        // The driver tasks end with their connection, and that with the sender.
        if http {
            let (sender, driver) = http1::handshake(io).await?;
            tokio::spawn(async move { drop(driver.await) });
            Ok(Connection::Http(sender))
        } else {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(async move { drop(driver.await) });
            Ok(Connection::Grpc(sender))
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Connection::Grpc(s) => !s.is_closed(),
            Connection::Http(s) => !s.is_closed(),
        }
    }

    async fn post(
        &mut self,
        authority: &str,
        path: Option<&str>,
        message: Vec<u8>,
    ) -> Result<(), ExportError> {
        let request = http::Request::post(match (&self, path) {
            (Connection::Grpc(_), _) => {
                format!("http://{authority}/opentelemetry.proto.collector.trace.v1.TraceService/Export")
            }
            (Connection::Http(_), path) => path.unwrap_or("/v1/traces").to_owned(),
        });
        match self {
            Connection::Grpc(sender) => {
                let mut framed = Vec::with_capacity(message.len() + 5);
                framed.push(0);
                framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
                framed.extend_from_slice(&message);
                let request = request
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(Full::new(framed.into()))?;
                sender.ready().await?;
                let response = sender.send_request(request).await?;
                let (head, body) = response.into_parts();
                let collected = body.collect().await?;
                let of = |h: &http::HeaderMap| h.get("grpc-status").map(|v| v.as_bytes().to_vec());
                let status = collected.trailers().and_then(of).or_else(|| of(&head.headers));
                match status.as_deref() {
                    Some(b"0") => Ok(()),
                    Some(s) => {
                        Err(ExportError::Refused(format!("gRPC status {}", String::from_utf8_lossy(s))))
                    }
                    None => Err(ExportError::Refused(format!("HTTP {} without a gRPC status", head.status))),
                }
            }
            Connection::Http(sender) => {
                let request = request
                    .header("host", authority)
                    .header("content-type", "application/x-protobuf")
                    .body(Full::new(message.into()))?;
                sender.ready().await?;
                let response = sender.send_request(request).await?;
                let status = response.status();
                response.into_body().collect().await?;
                if status.is_success() { Ok(()) } else { Err(ExportError::Refused(format!("HTTP {status}"))) }
            }
        }
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").field("options", &self.options).finish_non_exhaustive()
    }
}
