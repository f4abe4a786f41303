//! The workload certificate and the roots, obtained from istiod and renewed, and secrets from files, under the names by which
//! istiod's configuration asks for them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_certs::ca_client::CaClient;
use outrigger_certs::file::{FileSecret, FileWatcher};
use outrigger_certs::identity::certificates_from_pem;
use outrigger_certs::rotation::{Rotation, RotationConfig};
use outrigger_certs::spiffe::SpiffeId;
use outrigger_certs::store::SecretStore;
use outrigger_xds::connector::{Connector, Target, tls_from_roots_file, token_from_file};

use super::environment::Environment;
use crate::server::SharedApplier;

/// How often certificates from files are looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// Where distributions keep the roots of the public web, for `file-root:system`; the first that exists.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

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

/// Watches the files that the configuration names as secrets (`file-cert:…`, `file-root:…`): gateways, and TLS origination.
pub(super) async fn watch_files(applier: SharedApplier, store: SecretStore) {
    let files = FileWatcher::spawn(store, FILE_INTERVAL);
    let mut changed = applier.lock().store().subscribe();
    let mut watched = BTreeSet::new();
    loop {
        changed.borrow_and_update();
        let needed = applier.lock().needed().local_secrets;
        for gone in watched.difference(&needed) {
            files.unwatch(gone);
        }
        for name in needed.difference(&watched) {
            // `default` and `ROOTCA` are not files.
            if let Some(Err(error)) = file(name).map(|secret| files.watch(name, secret)) {
                tracing::warn!(%name, %error, "a secret's files are no good yet");
            }
        }
        watched = needed;
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn file(name: &str) -> Option<FileSecret> {
    if name == "file-root:system" {
        let path = SYSTEM_ROOTS.into_iter().find(|path| std::path::Path::new(path).exists())?;
        return Some(FileSecret::Roots { path: path.into(), crl: None });
    }
    FileSecret::from_name(name)
}
