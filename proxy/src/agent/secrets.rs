//! The workload certificate and the roots: obtained from istiod, renewed, and handed to the data path under the names by
//! which istiod's configuration asks for them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_certs::ca_client::CaClient;
use outrigger_certs::identity::certificates_from_pem;
use outrigger_certs::rotation::{Rotation, RotationConfig};
use outrigger_certs::spiffe::SpiffeId;
use outrigger_certs::store::{Secret as Held, SecretStore};
use outrigger_xds::connector::{Connector, Target, tls_from_roots_file, token_from_file};

use super::environment::Environment;
use crate::config::snapshot::Store;
use crate::config::tls::{Secret, TlsCertificate};

/// A connector to `host:port` of istiod's secured port.
pub(super) fn connector(environment: &Environment, address: &str) -> Connector {
    let server_name = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
    let tls = tls_from_roots_file(environment.xds_root.clone());
    Connector::new(Target::Tls { address: address.to_owned(), server_name, tls })
}

/// Starts obtaining and renewing the workload certificate; it appears in `store`.
pub(super) fn rotate(environment: &Environment, store: SecretStore) -> Rotation {
    let id =
        SpiffeId::workload(&environment.trust_domain, &environment.namespace, &environment.service_account);
    let connector = connector(environment, &environment.ca_address);
    let channel = Arc::new(move || connector.connect_lazy().map_err(|error| error.to_string()));
    let client = CaClient::new(&environment.ca_address, channel)
        .with_token(token_from_file(environment.token.clone()))
        .with_cluster_id(&environment.cluster_id);
    // What istiod's own certificate is checked by is trusted for workloads as well, as Istio's agent does.
    let extra_roots = std::fs::read(&environment.xds_root)
        .ok()
        .and_then(|pem| certificates_from_pem("root-cert.pem", &pem).ok())
        .unwrap_or_default();
    let config = RotationConfig {
        key_algorithm: environment.key_algorithm,
        ttl: environment.ttl,
        grace_ratio: environment.grace_ratio,
        grace_jitter: environment.grace_jitter,
        extra_roots,
        ..RotationConfig::new(id)
    };
    Rotation::spawn(config, client, store)
}

/// Puts every secret of the process into the snapshot; one that is there already, unchanged, is left alone.
pub(super) fn publish(secrets: &SecretStore, store: &Store, crl: Option<&Arc<[u8]>>) {
    let held = secrets.snapshot();
    let current = store.load();
    let changed: Vec<(Arc<str>, Secret)> = held
        .iter()
        .map(|(name, held)| (Arc::from(name.as_str()), convert(held, crl)))
        .filter(|(name, secret)| current.secrets.get(name) != Some(secret))
        .collect();
    if changed.is_empty() {
        return;
    }
    store.update(|snapshot| {
        let secrets = Arc::make_mut(&mut snapshot.secrets);
        secrets.extend(changed);
    });
}

fn convert(held: &Held, crl: Option<&Arc<[u8]>>) -> Secret {
    match held {
        Held::Certificate(certificate) => Secret::Certificate(Arc::new(TlsCertificate {
            chain_pem: certificate.chain_pem().into_bytes().into(),
            key_pem: key_pem(&certificate.key).into_bytes().into(),
            chain_path: None,
            key_path: None,
            ocsp: None,
        })),
        Held::Roots(roots) => {
            Secret::Roots { pem: roots.to_pem().into_bytes().into(), crl: crl.map(Arc::clone) }
        }
    }
}

fn key_pem(key: &rustls_pki_types::PrivateKeyDer<'static>) -> String {
    use rustls_pki_types::PrivateKeyDer;
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    let text = STANDARD.encode(key.secret_der());
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: any place is a boundary. RFC 7468: 64 characters a line.
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
