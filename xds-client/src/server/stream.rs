//! What one client of the control plane has asked for and been told, without I/O: requests and views in, responses out.
//! Delta as in the xDS protocol: a name that does not exist is told as removed, once; the first request of a wildcard type is answered
//! even if there is nothing, so that the client's start-up goes on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};

use super::{Answer, ControlPlane, View};
use crate::type_url::rank;

/// One stream's memory.
pub(super) struct StreamState {
    id: u64,
    node: String,
    nonce: u64,
    /// By rank, so that clusters are sent before endpoints, listeners before routes.
    types: BTreeMap<(u8, String), TypeState>,
}

#[derive(Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Name → version sent; an empty version stands for "told that it does not exist".
    sent: HashMap<String, String>,
    /// Whether a response is due even if nothing has changed.
    due: bool,
}

impl TypeState {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

impl StreamState {
    pub(super) fn new(id: u64) -> Self {
        Self { id, node: String::new(), nonce: 0, types: BTreeMap::new() }
    }

    fn answer(&mut self, type_url: &str, nonce: &str, error: Option<String>) -> Option<Answer> {
        (!nonce.is_empty()).then(|| Answer {
            node: self.node.clone(),
            stream: self.id,
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            error,
        })
    }

    pub(super) fn handle_delta(&mut self, request: DeltaDiscoveryRequest) -> Option<Answer> {
        if let Some(node) = request.node {
            self.node = node.id;
        }
        let first = !self.types.contains_key(&(rank(&request.type_url), request.type_url.clone()));
        let state = self.types.entry((rank(&request.type_url), request.type_url.clone())).or_default();
        if first {
            state.wildcard = request.resource_names_subscribe.is_empty();
            state.sent = request.initial_resource_versions;
            state.due = true;
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                state.wildcard = true;
            } else {
                // Asked for again, a name is sent again: the client has dropped it meanwhile.
                if !first {
                    state.sent.remove(&name);
                }
                state.names.insert(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                state.wildcard = false;
            } else {
                state.names.remove(&name);
                state.sent.remove(&name);
            }
        }
        let error = request.error_detail.map(|status| status.message);
        self.answer(&request.type_url, &request.response_nonce, error)
    }

    pub(super) fn handle_sotw(&mut self, request: DiscoveryRequest) -> Option<Answer> {
        if let Some(node) = request.node {
            self.node = node.id;
        }
        let key = (rank(&request.type_url), request.type_url.clone());
        let first = !self.types.contains_key(&key);
        let state = self.types.entry(key).or_default();
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        if first || names != state.names {
            state.due = true;
            state.wildcard = names.is_empty() || names.contains("*");
            state.names = names;
        }
        let error = request.error_detail.map(|status| status.message);
        self.answer(&request.type_url, &request.response_nonce, error)
    }

    /// The next delta response, if something is due.
    pub(super) fn poll_delta(&mut self, plane: &ControlPlane) -> Option<DeltaDiscoveryResponse> {
        for ((_, type_url), state) in &mut self.types {
            let view = plane.view(&self.node, type_url);
            let (resources, removed) = delta(state, &view);
            let due = std::mem::take(&mut state.due) && state.wildcard;
            if resources.is_empty() && removed.is_empty() && !due {
                continue;
            }
            self.nonce += 1;
            return Some(DeltaDiscoveryResponse {
                system_version_info: plane.version(),
                resources,
                type_url: type_url.clone(),
                removed_resources: removed,
                nonce: format!("{}-{}", self.id, self.nonce),
                ..Default::default()
            });
        }
        None
    }

    /// The next state-of-the-world response, if something is due.
    pub(super) fn poll_sotw(&mut self, plane: &ControlPlane) -> Option<DiscoveryResponse> {
        for ((_, type_url), state) in &mut self.types {
            let view: View =
                plane.view(&self.node, type_url).into_iter().filter(|(name, _)| state.wants(name)).collect();
            let versions: HashMap<String, String> =
                view.iter().map(|(name, resource)| (name.clone(), resource.version.clone())).collect();
            if !std::mem::take(&mut state.due) && versions == state.sent {
                continue;
            }
            state.sent = versions;
            self.nonce += 1;
            return Some(DiscoveryResponse {
                version_info: plane.version(),
                resources: view.into_values().map(|versioned| versioned.resource).collect(),
                type_url: type_url.clone(),
                nonce: format!("{}-{}", self.id, self.nonce),
                ..Default::default()
            });
        }
        None
    }
}

/// What has changed for the client since it was last told; marks it as told.
fn delta(state: &mut TypeState, view: &View) -> (Vec<Resource>, Vec<String>) {
    let mut resources = Vec::new();
    for (name, versioned) in view {
        if state.wants(name) && state.sent.get(name) != Some(&versioned.version) {
            state.sent.insert(name.clone(), versioned.version.clone());
            resources.push(Resource {
                name: name.clone(),
                version: versioned.version.clone(),
                resource: Some(versioned.resource.clone()),
                ..Default::default()
            });
        }
    }
    let known = state.sent.keys().chain(&state.names);
    let gone: BTreeSet<String> = known
        .filter(|name| {
            !view.contains_key(*name) && state.sent.get(*name).is_none_or(|version| !version.is_empty())
        })
        .cloned()
        .collect();
    for name in &gone {
        if state.names.contains(name) {
            state.sent.insert(name.clone(), String::new());
        } else {
            state.sent.remove(name);
        }
    }
    (resources, gone.into_iter().collect())
}
