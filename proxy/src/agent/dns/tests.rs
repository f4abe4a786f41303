//! The DNS proxy over real sockets, with another one of its kind as the server behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use prost::Message as _;

use super::{DnsProxy, NameInfo, NameTable, Resolver, Sockets, ask_tcp, ask_udp};

fn info(ips: &[&str], registry: &str, shortname: &str, namespace: &str) -> NameInfo {
    NameInfo {
        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        registry: registry.into(),
        shortname: shortname.into(),
        namespace: namespace.into(),
    }
}

fn table() -> NameTable {
    let entries = [
        ("podinfo.demo.svc.cluster.local", info(&["10.96.0.1"], "Kubernetes", "podinfo", "demo")),
        ("db.data.svc.cluster.local", info(&["10.96.0.2", "fd00::2"], "Kubernetes", "db", "data")),
        ("api.example.com", info(&["240.240.0.1"], "External", "", "demo")),
        ("*.wild.example.com", info(&["240.240.0.2"], "External", "", "demo")),
    ];
    NameTable { table: entries.into_iter().map(|(host, info)| (host.to_owned(), info)).collect() }
}

async fn start(resolver: Resolver, table: &NameTable) -> SocketAddr {
    let proxy = Arc::new(DnsProxy::new(resolver, "demo"));
    proxy.update(table);
    let sockets = Sockets::bind(0).await.unwrap();
    let address = sockets.udp.local_addr().unwrap();
    tokio::spawn(proxy.serve(sockets));
    address
}

fn resolver(server: Option<SocketAddr>) -> Resolver {
    Resolver { servers: server.into_iter().collect(), search: vec!["demo.svc.cluster.local".into()] }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Status, and the answers as text.
fn read(bytes: &[u8]) -> (ResponseCode, Vec<String>) {
    let message = Message::from_vec(bytes).unwrap();
    assert_eq!((message.metadata.id, message.metadata.message_type), (4711, MessageType::Response));
    let text = |data: &RData| match data {
        RData::CNAME(name) => format!("= {}", name.0),
        other => other.ip_addr().unwrap().to_string(),
    };
    (message.metadata.response_code, message.answers.iter().map(|record| text(&record.data)).collect())
}

async fn ask(address: SocketAddr, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let (udp, tcp) = (
        ask_udp(address, &query(name, kind)).await.unwrap(),
        ask_tcp(address, &query(name, kind)).await.unwrap(),
    );
    assert_eq!(read(&udp), read(&tcp));
    read(&udp)
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_in_all_their_forms() {
    let address = start(resolver(None), &table()).await;
    for name in
        ["podinfo.demo.svc.cluster.local.", "podinfo.demo.svc.", "podinfo.demo.", "podinfo.", "PodInfo.Demo."]
    {
        assert_eq!(
            ask(address, name, RecordType::A).await,
            (ResponseCode::NoError, vec!["10.96.0.1".into()]),
            "{name}"
        );
    }
    assert_eq!(ask(address, "db.data.", RecordType::AAAA).await.1, ["fd00::2"]);
    assert_eq!(ask(address, "a.b.wild.example.com.", RecordType::A).await.1, ["240.240.0.2"]);
    assert_eq!(
        ask(address, "api.example.com.demo.svc.cluster.local.", RecordType::A).await.1,
        ["= api.example.com.", "240.240.0.1"]
    );
}

#[tokio::test]
async fn known_name_without_address_of_the_family_is_empty_not_missing() {
    let address = start(resolver(None), &table()).await;
    assert_eq!(ask(address, "podinfo.demo.", RecordType::AAAA).await, (ResponseCode::NoError, Vec::new()));
}

#[tokio::test]
async fn other_names_go_upstream_and_fail_without_one() {
    let other =
        NameTable { table: [("elsewhere.org".to_owned(), info(&["9.9.9.9"], "External", "", ""))].into() };
    let upstream = start(resolver(None), &other).await;
    let address = start(resolver(Some(upstream)), &table()).await;
    assert_eq!(
        ask(address, "elsewhere.org.", RecordType::A).await,
        (ResponseCode::NoError, vec!["9.9.9.9".into()])
    );
    // Another namespace's short name is none of ours.
    assert_eq!(ask(address, "db.", RecordType::A).await.0, ResponseCode::ServFail);
    assert_eq!(ask(address, "podinfo.demo.", RecordType::TXT).await.0, ResponseCode::ServFail);
}

#[tokio::test]
async fn malformed_message_gets_an_error_not_silence() {
    let address = start(resolver(None), &table()).await;
    let answer = ask_udp(address, &[0x12, 0x67, 1]).await.unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn resolv_conf_is_read_as_the_library_does() {
    let text = "# comment\nsearch a.b\nnameserver 10.96.0.10\nnameserver fd00::a\nnameserver x\nsearch c.d e.f\noptions ndots:5\n";
    let resolver = Resolver::parse(text);
    assert_eq!(resolver.servers, ["10.96.0.10:53".parse().unwrap(), "[fd00::a]:53".parse().unwrap()]);
    assert_eq!(resolver.search, ["c.d", "e.f"]);
}

#[test]
fn table_is_read_from_the_bytes_that_istiod_sends() {
    let bytes = table().encode_to_vec();
    assert_eq!(NameTable::decode(&bytes[..]).unwrap(), table());
    // podinfo's entry, field by field: a map entry, its key, its value with one address, registry, short name, namespace.
    let entry = b"\x0a\x28\x0a\x07p.d.svc\x12\x1d\x0a\x0910.96.0.1\x12\x0aKubernetes\x1a\x01p\x22\x01d";
    let decoded = NameTable::decode(&entry[..]).unwrap();
    assert_eq!(decoded.table["p.d.svc"], info(&["10.96.0.1"], "Kubernetes", "p", "d"));
}

#[test]
fn debug_page_lists_every_form() {
    let proxy = DnsProxy::new(resolver(None), "demo");
    proxy.update(&table());
    let json: serde_json::Value = serde_json::from_str(&proxy.table_json()).unwrap();
    assert_eq!(json["table"]["podinfo.demo.svc."]["ips"][0], "10.96.0.1");
    assert_eq!(json["table"]["*.wild.example.com."]["ips"][0], "240.240.0.2");
}
