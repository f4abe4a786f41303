//! `/config_dump` in Envoy's JSON (`envoy.admin.v3.ConfigDump`): built on demand from the bytes as received, and dropped again.
//! Follows Envoy's administration page; `?resource=`, `?mask=`, `?name_regex=`, `?include_eds`. Secrets are redacted.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrigger_xds::json::Schema;
use outrigger_xds::type_url;
use prost::Message;
use serde_json::{Map, Value, json};

use super::apply::{Applied, Applier, ErrorState, Kind, Record};
use super::tls::Secret;
use crate::admin::{ConfigDump, DumpQuery};
use crate::server::SharedApplier;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// One field of a dump, `dynamic_listeners` for instance.
    pub resource: Option<String>,
    /// Comma-separated paths to keep, from each resource or, without one, from each dump.
    pub mask: Option<String>,
    /// Only resources whose whole name matches.
    pub name_regex: Option<String>,
    pub include_eds: bool,
}

/// `[redacted]` in base64.
const REDACTED_BYTES: &str = "W3JlZGFjdGVkXQ==";

struct Dump<'a> {
    applier: &'a Applier,
    schema: Schema,
    name: Option<regex::Regex>,
}

/// The dump.
///
/// # Errors
/// What is wrong with the query, for a 400 or 404.
pub fn dump(applier: &Applier, query: &Query) -> Result<Value, String> {
    let name = match &query.name_regex {
        None => None,
        Some(r) => Some(
            regex::Regex::new(&format!("^(?:{r})$"))
                .map_err(|_| format!("Error while parsing name_regex from {r}"))?,
        ),
    };
    let d = Dump { applier, schema: Schema::load(), name };
    let mut configs = vec![d.bootstrap(), d.clusters()];
    if query.include_eds {
        configs.push(d.endpoints());
    }
    configs.extend([
        d.listeners(),
        json!({"@type": "type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump"}),
        d.routes(),
        d.secrets(),
    ]);
    for c in &mut configs {
        redact(c);
    }
    let mask: Option<Vec<&str>> =
        query.mask.as_deref().map(|m| m.split(',').filter(|p| !p.is_empty()).collect());
    if let Some(resource) = &query.resource {
        configs =
            of_resource(&configs, resource).ok_or_else(|| format!("{resource} not found in config dump"))?;
        if let Some(mask) = &mask {
            for c in &mut configs {
                *c = trim(c, mask);
            }
        }
    } else if let Some(mask) = &mask {
        configs = configs
            .iter()
            .map(|c| trim(c, mask))
            .filter(|c| c.as_object().is_some_and(|o| o.len() > 1))
            .collect();
    }
    Ok(json!({ "configs": configs }))
}

/// The elements of one field of one dump, each with the type that it has there.
fn of_resource(configs: &[Value], resource: &str) -> Option<Vec<Value>> {
    const ELEMENTS: [(&str, &str); 16] = [
        ("static_listeners", "ListenersConfigDump.StaticListener"),
        ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
        ("static_clusters", "ClustersConfigDump.StaticCluster"),
        ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster"),
        ("dynamic_warming_clusters", "ClustersConfigDump.DynamicCluster"),
        ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
        ("dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig"),
        ("inline_scoped_route_configs", "ScopedRoutesConfigDump.InlineScopedRouteConfigs"),
        ("dynamic_scoped_route_configs", "ScopedRoutesConfigDump.DynamicScopedRouteConfigs"),
        ("static_endpoint_configs", "EndpointsConfigDump.StaticEndpointConfig"),
        ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig"),
        ("static_secrets", "SecretsConfigDump.StaticSecret"),
        ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
        ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
        ("ecds_filters", "EcdsConfigDump.EcdsFilterConfig"),
        ("bootstrap", ""),
    ];
    let (_, element) = ELEMENTS.iter().find(|(f, _)| *f == resource)?;
    let found = configs.iter().find_map(|c| c.get(resource));
    if resource == "bootstrap" {
        let mut inner = Map::from_iter([(
            "@type".to_owned(),
            json!("type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap"),
        )]);
        inner.extend(found?.as_object()?.clone());
        return Some(vec![Value::Object(inner)]);
    }
    let list = found.and_then(Value::as_array).cloned().unwrap_or_default();
    let typed = |v: Value| {
        let mut out = Map::from_iter([(
            "@type".to_owned(),
            json!(format!("type.googleapis.com/envoy.admin.v3.{element}")),
        )]);
        if let Value::Object(o) = v {
            out.extend(o);
        }
        Value::Object(out)
    };
    Some(list.into_iter().map(typed).collect())
}

