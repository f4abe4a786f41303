//! Applies dynamic resources one by one: each is checked by itself, the good ones are taken, a bad one keeps its last good
//! version and is named with its reason. Follows Envoy's xDS update and warming order ("Initialization", "xDS protocol").
//!
//! No I/O and no timers: the owner passes `now` and asks for [`Applier::next_deadline`].

mod counters;
mod edit;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::config::bootstrap::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_pb;
use envoy_types::pb::envoy::config::listener::v3 as listener_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use outrigger_xds::ads::{Response, Verdict};
use prost::Message;
use tokio::time::Instant;

use self::counters::Counters;
use self::edit::Edit;
pub use self::record::{Applied, ErrorState, Kind, Record, Records};
use super::bootstrap::ConfigSource;
use super::cluster::Cluster;
use super::listener::Listener;
use super::load::Loaded;
use super::proto::{self, ConfigError, Env, Need, NeedKind};
use super::snapshot::{Snapshot, Store};
use super::validate;
use crate::telemetry::stats::Stats;

/// A set of resources of one type, from a stream or a file.
#[derive(Debug)]
pub struct Update<'a> {
    pub type_url: &'a str,
    /// The version of the whole.
    pub version: &'a str,
    /// Name (empty: read from the message), version, encoded message.
    pub added: Vec<(String, String, Vec<u8>)>,
    pub removed: Vec<String>,
    /// Dynamic clusters or listeners that are not in `added` are gone.
    pub complete: bool,
}

/// What must be subscribed to, by where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// By ADS.
    pub endpoints: BTreeSet<Arc<str>>,
    pub routes: BTreeSet<Arc<str>>,
    pub secrets: BTreeSet<Arc<str>>,
    /// By files: path → what it should hold.
    pub files: BTreeMap<Arc<str>, BTreeSet<NeedKind>>,
    /// Secrets of the process's own store (Istio's agent).
    pub local_secrets: BTreeSet<Arc<str>>,
}

enum Pending {
    Cluster(Arc<Cluster>),
    Listener(Arc<Listener>),
}

struct Warming {
    pending: Pending,
    since: Instant,
}

/// A resource as converted, before it is decided whether it must warm.
enum Converted {
    Cluster(Arc<Cluster>, Vec<Need>),
    Listener(Arc<Listener>, Vec<Need>),
    Endpoints(Arc<super::cluster::Endpoints>),
    Routes(Arc<super::route::RouteConfig>),
    Secret(super::tls::Secret),
}

/// Checks of converted resources that need what stands above configuration: TLS contexts, sockets. An error's text goes into
/// the NACK.
#[derive(Clone, Copy)]
pub struct Checks {
    pub listener: fn(&Listener) -> Result<(), String>,
    pub cluster: fn(&Cluster) -> Result<(), String>,
}

/// Holds the records, and writes the snapshot.
pub struct Applier {
    checks: Option<Checks>,
    store: Arc<Store>,
    env: Env,
    records: BTreeMap<Kind, Records>,
    warming: BTreeMap<(Kind, Arc<str>), Warming>,
    counters: Counters,
    bootstrap: (Vec<u8>, SystemTime),
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").field("warming", &self.warming.len()).finish_non_exhaustive()
    }
}

impl Applier {
    /// Takes the bootstrap's static resources; they are in the snapshot, or warm, when this returns.
    pub fn new(store: Arc<Store>, loaded: &Loaded, stats: &Stats, now: Instant) -> Applier {
        let mut applier = Applier {
            checks: None,
            store,
            env: loaded.env.clone(),
            records: Kind::ALL.into_iter().map(|k| (k, Records::default())).collect(),
            warming: BTreeMap::new(),
            counters: Counters::new(stats),
            bootstrap: (loaded.raw.clone(), SystemTime::now()),
        };
        let mut edit = Edit::default();
        for (name, secret) in &loaded.bootstrap.secrets {
            edit.secrets.push((name.clone(), Some(secret.clone())));
        }
        applier.publish(edit);
        let message = pb::Bootstrap::decode(loaded.raw.as_slice()).unwrap_or_default();
        let resources = message.static_resources.unwrap_or_default();
        for m in &resources.secrets {
            let applied = Applied {
                version: "".into(),
                body: m.encode_to_vec().into(),
                at: SystemTime::now(),
                needs: Box::default(),
            };
            let record = applier.static_record(Kind::Secret, &m.name.as_str().into());
            record.active = Some(applied);
        }
        let clusters = loaded.bootstrap.clusters.iter().zip(&loaded.cluster_needs).zip(&resources.clusters);
        for ((ir, needs), m) in clusters {
            applier.static_warming(Kind::Cluster, &ir.name, m.encode_to_vec(), needs);
            applier.stage(Kind::Cluster, ir.name.clone(), Pending::Cluster(ir.clone()), now);
        }
        let listeners =
            loaded.bootstrap.listeners.iter().zip(&loaded.listener_needs).zip(&resources.listeners);
        for (i, ((ir, needs), m)) in listeners.enumerate() {
            // A listener without a name gets one, as in Envoy.
            let name =
                if ir.name.is_empty() { Arc::from(format!("static_listener_{i}")) } else { ir.name.clone() };
            applier.static_warming(Kind::Listener, &name, m.encode_to_vec(), needs);
            applier.stage(Kind::Listener, name, Pending::Listener(ir.clone()), now);
        }
        applier.settle(now);
        applier
    }

