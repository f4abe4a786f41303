//! `/certs`: the certificates and roots of listeners and clusters, as `envoy.admin.v3.Certificates`. Contexts that use the
//! same ones are shown once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::AdminState;
use super::page::Page;
use crate::config::snapshot::Snapshot;
use crate::config::tls::{CertificateSource, CommonTls, Secret, TransportSocket};
use crate::telemetry::format::strftime;
use crate::tls::{CertDetails, describe};

/// PEM and the path it came from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pem {
    text: Arc<[u8]>,
    path: Arc<str>,
}

type Context = (Vec<Pem>, Vec<Pem>);

pub(super) fn page(state: &AdminState) -> Page {
    let now = now();
    let certificates: Vec<Value> = contexts(&state.shared.store.load())
        .iter()
        .map(|(roots, chains)| {
            let show = |all: &[Pem], leaf_only: bool| -> Vec<Value> {
                all.iter()
                    .flat_map(|p| {
                        let take = if leaf_only { 1 } else { usize::MAX };
                        describe(&p.text, now)
                            .into_iter()
                            .take(take)
                            .map(|d| certificate(&d, &p.path))
                            .collect::<Vec<_>>()
                    })
                    .collect()
            };
            json!({"ca_cert": show(roots, false), "cert_chain": show(chains, true)})
        })
        .collect();
    Page::json(&json!({ "certificates": certificates }))
}

/// Days until the first certificate in use expires; Envoy's value without any is the largest `u32`.
pub(super) fn days_until_first_expiry(state: &AdminState) -> u64 {
    let now = now();
    let all = contexts(&state.shared.store.load());
    let days = all.iter().flat_map(|(r, c)| r.iter().chain(c)).flat_map(|p| describe(&p.text, now));
    days.map(|d| d.days_until_expiration).min().unwrap_or(u64::from(u32::MAX))
}

fn now() -> i64 {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(secs).unwrap_or(i64::MAX)
}

fn contexts(snapshot: &Snapshot) -> BTreeSet<Context> {
    let mut all = BTreeSet::new();
    let mut add = |tls: &CommonTls| {
        let context = context(tls, snapshot);
        if !(context.0.is_empty() && context.1.is_empty()) {
            all.insert(context);
        }
    };
    for listener in snapshot.listeners.values() {
        for chain in listener.filter_chains.iter().chain(&listener.default_chain) {
            if let Some(tls) = tls_of(&chain.transport) {
                add(&tls.common);
            }
        }
    }
    for cluster in snapshot.clusters.values() {
        let own = std::iter::once(&cluster.transport);
        for transport in own.chain(cluster.transport_matches.iter().map(|m| &m.transport)) {
            if let Some(tls) = tls_of(transport) {
                add(&tls.common);
            }
        }
    }
    all
}

fn tls_of<T>(transport: &TransportSocket<T>) -> Option<&Arc<T>> {
    match transport {
        TransportSocket::RawBuffer => None,
        TransportSocket::Tls(tls) => Some(tls),
        TransportSocket::ProxyProtocol { inner, .. } => tls_of(inner),
    }
}

fn context(tls: &CommonTls, snapshot: &Snapshot) -> Context {
    let pem = |text: &Arc<[u8]>, path: Option<&Arc<str>>| Pem {
        text: text.clone(),
        path: path.cloned().unwrap_or_else(|| "<inline>".into()),
    };
    let mut chains = Vec::new();
    for source in &tls.certificates {
        let found = match source {
            CertificateSource::Inline(c) => Some(c),
            CertificateSource::Sds(name) => match snapshot.secrets.get(name) {
                Some(Secret::Certificate(c)) => Some(c),
                _ => None,
            },
        };
        chains.extend(found.map(|c| pem(&c.chain_pem, c.chain_path.as_ref())));
    }
    let mut roots = Vec::new();
    if let Some(v) = &tls.validation {
        roots.extend(v.trusted_ca.as_ref().map(|ca| pem(ca, v.trusted_ca_path.as_ref())));
        if let Some(Secret::Roots { pem: text, .. }) = v.sds.as_ref().and_then(|n| snapshot.secrets.get(n)) {
            roots.push(pem(text, None));
        }
    }
    (roots, chains)
}

fn certificate(d: &CertDetails, path: &str) -> Value {
    let names = |kind: &str, all: &[Arc<str>]| all.iter().map(|n| json!({kind: &**n})).collect::<Vec<_>>();
    let facts = &d.facts;
    let sans: Vec<Value> =
        [names("dns", &facts.dns_sans), names("uri", &facts.uri_sans), names("ip_address", &facts.ip_sans)]
            .concat();
    json!({
        "path": path,
        "serial_number": &*facts.serial,
        "subject_alt_names": sans,
        "days_until_expiration": d.days_until_expiration.to_string(),
        "valid_from": time(facts.not_before),
        "expiration_time": time(facts.not_after),
    })
}

fn time(unix: i64) -> String {
    let mut out = Vec::new();
    strftime(Duration::from_secs(u64::try_from(unix).unwrap_or(0)), "%Y-%m-%dT%H:%M:%SZ", &mut out);
    String::from_utf8(out).unwrap_or_default()
}
