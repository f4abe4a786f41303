//! The state of an ADS stream without I/O: for each type what is wanted, what is held in which version, which responses wait for their
//! answer, and what has to be said next. Rules and their sources:
//!
//! - Subscriptions change in requests without nonce and answers carry no change: istiod reports anything else as a mismatch.
//! - A first request for everything has no names, as Envoy's; `*` is spelled only beside other names (xDS protocol, "How the
//!   client specifies what resources to return").
//! - After a reconnect each type states its names again, with the versions of what it holds. A refused resource is claimed in the version
//!   that was accepted before, if any, so that the control plane sends the new one again.
//! - Requests go out in the order CDS, EDS, LDS, RDS, others.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use tokio::time::Instant;

use super::Variant;
use super::request::{Ack, Request};
use super::resource::{Resource, Response, Verdict};
use crate::type_url;

/// The name that stands for all resources of a type.
const WILDCARD: &str = "*";
/// The type URL of the wrapper that state-of-the-world responses put around a resource with a TTL.
const RESOURCE_WRAPPER: &str = "envoy.service.discovery.v3.Resource";

/// Everything that the client wants, holds and has to say.
#[derive(Debug)]
pub struct Subscriptions {
    variant: Variant,
    types: BTreeMap<Key, TypeState>,
    connected: bool,
    /// Counts streams: a nonce means something on its own stream alone.
    stream: u64,
}

/// Orders types by rank, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u8, String);

impl Key {
    fn new(type_url: &str) -> Self {
        Self(type_url::rank(type_url), type_url.to_owned())
    }
}

#[derive(Debug, Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Name → version of what was accepted and not removed since.
    held: HashMap<String, String>,
    /// State of the world: the version of the last response accepted as a whole.
    accepted_version: String,
    /// State of the world: the nonce of the last response, which goes into changes of the subscription too.
    last_nonce: String,
    /// Responses given out and not answered yet, oldest first.
    pending: VecDeque<Pending>,
    /// Answers not sent yet; they go before changes of the subscription.
    acks: VecDeque<Ack>,
    /// What the control plane has been told on this stream.
    told: Told,
    deadlines: HashMap<String, Instant>,
}

#[derive(Debug)]
struct Pending {
    stream: u64,
    nonce: String,
    version: String,
    added: Vec<(String, String)>,
    removed: Vec<String>,
}

/// What the control plane knows of the subscription on this stream.
#[derive(Debug, Default)]
enum Told {
    /// Nothing: the next request is the type's first.
    #[default]
    Nothing,
    /// These.
    Names { wildcard: bool, names: BTreeSet<String> },
}

impl Subscriptions {
    /// No subscription yet, no stream.
    #[must_use]
    pub fn new(variant: Variant) -> Self {
        Self { variant, types: BTreeMap::new(), connected: false, stream: 0 }
    }

    fn state(&mut self, type_url: &str) -> &mut TypeState {
        self.types.entry(Key::new(type_url)).or_default()
    }

    /// Wants `names` beside those wanted before.
    pub fn subscribe(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let state = self.state(type_url);
        for name in names {
            if name == WILDCARD { state.wildcard = true } else { state.names.extend([name]) }
        }
    }

    /// Wants every resource of the type.
    pub fn subscribe_wildcard(&mut self, type_url: &str) {
        self.state(type_url).wildcard = true;
    }

    /// Wants `names` no longer; what is held of them is forgotten, unless a wildcard covers it.
    pub fn unsubscribe(&mut self, type_url: &str, names: &[String]) {
        let state = self.state(type_url);
        for name in names {
            if name == WILDCARD {
                state.wildcard = false;
            } else {
                state.names.remove(name);
            }
        }
        state.forget_unwanted();
    }

    /// Wants exactly `names`, beside a wildcard if there is one.
    pub fn set_names(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let state = self.state(type_url);
        state.names = names.into_iter().filter(|name| name != WILDCARD).collect();
        state.forget_unwanted();
    }

    /// A stream is open: every type has to be stated again.
    pub fn handle_connected(&mut self) {
        self.reset_stream();
        self.connected = true;
    }

    /// The stream is gone. Responses that wait for an answer still get it, for the sake of what is held, but it is not sent.
    pub fn handle_disconnected(&mut self) {
        self.reset_stream();
        self.connected = false;
    }

    fn reset_stream(&mut self) {
        self.stream += 1;
        for state in self.types.values_mut() {
            state.told = Told::Nothing;
            state.acks.clear();
            state.last_nonce.clear();
        }
    }