    fn static_record(&mut self, kind: Kind, name: &Arc<str>) -> &mut Record {
        let record = self.records.entry(kind).or_default().by_name.entry(name.clone()).or_default();
        record.is_static = true;
        record
    }

    fn static_warming(&mut self, kind: Kind, name: &Arc<str>, body: Vec<u8>, needs: &[Need]) {
        let applied =
            Applied { version: "".into(), body: body.into(), at: SystemTime::now(), needs: needs.into() };
        self.static_record(kind, name).warming = Some(applied);
    }

    fn stage(&mut self, kind: Kind, name: Arc<str>, pending: Pending, now: Instant) {
        self.warming.insert((kind, name), Warming { pending, since: now });
    }

    /// Applies a response of the stream; the answer goes back with its nonce.
    pub fn apply_response(&mut self, response: &Response, now: Instant) -> Verdict {
        self.apply(
            Update {
                type_url: &response.type_url,
                version: &response.version,
                added: response
                    .added
                    .iter()
                    .map(|r| (r.name.clone(), r.version.clone(), r.body.to_vec()))
                    .collect(),
                removed: response.removed.clone(),
                complete: false,
            },
            now,
        )
    }

    /// Applies an update.
    pub fn apply(&mut self, update: Update<'_>, now: Instant) -> Verdict {
        let mut verdict = Verdict::accepted();
        let Some(kind) = Kind::of(update.type_url) else {
            verdict.reject("", format!("resources of type {} are not served", update.type_url));
            return verdict;
        };
        self.counters.attempt(kind);
        let mut edit = Edit::default();
        let mut seen = HashSet::new();
        for (name, version, body) in update.added {
            let name = if name.is_empty() { name_of(kind, &body) } else { name };
            let version: Arc<str> = if version.is_empty() { update.version.into() } else { version.into() };
            let result = if seen.insert(name.clone()) {
                self.one(kind, &name, &version, &body, &mut edit, now)
            } else {
                Err(format!("duplicate resource {name} found"))
            };
            if let Err(details) = result {
                let record =
                    self.records.entry(kind).or_default().by_name.entry(name.as_str().into()).or_default();
                record.error = Some(ErrorState {
                    version,
                    body: body.into(),
                    at: SystemTime::now(),
                    details: details.clone(),
                });
                verdict.reject(name, details);
            }
        }
        let mut removed = update.removed;
        if update.complete && matches!(kind, Kind::Cluster | Kind::Listener) {
            let held = self.records.get(&kind).into_iter().flat_map(|r| r.by_name.iter());
            removed.extend(
                held.filter(|(n, r)| !r.is_static && !seen.contains(&***n)).map(|(n, _)| n.to_string()),
            );
        }
        for name in &removed {
            self.remove(kind, name, &mut edit);
        }
        if let Some(records) = self.records.get_mut(&kind) {
            records.version = update.version.into();
        }
        self.counters.outcome(kind, verdict.rejected.is_empty(), update.version);
        self.publish(edit);
        self.settle(now);
        verdict
    }