/// Keeps the paths of a field mask, and the type of each message on the way.
fn trim(value: &Value, mask: &[&str]) -> Value {
    let Value::Object(object) = value else { return value.clone() };
    let mut out = Map::new();
    for (key, inner) in object {
        if key == "@type" || mask.contains(&key.as_str()) {
            out.insert(key.clone(), inner.clone());
            continue;
        }
        let below: Vec<&str> =
            mask.iter().filter_map(|p| p.strip_prefix(key.as_str())?.strip_prefix('.')).collect();
        if !below.is_empty() {
            out.insert(key.clone(), trim(inner, &below));
        }
    }
    Value::Object(out)
}

/// Blanks what Envoy's API marks as sensitive.
fn redact(value: &mut Value) {
    match value {
        Value::Object(o) => {
            for (key, inner) in o {
                match key.as_str() {
                    "private_key" | "password" | "pkcs12" | "session_ticket_keys" | "generic_secret" => {
                        blank(inner);
                    }
                    _ => redact(inner),
                }
            }
        }
        Value::Array(a) => a.iter_mut().for_each(redact),
        _ => {}
    }
}

fn blank(value: &mut Value) {
    match value {
        Value::Object(o) => {
            for (key, inner) in o {
                match inner {
                    Value::String(_) if key == "@type" => {}
                    Value::String(s) if key == "inline_bytes" => REDACTED_BYTES.clone_into(s),
                    other => blank(other),
                }
            }
        }
        Value::Array(a) => a.iter_mut().for_each(blank),
        Value::String(s) => "[redacted]".clone_into(s),
        _ => {}
    }
}

/// `2026-11-25T00:38:47.038Z`.
fn timestamp(at: SystemTime) -> String {
    let t = time::OffsetDateTime::from(at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    )
}

fn put_list(out: &mut Map<String, Value>, field: &str, list: Vec<Value>) {
    if !list.is_empty() {
        out.insert(field.to_owned(), Value::Array(list));
    }
}

