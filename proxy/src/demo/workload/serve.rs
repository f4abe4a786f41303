//! Accepting and serving: HTTP/1.1 and HTTP/2 on one port, and an end that lets open requests finish.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::routes;
use super::state::State;
use super::{WorkloadError, WorkloadOptions};

/// Pause after an accept that failed for want of descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Resolves at the first SIGTERM or SIGINT. The handlers stand when this returns.
pub(super) fn signals() -> io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

pub(super) async fn serve(
    listener: TcpListener,
    options: WorkloadOptions,
    stop: impl Future<Output = ()>,
) -> Result<(), WorkloadError> {
    let grace = options.shutdown_timeout();
    let state = Arc::new(State::new(options)?);
    let mut panicked = state.panicked.subscribe();
    let (close, closing) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&state), closing.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            // Reaps the ended ones; without it the set would grow with each connection.
            Some(_) = connections.join_next() => {}
            () = &mut stop => break,
            () = raised(&mut panicked) => return Err(WorkloadError::PanicRequested),
        }
    }
    state.set_ready(false);
    drop(listener);
    // An error would mean that no connection is left to tell.
    let _ = close.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What is still open after the grace period is cut: SIGKILL would be next.
    let _ = tokio::time::timeout(grace, drained).await;
    Ok(())
}

async fn connection(stream: TcpStream, state: Arc<State>, mut closing: watch::Receiver<bool>) {
    // Only the latency of small answers suffers if this fails.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(routes::answer(&state, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // A connection's own error (reset, malformed request) concerns nobody but its peer.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = raised(&mut closing) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Resolves when the flag is up, or its owner gone. Holds no lock of the channel afterwards.
async fn raised(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}