    /// Checks and takes one resource; the error is the NACK's text.
    fn one(
        &mut self,
        kind: Kind,
        name: &str,
        version: &Arc<str>,
        body: &[u8],
        edit: &mut Edit,
        now: Instant,
    ) -> Result<(), String> {
        let existing = self.records.get(&kind).and_then(|r| r.by_name.get(name));
        if existing.is_some_and(|r| r.is_static) {
            // As Envoy: the bootstrap's cluster or listener stands, and the update of that name is passed over.
            tracing::warn!(name, "an update names a resource of the bootstrap, which stays as it is");
            return Ok(());
        }
        if let Some(record) = self.records.entry(kind).or_default().by_name.get_mut(name)
            && record.latest().is_some_and(|a| *a.body == *body)
        {
            record.error = None;
            let latest = if record.warming.is_some() { &mut record.warming } else { &mut record.active };
            if let Some(latest) = latest {
                latest.version = version.clone();
            }
            return Ok(());
        }
        let converted = self.convert(kind, body).map_err(|e| reason(&e))?;
        self.admit(name, &converted)?;
        let name: Arc<str> = name.into();
        let (needs, warms) = match &converted {
            Converted::Cluster(_, needs) | Converted::Listener(_, needs) => {
                (needs.clone().into_boxed_slice(), true)
            }
            _ => (Box::default(), false),
        };
        let applied = Applied { version: version.clone(), body: body.into(), at: SystemTime::now(), needs };
        let record = self.records.entry(kind).or_default().by_name.entry(name.clone()).or_default();
        record.error = None;
        self.counters.taken(kind, record.latest().is_some());
        if warms {
            record.warming = Some(applied);
        } else {
            record.active = Some(applied);
        }
        match converted {
            Converted::Cluster(c, _) => self.stage(kind, name, Pending::Cluster(c), now),
            Converted::Listener(l, _) => self.stage(kind, name, Pending::Listener(l), now),
            Converted::Endpoints(e) => edit.endpoints.push((name, Some(e))),
            Converted::Routes(r) => edit.routes.push((name, Some(r))),
            Converted::Secret(s) => edit.secrets.push((name, Some(s))),
        }
        Ok(())
    }

    /// Sets what dynamic resources have to pass beside conversion.
    pub fn set_checks(&mut self, checks: Checks) {
        self.checks = Some(checks);
    }

    fn convert(&self, kind: Kind, body: &[u8]) -> Result<Converted, ConfigError> {
        fn decode<T: Message + Default>(kind: Kind, body: &[u8]) -> Result<T, ConfigError> {
            T::decode(body).map_err(|e| ConfigError {
                resource: kind.type_url().to_owned(),
                path: String::new(),
                reason: format!("does not decode: {e}"),
            })
        }
        let env = &self.env;
        Ok(match kind {
            Kind::Cluster => {
                let (c, needs) = proto::cluster::cluster(env, decode::<cluster_pb::Cluster>(kind, body)?)?;
                self.checks.map_or(Ok(()), |k| (k.cluster)(&c)).map_err(|r| refused(kind, &c.name, r))?;
                Converted::Cluster(Arc::new(c), needs)
            }
            Kind::Listener => {
                let (l, needs) =
                    proto::listener::listener(env, decode::<listener_pb::Listener>(kind, body)?)?;
                self.checks.map_or(Ok(()), |k| (k.listener)(&l)).map_err(|r| refused(kind, &l.name, r))?;
                Converted::Listener(Arc::new(l), needs)
            }
            Kind::Endpoints => Converted::Endpoints(Arc::new(proto::endpoint::load_assignment(
                env,
                decode::<endpoint_pb::ClusterLoadAssignment>(kind, body)?,
            )?)),
            Kind::Routes => Converted::Routes(Arc::new(proto::route::route_config(
                env,
                decode::<route_pb::RouteConfiguration>(kind, body)?,
            )?)),
            Kind::Secret => {
                Converted::Secret(proto::tls::secret(env, decode::<tls_pb::Secret>(kind, body)?)?.1)
            }
        })
    }