impl Dump<'_> {
    fn wants(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|r| r.is_match(name))
    }

    fn any(&self, url: &str, body: &[u8]) -> Value {
        self.schema.any_to_json(url, body)
    }

    fn started(&self, dump: &str) -> Map<String, Value> {
        Map::from_iter([("@type".to_owned(), json!(format!("type.googleapis.com/envoy.admin.v3.{dump}")))])
    }

    fn with_version(&self, dump: &str, kind: Kind) -> Map<String, Value> {
        let mut out = self.started(dump);
        let version = &self.applier.records(kind).version;
        if !version.is_empty() {
            out.insert("version_info".to_owned(), json!(&**version));
        }
        out
    }

    /// Version, resource under `field`, time.
    fn entry(&self, kind: Kind, field: &str, a: &Applied) -> Map<String, Value> {
        let mut out = Map::new();
        if !a.version.is_empty() {
            out.insert("version_info".to_owned(), json!(&*a.version));
        }
        out.insert(field.to_owned(), self.any(kind.type_url(), &a.body));
        out.insert("last_updated".to_owned(), json!(timestamp(a.at)));
        out
    }

    fn error(&self, kind: Kind, e: &ErrorState) -> Value {
        json!({
            "failed_configuration": self.any(kind.type_url(), &e.body),
            "last_update_attempt": timestamp(e.at),
            "details": e.details,
            "version_info": &*e.version,
        })
    }

    fn chosen(&self, kind: Kind) -> impl Iterator<Item = (&Arc<str>, &Record)> {
        self.applier.records(kind).by_name.iter().filter(|(n, _)| self.wants(n))
    }

    fn bootstrap(&self) -> Value {
        let mut out = self.started("BootstrapConfigDump");
        let (raw, at) = self.applier.bootstrap();
        let mut message = self.any("type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap", raw);
        if let Some(o) = message.as_object_mut() {
            o.shift_remove("@type");
        }
        out.insert("bootstrap".to_owned(), message);
        out.insert("last_updated".to_owned(), json!(timestamp(at)));
        Value::Object(out)
    }

    fn clusters(&self) -> Value {
        let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
        for (_, r) in self.chosen(Kind::Cluster) {
            let mut error = r.error.as_ref().map(|e| self.error(Kind::Cluster, e));
            for (a, list) in
                [(&r.active, if r.is_static { &mut fixed } else { &mut active }), (&r.warming, &mut warming)]
            {
                let Some(a) = a else { continue };
                let mut entry = self.entry(Kind::Cluster, "cluster", a);
                if let Some(e) = error.take() {
                    entry.insert("error_state".to_owned(), e);
                }
                list.push(Value::Object(entry));
            }
            if let Some(e) = error {
                // Never taken: only its error is known.
                warming.push(json!({ "error_state": e }));
            }
        }
        let mut out = self.with_version("ClustersConfigDump", Kind::Cluster);
        put_list(&mut out, "static_clusters", fixed);
        put_list(&mut out, "dynamic_active_clusters", active);
        put_list(&mut out, "dynamic_warming_clusters", warming);
        Value::Object(out)
    }

    fn endpoints(&self) -> Value {
        let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
        let records = self.applier.records(Kind::Endpoints);
        for (name, r) in self.chosen(Kind::Cluster) {
            let Some(a) = &r.active else { continue };
            let Ok(cluster) = Cluster::decode(&*a.body) else { continue };
            let service = cluster
                .eds_cluster_config
                .as_ref()
                .map(|e| if e.service_name.is_empty() { &**name } else { e.service_name.as_str() });
            let found = service.and_then(|s| records.by_name.get(s)).and_then(|r| r.active.as_ref());
            let mut assignment = match (found, &cluster.load_assignment) {
                (Some(a), _) => self.any(type_url::ENDPOINT, &a.body),
                (None, Some(l)) => self.any(type_url::ENDPOINT, &l.encode_to_vec()),
                (None, None) => json!({"@type": type_url::ENDPOINT}),
            };
            if let Some(o) = assignment.as_object_mut() {
                o.insert("cluster_name".to_owned(), json!(&**name));
                let policy = o.entry("policy").or_insert_with(|| json!({}));
                if let Some(p) = policy.as_object_mut() {
                    p.entry("overprovisioning_factor").or_insert(json!(140));
                }
            }
            let list = if r.is_static { &mut fixed } else { &mut dynamic };
            list.push(json!({ "endpoint_config": assignment }));
        }
        for (_, r) in self.chosen(Kind::Endpoints) {
            if let Some(e) = &r.error {
                dynamic.push(json!({ "error_state": self.error(Kind::Endpoints, e) }));
            }
        }
        let mut out = self.started("EndpointsConfigDump");
        put_list(&mut out, "static_endpoint_configs", fixed);
        put_list(&mut out, "dynamic_endpoint_configs", dynamic);
        Value::Object(out)
    }

    fn listeners(&self) -> Value {
        let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
        for (name, r) in self.chosen(Kind::Listener) {
            if r.is_static {
                let state = r.active.as_ref().or(r.warming.as_ref());
                fixed.extend(state.map(|a| Value::Object(self.entry(Kind::Listener, "listener", a))));
                continue;
            }
            let mut out = Map::from_iter([("name".to_owned(), json!(&**name))]);
            for (field, state) in [("active_state", &r.active), ("warming_state", &r.warming)] {
                if let Some(a) = state {
                    out.insert(field.to_owned(), Value::Object(self.entry(Kind::Listener, "listener", a)));
                }
            }
            if let Some(e) = &r.error {
                out.insert("error_state".to_owned(), self.error(Kind::Listener, e));
            }
            dynamic.push(Value::Object(out));
        }
        let mut out = self.with_version("ListenersConfigDump", Kind::Listener);
        put_list(&mut out, "static_listeners", fixed);
        put_list(&mut out, "dynamic_listeners", dynamic);
        Value::Object(out)
    }

    fn routes(&self) -> Value {
        let mut fixed = Vec::new();
        for r in self.applier.records(Kind::Listener).by_name.values() {
            let Some(a) = &r.active else { continue };
            for config in inline_routes(&a.body) {
                if self.wants(&config.name) {
                    fixed.push(json!({
                        "route_config": self.any(type_url::ROUTE, &config.encode_to_vec()),
                        "last_updated": timestamp(a.at),
                    }));
                }
            }
        }
        let mut dynamic = Vec::new();
        for (_, r) in self.chosen(Kind::Routes) {
            let mut entry =
                r.active.as_ref().map(|a| self.entry(Kind::Routes, "route_config", a)).unwrap_or_default();
            if let Some(e) = &r.error {
                entry.insert("error_state".to_owned(), self.error(Kind::Routes, e));
            }
            dynamic.push(Value::Object(entry));
        }
        let mut out = self.started("RoutesConfigDump");
        put_list(&mut out, "static_route_configs", fixed);
        put_list(&mut out, "dynamic_route_configs", dynamic);
        Value::Object(out)
    }

    fn secrets(&self) -> Value {
        let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
        let snapshot = self.applier.store().load();
        let records = self.applier.records(Kind::Secret);
        let mut names: Vec<&Arc<str>> = snapshot.secrets.keys().filter(|n| self.wants(n)).collect();
        names.sort();
        for name in names {
            let Some(secret) = snapshot.secrets.get(name) else { continue };
            let record = records.by_name.get(name);
            let applied = record.and_then(|r| r.active.as_ref());
            let mut entry = Map::from_iter([("name".to_owned(), json!(&**name))]);
            if let Some(version) = applied.map(|a| &a.version).filter(|v| !v.is_empty()) {
                entry.insert("version_info".to_owned(), json!(&**version));
            }
            entry.insert(
                "last_updated".to_owned(),
                json!(timestamp(applied.map_or(self.applier.bootstrap().1, |a| a.at))),
            );
            entry.insert("secret".to_owned(), secret_json(name, secret));
            if let Some(e) = record.and_then(|r| r.error.as_ref()) {
                entry.insert("error_state".to_owned(), self.error(Kind::Secret, e));
            }
            if record.is_some_and(|r| r.is_static) { &mut fixed } else { &mut active }
                .push(Value::Object(entry));
        }
        let needed = self.applier.needed();
        for name in needed.secrets.union(&needed.local_secrets) {
            if !snapshot.secrets.contains_key(name) && self.wants(name) {
                warming.push(json!({
                    "name": &**name,
                    "version_info": "uninitialized",
                    "last_updated": timestamp(self.applier.bootstrap().1),
                    "secret": {"@type": type_url::SECRET, "name": &**name},
                }));
            }
        }
        let mut out = self.started("SecretsConfigDump");
        put_list(&mut out, "static_secrets", fixed);
        put_list(&mut out, "dynamic_active_secrets", active);
        put_list(&mut out, "dynamic_warming_secrets", warming);
        Value::Object(out)
    }
}

