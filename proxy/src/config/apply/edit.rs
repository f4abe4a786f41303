//! The changes that one update makes to the snapshot.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::cluster::{Cluster, Endpoints};
use crate::config::listener::Listener;
use crate::config::route::RouteConfig;
use crate::config::snapshot::Snapshot;
use crate::config::tls::Secret;

/// Changes of the snapshot that are made together.
#[derive(Default)]
pub(super) struct Edit {
    pub(super) clusters: Vec<(Arc<str>, Option<Arc<Cluster>>)>,
    pub(super) listeners: Vec<(Arc<str>, Option<Arc<Listener>>)>,
    pub(super) endpoints: Vec<(Arc<str>, Option<Arc<Endpoints>>)>,
    pub(super) routes: Vec<(Arc<str>, Option<Arc<RouteConfig>>)>,
    pub(super) secrets: Vec<(Arc<str>, Option<Secret>)>,
}

impl Edit {
    pub(super) fn is_empty(&self) -> bool {
        self.clusters.is_empty()
            && self.listeners.is_empty()
            && self.endpoints.is_empty()
            && self.routes.is_empty()
            && self.secrets.is_empty()
    }

    pub(super) fn apply(self, s: &mut Snapshot) {
        fn put<V: Clone>(map: &mut Arc<HashMap<Arc<str>, V>>, list: Vec<(Arc<str>, Option<V>)>) {
            if list.is_empty() {
                return;
            }
            let map = Arc::make_mut(map);
            for (name, value) in list {
                match value {
                    Some(v) => map.insert(name, v),
                    None => map.remove(&name),
                };
            }
        }
        put(&mut s.clusters, self.clusters);
        put(&mut s.listeners, self.listeners);
        put(&mut s.endpoints, self.endpoints);
        put(&mut s.routes, self.routes);
        put(&mut s.secrets, self.secrets);
    }
}
