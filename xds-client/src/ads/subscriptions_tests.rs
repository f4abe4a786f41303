use envoy_types::pb::google::protobuf::Duration as ProtoDuration;

use super::*;
use crate::type_url::{CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn resource(name: &str, version: &str) -> discovery::Resource {
    // Field 1, the name; what every xDS resource starts with.
    let mut value = vec![0x0a, u8::try_from(name.len()).unwrap()];
    value.extend(name.as_bytes());
    discovery::Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: CLUSTER.to_owned(), value }),
        ..Default::default()
    }
}

fn delta(
    type_url: &str,
    nonce: &str,
    added: &[(&str, &str)],
    removed: &[&str],
) -> discovery::DeltaDiscoveryResponse {
    discovery::DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: added.iter().map(|(name, version)| resource(name, version)).collect(),
        removed_resources: names(removed),
        ..Default::default()
    }
}

fn sotw(type_url: &str, version: &str, nonce: &str, names: &[&str]) -> discovery::DiscoveryResponse {
    discovery::DiscoveryResponse {
        type_url: type_url.to_owned(),
        version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().filter_map(|name| resource(name, "").resource).collect(),
        ..Default::default()
    }
}

fn all_requests(subscriptions: &mut Subscriptions) -> Vec<Request> {
    std::iter::from_fn(|| subscriptions.poll_request()).collect()
}

fn one_request(subscriptions: &mut Subscriptions) -> Request {
    let mut requests = all_requests(subscriptions);
    assert_eq!(requests.len(), 1, "{requests:?}");
    requests.remove(0)
}

fn rejecting(name: &str, reason: &str) -> Verdict {
    let mut verdict = Verdict::accepted();
    verdict.reject(name, reason);
    verdict
}

/// A delta client with a wildcard for clusters, whose first request is out.
fn connected() -> Subscriptions {
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.subscribe_wildcard(CLUSTER);
    subscriptions.handle_connected();
    let first = one_request(&mut subscriptions);
    assert_eq!((first.subscribe.len(), first.ack), (0, None));
    subscriptions
}

#[test]
fn nothing_is_said_without_a_stream() {
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.subscribe_wildcard(CLUSTER);
    assert_eq!(subscriptions.poll_request(), None);
}

#[test]
fn requests_go_out_clusters_endpoints_listeners_routes_others() {
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.subscribe_wildcard(NAME_TABLE);
    subscriptions.subscribe(ROUTE, names(&["80"]));
    subscriptions.subscribe_wildcard(LISTENER);
    subscriptions.subscribe(ENDPOINT, names(&["web"]));
    subscriptions.subscribe_wildcard(CLUSTER);
    subscriptions.handle_connected();
    let order: Vec<String> =
        all_requests(&mut subscriptions).into_iter().map(|request| request.type_url).collect();
    assert_eq!(order, [CLUSTER, ENDPOINT, LISTENER, ROUTE, NAME_TABLE]);
}

#[test]
fn type_without_names_says_nothing() {
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.set_names(ENDPOINT, Vec::new());
    subscriptions.handle_connected();
    assert_eq!(subscriptions.poll_request(), None);
}

#[test]
fn each_response_is_answered_once_and_apart_from_changes() {
    let mut subscriptions = connected();
    let now = Instant::now();
    let response = subscriptions.handle_delta_response(delta(CLUSTER, "n1", &[("a", "1")], &[]), now);
    assert_eq!(response.added[0].name, "a");
    assert_eq!(subscriptions.poll_request(), None, "no answer before the verdict");
    subscriptions.ack(CLUSTER, "n1", &Verdict::accepted());
    subscriptions.subscribe(CLUSTER, names(&["extra"]));
    let requests = all_requests(&mut subscriptions);
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].ack, Some(Ack { nonce: "n1".to_owned(), error: None }));
    assert_eq!((requests[0].subscribe.len(), requests[0].unsubscribe.len()), (0, 0));
    assert_eq!((requests[1].ack.clone(), requests[1].subscribe.clone()), (None, names(&["extra"])));
    subscriptions.ack(CLUSTER, "n1", &Verdict::accepted());
    assert_eq!(subscriptions.poll_request(), None, "the second answer is ignored");
}

#[test]
fn subscription_changes_are_differences() {
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.subscribe(ENDPOINT, names(&["a", "b"]));
    subscriptions.handle_connected();
    assert_eq!(one_request(&mut subscriptions).subscribe, ["a", "b"]);
    subscriptions.subscribe(ENDPOINT, names(&["c"]));
    subscriptions.unsubscribe(ENDPOINT, &names(&["a"]));
    let change = one_request(&mut subscriptions);
    assert_eq!((change.subscribe, change.unsubscribe), (names(&["c"]), names(&["a"])));
    subscriptions.set_names(ENDPOINT, names(&["c", "d"]));
    let change = one_request(&mut subscriptions);
    assert_eq!((change.subscribe, change.unsubscribe), (names(&["d"]), names(&["b"])));
    subscriptions.set_names(ENDPOINT, names(&["c", "d"]));
    assert_eq!(subscriptions.poll_request(), None);
}

