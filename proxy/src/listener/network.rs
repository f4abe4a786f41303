//! Network filters of a chain, up to the terminal one. Follows "Network (L3/L4) filters".

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::manager::Manager;
use super::{Connection, Serving};
use crate::config::filter::NetworkFilter;
use crate::config::listener::FilterChain;
use crate::stats_struct;
use crate::stream_info::StreamInfo;

/// How much `echo` reads at once.
const ECHO_BUFFER: usize = 16 * 1024;

stats_struct! {
    /// `connection_limit.<stat_prefix>.…`.
    pub(super) struct ConnectionLimitStats {
        counter limited_connections,
        gauge active_connections,
    }
}

/// Runs the filters before the terminal one, then the terminal one.
pub(super) fn start(manager: &Manager, connection: Connection, chain: &FilterChain) -> Serving {
    let mut info: Option<StreamInfo> = None;
    let mut slots: Vec<Slot> = Vec::new();
    for filter in &chain.filters {
        match filter {
            NetworkFilter::Rbac(rbac) => {
                let info = info.get_or_insert_with(|| stream_info(&connection));
                if !manager.handler.rbac(rbac, info) {
                    return Box::pin(async move { drop(connection) });
                }
            }
            NetworkFilter::ConnectionLimit { stat_prefix, max, delay } => {
                match Slot::take(manager, stat_prefix, *max) {
                    Some(slot) => slots.push(slot),
                    None => {
                        let delay = *delay;
                        return Box::pin(async move {
                            if let Some(delay) = delay {
                                tokio::time::sleep(delay).await;
                            }
                            drop(connection);
                        });
                    }
                }
            }
            // Both act where the connection is proxied: the peer's metadata is exchanged and counted by the TCP proxy.
            NetworkFilter::IstioStats(_) | NetworkFilter::MetadataExchange { .. } => {}
            NetworkFilter::Hcm(hcm) => {
                return holding(slots, manager.handler.http(connection, hcm.clone()));
            }
            NetworkFilter::TcpProxy(proxy) => {
                let info = info.take().unwrap_or_else(|| stream_info(&connection));
                return holding(slots, manager.handler.tcp_proxy(connection, proxy.clone(), info));
            }
            NetworkFilter::Echo => return holding(slots, Box::pin(echo(connection))),
            NetworkFilter::DirectResponse(body) => {
                return holding(slots, Box::pin(direct_response(connection, body.clone())));
            }
        }
    }
    // A chain without a terminal filter has nothing to do with a connection but to close it.
    Box::pin(async move { drop(connection) })
}

fn stream_info(c: &Connection) -> StreamInfo {
    StreamInfo::new(c.info.clone(), c.info.start, c.info.start_time)
}

/// Keeps limits' slots for as long as the connection is served.
fn holding(slots: Vec<Slot>, serving: Serving) -> Serving {
    if slots.is_empty() {
        return serving;
    }
    Box::pin(async move {
        serving.await;
        drop(slots);
    })
}

async fn echo(mut c: Connection) {
    let mut buffer = vec![0; ECHO_BUFFER];
    while let Ok(n) = c.io.read(&mut buffer).await {
        if n == 0 || c.io.write_all(&buffer[..n]).await.is_err() || c.io.flush().await.is_err() {
            break;
        }
    }
    let _ = c.io.shutdown().await;
}

async fn direct_response(mut c: Connection, body: Arc<[u8]>) {
    if c.io.write_all(&body).await.is_ok() {
        let _ = c.io.flush().await;
        let _ = c.io.shutdown().await;
    }
}

/// A place under a `connection_limit`, given back when dropped.
struct Slot {
    count: Arc<AtomicU64>,
    stats: Rc<ConnectionLimitStats>,
}

impl Slot {
    fn take(manager: &Manager, stat_prefix: &Arc<str>, max: u64) -> Option<Slot> {
        let stats = manager
            .limit_stats
            .borrow_mut()
            .entry(stat_prefix.clone())
            .or_insert_with(|| {
                let prefix = format!("connection_limit.{stat_prefix}.");
                Rc::new(ConnectionLimitStats::new(&manager.shared.stats, &prefix))
            })
            .clone();
        let count = manager.shared.limit(stat_prefix);
        if count.fetch_add(1, Relaxed) >= max {
            count.fetch_sub(1, Relaxed);
            stats.limited_connections.inc();
            return None;
        }
        stats.active_connections.inc();
        Some(Slot { count, stats })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
        self.stats.active_connections.dec();
    }
}
