//! ORIGINAL_DST: the host is where the downstream connection was going, or what a header names. Follows Envoy's "Original
//! destination" section of "Service discovery".

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::host::Host;
use super::lb::LbContext;
use super::shared::SharedCluster;
use crate::config::address::Address;
use crate::config::cluster::Discovery;
use crate::head::HeaderName;

/// The hosts that one worker has met. One that was not asked for during a whole `cleanup_interval` is forgotten.
#[derive(Default)]
pub(super) struct Hosts {
    hosts: RefCell<HashMap<SocketAddr, Met>>,
    swept: Cell<Option<Instant>>,
}

struct Met {
    host: Arc<Host>,
    last: Instant,
}

impl Hosts {
    /// The host of an address, made if need be.
    pub(super) fn host(&self, to: SocketAddr, cluster: &SharedCluster, now: Instant) -> Arc<Host> {
        let cleanup = match &cluster.info().discovery {
            Discovery::OriginalDst { cleanup, .. } => *cleanup,
            _ => Duration::ZERO,
        };
        let mut hosts = self.hosts.borrow_mut();
        if now.saturating_duration_since(self.swept.get().unwrap_or(now)) >= cleanup {
            hosts.retain(|_, m| {
                // One in use stays, whoever asked for it when.
                now.saturating_duration_since(m.last) < cleanup || m.host.state.stats.cx_active.get() > 0
            });
        }
        if self.swept.get().is_none_or(|t| now.saturating_duration_since(t) >= cleanup) {
            self.swept.set(Some(now));
        }
        let fresh = || Met { host: cluster.original_host(Address::Socket(to), now), last: now };
        let met = hosts.entry(to).or_insert_with(fresh);
        met.last = now;
        met.host.clone()
    }
}

/// Where the request goes: the header's address if the cluster reads one and it is there, else the restored destination.
pub(super) fn target(
    ctx: &LbContext<'_>,
    header: Option<&HeaderName>,
    port: Option<u16>,
) -> Option<SocketAddr> {
    let by_header = header.and_then(|name| ctx.head.and_then(|h| h.joined(name)));
    let mut to = match by_header {
        Some(text) => std::str::from_utf8(&text).ok()?.trim().parse().ok()?,
        None => ctx.original_dst?,
    };
    if let Some(port) = port.filter(|p| *p != 0) {
        to = SocketAddr::new(to.ip(), port);
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Head;

    #[test]
    fn a_header_wins_over_the_restored_destination() {
        let name = HeaderName::new("x-envoy-original-dst-host");
        let mut head = Head::new();
        let dst: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let ctx = LbContext { original_dst: Some(dst), head: Some(&head), ..LbContext::default() };
        assert_eq!(target(&ctx, Some(&name), None), Some(dst));
        assert_eq!(target(&ctx, None, Some(8080)).map(|a| a.port()), Some(8080));
        head.append(b"x-envoy-original-dst-host", b"10.0.0.2:81");
        let ctx = LbContext { original_dst: Some(dst), head: Some(&head), ..LbContext::default() };
        assert_eq!(target(&ctx, Some(&name), None), "10.0.0.2:81".parse().ok());
        head.clear();
        head.append(b"x-envoy-original-dst-host", b"nowhere");
        let ctx = LbContext { original_dst: Some(dst), head: Some(&head), ..LbContext::default() };
        assert_eq!(target(&ctx, Some(&name), None), None);
    }
}