#[test]
fn wildcard_beside_names_is_spelled() {
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.subscribe_wildcard(CLUSTER);
    subscriptions.subscribe(CLUSTER, names(&["a"]));
    subscriptions.handle_connected();
    assert_eq!(one_request(&mut subscriptions).subscribe, ["*", "a"]);
    subscriptions.unsubscribe(CLUSTER, &names(&["*"]));
    assert_eq!(one_request(&mut subscriptions).unsubscribe, ["*"]);
}

#[test]
fn reconnect_states_what_is_wanted_and_held() {
    let mut subscriptions = connected();
    subscriptions.subscribe(ENDPOINT, names(&["a", "b"]));
    let now = Instant::now();
    subscriptions
        .handle_delta_response(delta(CLUSTER, "n1", &[("a", "1"), ("b", "1"), ("c", "1")], &[]), now);
    subscriptions.ack(CLUSTER, "n1", &Verdict::accepted());
    subscriptions.handle_delta_response(delta(CLUSTER, "n2", &[("b", "2"), ("d", "2")], &["c"]), now);
    subscriptions.ack(CLUSTER, "n2", &rejecting("d", "bad"));
    subscriptions.handle_delta_response(delta(CLUSTER, "n3", &[("a", "3")], &[]), now);
    subscriptions.ack(CLUSTER, "n3", &rejecting("a", "bad"));
    let _ = all_requests(&mut subscriptions);

    subscriptions.handle_disconnected();
    assert_eq!(subscriptions.poll_request(), None);
    subscriptions.handle_connected();
    let requests = all_requests(&mut subscriptions);
    assert_eq!(requests.len(), 2);
    assert_eq!((requests[0].subscribe.len(), requests[0].ack.clone()), (0, None));
    let held = &requests[0].initial_resource_versions;
    // `a` in the version accepted before the refused one, `d` not at all, `c` is gone.
    let expected = [("a", "1"), ("b", "2")].map(|(name, version)| (name.to_owned(), version.to_owned()));
    assert_eq!(held, &HashMap::from(expected));
    assert_eq!(requests[1].subscribe, ["a", "b"]);
    assert!(requests[1].initial_resource_versions.is_empty());
}