    /// Takes in a delta response. Resources without body renew the life of what is held and are not passed on.
    pub fn handle_delta_response(
        &mut self,
        response: discovery::DeltaDiscoveryResponse,
        now: Instant,
    ) -> Response {
        let stream = self.stream;
        let state = self.state(&response.type_url);
        let mut added = Vec::with_capacity(response.resources.len());
        for resource in response.resources {
            state.renew(&resource, now);
            let ttl = duration(resource.ttl.as_ref());
            let name = if resource.name.is_empty() {
                resource.resource_name.map(|name| name.name).unwrap_or_default()
            } else {
                resource.name
            };
            if let Some(any) = resource.resource {
                added.push(Resource {
                    name,
                    version: resource.version,
                    body: Bytes::from(any.value),
                    aliases: resource.aliases,
                    ttl,
                });
            }
        }
        let mut removed = response.removed_resources;
        removed.extend(response.removed_resource_names.into_iter().map(|name| name.name));
        state.await_verdict(stream, &response.nonce, &response.system_version_info, &added, &removed);
        Response {
            type_url: response.type_url,
            version: response.system_version_info,
            added,
            removed,
            nonce: response.nonce,
            control_plane: response.control_plane.map(|plane| plane.identifier).unwrap_or_default(),
        }
    }

    /// Takes in a state-of-the-world response. Of clusters and listeners, whatever is held and not in it is removed.
    pub fn handle_sotw_response(&mut self, response: discovery::DiscoveryResponse, now: Instant) -> Response {
        let full_state = matches!(response.type_url.as_str(), type_url::CLUSTER | type_url::LISTENER);
        let stream = self.stream;
        let state = self.state(&response.type_url);
        state.last_nonce.clone_from(&response.nonce);
        let mut added = Vec::with_capacity(response.resources.len());
        let mut present = BTreeSet::new();
        for any in response.resources {
            let (resource, heartbeat) = state.unwrap_sotw(any, &response.version_info, now);
            present.insert(resource.name.clone());
            if !heartbeat {
                added.push(resource);
            }
        }
        let removed: Vec<String> = if full_state {
            let mut gone: Vec<String> =
                state.held.keys().filter(|name| !present.contains(*name)).cloned().collect();
            gone.sort();
            gone
        } else {
            Vec::new()
        };
        state.await_verdict(stream, &response.nonce, &response.version_info, &added, &removed);
        Response {
            type_url: response.type_url,
            version: response.version_info,
            added,
            removed,
            nonce: response.nonce,
            control_plane: response.control_plane.map(|plane| plane.identifier).unwrap_or_default(),
        }
    }

    /// Answers the response with this nonce. Answers to responses of an earlier stream change what is held, and are not sent. An unknown
    /// nonce is ignored: each response is answered once.
    pub fn ack(&mut self, type_url: &str, nonce: &str, verdict: &Verdict) {
        let stream = self.stream;
        let state = self.state(type_url);
        let found = state.pending.iter().position(|pending| pending.nonce == nonce);
        let Some(pending) = found.and_then(|index| state.pending.remove(index)) else { return };
        let rejected = |name: &str| verdict.rejected.iter().any(|rejection| rejection.name == name);
        for (name, version) in pending.added {
            if !rejected(&name) && state.wants(&name) {
                state.held.insert(name, version);
            }
        }
        for name in &pending.removed {
            if !rejected(name) {
                state.held.remove(name);
                state.deadlines.remove(name);
            }
        }
        let error = verdict.error_text(type_url);
        if error.is_none() {
            state.accepted_version = pending.version;
        }
        if pending.stream == stream {
            state.acks.push_back(Ack { nonce: pending.nonce, error });
        }
    }

    /// The next request to send, or `None` if all is said.
    pub fn poll_request(&mut self) -> Option<Request> {
        if !self.connected {
            return None;
        }
        let variant = self.variant;
        self.types.iter_mut().find_map(|(Key(_, type_url), state)| match variant {
            Variant::Delta => state.poll_delta(type_url),
            Variant::StateOfTheWorld => state.poll_sotw(type_url),
        })
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.types.values().all(|state| !state.wildcard && state.names.is_empty())
    }

    /// When the first TTL ends.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.types.values().flat_map(|state| state.deadlines.values().copied()).min()
    }

    /// Takes out what has outlived its TTL: the type and the names, sorted.
    pub fn poll_expired(&mut self, now: Instant) -> Option<(String, Vec<String>)> {
        for (Key(_, type_url), state) in &mut self.types {
            let mut names: Vec<String> =
                state.deadlines.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
            if names.is_empty() {
                continue;
            }
            names.sort();
            for name in &names {
                state.deadlines.remove(name);
                state.held.remove(name);
            }
            return Some((type_url.clone(), names));
        }
        None
    }

    /// The versions held of a type, by name.
    #[must_use]
    pub fn held(&self, type_url: &str) -> HashMap<String, String> {
        self.types.get(&Key::new(type_url)).map(|state| state.held.clone()).unwrap_or_default()
    }
}

