//! A small control plane: resources in a map, served over ADS, delta and state of the world, to any number of streams. `outrigger demo` and
//! tests run it; it is not meant for a mesh.
//!
//! [`ControlPlane`] is the map: [`ControlPlane::publish`] changes it and wakes every stream. `stream` holds what one client
//! has been told, without I/O; `service` is the gRPC side.

mod service;
mod stream;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use tokio::sync::{broadcast, watch};

pub use self::tls::{TlsConnection, tls_incoming};

/// Who sees a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every node.
    Everyone,
    /// The node with this id; it hides a resource of the same name for everyone.
    Node(String),
}

/// What a client said about a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The client's node id.
    pub node: String,
    /// The stream, counted from 1.
    pub stream: u64,
    /// The type that was answered.
    pub type_url: String,
    /// The nonce of the response.
    pub nonce: String,
    /// The text of a NACK; `None` for an ACK.
    pub error: Option<String>,
}

/// A resource with its version.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    /// Counts up with each change of the resource.
    pub version: String,
    /// The message.
    pub resource: Any,
}

/// The names and resources of one type, as one client sees them.
pub type View = BTreeMap<String, Versioned>;

#[derive(Default)]
struct Shared {
    /// Scope → type URL → name → resource.
    resources: HashMap<Scope, HashMap<String, View>>,
    next_version: u64,
    next_stream: u64,
    answers: Vec<Answer>,
}

/// The shared map; clones are the same control plane.
#[derive(Clone)]
pub struct ControlPlane {
    shared: Arc<Mutex<Shared>>,
    changes: watch::Sender<u64>,
    answers: broadcast::Sender<Answer>,
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self::new()
    }
}

impl ControlPlane {
    /// Without resources.
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::default(), changes: watch::Sender::new(0), answers: broadcast::Sender::new(256) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // No code that could panic half-way holds the lock: the map is whole even then.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or changes one resource, and sends it to whoever wants it.
    pub fn publish<M: Message + Name>(&self, scope: Scope, name: &str, message: &M) {
        let type_url = format!("type.googleapis.com/{}", M::full_name());
        self.publish_any(scope, name, Any { type_url, value: message.encode_to_vec() });
    }

    /// [`Self::publish`] for a message that is encoded already. One equal to what is there changes nothing.
    pub fn publish_any(&self, scope: Scope, name: &str, resource: Any) {
        let mut shared = self.lock();
        let type_url = resource.type_url.clone();
        let version = (shared.next_version + 1).to_string();
        let view = shared.resources.entry(scope).or_default().entry(type_url).or_default();
        if view.get(name).is_some_and(|known| known.resource == resource) {
            return;
        }
        view.insert(name.to_owned(), Versioned { version, resource });
        shared.next_version += 1;
        drop(shared);
        self.changes.send_modify(|change| *change += 1);
    }

    /// Takes a resource away.
    pub fn remove(&self, scope: &Scope, type_url: &str, name: &str) {
        let mut shared = self.lock();
        let view = shared.resources.get_mut(scope).and_then(|types| types.get_mut(type_url));
        if view.is_some_and(|view| view.remove(name).is_some()) {
            shared.next_version += 1;
            drop(shared);
            self.changes.send_modify(|change| *change += 1);
        }
    }

    /// What a node sees of a type.
    #[must_use]
    pub fn view(&self, node: &str, type_url: &str) -> View {
        let shared = self.lock();
        let mut view = View::new();
        for scope in [Scope::Everyone, Scope::Node(node.to_owned())] {
            if let Some(resources) = shared.resources.get(&scope).and_then(|types| types.get(type_url)) {
                view.extend(resources.iter().map(|(name, resource)| (name.clone(), resource.clone())));
            }
        }
        view
    }

    /// Every ACK and NACK so far, oldest first.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer> {
        self.lock().answers.clone()
    }

    /// ACKs and NACKs from now on.
    #[must_use]
    pub fn watch_answers(&self) -> broadcast::Receiver<Answer> {
        self.answers.subscribe()
    }

    /// The gRPC service, for a tonic server.
    #[must_use]
    pub fn service(&self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    fn version(&self) -> String {
        self.lock().next_version.to_string()
    }

    fn open_stream(&self) -> u64 {
        let mut shared = self.lock();
        shared.next_stream += 1;
        shared.next_stream
    }

    fn record(&self, answer: Answer) {
        self.lock().answers.push(answer.clone());
        // Nobody need be watching.
        let _ = self.answers.send(answer);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
