//! The key under which a worker remembers a series: what the labels are made from, compared by identity where the parts
//! are shared (peer, metadata) and by content where each connection has its own copy (certificate names).

use std::sync::Arc;

use super::labels::{self, Reporter};
use crate::config::route::Metadata;
use crate::head::HeaderId;
use crate::stream_info::Peer;
use crate::telemetry::format::FormatContext;

/// What a stream shows, borrowed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen<'a> {
    pub(super) peer: Option<&'a Arc<Peer>>,
    /// The gateway's other side.
    pub(super) other_peer: Option<&'a Arc<Peer>>,
    pub(super) peer_san: &'a str,
    pub(super) local_san: &'a str,
    pub(super) cluster: &'a str,
    pub(super) cluster_metadata: Option<&'a Metadata>,
    pub(super) host_metadata: Option<&'a Metadata>,
    pub(super) route: &'a str,
    /// Only where a label is made from it.
    pub(super) authority: &'a [u8],
    pub(super) code: u16,
    pub(super) flags: u64,
    /// `Some` for gRPC, with the status if there is one.
    pub(super) grpc: Option<Option<u32>>,
    /// Of the override expressions' values.
    pub(super) values: u64,
}

/// The same, kept: it holds what it compares by identity, so that an address is not used again for something else.
#[derive(Debug)]
pub(super) struct Key {
    peer: Option<Arc<Peer>>,
    other_peer: Option<Arc<Peer>>,
    peer_san: Box<str>,
    local_san: Box<str>,
    cluster: Box<str>,
    cluster_metadata: Metadata,
    host_metadata: Metadata,
    route: Box<str>,
    authority: Box<[u8]>,
    code: u16,
    flags: u64,
    grpc: Option<Option<u32>>,
    values: u64,
}

fn address<T>(a: Option<&Arc<T>>) -> usize {
    a.map_or(0, |a| Arc::as_ptr(a) as usize)
}

fn metadata_address(m: Option<&Metadata>) -> usize {
    address(m.and_then(|m| m.as_ref()))
}

impl<'a> Seen<'a> {
    pub(super) fn new(
        reporter: Reporter,
        ctx: &FormatContext<'a>,
        host_fallback: bool,
        values: u64,
    ) -> Seen<'a> {
        let info = ctx.info;
        let (peer_san, local_san) = labels::sans(reporter, info);
        let server = reporter != Reporter::ClientSidecar;
        let (peer, other_peer) = if server {
            let gateway = reporter == Reporter::ServerGateway;
            (info.downstream_peer.as_ref(), info.upstream_peer.as_ref().filter(|_| gateway))
        } else {
            (info.upstream_peer.as_ref(), None)
        };
        let from_host = host_fallback && labels::service(info).is_none_or(|s| s.host.is_none());
        Seen {
            peer,
            other_peer,
            peer_san,
            local_san,
            cluster: info.upstream.cluster.as_deref().unwrap_or_default(),
            cluster_metadata: Some(&info.upstream.cluster_metadata),
            host_metadata: (!server && peer.is_none()).then_some(&info.upstream.host_metadata),
            route: info.route_name.as_deref().unwrap_or_default(),
            authority: ctx
                .request
                .filter(|_| from_host)
                .and_then(|h| h.get(HeaderId::Authority))
                .unwrap_or_default(),
            values,
            ..Seen::default()
        }
    }

    /// Spread over 64 bits: FNV over words, the addresses being words already.
    pub(super) fn hash(&self) -> u64 {
        let mut h = 0xcbf2_9ce4_8422_2325u64;
        let mut word = |w: u64| h = (h ^ w).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        word(address(self.peer) as u64);
        word(address(self.other_peer) as u64);
        word(metadata_address(self.cluster_metadata) as u64);
        word(metadata_address(self.host_metadata) as u64);
        word(u64::from(self.code));
        word(self.flags);
        word(self.grpc.map_or(u64::MAX, |g| g.map_or(u64::MAX - 1, u64::from)));
        word(self.values);
        for text in [
            self.peer_san.as_bytes(),
            self.local_san.as_bytes(),
            self.cluster.as_bytes(),
            self.route.as_bytes(),
            self.authority,
        ] {
            let (chunks, rest) = text.as_chunks::<8>();
            for c in chunks {
                word(u64::from_le_bytes(*c));
            }
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            word(u64::from_le_bytes(last) ^ (text.len() as u64) << 56);
        }
        h
    }

    pub(super) fn to_key(self) -> Key {
        Key {
            peer: self.peer.cloned(),
            other_peer: self.other_peer.cloned(),
            peer_san: self.peer_san.into(),
            local_san: self.local_san.into(),
            cluster: self.cluster.into(),
            cluster_metadata: self.cluster_metadata.cloned().flatten(),
            host_metadata: self.host_metadata.cloned().flatten(),
            route: self.route.into(),
            authority: self.authority.into(),
            code: self.code,
            flags: self.flags,
            grpc: self.grpc,
            values: self.values,
        }
    }
}

impl Key {
    pub(super) fn is(&self, seen: &Seen<'_>) -> bool {
        address(self.peer.as_ref()) == address(seen.peer)
            && address(self.other_peer.as_ref()) == address(seen.other_peer)
            && metadata_address(Some(&self.cluster_metadata)) == metadata_address(seen.cluster_metadata)
            && metadata_address(Some(&self.host_metadata)) == metadata_address(seen.host_metadata)
            && (self.code, self.flags, self.grpc, self.values)
                == (seen.code, seen.flags, seen.grpc, seen.values)
            && *self.peer_san == *seen.peer_san
            && *self.local_san == *seen.local_san
            && *self.cluster == *seen.cluster
            && *self.route == *seen.route
            && *self.authority == *seen.authority
    }
}
