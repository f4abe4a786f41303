//! The secrets that a process holds, by the names that Envoy's SDS and Istio use: `default` (the workload certificate), `ROOTCA`,
//! `file-cert:<chain>~<key>`, `file-root:<path>`, or whatever a control plane sends. Readers take a snapshot without a lock; whoever
//! builds on secrets waits for changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::identity::WorkloadCertificate;
use crate::verify::TrustBundle;

/// The name of the workload certificate (`security.WorkloadKeyCertResourceName`).
pub const WORKLOAD: &str = "default";
/// The name of the mesh's roots (`security.RootCertReqResourceName`).
pub const ROOT: &str = "ROOTCA";

/// A secret.
#[derive(Clone, Debug)]
pub enum Secret {
    /// A chain with its key.
    Certificate(Arc<WorkloadCertificate>),
    /// Roots.
    Roots(Arc<TrustBundle>),
}

/// The secrets at one moment.
pub type Snapshot = BTreeMap<String, Secret>;

/// Named secrets; clones share them.
#[derive(Clone)]
pub struct SecretStore {
    secrets: Arc<ArcSwap<Snapshot>>,
    version: watch::Sender<u64>,
}

impl Default for SecretStore {
    fn default() -> Self {
        Self::new()
    }
}

impl SecretStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { secrets: Arc::new(ArcSwap::from_pointee(Snapshot::new())), version: watch::Sender::new(0) }
    }

    /// Every secret, as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.secrets.load_full()
    }

    /// The secret of this name.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.secrets.load().get(name).cloned()
    }

    /// The certificate of this name; `None` also if the name holds roots.
    #[must_use]
    pub fn certificate(&self, name: &str) -> Option<Arc<WorkloadCertificate>> {
        match self.secrets.load().get(name) {
            Some(Secret::Certificate(certificate)) => Some(Arc::clone(certificate)),
            Some(Secret::Roots(_)) | None => None,
        }
    }

    /// The roots of this name; `None` also if the name holds a certificate.
    #[must_use]
    pub fn roots(&self, name: &str) -> Option<Arc<TrustBundle>> {
        match self.secrets.load().get(name) {
            Some(Secret::Roots(roots)) => Some(Arc::clone(roots)),
            Some(Secret::Certificate(_)) | None => None,
        }
    }

    /// Adds or replaces a secret.
    pub fn set(&self, name: &str, secret: Secret) {
        self.set_all(&[(name, secret)]);
    }

    /// Adds or replaces several secrets in one step: a certificate and the roots that came with it.
    pub fn set_all(&self, changes: &[(&str, Secret)]) {
        self.change(|secrets| {
            secrets.extend(changes.iter().map(|(name, secret)| ((*name).to_owned(), secret.clone())));
        });
    }

    /// Takes a secret away.
    pub fn remove(&self, name: &str) {
        self.change(|secrets| {
            secrets.remove(name);
        });
    }

    fn change(&self, change: impl Fn(&mut Snapshot)) {
        self.secrets.rcu(|secrets| {
            let mut secrets = Snapshot::clone(secrets);
            change(&mut secrets);
            secrets
        });
        self.version.send_modify(|version| *version += 1);
    }

    /// Counts changes: wait with `changed().await`, then read what is of interest.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Waits until a secret of this name exists.
    pub async fn wait_for(&self, name: &str) -> Secret {
        let mut changes = self.subscribe();
        loop {
            if let Some(secret) = self.secret(name) {
                return secret;
            }
            // The sender lives in `self`: waiting cannot fail before `self` is gone.
            let _ = changes.changed().await;
        }
    }
}