fn secret_json(name: &str, secret: &Secret) -> Value {
    let bytes = |b: &[u8]| json!({ "inline_bytes": base64::engine::general_purpose::STANDARD.encode(b) });
    let mut out = json!({"@type": type_url::SECRET, "name": name});
    let (field, value) = match secret {
        Secret::Certificate(c) => (
            "tls_certificate",
            json!({"certificate_chain": bytes(&c.chain_pem), "private_key": bytes(&c.key_pem)}),
        ),
        Secret::Roots { pem, crl } => {
            let mut v = json!({ "trusted_ca": bytes(pem) });
            if let Some(crl) = crl {
                v["crl"] = bytes(crl);
            }
            ("validation_context", v)
        }
        Secret::Generic(b) => ("generic_secret", json!({ "secret": bytes(b) })),
    };
    out[field] = value;
    out
}

/// The route configurations that stand in a listener's connection managers.
fn inline_routes(body: &[u8]) -> Vec<RouteConfiguration> {
    let Ok(listener) = Listener::decode(body) else { return Vec::new() };
    let of = |chain: FilterChain| {
        chain.filters.into_iter().filter_map(|f| {
            let filter::ConfigType::TypedConfig(any) = f.config_type? else { return None };
            if !any.type_url.ends_with(
                "/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            ) {
                return None;
            }
            match hcm::HttpConnectionManager::decode(any.value.as_slice()).ok()?.route_specifier? {
                hcm::http_connection_manager::RouteSpecifier::RouteConfig(r) => Some(r),
                _ => None,
            }
        })
    };
    listener.filter_chains.into_iter().chain(listener.default_filter_chain).flat_map(of).collect()
}

/// The admin server's source of dumps.
#[derive(Debug)]
pub struct Source(pub SharedApplier);

impl ConfigDump for Source {
    fn dump(&self, query: &DumpQuery) -> Result<String, String> {
        let DumpQuery { resource, mask, name_regex, include_eds } = query.clone();
        let query = Query { resource, mask, name_regex, include_eds };
        let value = dump(&self.0.lock(), &query)?;
        serde_json::to_string_pretty(&value).map_err(|e| e.to_string())
    }
}
