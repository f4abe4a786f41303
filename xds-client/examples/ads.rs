//! Prints what a control plane sends: `cargo run -p outrigger-xds --example ads -- ADDRESS [NODE-ID] [sotw] [json] [nack=NAME]`.
//! Clusters and listeners by wildcard, then the endpoints and routes that they name.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use outrigger_xds::ads::{AdsClient, AdsConfig, AdsEvent, Variant, Verdict};
use outrigger_xds::connector::Connector;
use outrigger_xds::json::Schema;
use outrigger_xds::type_url::{CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, message_name};

/// Every string under a key of this name.
fn strings_under(value: &serde_json::Value, key: &str, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, inner) in fields {
                match inner.as_str() {
                    Some(text) if name == key => drop(found.insert(text.to_owned())),
                    _ => strings_under(inner, key, found),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings_under(item, key, found)),
        _ => {}
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:15010".to_owned());
    let id = arguments
        .next()
        .unwrap_or_else(|| "sidecar~10.0.0.1~web.default~default.svc.cluster.local".to_owned());
    let options: Vec<String> = arguments.collect();
    let has = |option: &str| options.iter().any(|given| given == option);
    let nack = options.iter().find_map(|option| option.strip_prefix("nack="));
    let string = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let metadata = Struct {
        fields: [("NAMESPACE", "default"), ("ISTIO_VERSION", "1.31.0"), ("DNS_CAPTURE", "true")]
            .map(|(key, value)| (key.to_owned(), string(value)))
            .into(),
    };
    let node = Node { id, metadata: Some(metadata), ..Default::default() };
    let variant = if has("sotw") { Variant::StateOfTheWorld } else { Variant::Delta };
    let config = AdsConfig { node, variant, ..Default::default() };
    let (ads, mut events) = AdsClient::spawn(config, Connector::plain(address));
    for type_url in [CLUSTER, LISTENER, NAME_TABLE] {
        ads.subscribe_wildcard(type_url);
    }
    let schema = Schema::load();
    while let Some(event) = events.recv().await {
        let AdsEvent::Response(response) = event else {
            println!("{event:?}");
            continue;
        };
        let name = message_name(&response.type_url);
        println!("{name} {} from {}", response.version, response.control_plane);
        let (mut routes, mut endpoints) = (BTreeSet::new(), BTreeSet::new());
        for resource in &response.added {
            println!("  + {} {} ({} bytes)", resource.name, resource.version, resource.body.len());
            let Ok(value) = schema.to_json(name, &resource.body) else {
                println!("    malformed");
                continue;
            };
            for path in schema.unknown_fields(name, &resource.body).unwrap_or_default() {
                println!("    unknown field {path}");
            }
            if has("json") {
                println!("{value:#}");
            }
            strings_under(&value, "route_config_name", &mut routes);
            if name.ends_with(".Cluster") && value["type"] == "EDS" {
                let service = value["eds_cluster_config"]["service_name"].as_str();
                endpoints.insert(service.unwrap_or(&resource.name).to_owned());
            }
        }
        response.removed.iter().for_each(|name| println!("  - {name}"));
        let mut verdict = Verdict::accepted();
        for resource in response.added.iter().filter(|resource| Some(resource.name.as_str()) == nack) {
            verdict.reject(&resource.name, "asked for on the command line");
        }
        ads.ack(&response.type_url, &response.nonce, verdict);
        if !endpoints.is_empty() {
            ads.subscribe(ENDPOINT, endpoints);
        }
        if !routes.is_empty() {
            ads.subscribe(ROUTE, routes);
        }
    }
}
