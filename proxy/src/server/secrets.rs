//! The workload's own certificate and roots, from the certificate store into the snapshot: each rotation reaches every TLS
//! context at its next handshake.

use std::sync::Arc;

use outrigger_certs::store::{Secret as Stored, SecretStore};
use tokio::time::Instant;

use super::SharedApplier;
use crate::config::snapshot::Store;
use crate::config::tls::{Secret, TlsCertificate};

/// Follows `from` until it is dropped.
pub async fn follow(from: SecretStore, to: Arc<Store>, applier: SharedApplier) {
    let mut changes = from.subscribe();
    loop {
        changes.borrow_and_update();
        let secrets = from.snapshot();
        to.update(|snapshot| {
            let all = Arc::make_mut(&mut snapshot.secrets);
            for (name, secret) in secrets.iter() {
                all.insert(name.as_str().into(), convert(secret));
            }
        });
        // Listeners and clusters may have waited for them.
        applier.lock().settle(Instant::now());
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn convert(secret: &Stored) -> Secret {
    match secret {
        Stored::Certificate(c) => Secret::Certificate(Arc::new(TlsCertificate {
            chain_pem: c.chain_pem().into_bytes().into(),
            key_pem: c.key_pem().into_bytes().into(),
            chain_path: None,
            key_path: None,
            ocsp: None,
        })),
        Stored::Roots(r) => Secret::Roots { pem: r.to_pem().into_bytes().into(), crl: None },
    }
}
