//! Peers' workload metadata: the `x-envoy-peer-metadata` and `-id` headers of Istio's metadata exchange, and the short form
//! in an endpoint's metadata (`istio.workload`: `name;namespace;canonical name;canonical revision;cluster`).
//!
//! A header value is base64 of a `google.protobuf.Struct` with the node metadata's keys (NAME, NAMESPACE, WORKLOAD_NAME,
//! CLUSTER_ID, LABELS, OWNER …). Decoded peers are cached by the id header, as Istio does.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::Map;

use crate::config::bootstrap::Node;
use crate::stream_info::Peer;

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

/// Padding may be left out, as Istio's own decoder accepts.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How many peers a worker remembers by id, as Istio's default.
const CACHE: usize = 500;

thread_local! {
    static PEERS: RefCell<HashMap<Box<[u8]>, Arc<Peer>>> = RefCell::default();
}

/// The peer that sent these two header values; `None` if the value is no peer metadata.
pub fn decode(id: Option<&[u8]>, value: &[u8], extra_labels: &[Arc<str>]) -> Option<Arc<Peer>> {
    if let Some(found) = id.and_then(|id| PEERS.with_borrow(|all| all.get(id).cloned())) {
        return Some(found);
    }
    let bytes = BASE64.decode(value).ok()?;
    let peer = Arc::new(from_struct(&Struct::decode(bytes.as_slice()).ok()?, extra_labels));
    if let Some(id) = id.filter(|id| !id.is_empty()) {
        PEERS.with_borrow_mut(|all| {
            if all.len() >= CACHE {
                let some: Vec<_> = all.keys().take(CACHE / 4).cloned().collect();
                for key in some {
                    all.remove(&key);
                }
            }
            all.insert(id.into(), peer.clone());
        });
    }
    Some(peer)
}

/// This proxy's own two header values: id and metadata.
pub fn own_headers(node: &Node, extra_labels: &[Arc<str>]) -> (Arc<str>, Arc<str>) {
    let value = to_struct(&of_node(node, extra_labels));
    (node.id.clone(), BASE64.encode(value.encode_to_vec()).into())
}

/// The peer that this proxy is to others, from its node metadata.
pub fn of_node(node: &Node, extra_labels: &[Arc<str>]) -> Peer {
    let empty = Map::new();
    let metadata = node.metadata.as_deref().unwrap_or(&empty);
    let mut peer = from_fields(
        |key| metadata.get(key).and_then(|v| v.as_str()),
        metadata
            .get("LABELS")
            .and_then(|l| l.as_object())
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))),
        extra_labels,
    );
    if peer.region.is_empty() {
        peer.region = node.region.clone();
    }
    if peer.zone.is_empty() {
        peer.zone = node.zone.clone();
    }
    peer
}

/// The peer that an endpoint's metadata names under `istio.workload`.
pub fn of_endpoint(metadata: &Map<String, serde_json::Value>) -> Option<Peer> {
    let text = metadata.get("istio")?.get("workload")?.as_str()?;
    let mut parts = text.split(';').map(Arc::<str>::from);
    Some(Peer {
        workload: parts.next()?,
        namespace: parts.next()?,
        canonical_service: parts.next()?,
        canonical_revision: parts.next()?,
        cluster_id: parts.next()?,
        ..Peer::default()
    })
}

fn from_struct(s: &Struct, extra_labels: &[Arc<str>]) -> Peer {
    fn text(v: &Value) -> Option<&str> {
        match &v.kind {
            Some(Kind::StringValue(s)) => Some(s),
            _ => None,
        }
    }
    let labels = match s.fields.get("LABELS").and_then(|v| v.kind.as_ref()) {
        Some(Kind::StructValue(labels)) => Some(labels),
        _ => None,
    };
    from_fields(
        |key| s.fields.get(key).and_then(text),
        labels.iter().flat_map(|l| &l.fields).filter_map(|(k, v)| Some((k.as_str(), text(v)?))),
        extra_labels,
    )
}

fn from_fields<'a>(
    field: impl Fn(&str) -> Option<&'a str>,
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    extra_labels: &[Arc<str>],
) -> Peer {
    let get = |key: &str| Arc::<str>::from(field(key).unwrap_or_default());
    let mut peer = Peer {
        name: get("NAME"),
        namespace: get("NAMESPACE"),
        workload: get("WORKLOAD_NAME"),
        cluster_id: get("CLUSTER_ID"),
        identity: get("IDENTITY"),
        region: get("REGION"),
        zone: get("AVAILABILITY_ZONE"),
        ..Peer::default()
    };
    peer.workload_type = workload_type(field("OWNER").unwrap_or_default(), &peer.workload).into();
    let (mut app, mut version) = (None, None);
    for (key, value) in labels {
        match key {
            CANONICAL_NAME => peer.canonical_service = value.into(),
            CANONICAL_REVISION => peer.canonical_revision = value.into(),
            "app.kubernetes.io/name" => peer.app = value.into(),
            "app" => app = Some(value),
            "app.kubernetes.io/version" => peer.version = value.into(),
            "version" => version = Some(value),
            _ if extra_labels.iter().any(|l| **l == *key) => peer.labels.push((key.into(), value.into())),
            _ => {}
        }
    }
    // The qualified label wins over the short one.
    if peer.app.is_empty() {
        peer.app = app.unwrap_or_default().into();
    }
    if peer.version.is_empty() {
        peer.version = version.unwrap_or_default().into();
    }
    peer
}

