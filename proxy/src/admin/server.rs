//! The admin server: HTTP/1.1 on the admin address, one page a request.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};

use super::{AdminState, request_log, routes};
use crate::config::address::Address;

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot bind admin address {address}: {source}")]
    Bind { address: String, source: std::io::Error },
    #[error("admin address {0} is neither an IP address nor a path")]
    Address(String),
}

/// A bound admin address.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The address in the form of `--admin-address-path`.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(l) => l.local_addr().map(|a| a.to_string()).unwrap_or_default(),
            Listener::Unix(l) => {
                let path = l.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.display().to_string()));
                path.unwrap_or_default()
            }
        }
    }
}

/// Binds the admin address.
///
/// # Errors
/// When it cannot be bound.
pub async fn bind(address: &Address) -> Result<Listener, AdminError> {
    let failed = |source| AdminError::Bind { address: address.to_string(), source };
    match address {
        Address::Socket(a) => Ok(Listener::Tcp(TcpListener::bind(a).await.map_err(failed)?)),
        Address::Pipe(path) => {
            // A socket of an earlier run would be in the way; what is no socket stays and fails the bind.
            if std::os::unix::net::UnixStream::connect(&**path)
                .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            {
                let _ = std::fs::remove_file(&**path);
            }
            Ok(Listener::Unix(UnixListener::bind(&**path).map_err(failed)?))
        }
        Address::Name(..) | Address::Internal(_) => Err(AdminError::Address(address.to_string())),
    }
}

/// Serves for ever. Connections are tasks of the runtime it is called on.
pub async fn serve(listener: Listener, state: Arc<AdminState>) {
    loop {
        let accepted = match &listener {
            Listener::Tcp(l) => l.accept().await.map(|(io, peer)| {
                let local = io.local_addr().unwrap_or(peer);
                // Small answers should not wait for an acknowledgement; where it cannot be set they do.
                let _ = io.set_nodelay(true);
                connection(io, Some((peer, local)), &state);
            }),
            Listener::Unix(l) => l.accept().await.map(|(io, _)| connection(io, None, &state)),
        };
        if let Err(error) = accepted {
            // Out of file descriptors, most likely: wait for some to come back.
            tracing::warn!(%error, "admin accept");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

fn connection<S>(io: S, peers: Option<request_log::Peers>, state: &Arc<AdminState>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let state = state.clone();
    tokio::spawn(async move {
        let service = service_fn(|request| answer(request, peers, &state));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(io), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "admin connection");
        }
    });
}

async fn answer(
    request: Request<Incoming>,
    peers: Option<request_log::Peers>,
    state: &Arc<AdminState>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let started = request_log::Started::now();
    let (head, body) = request.into_parts();
    // Bodies mean nothing here; reading them keeps the connection usable.
    let received = body.collect().await.map_or(0, |b| b.to_bytes().len());
    let target = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let page = routes::dispatch(state, head.method.as_str(), target);
    request_log::write(state, &head, peers, &started, received, &page);
    let response = Response::builder()
        .status(page.status)
        .header("content-type", page.content_type)
        .header("cache-control", "no-cache, max-age=0")
        .header("x-content-type-options", "nosniff")
        .header("server", "envoy")
        .body(Full::new(Bytes::from(page.body)));
    // Status and headers are constants, each valid.
    Ok(response.unwrap_or_default())
}
