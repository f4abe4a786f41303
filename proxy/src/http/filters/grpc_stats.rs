//! `envoy.filters.http.grpc_stats`: counts gRPC requests and messages.
//! (Envoy docs: configuration/http/http_filters/grpc_stats_filter.)

use super::{Ctx, Flow};
use crate::config::filter::GrpcStats as Config;
use crate::head::{Head, HeaderId};
use crate::router::matching::is_grpc;

/// The filter.
#[derive(Debug)]
pub struct GrpcStats {
    config: Config,
}

/// Kept between the hooks, and fed by the body relay.
#[derive(Debug, Default)]
pub struct State {
    /// Whether bodies are to be counted.
    pub on: bool,
    pub request: Messages,
    pub response: Messages,
}

/// Counts length-prefixed messages in a byte stream (gRPC over HTTP/2, "Length-Prefixed-Message").
#[derive(Debug, Default)]
pub struct Messages {
    pub count: u64,
    header: [u8; 5],
    filled: usize,
    body_left: u64,
}

impl Messages {
    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let n = self.body_left.min(bytes.len() as u64);
                self.body_left -= n;
                bytes = &bytes[n as usize..];
                continue;
            }
            let n = (5 - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled == 5 {
                self.filled = 0;
                self.count += 1;
                let [_, a, b, c, d] = self.header;
                self.body_left = u64::from(u32::from_be_bytes([a, b, c, d]));
            }
        }
    }
}

impl GrpcStats {
    pub(super) fn new(config: &Config) -> GrpcStats {
        GrpcStats { config: config.clone() }
    }

    pub(super) fn request_head(&self, head: &Head, ctx: &mut Ctx<'_>) -> Flow {
        if is_grpc(head) {
            ctx.state.grpc.on = self.config.emit_filter_state || self.config.stats_for_all_methods;
        }
        Flow::Continue
    }

    pub(super) fn response_head(&self, _head: &mut Head, _ctx: &mut Ctx<'_>) {}

    /// Message counts go to the filter state, where Istio's metrics read them, and to the cluster's gRPC stats.
    pub(super) fn complete(&self, response: Option<&Head>, trailers: Option<&Head>, ctx: &mut Ctx<'_>) {
        if !ctx.state.grpc.on {
            return;
        }
        let (req, resp) = (ctx.state.grpc.request.count, ctx.state.grpc.response.count);
        ctx.info.filter_state.push(("envoy.filters.http.grpc_stats".into(), format!("{req},{resp}").into()));
        if let Some(cluster) = &ctx.info.upstream.cluster_stat_name {
            let stats = &ctx.worker.stats;
            let prefix = format!("cluster.{cluster}.grpc.");
            let status = trailers
                .and_then(|t| t.get_str(HeaderId::GrpcStatus))
                .or_else(|| response.and_then(|r| r.get_str(HeaderId::GrpcStatus)));
            if let Some(s) = status {
                let ok = if s == "0" { "success" } else { "failure" };
                for name in [s, ok, "total"] {
                    stats.counter(&format!("{prefix}{name}")).inc();
                }
            }
            stats.counter(&format!("{prefix}request_message_count")).add(req);
            stats.counter(&format!("{prefix}response_message_count")).add(resp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let wire = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1], b"x"].concat();
        for cut in 1..wire.len() {
            let mut m = Messages::default();
            for part in wire.chunks(cut) {
                m.feed(part);
            }
            assert_eq!(m.count, 3, "cut {cut}");
        }
    }
}