    /// Checks against the other resources.
    fn admit(&self, name: &str, converted: &Converted) -> Result<(), String> {
        let records = self.records.get(&Kind::Cluster);
        let known = |cluster: &str| {
            records
                .and_then(|r| r.by_name.get(cluster))
                .is_some_and(|r| r.active.is_some() || r.warming.is_some())
        };
        match converted {
            Converted::Routes(r) => validate::routes("", "", r, &known).map_err(|e| reason(&e)),
            Converted::Listener(l, _) => {
                validate::listener(l, &known).map_err(|e| reason(&e))?;
                if !l.bind_to_port {
                    return Ok(());
                }
                let snapshot = self.store.load();
                let warming = self.warming.values().filter_map(|w| match &w.pending {
                    Pending::Listener(l) => Some(l),
                    Pending::Cluster(_) => None,
                });
                for other in snapshot.listeners.values().chain(warming) {
                    if &*other.name != name
                        && other.bind_to_port
                        && let Some(address) =
                            l.addresses.iter().find(|a| has_port(a) && other.addresses.contains(a))
                    {
                        return Err(format!(
                            "has duplicate address '{address}' as existing listener '{}'",
                            other.name
                        ));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn remove(&mut self, kind: Kind, name: &str, edit: &mut Edit) {
        let Some(records) = self.records.get_mut(&kind) else { return };
        let Some(record) = records.by_name.get(name) else { return };
        if record.is_static {
            return;
        }
        match kind {
            // Endpoints, routes and secrets go with what needs them, as in Envoy; a removal alone changes nothing.
            Kind::Endpoints | Kind::Routes | Kind::Secret => return,
            Kind::Cluster => edit.clusters.push((name.into(), None)),
            Kind::Listener => edit.listeners.push((name.into(), None)),
        }
        let had = record.latest().is_some();
        records.by_name.remove(name);
        self.warming.remove(&(kind, Arc::from(name)));
        if had {
            self.counters.removed(kind);
        }
    }

    fn publish(&self, edit: Edit) {
        if !edit.is_empty() {
            self.store.update(|s| edit.apply(s));
        }
    }

    /// Activates what has all that it needs, or has waited long enough; drops what nothing needs any more.
    /// Call it when a secret came into the store, and at [`Applier::next_deadline`]. True if the snapshot changed.
    pub fn settle(&mut self, now: Instant) -> bool {
        let before = self.store.load();
        let mut edit = Edit::default();
        let ready: Vec<_> = self
            .warming
            .iter()
            .filter(|((kind, name), w)| {
                let needs = self.needs_of(*kind, name);
                needs.iter().all(|n| satisfied(n, &before) || expired(n, w.since, now))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in ready {
            let Some(w) = self.warming.remove(&key) else { continue };
            let (kind, name) = key;
            if let Some(record) = self.records.get_mut(&kind).and_then(|r| r.by_name.get_mut(&name))
                && let Some(applied) = record.warming.take()
            {
                record.active = Some(applied);
            }
            match w.pending {
                Pending::Cluster(c) => edit.clusters.push((name, Some(c))),
                Pending::Listener(l) => edit.listeners.push((name, Some(l))),
            }
        }
        self.collect_unneeded(&mut edit);
        let changed = !edit.is_empty();
        self.publish(edit);
        let count = |kind: Kind| {
            let active = self
                .records
                .get(&kind)
                .map_or(0, |r| r.by_name.values().filter(|r| r.active.is_some()).count());
            (active, self.warming.keys().filter(|(k, _)| *k == kind).count())
        };
        let rejected =
            self.records.values().flat_map(|r| r.by_name.values()).filter(|r| r.error.is_some()).count();
        self.counters.gauges(count(Kind::Cluster), count(Kind::Listener), rejected);
        changed
    }

    fn needs_of(&self, kind: Kind, name: &str) -> &[Need] {
        let record = self.records.get(&kind).and_then(|r| r.by_name.get(name));
        record.and_then(Record::latest).map_or(&[], |a| &a.needs)
    }

    fn collect_unneeded(&mut self, edit: &mut Edit) {
        let needed = self.needed();
        let all = |kind: Kind, name: &Arc<str>| match kind {
            Kind::Endpoints => needed.endpoints.contains(name) || self.file_needs(NeedKind::Endpoints, name),
            Kind::Routes => needed.routes.contains(name) || self.file_needs(NeedKind::Routes, name),
            Kind::Secret => needed.secrets.contains(name) || self.file_needs(NeedKind::Secret, name),
            _ => true,
        };
        let mut gone = Vec::new();
        for kind in [Kind::Endpoints, Kind::Routes, Kind::Secret] {
            let Some(records) = self.records.get(&kind) else { continue };
            gone.extend(
                records
                    .by_name
                    .iter()
                    .filter(|(n, r)| !r.is_static && !all(kind, n))
                    .map(|(n, _)| (kind, n.clone())),
            );
        }
        for (kind, name) in gone {
            if let Some(records) = self.records.get_mut(&kind) {
                records.by_name.remove(&name);
            }
            match kind {
                Kind::Endpoints => edit.endpoints.push((name, None)),
                Kind::Routes => edit.routes.push((name, None)),
                Kind::Secret => edit.secrets.push((name, None)),
                Kind::Cluster | Kind::Listener => {}
            }
        }
    }

    fn each_need(&self) -> impl Iterator<Item = &Need> {
        let records = self.records.values().flat_map(|r| r.by_name.values());
        records.flat_map(|r| r.active.iter().chain(&r.warming)).flat_map(|a| a.needs.iter())
    }

    fn file_needs(&self, kind: NeedKind, name: &str) -> bool {
        self.each_need()
            .any(|n| n.kind == kind && &*n.name == name && !matches!(n.source, Some(ConfigSource::Ads)))
    }

    /// What the present resources need, warming ones included.
    pub fn needed(&self) -> Needed {
        let mut out = Needed::default();
        for need in self.each_need() {
            match (&need.source, need.kind) {
                (Some(ConfigSource::Ads), NeedKind::Endpoints) => {
                    out.endpoints.insert(need.name.clone());
                }
                (Some(ConfigSource::Ads), NeedKind::Routes) => {
                    out.routes.insert(need.name.clone());
                }
                (Some(ConfigSource::Ads), NeedKind::Secret) => {
                    out.secrets.insert(need.name.clone());
                }
                (Some(ConfigSource::Path { path, .. }), kind) => {
                    out.files.entry(path.clone()).or_default().insert(kind);
                }
                (None, _) => {
                    out.local_secrets.insert(need.name.clone());
                }
            }
        }
        out
    }

    /// When [`Applier::settle`] should be called next although nothing came: the first fetch timeout to pass.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.warming.iter().flat_map(|((kind, name), w)| {
            self.needs_of(*kind, name).iter().filter_map(|n| n.fetch_timeout.map(|t| w.since + t))
        });
        deadlines.min()
    }

    /// The records of a kind, for dumps.
    pub fn records(&self, kind: Kind) -> &Records {
        static EMPTY: std::sync::OnceLock<Records> = std::sync::OnceLock::new();
        self.records.get(&kind).unwrap_or_else(|| EMPTY.get_or_init(Records::default))
    }

    /// The bootstrap as a message, and when it was read.
    pub fn bootstrap(&self) -> (&[u8], SystemTime) {
        (&self.bootstrap.0, self.bootstrap.1)
    }

    /// Names that are warming, of a kind.
    pub fn warming(&self, kind: Kind) -> Vec<Arc<str>> {
        self.warming.keys().filter(|(k, _)| *k == kind).map(|(_, n)| n.clone()).collect()
    }

    /// Notes that a fetch of clusters or listeners failed (the file cannot be read, the stream broke before an answer).
    pub fn fetch_failed(&self, kind: Kind) {
        self.counters.failed(kind);
    }

    /// The snapshot's cell.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

fn has_port(address: &super::address::Address) -> bool {
    address.socket().is_none_or(|a| a.port() != 0)
}

fn satisfied(need: &Need, s: &Snapshot) -> bool {
    match need.kind {
        NeedKind::Endpoints => s.endpoints.contains_key(&need.name),
        NeedKind::Routes => s.routes.contains_key(&need.name),
        NeedKind::Secret => s.secrets.contains_key(&need.name),
    }
}

fn expired(need: &Need, since: Instant, now: Instant) -> bool {
    need.fetch_timeout.is_some_and(|t| now >= since + t)
}

/// Field path and reason; the resource's name stands beside it in the NACK.
fn reason(e: &ConfigError) -> String {
    if e.path.is_empty() { e.reason.clone() } else { format!("{}: {}", e.path, e.reason) }
}

fn name_of(kind: Kind, body: &[u8]) -> String {
    match kind {
        Kind::Cluster => cluster_pb::Cluster::decode(body).map(|m| m.name),
        Kind::Endpoints => endpoint_pb::ClusterLoadAssignment::decode(body).map(|m| m.cluster_name),
        Kind::Listener => listener_pb::Listener::decode(body).map(|m| m.name),
        Kind::Routes => route_pb::RouteConfiguration::decode(body).map(|m| m.name),
        Kind::Secret => tls_pb::Secret::decode(body).map(|m| m.name),
    }
    .unwrap_or_default()
}

fn refused(kind: Kind, name: &str, reason: String) -> ConfigError {
    let what = if kind == Kind::Cluster { "cluster" } else { "listener" };
    ConfigError { resource: format!("{what} '{name}'"), path: String::new(), reason }
}
