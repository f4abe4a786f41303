//! Istio's TCP metadata exchange: where both sides agreed on its ALPN protocol, each stream begins with the sender's workload
//! metadata. Follows Istio's `metadata_exchange` filter: a magic number, a length, then an `Any` around a `Struct` with
//! `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};

use crate::config::bootstrap::Node;
use crate::stream_info::Peer;
use crate::telemetry::istio::peer;

const MAGIC: u32 = 0x3D23_0467;
const TYPE_URL: &str = "type.googleapis.com/google.protobuf.Struct";
const METADATA: &str = "x-envoy-peer-metadata";
const ID: &str = "x-envoy-peer-metadata-id";

/// A header as received.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    id: Option<Vec<u8>>,
    metadata: Option<Struct>,
}

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// Not decided yet.
    More,
    /// No header: the bytes belong to the application.
    Absent,
    Header {
        /// Bytes to take away.
        len: usize,
        header: Header,
    },
}

/// Looks at the bytes that have come so far. Never panics, whatever they are.
pub fn parse(bytes: &[u8]) -> Parsed {
    let magic = MAGIC.to_be_bytes();
    if !magic.starts_with(&bytes[..bytes.len().min(4)]) {
        return Parsed::Absent;
    }
    let Some(&[a, b, c, d]) = bytes.get(4..8) else { return Parsed::More };
    let size = u32::from_be_bytes([a, b, c, d]) as usize;
    // A header must fit one read buffer; Istio's are a few hundred bytes.
    if size > super::pool::SIZE - 8 {
        return Parsed::Absent;
    }
    let Some(body) = bytes.get(8..8 + size) else { return Parsed::More };
    // A body that is no metadata is taken away all the same, as Istio does: it is no application data.
    Parsed::Header { len: 8 + size, header: read(body).unwrap_or_default() }
}

fn read(body: &[u8]) -> Option<Header> {
    let any = Any::decode(body).ok().filter(|a| a.type_url == TYPE_URL)?;
    let mut fields = Struct::decode(any.value.as_slice()).ok()?.fields;
    let metadata = match fields.remove(METADATA).and_then(|v| v.kind) {
        Some(Kind::StructValue(s)) => Some(s),
        _ => None,
    };
    let id = match fields.remove(ID).and_then(|v| v.kind) {
        Some(Kind::StringValue(s)) => Some(s.into_bytes()),
        _ => None,
    };
    Some(Header { id, metadata })
}

impl Header {
    /// The peer it tells of.
    pub(super) fn peer(&self) -> Option<Arc<Peer>> {
        let metadata = self.metadata.as_ref()?;
        peer::decode(self.id.as_deref(), STANDARD.encode(metadata.encode_to_vec()).as_bytes(), &[])
    }
}

/// This proxy's own header.
pub(super) fn own(node: &Node) -> Vec<u8> {
    let (id, value) = peer::own_headers(node, &[]);
    let metadata = STANDARD.decode(value.as_bytes()).ok().and_then(|b| Struct::decode(b.as_slice()).ok());
    let mut fields = BTreeMap::new();
    if let Some(metadata) = metadata {
        fields.insert(METADATA.to_owned(), Value { kind: Some(Kind::StructValue(metadata)) });
    }
    if !id.is_empty() {
        fields.insert(ID.to_owned(), Value { kind: Some(Kind::StringValue(id.to_string())) });
    }
    let any = Any { type_url: TYPE_URL.into(), value: Struct { fields }.encode_to_vec() };
    let body = any.encode_to_vec();
    let mut out = Vec::with_capacity(8 + body.len());
    out.extend(MAGIC.to_be_bytes());
    // A node's metadata is a few kilobytes.
    out.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    out.extend(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let metadata = serde_json::json!({
            "NAME": "pod-1", "NAMESPACE": "ns", "WORKLOAD_NAME": "work", "CLUSTER_ID": "Kubernetes",
            "LABELS": {"app": "shop", "service.istio.io/canonical-name": "shop"}
        });
        let serde_json::Value::Object(map) = metadata else { unreachable!() };
        Node { id: "sidecar~1".into(), metadata: Some(Arc::new(map)), ..Node::default() }
    }

    #[test]
    fn a_header_tells_the_peer_and_its_own_length() {
        let mut bytes = own(&node());
        let len = bytes.len();
        bytes.extend(b"application data");
        for cut in 0..len {
            assert_eq!(parse(&bytes[..cut]), Parsed::More, "cut at {cut}");
        }
        let Parsed::Header { len: told, header } = parse(&bytes) else { panic!("no header") };
        assert_eq!(told, len);
        let peer = header.peer().unwrap();
        assert_eq!((&*peer.namespace, &*peer.workload), ("ns", "work"));
    }

    #[test]
    fn other_bytes_are_left_alone() {
        assert_eq!(parse(b"\x3d\x23\x04\x00rest"), Parsed::Absent);
        assert_eq!(parse(b"GET / HTTP/1.1"), Parsed::Absent);
        assert_eq!(parse(&[&MAGIC.to_be_bytes()[..], &[0xff; 8]].concat()), Parsed::Absent);
        let odd = [&MAGIC.to_be_bytes()[..], &3u32.to_be_bytes(), b"\xff\xff\xff", b"x"].concat();
        assert_eq!(parse(&odd), Parsed::Header { len: 11, header: Header::default() });
    }
}
