//! Obtains a certificate from istiod and shows its rotation:
//! `cargo run -p outrigger-certs --example issue -- ADDRESS SERVER-NAME ROOT-FILE TOKEN-FILE NAMESPACE SERVICE-ACCOUNT [TTL-SECONDS]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_certs::ca_client::CaClient;
use outrigger_certs::rotation::{Rotation, RotationConfig};
use outrigger_certs::spiffe::SpiffeId;
use outrigger_certs::store::{ROOT, SecretStore, WORKLOAD};
use outrigger_xds::connector::{Connector, Target, tls_from_roots_file, token_from_file};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, server_name, root, token, namespace, account, rest @ ..] = arguments.as_slice() else {
        eprintln!("six arguments are needed; see the head of this example");
        std::process::exit(2);
    };
    let connector = Connector::new(Target::Tls {
        address: address.clone(),
        server_name: server_name.clone(),
        tls: tls_from_roots_file(PathBuf::from(root)),
    });
    let channel = Arc::new(move || connector.connect_lazy().map_err(|error| error.to_string()));
    let client = CaClient::new(address, channel)
        .with_cluster_id("Kubernetes")
        .with_token(token_from_file(PathBuf::from(token)));
    let mut config = RotationConfig::new(SpiffeId::workload("cluster.local", namespace, account));
    if let Some(seconds) = rest.first().and_then(|text| text.parse().ok()) {
        config.ttl = Duration::from_secs(seconds);
    }
    let store = SecretStore::new();
    let rotation = Rotation::spawn(config, client, store.clone());
    let mut status = rotation.status();
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        println!("{now:?}");
        if let (Some(certificate), Some(roots)) = (store.certificate(WORKLOAD), store.roots(ROOT)) {
            println!("{certificate:?} under {roots:?}");
        }
    }
}
