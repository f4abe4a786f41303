//! `istio.alpn`: the ALPN protocols to offer upstream, by the downstream protocol, so that the server's sidecar can tell
//! which HTTP version is inside its mutual TLS (Istio: `istio.envoy.config.filter.http.alpn.v2alpha1`).

use std::sync::Arc;

use super::{Ctx, Flow};
use crate::config::filter::AlpnOverride;
use crate::config::hcm::Protocol;

/// The filter: an offer for HTTP/1.0, 1.1 and 2 each.
#[derive(Debug)]
pub struct Alpn {
    offers: [Option<Arc<[Arc<str>]>>; 3],
}

impl Alpn {
    pub(super) fn new(config: &[AlpnOverride]) -> Alpn {
        let of = |p| config.iter().find(|o| o.upstream_protocol == p).map(|o| Arc::from(o.alpn.as_slice()));
        Alpn { offers: [of(Protocol::Http10), of(Protocol::Http11), of(Protocol::Http2)] }
    }

    pub(super) fn request_head(&self, ctx: &mut Ctx<'_>) -> Flow {
        ctx.state.alpn_override = match ctx.info.protocol {
            Some(Protocol::Http10) => self.offers[0].clone(),
            Some(Protocol::Http11) => self.offers[1].clone(),
            Some(Protocol::Http2) => self.offers[2].clone(),
            None => None,
        };
        Flow::Continue
    }
}