impl TypeState {
    /// Names that are not wanted may still be held: aliases, and types whose resources have no name.
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.is_empty() || self.names.contains(name)
    }

    fn forget_unwanted(&mut self) {
        if !self.wildcard {
            let names = &self.names;
            self.held.retain(|name, _| names.contains(name));
            self.deadlines.retain(|name, _| names.contains(name));
        }
    }

    fn renew(&mut self, resource: &discovery::Resource, now: Instant) {
        match duration(resource.ttl.as_ref()) {
            Some(ttl) => {
                self.deadlines.insert(resource.name.clone(), now + ttl);
            }
            // Sent again without TTL, a resource lives for ever.
            None => {
                self.deadlines.remove(&resource.name);
            }
        }
    }

    /// A resource of the state of the world, and whether it is only a heartbeat.
    fn unwrap_sotw(&mut self, any: Any, version: &str, now: Instant) -> (Resource, bool) {
        let wrapper = (type_url::message_name(&any.type_url) == RESOURCE_WRAPPER)
            .then(|| discovery::Resource::decode(any.value.as_slice()).ok())
            .flatten();
        let Some(wrapper) = wrapper else {
            let body = Bytes::from(any.value);
            let name = first_string(&body).unwrap_or_default();
            let version = version.to_owned();
            return (Resource { name, version, body, aliases: Vec::new(), ttl: None }, false);
        };
        self.renew(&wrapper, now);
        let ttl = duration(wrapper.ttl.as_ref());
        let heartbeat = wrapper.resource.is_none();
        let body = Bytes::from(wrapper.resource.map(|any| any.value).unwrap_or_default());
        let name =
            if wrapper.name.is_empty() { first_string(&body).unwrap_or_default() } else { wrapper.name };
        (Resource { name, version: version.to_owned(), body, aliases: wrapper.aliases, ttl }, heartbeat)
    }

    fn await_verdict(
        &mut self,
        stream: u64,
        nonce: &str,
        version: &str,
        added: &[Resource],
        removed: &[String],
    ) {
        self.pending.push_back(Pending {
            stream,
            nonce: nonce.to_owned(),
            version: version.to_owned(),
            added: added.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect(),
            removed: removed.to_vec(),
        });
    }

    fn poll_delta(&mut self, type_url: &str) -> Option<Request> {
        let type_url = type_url.to_owned();
        match &mut self.told {
            Told::Nothing => {
                if !self.wildcard && self.names.is_empty() {
                    return None;
                }
                // A wildcard alone is spelled by naming nothing.
                let spelled = self.wildcard && !self.names.is_empty();
                let subscribe = spelled
                    .then(|| WILDCARD.to_owned())
                    .into_iter()
                    .chain(self.names.iter().cloned())
                    .collect();
                self.told = Told::Names { wildcard: self.wildcard, names: self.names.clone() };
                let initial_resource_versions = self.held.clone();
                Some(Request { type_url, subscribe, initial_resource_versions, ..Default::default() })
            }
            Told::Names { wildcard, names } => {
                if let Some(ack) = self.acks.pop_front() {
                    return Some(Request { type_url, ack: Some(ack), ..Default::default() });
                }
                if *wildcard == self.wildcard && *names == self.names {
                    return None;
                }
                let mut subscribe: Vec<String> = self.names.difference(names).cloned().collect();
                let mut unsubscribe: Vec<String> = names.difference(&self.names).cloned().collect();
                if self.wildcard && !*wildcard {
                    subscribe.insert(0, WILDCARD.to_owned());
                } else if !self.wildcard && *wildcard {
                    unsubscribe.insert(0, WILDCARD.to_owned());
                }
                *wildcard = self.wildcard;
                names.clone_from(&self.names);
                Some(Request { type_url, subscribe, unsubscribe, ..Default::default() })
            }
        }
    }

    fn poll_sotw(&mut self, type_url: &str) -> Option<Request> {
        let ack = match &self.told {
            Told::Nothing if !self.wildcard && self.names.is_empty() => return None,
            Told::Nothing => None,
            Told::Names { wildcard, names } => {
                let unchanged = *wildcard == self.wildcard && *names == self.names;
                match self.acks.pop_front() {
                    Some(ack) => Some(ack),
                    None if unchanged => return None,
                    // A change of names repeats the last nonce; otherwise servers take it for a stale request.
                    None => (!self.last_nonce.is_empty())
                        .then(|| Ack { nonce: self.last_nonce.clone(), error: None }),
                }
            }
        };
        self.told = Told::Names { wildcard: self.wildcard, names: self.names.clone() };
        let names = if self.wildcard { Vec::new() } else { self.names.iter().cloned().collect() };
        let version = self.accepted_version.clone();
        Some(Request { type_url: type_url.to_owned(), ack, names, version, ..Default::default() })
    }
}

fn duration(proto: Option<&envoy_types::pb::google::protobuf::Duration>) -> Option<Duration> {
    let proto = proto?;
    Some(Duration::new(u64::try_from(proto.seconds).ok()?, u32::try_from(proto.nanos).ok()?))
}

/// The string in field 1, where every named xDS resource has its name, without decoding the rest.
fn first_string(body: &Bytes) -> Option<String> {
    use bytes::Buf as _;
    use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
    let mut rest = body.clone();
    while rest.has_remaining() {
        let (field, wire) = decode_key(&mut rest).ok()?;
        if field == 1 && wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            return rest.get(..length).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        }
        skip_field(wire, field, &mut rest, DecodeContext::default()).ok()?;
    }
    None
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
