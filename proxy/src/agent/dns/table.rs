//! istiod's name table, and the lookup that follows from it: which names it answers, with which addresses.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// `istio.networking.nds.v1.NameTable`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NameTable {
    #[prost(map = "string, message", tag = "1")]
    pub table: HashMap<String, NameInfo>,
}

/// `istio.networking.nds.v1.NameTable.NameInfo`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// `Kubernetes`, or `External` for ServiceEntries.
    #[prost(string, tag = "2")]
    pub registry: String,
    #[prost(string, tag = "3")]
    pub shortname: String,
    #[prost(string, tag = "4")]
    pub namespace: String,
}

/// The table, with every way to write each name.
#[derive(Debug, Default)]
pub struct Names {
    /// Lower case, with the final dot.
    hosts: HashMap<String, Vec<IpAddr>>,
    /// Suffixes, `.example.com.`, of `*.example.com`.
    wildcards: HashMap<String, Vec<IpAddr>>,
    /// First search domain, `.demo.svc.cluster.local.`.
    search: Option<String>,
}

/// What a name leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// The name is an alias of this one: the resolver appended a search domain to a name that is whole without it.
    pub(super) alias: Option<String>,
    pub(super) addresses: &'a [IpAddr],
}

impl Names {
    /// `namespace` is the pod's, `search` resolv.conf's.
    pub(super) fn new(table: &NameTable, namespace: &str, search: &[String]) -> Self {
        let mut names =
            Self { search: search.first().map(|domain| format!(".{}", dotted(domain))), ..Self::default() };
        for (host, info) in &table.table {
            let addresses: Vec<IpAddr> = info.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            if let Some(suffix) = host.strip_prefix('*') {
                names.wildcards.insert(dotted(suffix), addresses);
                continue;
            }
            let whole = dotted(host);
            for short in short_names(&whole, info, namespace) {
                // A name written out in the table itself wins over another's short form.
                names.hosts.entry(short).or_insert_with(|| addresses.clone());
            }
            names.hosts.insert(whole, addresses);
        }
        names
    }

    pub(super) fn lookup(&self, name: &str) -> Option<Found<'_>> {
        let name = dotted(name);
        if let Some(addresses) = self.exact(&name) {
            return Some(Found { alias: None, addresses });
        }
        // `api.example.com` in a pod is asked for as `api.example.com.demo.svc.cluster.local` first (ndots): answered here, it
        // spares the cluster's DNS all the misses.
        let bare = name.strip_suffix(self.search.as_deref()?)?;
        let target = dotted(bare);
        self.exact(&target).map(|addresses| Found { alias: Some(target), addresses })
    }

    fn exact(&self, name: &str) -> Option<&[IpAddr]> {
        if let Some(addresses) = self.hosts.get(name) {
            return Some(addresses);
        }
        if self.wildcards.is_empty() {
            return None;
        }
        // The longest suffix first.
        let mut rest = name;
        while let Some(dot) = rest.find('.') {
            if let Some(addresses) = self.wildcards.get(&rest[dot..]) {
                return Some(addresses);
            }
            rest = &rest[dot + 1..];
        }
        None
    }

    pub(super) fn json(&self) -> String {
        let wildcards = self.wildcards.iter().map(|(suffix, addresses)| (format!("*{suffix}"), addresses));
        let hosts = self.hosts.iter().map(|(host, addresses)| (host.clone(), addresses));
        let table: BTreeMap<String, serde_json::Value> = hosts
            .chain(wildcards)
            .map(|(host, addresses)| (host, serde_json::json!({ "ips": addresses })))
            .collect();
        serde_json::json!({ "table": table }).to_string()
    }
}

/// Kubernetes' short forms: `name.namespace`, `name.namespace.svc`, and `name` within its own namespace.
fn short_names(whole: &str, info: &NameInfo, namespace: &str) -> Vec<String> {
    if info.registry != "Kubernetes" || info.shortname.is_empty() {
        return Vec::new();
    }
    // The shortname of a headless service's pod is `pod.service`.
    let base = dotted(&format!("{}.{}", info.shortname, info.namespace));
    if !whole.starts_with(&base) {
        return Vec::new();
    }
    let mut names = vec![format!("{base}svc."), base];
    if info.namespace == namespace {
        names.push(dotted(&info.shortname));
    }
    names
}

/// Lower case, with the final dot.
fn dotted(name: &str) -> String {
    let mut name = name.to_ascii_lowercase();
    if !name.ends_with('.') {
        name.push('.');
    }
    name
}