/// The workload's kind out of its owner (`…/namespaces/x/deployments/y`); empty for an unknown one.
fn workload_type(owner: &str, workload: &str) -> &'static str {
    let kind = owner
        .strip_suffix(workload)
        .and_then(|rest| rest.strip_suffix("s/"))
        .and_then(|rest| rest.rsplit('/').next());
    match kind {
        Some("pod") => "pod",
        Some("deployment") => "deployment",
        Some("job") => "job",
        Some("cronjob") => "cronjob",
        _ => "",
    }
}

fn to_struct(peer: &Peer) -> Struct {
    fn value(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }
    let set = |fields: &mut BTreeMap<String, Value>, key: &str, text: &str| {
        if !text.is_empty() {
            fields.insert(key.to_owned(), value(text));
        }
    };
    let mut labels = BTreeMap::new();
    set(&mut labels, CANONICAL_NAME, &peer.canonical_service);
    set(&mut labels, CANONICAL_REVISION, &peer.canonical_revision);
    set(&mut labels, "app", &peer.app);
    set(&mut labels, "version", &peer.version);
    for (k, v) in &peer.labels {
        labels.insert(k.to_string(), value(v));
    }
    let mut fields = BTreeMap::new();
    set(&mut fields, "NAME", &peer.name);
    set(&mut fields, "NAMESPACE", &peer.namespace);
    set(&mut fields, "WORKLOAD_NAME", &peer.workload);
    set(&mut fields, "CLUSTER_ID", &peer.cluster_id);
    set(&mut fields, "IDENTITY", &peer.identity);
    set(&mut fields, "REGION", &peer.region);
    set(&mut fields, "AVAILABILITY_ZONE", &peer.zone);
    if !peer.workload_type.is_empty() {
        let (ns, kind, name) = (&peer.namespace, &peer.workload_type, &peer.workload);
        let owner = format!("kubernetes://apis/apps/v1/namespaces/{ns}/{kind}s/{name}");
        set(&mut fields, "OWNER", &owner);
    }
    fields.insert("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(Struct { fields: labels })) });
    Struct { fields }
}

/// The peer's fields under the names by which formats and CEL know them, in Istio's order.
pub(crate) fn fields(peer: &Peer) -> [(&'static str, &str); 12] {
    [
        ("type", &peer.workload_type),
        ("workload", &peer.workload),
        ("name", &peer.name),
        ("cluster", &peer.cluster_id),
        ("namespace", &peer.namespace),
        ("service", &peer.canonical_service),
        ("revision", &peer.canonical_revision),
        ("app", &peer.app),
        ("version", &peer.version),
        ("identity", &peer.identity),
        ("region", &peer.region),
        ("availability_zone", &peer.zone),
    ]
}

/// `%FILTER_STATE(upstream_peer)%` and its twin: `type=deployment,workload=…`.
pub(crate) fn write_baggage(peer: &Peer, out: &mut Vec<u8>) {
    let start = out.len();
    let mut pair = |name: &str, label: &str, value: &str| {
        if out.len() > start {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(label.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.as_bytes());
    };
    // The identity is not part of the text form.
    for (name, value) in fields(peer).iter().filter(|(n, v)| !v.is_empty() && *n != "identity") {
        pair(name, "", value);
    }
    for (label, value) in &peer.labels {
        pair("labels[]", label, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let metadata = serde_json::json!({
            "NAME": "podinfo-1", "NAMESPACE": "podinfo", "WORKLOAD_NAME": "podinfo", "CLUSTER_ID": "Kubernetes",
            "OWNER": "kubernetes://apis/apps/v1/namespaces/podinfo/deployments/podinfo",
            "LABELS": {"app": "podinfo", CANONICAL_NAME: "podinfo", CANONICAL_REVISION: "stable", "version": "stable",
                       "team": "a", "other": "b"},
        });
        let serde_json::Value::Object(metadata) = metadata else { panic!("an object") };
        Node { id: "sidecar~1".into(), metadata: Some(Arc::new(metadata)), ..Node::default() }
    }

    #[test]
    fn what_one_proxy_sends_another_understands() {
        let extra = ["team".into()];
        let (id, value) = own_headers(&node(), &extra);
        let peer = decode(Some(id.as_bytes()), value.as_bytes(), &extra).unwrap();
        assert_eq!(*peer, of_node(&node(), &extra));
        assert_eq!(&*peer.workload_type, "deployment");
        assert_eq!(peer.labels, [("team".into(), "a".into())]);
        // The id alone finds it again, and garbage is nobody.
        assert!(Arc::ptr_eq(&peer, &decode(Some(id.as_bytes()), b"", &extra).unwrap()));
        assert_eq!(decode(None, b"%%%", &[]), None);
        let mut text = Vec::new();
        write_baggage(&peer, &mut text);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "type=deployment,workload=podinfo,name=podinfo-1,cluster=Kubernetes,namespace=podinfo,service=podinfo,\
             revision=stable,app=podinfo,version=stable,labels[]team=a"
        );
    }

    #[test]
    fn an_endpoint_tells_five_things() {
        let m = serde_json::json!({"istio": {"workload": "podinfo;ns;podinfo;stable;Kubernetes"}});
        let peer = of_endpoint(m.as_object().unwrap()).unwrap();
        assert_eq!((&*peer.workload, &*peer.cluster_id, &*peer.app), ("podinfo", "Kubernetes", ""));
        assert_eq!(of_endpoint(serde_json::json!({"istio": {"workload": "a;b"}}).as_object().unwrap()), None);
    }
}
