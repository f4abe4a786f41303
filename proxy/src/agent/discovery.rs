//! The loop between istiod and the data path: responses of the stream are applied one resource at a time and answered, what they
//! need is subscribed to, secrets come in beside them. Order as Envoy's: clusters, their endpoints, listeners, their routes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_certs::file::{FileSecret, FileWatcher};
use outrigger_certs::store::SecretStore;
use outrigger_xds::ads::{AdsEvent, AdsHandle, Response, Verdict};
use outrigger_xds::type_url::{CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, SECRET};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::dns::{DnsProxy, NameTable};
use super::secrets;
use crate::config::apply::{Applier, Kind};
use crate::server::SharedApplier;

/// How often certificates from files are looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// Where distributions keep the roots of the public web, for `file-root:system`; the first that exists.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How far the first configuration is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) clusters: bool,
    pub(super) listeners: bool,
    /// All that came with them has what it needs and is in use.
    pub(super) warmed: bool,
}

/// The loop's state.
pub(super) struct Discovery {
    ads: AdsHandle,
    applier: SharedApplier,
    secrets: SecretStore,
    files: FileWatcher,
    crl: Option<Arc<[u8]>>,
    dns: Option<Arc<DnsProxy>>,
    progress: watch::Sender<Progress>,
    subscribed: Subscribed,
    watched: BTreeSet<Arc<str>>,
}

#[derive(Default)]
struct Subscribed {
    endpoints: BTreeSet<Arc<str>>,
    routes: BTreeSet<Arc<str>>,
    secrets: BTreeSet<Arc<str>>,
}

impl Discovery {
    pub(super) fn new(
        ads: AdsHandle,
        applier: SharedApplier,
        secrets: SecretStore,
        crl: Option<Arc<[u8]>>,
        dns: Option<Arc<DnsProxy>>,
    ) -> Self {
        let files = FileWatcher::spawn(secrets.clone(), FILE_INTERVAL);
        Self {
            ads,
            applier,
            secrets,
            files,
            crl,
            dns,
            progress: watch::Sender::default(),
            subscribed: Subscribed::default(),
            watched: BTreeSet::new(),
        }
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Runs until the stream's client is gone.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<AdsEvent>) {
        self.ads.subscribe_wildcard(CLUSTER);
        let mut changed = self.secrets.subscribe();
        loop {
            let deadline = self.with_applier(|applier| applier.next_deadline());
            let timer = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                // The sender is the store itself, which lives as long as this loop.
                Ok(()) = changed.changed() => self.settle(),
                () = timer => self.settle(),
            }
        }
    }

    fn handle(&mut self, event: AdsEvent) {
        match event {
            AdsEvent::Connected => tracing::info!("connected to istiod"),
            AdsEvent::Disconnected { reason, retry_in } => {
                tracing::warn!(%reason, ?retry_in, "the stream to istiod ended");
            }
            AdsEvent::Expired { type_url, names } => {
                // istiod sets no TTL. What has outlived another control plane's stays until it is replaced.
                tracing::warn!(%type_url, ?names, "resources have outlived their TTL");
            }
            AdsEvent::Response(response) => self.respond(&response),
        }
    }

    fn respond(&mut self, response: &Response) {
        let verdict = if response.type_url == NAME_TABLE {
            self.name_table(response)
        } else {
            self.with_applier(|applier| applier.apply_response(response, Instant::now()))
        };
        for rejection in &verdict.rejected {
            tracing::warn!(name = %rejection.name, reason = %rejection.reason, "refused; the last good version stays");
        }
        // Before the answer, as Envoy: istiod then knows what else is wanted when it looks at the acknowledgement.
        self.settle();
        self.ads.ack(&response.type_url, &response.nonce, verdict);
        let before = *self.progress.borrow();
        let now = Progress {
            clusters: before.clusters || response.type_url == CLUSTER,
            listeners: before.listeners || response.type_url == LISTENER,
            ..before
        };
        if now.clusters && !before.clusters {
            self.ads.subscribe_wildcard(LISTENER);
            if self.dns.is_some() {
                self.ads.subscribe_wildcard(NAME_TABLE);
            }
        }
        self.progress.send_replace(now);
        self.note_warmed();
    }

    fn name_table(&self, response: &Response) -> Verdict {
        let mut verdict = Verdict::accepted();
        for resource in &response.added {
            match (NameTable::decode(resource.body.clone()), &self.dns) {
                (Ok(table), Some(dns)) => dns.update(&table),
                (Ok(_), None) => {}
                (Err(error), _) => verdict.reject(resource.name.clone(), error.to_string()),
            }
        }
        verdict
    }

    /// Takes secrets over, activates what has become complete, and subscribes to what is needed now.
    fn settle(&mut self) {
        let needed = self.with_applier(|applier| {
            secrets::publish(&self.secrets, applier.store(), self.crl.as_ref());
            applier.settle(Instant::now());
            applier.needed()
        });
        let subscribed = &mut self.subscribed;
        for (type_url, held, wanted) in [
            (ENDPOINT, &mut subscribed.endpoints, needed.endpoints),
            (ROUTE, &mut subscribed.routes, needed.routes),
            (SECRET, &mut subscribed.secrets, needed.secrets),
        ] {
            if *held != wanted {
                self.ads.set_names(type_url, wanted.iter().map(|name| name.to_string()));
                *held = wanted;
            }
        }
        for gone in self.watched.difference(&needed.local_secrets) {
            self.files.unwatch(gone);
        }
        for name in needed.local_secrets.difference(&self.watched) {
            self.watch_file(name);
        }
        self.watched = needed.local_secrets;
        self.note_warmed();
    }

    /// Names of files are watched; `default` and `ROOTCA` come by themselves.
    fn watch_file(&self, name: &str) {
        let secret = if name == "file-root:system" {
            let path = SYSTEM_ROOTS.into_iter().find(|path| std::path::Path::new(path).exists());
            path.map(|path| FileSecret::Roots { path: path.into(), crl: None })
        } else {
            FileSecret::from_name(name)
        };
        let Some(secret) = secret else { return };
        if let Err(error) = self.files.watch(name, secret) {
            tracing::warn!(%name, %error, "a secret's files are no good yet");
        }
    }

    fn note_warmed(&self) {
        let progress = *self.progress.borrow();
        if progress.warmed || !progress.clusters || !progress.listeners {
            return;
        }
        let warmed = self.with_applier(|applier| {
            applier.warming(Kind::Cluster).is_empty() && applier.warming(Kind::Listener).is_empty()
        });
        if warmed {
            tracing::info!("the first configuration is complete");
            self.progress.send_replace(Progress { warmed, ..progress });
        }
    }

    fn with_applier<T>(&self, act: impl FnOnce(&mut Applier) -> T) -> T {
        act(&mut self.applier.lock())
    }
}
