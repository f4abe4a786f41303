//! Request mirroring (`request_mirror_policies`): a copy of the request goes to another cluster, its response is dropped.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rand::Rng;

use crate::config::hcm::Protocol;
use crate::config::route::{ClusterOrHeader, Forward, Mirror};
use crate::head::{Head, HeaderId};
use crate::http::exchange::Exchange;
use crate::http::filters::Matched;
use crate::router::host::port_start;
use crate::upstream::{ConnectSpec, LbContext};
use crate::worker::Worker;

/// A mirror that was drawn for a request.
#[derive(Debug)]
pub(super) struct Chosen {
    cluster: Arc<str>,
    host_suffix: bool,
    host: Option<Arc<str>>,
}

/// Draws the mirrors of a request: the route's, else the virtual host's, else the route configuration's.
pub(super) fn chosen(x: &Exchange<'_>, m: &Matched, f: &Forward) -> Vec<Chosen> {
    let list: &[Mirror] = match (f.mirrors.is_empty(), m.vhost.mirrors.is_empty()) {
        (false, _) => &f.mirrors,
        (true, false) => &m.vhost.mirrors,
        (true, true) => &m.config.mirrors,
    };
    list.iter()
        .filter(|p| p.fraction.hit(x.worker.rng.borrow_mut().random()))
        .filter_map(|p| {
            let cluster = match &p.cluster {
                ClusterOrHeader::Cluster(c) => c.clone(),
                ClusterOrHeader::Header(h) => std::str::from_utf8(x.request.get_name(h)?).ok()?.into(),
            };
            Some(Chosen { cluster, host_suffix: !p.no_host_suffix, host: p.host_rewrite.clone() })
        })
        .collect()
}

/// Sends the copies, each as a task of its own. A body that was too large to keep is not mirrored.
pub(super) fn send(x: &Exchange<'_>, mirrors: Vec<Chosen>) {
    for c in mirrors {
        let body = match x.upload.kept() {
            Some(b) => b.to_vec(),
            None if x.meta.end => Vec::new(),
            None => continue,
        };
        let mut head = x.request.clone();
        if let Some(h) = &c.host {
            head.set(HeaderId::Authority, h.as_bytes());
        } else if c.host_suffix {
            let authority = shadow(head.authority());
            head.set(HeaderId::Authority, &authority);
        }
        if !body.is_empty() {
            head.set(HeaderId::ContentLength, itoa::Buffer::new().format(body.len()).as_bytes());
        }
        let protocol = x.meta.protocol;
        tokio::task::spawn_local(run(x.worker.clone(), c.cluster, head, body, protocol));
    }
}

/// `host-shadow`, before a port.
fn shadow(authority: &[u8]) -> Vec<u8> {
    let at = port_start(authority).unwrap_or(authority.len());
    [&authority[..at], b"-shadow", &authority[at..]].concat()
}

async fn run(worker: Rc<Worker>, name: Arc<str>, head: Head, body: Vec<u8>, downstream: Protocol) {
    let Some(cluster) = worker.clusters.get(&name) else { return };
    let Ok(host) = cluster.pick(&LbContext { head: Some(&head), ..LbContext::default() }) else { return };
    let spec = ConnectSpec {
        downstream: Some(downstream),
        authority: std::str::from_utf8(head.authority()).ok().map(Into::into),
        ..ConnectSpec::default()
    };
    // Nobody waits for a mirror: it ends by itself.
    let limit = Duration::from_secs(15);
    let _ = tokio::time::timeout(limit, async {
        let Ok(mut lease) = cluster.checkout(&host, &spec).await else { return };
        let Ok(up) = lease.open(&head, body.is_empty()) else { return };
        let mut rest = &body[..];
        let mut response = Head::new();
        let ok = poll_fn(|cx| {
            while !rest.is_empty() {
                match up.poll_send_data(cx, rest, true) {
                    Poll::Ready(Ok(n)) => rest = &rest[n..],
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            up.poll_finish(cx)
        })
        .await
        .is_ok();
        if !ok {
            return;
        }
        let status = loop {
            match poll_fn(|cx| up.poll_head(cx, &mut response)).await {
                Ok(m) if m.informational => {}
                Ok(m) => break m,
                Err(_) => return,
            }
        };
        cluster
            .stats()
            .response_code(status.status, crate::upstream::Origin { internal: true, canary: false });
        let done = poll_fn(|cx| {
            loop {
                let n = up.data().len();
                up.consume(n);
                match up.poll_body(cx) {
                    Poll::Ready(Ok(crate::http::codec::BodyEvent::Data)) => {}
                    Poll::Ready(r) => return Poll::Ready(r.is_ok()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        // Read to its end, the connection goes back to the pool with the lease.
        if !status.end {
            done.await;
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_stands_before_the_port() {
        assert_eq!(shadow(b"a.b:80"), b"a.b-shadow:80");
        assert_eq!(shadow(b"a.b"), b"a.b-shadow");
    }
}
