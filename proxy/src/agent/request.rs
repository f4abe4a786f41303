//! `request`: one HTTP request to the proxy's own pages, from inside the container that has no curl.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The pages of the proxy and the agent; Istio's command refuses every other port as well.
const PORTS: [u16; 4] = [15000, 15004, 15020, 15021];
const TIMEOUT: Duration = Duration::from_secs(60);

/// `request [--debug-port PORT] METHOD PATH [BODY]`
#[derive(Debug, Clone, clap::Args)]
pub struct RequestOptions {
    /// Port of this pod to ask.
    #[arg(long, default_value_t = 15000)]
    pub debug_port: u16,
    pub method: Method,
    /// Path and query, with or without a leading slash.
    pub path: String,
    #[arg(default_value = "")]
    pub body: String,
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("debug port {0} is not in allowed list [15000 15004 15020 15021]")]
    Port(u16),
    #[error("path {path:?}: {source}")]
    Path { path: String, source: http::Error },
    #[error("port {port}: {source}")]
    Connect { port: u16, source: io::Error },
    #[error("port {port}: {source}")]
    Http { port: u16, source: hyper::Error },
    #[error("port {0}: no answer in time")]
    Timeout(u16),
    #[error("received unsuccessful status code {status}: {body}")]
    Status { status: StatusCode, body: String },
    #[error("cannot write the answer: {0}")]
    Output(io::Error),
}

/// Asks, and writes the answer's body to `out`.
///
/// # Errors
/// When nothing answers, or the answer is not a success.
pub async fn run(options: &RequestOptions, out: &mut impl Write) -> Result<(), RequestError> {
    if !PORTS.contains(&options.debug_port) {
        return Err(RequestError::Port(options.debug_port));
    }
    let asked =
        tokio::time::timeout(TIMEOUT, ask(options.debug_port, &options.method, &options.path, &options.body));
    let (status, body) = asked.await.map_err(|_| RequestError::Timeout(options.debug_port))??;
    if !status.is_success() {
        return Err(RequestError::Status { status, body: String::from_utf8_lossy(&body).into_owned() });
    }
    out.write_all(&body).and_then(|()| out.flush()).map_err(RequestError::Output)
}

/// One request on a connection of its own.
pub(super) async fn ask(
    port: u16,
    method: &Method,
    path: &str,
    body: &str,
) -> Result<(StatusCode, Bytes), RequestError> {
    let failed = |source| RequestError::Http { port, source };
    let request = Request::builder()
        .method(method)
        .uri(format!("/{}", path.trim_start_matches('/')))
        .header(http::header::HOST, format!("localhost:{port}"))
        .header(http::header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body.to_owned())))
        .map_err(|source| RequestError::Path { path: path.to_owned(), source })?;
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .map_err(|source| RequestError::Connect { port, source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Its error reaches the request.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    Ok((status, response.into_body().collect().await.map_err(failed)?.to_bytes()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::{Method, RequestError, RequestOptions, ask, run};
    use crate::demo::workload::{WorkloadOptions, serve_on};

    #[tokio::test]
    async fn path_is_asked_for_with_or_without_its_slash() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve_on(listener, WorkloadOptions::default()));
        for path in ["healthz", "/healthz", "/healthz?x=1"] {
            let (status, body) = ask(port, &Method::GET, path, "").await.unwrap();
            assert_eq!((status.as_u16(), &body[..]), (200, &br#"{"status":"OK"}"#[..]), "{path}");
        }
        let (status, body) = ask(port, &Method::POST, "echo", "hello").await.unwrap();
        assert_eq!((status.as_u16(), &body[..]), (202, &b"hello"[..]));
    }

    #[tokio::test]
    async fn other_ports_are_refused() {
        let options =
            RequestOptions { debug_port: 9898, method: Method::GET, path: "/".into(), body: String::new() };
        assert!(matches!(run(&options, &mut Vec::new()).await, Err(RequestError::Port(9898))));
    }
}
