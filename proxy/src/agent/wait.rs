//! `wait`: returns once the proxy is ready; a postStart hook of those who hold the application back until then.

use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Istio's names, units and defaults.
#[derive(Debug, Clone, clap::Args)]
pub struct WaitOptions {
    #[arg(long, default_value = "http://localhost:15021/healthz/ready")]
    pub url: Uri,
    /// How long to wait in all, in seconds.
    #[arg(long = "timeoutSeconds", default_value_t = 60)]
    pub timeout_seconds: u64,
    /// Pause between two attempts.
    #[arg(long = "periodMillis", default_value_t = 500)]
    pub period_millis: u64,
    /// How long one attempt may take.
    #[arg(long = "requestTimeoutMillis", default_value_t = 500)]
    pub request_timeout_millis: u64,
}

/// The proxy did not become ready.
#[derive(Debug, thiserror::Error)]
#[error("timeout waiting for the proxy to become ready. Last error: {last}")]
pub struct WaitError {
    last: String,
}

/// Asks until the answer is 200.
///
/// # Errors
/// When the time is over, with what was wrong last.
pub async fn run(options: &WaitOptions) -> Result<(), WaitError> {
    let client: Client<_, http_body_util::Empty<bytes::Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let end = tokio::time::Instant::now() + Duration::from_secs(options.timeout_seconds);
    let attempt = Duration::from_millis(options.request_timeout_millis);
    let mut last = "no attempt was made".to_owned();
    while tokio::time::Instant::now() < end {
        match tokio::time::timeout(attempt, client.get(options.url.clone())).await {
            Ok(Ok(response)) if response.status() == http::StatusCode::OK => return Ok(()),
            Ok(Ok(response)) => last = format!("{}: HTTP status {}", options.url, response.status().as_u16()),
            Ok(Err(error)) => last = format!("{}: {error}", options.url),
            Err(_) => last = format!("{}: no answer within {} ms", options.url, attempt.as_millis()),
        }
        tokio::time::sleep(Duration::from_millis(options.period_millis)).await;
    }
    Err(WaitError { last })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::{WaitOptions, run};
    use crate::agent::request::ask;
    use crate::demo::workload::{WorkloadOptions, serve_on};

    fn options(url: &str, timeout_seconds: u64) -> WaitOptions {
        WaitOptions {
            url: url.parse().unwrap(),
            timeout_seconds,
            period_millis: 20,
            request_timeout_millis: 500,
        }
    }

    #[tokio::test]
    async fn waits_until_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve_on(listener, WorkloadOptions { unready: true, ..WorkloadOptions::default() }));
        let waiting =
            tokio::spawn(async move { run(&options(&format!("http://127.0.0.1:{port}/readyz"), 30)).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        ask(port, &http::Method::POST, "readyz/enable", "").await.unwrap();
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn gives_up_with_the_last_reason() {
        let error = run(&options("http://127.0.0.1:1/", 0)).await.unwrap_err();
        assert!(error.to_string().contains("no attempt"), "{error}");
        let error = run(&options("http://127.0.0.1:1/", 1)).await.unwrap_err();
        assert!(error.to_string().contains("http://127.0.0.1:1/"), "{error}");
    }
}
