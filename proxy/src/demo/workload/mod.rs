//! A workload with podinfo's API: what the demo and the mesh suites put behind a sidecar. HTTP/1.1 and cleartext
//! HTTP/2 on one port, ready in milliseconds. Beyond podinfo it can fail on purpose (`/faults`) and drive load (`/load`).
//!
//! The way of a request: `serve` accepts it, `routes` finds the handler, `state` decides whether it has to fail, `metrics`
//! counts it; `echo` calls the backends.

use std::io;

use tokio::net::TcpListener;

mod echo;
mod load;
mod metrics;
mod options;
mod routes;
mod serve;
mod state;
#[cfg(test)]
mod tests;

pub use options::WorkloadOptions;

/// Why a workload could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("workload: cannot listen on port {port}: {source}")]
    Listen { port: u16, source: io::Error },
    #[error("workload: --fail-sequence {0}: expected FAIL/OF[:STATUS], for example 1/3:503")]
    FailSequence(String),
    #[error("workload: metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// `GET /panic` was called: the process is meant to end with an error, as podinfo's does.
    #[error("workload: ended by a request for /panic")]
    PanicRequested,
    #[error("workload: signal handler: {0}")]
    Signal(io::Error),
}

/// Listens on every address of the port and serves until SIGTERM or SIGINT; requests under way are answered first.
///
/// # Errors
/// When the port is taken, an option is malformed, or `/panic` was called.
pub async fn run(options: WorkloadOptions) -> Result<(), WorkloadError> {
    let port = options.port;
    // Where IPv6 is off, `[::]` does not exist.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port))
            .await
            .map_err(|source| WorkloadError::Listen { port, source })?,
    };
    let stop = serve::signals().map_err(WorkloadError::Signal)?;
    serve::serve(listener, options, stop).await
}

/// Serves on a listener that the caller made, until the future is dropped (which cuts what is open) or `/panic` is called.
///
/// # Errors
/// When an option is malformed or `/panic` was called.
pub async fn serve_on(listener: TcpListener, options: WorkloadOptions) -> Result<(), WorkloadError> {
    serve::serve(listener, options, std::future::pending()).await
}