#[test]
fn unsubscribed_names_are_not_claimed() {
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.subscribe(ENDPOINT, names(&["a", "b"]));
    subscriptions.handle_connected();
    let _ = all_requests(&mut subscriptions);
    subscriptions.handle_delta_response(delta(ENDPOINT, "n", &[("a", "1"), ("b", "1")], &[]), Instant::now());
    subscriptions.unsubscribe(ENDPOINT, &names(&["b"]));
    subscriptions.ack(ENDPOINT, "n", &Verdict::accepted());
    assert_eq!(subscriptions.held(ENDPOINT).into_keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn answer_to_a_stream_that_is_gone_counts_but_is_not_sent() {
    let mut subscriptions = connected();
    subscriptions.handle_delta_response(delta(CLUSTER, "n1", &[("a", "1")], &[]), Instant::now());
    subscriptions.handle_disconnected();
    subscriptions.handle_connected();
    subscriptions.ack(CLUSTER, "n1", &Verdict::accepted());
    let request = one_request(&mut subscriptions);
    assert_eq!((request.ack, request.initial_resource_versions["a"].as_str()), (None, "1"));
}

#[test]
fn nack_names_every_refused_resource() {
    let mut subscriptions = connected();
    subscriptions.handle_delta_response(delta(CLUSTER, "n", &[("a", "1"), ("b", "1")], &[]), Instant::now());
    let mut verdict = rejecting("a", "lb_policy: MAGLEV is not supported");
    verdict.reject("b", "name: empty");
    subscriptions.ack(CLUSTER, "n", &verdict);
    let ack = one_request(&mut subscriptions).ack.unwrap();
    assert_eq!(ack.error.unwrap(), "Cluster a: lb_policy: MAGLEV is not supported\nCluster b: name: empty");
}

#[test]
fn ttl_ends_unless_a_heartbeat_renews_it() {
    let mut subscriptions = connected();
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let ttl = Some(ProtoDuration { seconds: 10, nanos: 0 });
    let mut response = delta(CLUSTER, "n1", &[("a", "1"), ("b", "1"), ("c", "1")], &[]);
    response.resources[0].ttl = ttl;
    response.resources[1].ttl = ttl;
    let seen = subscriptions.handle_delta_response(response, start);
    assert_eq!(seen.added[0].ttl, Some(Duration::from_secs(10)));
    subscriptions.ack(CLUSTER, "n1", &Verdict::accepted());

    let mut heartbeat = delta(CLUSTER, "n2", &[("a", "1")], &[]);
    heartbeat.resources[0].ttl = ttl;
    heartbeat.resources[0].resource = None;
    let seen = subscriptions.handle_delta_response(heartbeat, after(5));
    assert!(seen.added.is_empty(), "a heartbeat is no resource");
    assert_eq!(subscriptions.next_deadline(), Some(after(10)));
    assert_eq!(subscriptions.poll_expired(after(9)), None);
    assert_eq!(subscriptions.poll_expired(after(10)), Some((CLUSTER.to_owned(), names(&["b"]))));
    assert_eq!(subscriptions.poll_expired(after(14)), None);
    assert_eq!(subscriptions.poll_expired(after(15)), Some((CLUSTER.to_owned(), names(&["a"]))));
    assert_eq!(subscriptions.next_deadline(), None);
    assert_eq!(subscriptions.held(CLUSTER).into_keys().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn state_of_the_world_repeats_names_version_and_nonce() {
    let mut subscriptions = Subscriptions::new(Variant::StateOfTheWorld);
    subscriptions.subscribe(ENDPOINT, names(&["a", "b"]));
    subscriptions.handle_connected();
    let first = one_request(&mut subscriptions);
    assert_eq!((first.names, first.version.as_str(), first.ack), (names(&["a", "b"]), "", None));

    let response =
        subscriptions.handle_sotw_response(sotw(ENDPOINT, "v1", "n1", &["a", "b"]), Instant::now());
    assert_eq!(response.added.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    subscriptions.ack(ENDPOINT, "n1", &Verdict::accepted());
    let ack = one_request(&mut subscriptions);
    assert_eq!((ack.version.as_str(), ack.ack.unwrap().nonce.as_str()), ("v1", "n1"));

    subscriptions.handle_sotw_response(sotw(ENDPOINT, "v2", "n2", &["a"]), Instant::now());
    subscriptions.ack(ENDPOINT, "n2", &rejecting("a", "bad"));
    let nack = one_request(&mut subscriptions);
    assert_eq!((nack.version.as_str(), nack.ack.clone().unwrap().nonce.as_str()), ("v1", "n2"));
    assert!(nack.ack.unwrap().error.is_some());

    subscriptions.subscribe(ENDPOINT, names(&["c"]));
    let change = one_request(&mut subscriptions);
    assert_eq!(change.names, ["a", "b", "c"]);
    assert_eq!(change.ack, Some(Ack { nonce: "n2".to_owned(), error: None }));

    subscriptions.handle_connected();
    let again = one_request(&mut subscriptions);
    assert_eq!((again.version.as_str(), again.ack), ("v1", None));
}

#[test]
fn state_of_the_world_removes_clusters_that_are_missing_but_no_endpoints() {
    let mut subscriptions = Subscriptions::new(Variant::StateOfTheWorld);
    subscriptions.subscribe_wildcard(CLUSTER);
    subscriptions.subscribe(ENDPOINT, names(&["a", "b"]));
    subscriptions.handle_connected();
    for type_url in [CLUSTER, ENDPOINT] {
        subscriptions.handle_sotw_response(sotw(type_url, "1", "n1", &["a", "b"]), Instant::now());
        subscriptions.ack(type_url, "n1", &Verdict::accepted());
    }
    let response = subscriptions.handle_sotw_response(sotw(CLUSTER, "2", "n2", &["b"]), Instant::now());
    assert_eq!(response.removed, ["a"]);
    let response = subscriptions.handle_sotw_response(sotw(ENDPOINT, "2", "n2", &["b"]), Instant::now());
    assert!(response.removed.is_empty());
}

#[test]
fn state_of_the_world_resource_in_a_wrapper_has_name_and_ttl() {
    let mut subscriptions = Subscriptions::new(Variant::StateOfTheWorld);
    subscriptions.subscribe(ENDPOINT, names(&["alias"]));
    subscriptions.handle_connected();
    let mut wrapped = resource("a", "");
    wrapped.name = "alias".to_owned();
    wrapped.ttl = Some(ProtoDuration { seconds: 1, nanos: 0 });
    let mut response = sotw(ENDPOINT, "1", "n", &[]);
    response.resources.push(Any {
        type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".to_owned(),
        value: wrapped.encode_to_vec(),
    });
    let seen = subscriptions.handle_sotw_response(response, Instant::now());
    assert_eq!((seen.added[0].name.as_str(), seen.added[0].body.len()), ("alias", 3));
    assert!(subscriptions.next_deadline().is_some());
}

#[test]
fn name_is_read_from_field_one_whatever_comes_before() {
    // Field 2 (varint 5), field 1 ("web").
    let body = Bytes::from_static(b"\x10\x05\x0a\x03web");
    assert_eq!(first_string(&body).as_deref(), Some("web"));
    assert_eq!(first_string(&Bytes::from_static(b"\x10\x05")), None);
    assert_eq!(first_string(&Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0f")), None);
}
