//! `/echo`: gives the body back, or passes it on to the backends with the caller's trace context, as an application in a
//! mesh has to for its spans to join into one trace.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// A body larger than this, in either direction, is refused.
pub(super) const BODY_LIMIT: usize = 4 << 20;

/// Headers that carry a trace or a request's identity, of every tracer Istio supports.
const PROPAGATED: [&str; 14] = [
    "x-request-id",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-canary",
];

pub(super) struct Backends {
    urls: Vec<String>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Backends {
    pub(super) fn new(urls: Vec<String>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { urls, client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.urls.is_empty()
    }

    /// Posts the body to each backend in turn. The status is 202 if all answered below 400, else the first that did not, or
    /// 502 for one that could not be reached.
    pub(super) async fn call(&self, headers: &HeaderMap, body: Bytes) -> (StatusCode, Vec<String>) {
        let mut status = StatusCode::ACCEPTED;
        let mut answers = Vec::with_capacity(self.urls.len());
        for url in &self.urls {
            let (answered, text) = match self.post(url, headers, body.clone()).await {
                Ok(answer) => answer,
                Err(error) => (StatusCode::BAD_GATEWAY, format!("{url}: {error}")),
            };
            if status == StatusCode::ACCEPTED && answered.as_u16() >= 400 {
                status = answered;
            }
            answers.push(text);
        }
        (status, answers)
    }

    async fn post(
        &self,
        url: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(StatusCode, String), CallError> {
        let mut request = Request::builder().method(Method::POST).uri(url).body(Full::new(body))?;
        for name in PROPAGATED {
            if let Some(value) = headers.get(name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        if let Some(kind) = headers.get(header::CONTENT_TYPE) {
            request.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
        }
        let response = self.client.request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(CallError::Body)?
            .to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("malformed request: {0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Client(#[from] hyper_util::client::legacy::Error),
    #[error("body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}
