//! Follows what is not the stream's: watched files of resources, fetch timeouts, and secrets that come into the store by another
//! way. Files come in Envoy's order of initialization: clusters and their endpoints, then listeners and their routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_xds::type_url;
use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::{Kind, Needed, Update};
use super::bootstrap::ConfigSource;
use super::file_source::{FileSource, POLL};
use crate::server::SharedApplier;

/// See the module's documentation.
pub struct Watcher {
    applier: SharedApplier,
    cds: Option<ConfigSource>,
    lds: Option<ConfigSource>,
    files: BTreeMap<Arc<str>, FileSource>,
    needed: Needed,
    listeners_begun: bool,
    cds_came: bool,
    lds_came: bool,
    synced: watch::Sender<bool>,
}

impl Watcher {
    /// `cds` and `lds` as the bootstrap gives them; what comes by ADS is left to the stream.
    pub fn new(applier: SharedApplier, cds: Option<ConfigSource>, lds: Option<ConfigSource>) -> Watcher {
        Watcher {
            applier,
            cds,
            lds,
            files: BTreeMap::new(),
            needed: Needed::default(),
            listeners_begun: false,
            cds_came: false,
            lds_came: false,
            synced: watch::Sender::new(false),
        }
    }

    /// True once the clusters and listeners of files have come for the first time and are warm.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let mut changed = self.applier.lock().store().subscribe();
        self.advance();
        loop {
            let deadline = self.applier.lock().next_deadline();
            let files = !self.files.is_empty();
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = tokio::time::sleep(POLL), if files => self.poll_files(),
                // A secret of the agent may be what a listener waits for; a new cluster may name a file.
                _ = changed.changed() => {}
            }
            self.applier.lock().settle(Instant::now());
            self.advance();
        }
    }

    /// Moves on where the step before is done, and watches the files that are named now.
    fn advance(&mut self) {
        loop {
            let (needed, clusters_warm, listeners_warm) = {
                let applier = self.applier.lock();
                let warm = |kind| applier.warming(kind).is_empty();
                (applier.needed(), warm(Kind::Cluster), warm(Kind::Listener))
            };
            if needed.files != self.needed.files {
                // Somebody may need a part of a file that nobody needed before.
                for path in needed.files.keys() {
                    if let Some(file) = self.files.get_mut(path) {
                        file.forget();
                    }
                }
            }
            self.needed = needed;
            let pending = |source: &Option<ConfigSource>, came: bool| {
                matches!(source, Some(ConfigSource::Path { .. })) && !came
            };
            self.listeners_begun |= !pending(&self.cds, self.cds_came) && clusters_warm;
            let done = self.listeners_begun && !pending(&self.lds, self.lds_came) && listeners_warm;
            // Once in step, a resource that warms again does not take readiness back.
            self.synced.send_if_modified(|s| !std::mem::replace(s, *s || done) && done);
            if !self.watch() {
                return;
            }
            self.poll_files();
            self.applier.lock().settle(Instant::now());
        }
    }

    /// Takes up files that are not watched yet; true if there was one.
    fn watch(&mut self) -> bool {
        let mut wanted: Vec<Arc<str>> = self.needed.files.keys().cloned().collect();
        if let Some(ConfigSource::Path { path, .. }) = &self.cds {
            wanted.push(path.clone());
        }
        if let (Some(ConfigSource::Path { path, .. }), true) = (&self.lds, self.listeners_begun) {
            wanted.push(path.clone());
        }
        let before = self.files.len();
        for path in wanted {
            self.files.entry(path.clone()).or_insert_with(|| FileSource::new(&path));
        }
        self.files.len() != before
    }

    fn poll_files(&mut self) {
        let of = |source: &Option<ConfigSource>, path: &str| matches!(source, Some(ConfigSource::Path { path: p, .. }) if **p == *path);
        for (path, file) in &mut self.files {
            let (is_cds, is_lds) = (of(&self.cds, path), of(&self.lds, path));
            let Some(content) = file.poll() else { continue };
            let mut applier = self.applier.lock();
            let content = match content {
                Ok(c) => c,
                Err(e) => {
                    tracing::warn!("{e}");
                    if is_cds {
                        applier.fetch_failed(Kind::Cluster);
                    }
                    if is_lds {
                        applier.fetch_failed(Kind::Listener);
                    }
                    continue;
                }
            };
            let expected = match (is_cds, is_lds) {
                (true, _) => type_url::CLUSTER,
                (_, true) => type_url::LISTENER,
                _ => content.type_url.as_str(),
            };
            if !content.type_url.is_empty() && content.type_url != expected {
                tracing::warn!("{path}: holds {}, not {expected}", content.type_url);
                continue;
            }
            let update = Update {
                type_url: expected,
                version: &content.version,
                added: content.resources,
                removed: Vec::new(),
                complete: true,
            };
            for r in &applier.apply(update, Instant::now()).rejected {
                tracing::warn!(resource = r.name, file = &**path, reason = r.reason, "refused");
            }
            self.cds_came |= is_cds;
            self.lds_came |= is_lds;
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::apply::Applier;
    use crate::config::load;
    use crate::config::snapshot::Store;
    use crate::telemetry::stats::Stats;

    fn write(dir: &std::path::Path, name: &str, text: &str) {
        let next = dir.join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, dir.join(name)).unwrap();
    }

    #[tokio::test]
    async fn files_are_read_in_order_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        write(
            d,
            "cds.yaml",
            &format!(
                "resources: [{{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: EDS, eds_cluster_config: {{eds_config: {{path_config_source: {{path: {}/eds.yaml}}}}}}}}]",
                d.display()
            ),
        );
        let eds = |port: u16| {
            format!(
                "resources: [{{'@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: a, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}]"
            )
        };
        write(d, "eds.yaml", &eds(1));
        write(d, "lds.yaml", "resources: []");
        let loaded = load::bootstrap_from_yaml(&format!(
            "dynamic_resources: {{cds_config: {{path_config_source: {{path: {0}/cds.yaml}}}}, lds_config: {{path_config_source: {{path: {0}/lds.yaml}}}}}}",
            d.display()
        ))
        .unwrap();
        let store = Arc::new(Store::default());
        let applier =
            SharedApplier::new(Applier::new(store.clone(), &loaded, &Stats::default(), Instant::now()));
        let watcher = Watcher::new(applier, loaded.bootstrap.cds.clone(), loaded.bootstrap.lds.clone());
        let mut synced = watcher.synced();
        let task = tokio::spawn(watcher.run());
        let ready = synced.wait_for(|s| *s);
        tokio::time::timeout(Duration::from_secs(10), ready).await.unwrap().unwrap();
        let port =
            |s: &Store| s.load().endpoints["a"].localities[0].endpoints[0].address.socket().unwrap().port();
        assert!(store.load().clusters.contains_key("a"));
        assert_eq!(port(&store), 1);
        write(d, "eds.yaml", &eds(2));
        let mut changed = store.subscribe();
        tokio::time::timeout(Duration::from_secs(10), async {
            while port(&store) != 2 {
                changed.changed().await.unwrap();
            }
        })
        .await
        .unwrap();
        task.abort();
    }
}
