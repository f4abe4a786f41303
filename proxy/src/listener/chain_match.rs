//! Filter chain match, compiled once per listener. Follows `FilterChainMatch`: criteria are applied in the order of its
//! documentation, the most specific value wins at each, and there is no way back to a less specific one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::address::Cidr;
use crate::config::listener::{FilterChain, ServerName, SourceType};

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The (restored) destination; `None` for Unix sockets, which match only chains without such criteria.
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    pub direct_remote: Option<SocketAddr>,
    pub server_name: &'a str,
    pub transport_protocol: &'a str,
    pub application_protocols: &'a [Arc<str>],
}

/// Two chains claim the same connections.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("filter chain '{second}' has the same matching rules defined as '{first}'")]
pub struct DuplicateMatch {
    pub first: Arc<str>,
    pub second: Arc<str>,
}

/// The compiled match: indices into the listener's chains.
#[derive(Debug, Default)]
pub struct ChainTable {
    ports: Map<u16, Cidrs<Names>>,
}

type Names = Map<Box<str>, Transports>;
type Transports = Map<Box<str>, Applications>;
type Applications = Map<Box<str>, Cidrs<Sources>>;
type SourcePorts = Map<u16, usize>;

/// Indexed by source type.
#[derive(Debug, Default)]
struct Sources([Cidrs<SourcePorts>; 3]);

impl ChainTable {
    /// Compiles chains.
    ///
    /// # Errors
    /// When two chains have the same rules: Envoy refuses such a listener.
    pub fn new(chains: &[Arc<FilterChain>]) -> Result<ChainTable, DuplicateMatch> {
        let mut table = ChainTable::default();
        for (index, chain) in chains.iter().enumerate() {
            table.insert(index, chain).map_err(|first| DuplicateMatch {
                first: chains[first].name.clone(),
                second: chain.name.clone(),
            })?;
        }
        Ok(table)
    }

    fn insert(&mut self, index: usize, chain: &FilterChain) -> Result<(), usize> {
        let m = &chain.matcher;
        let names: Vec<&str> = or_any(m.server_names.iter().map(|n| match n {
            ServerName::Exact(s) | ServerName::Suffix(s) => &**s,
        }));
        let transport = m.transport_protocol.as_deref().unwrap_or("");
        let applications: Vec<&str> = or_any(m.application_protocols.iter().map(|a| &**a));
        let source_type = m.source_type as usize;
        let ports = or_zero(&m.source_ports);
        let by_ip = self.ports.entry(m.destination_port.unwrap_or(0));
        for destination in ranges(&m.prefix_ranges) {
            let by_name = by_ip.entry(destination);
            for name in &names {
                let by_transport = by_name.entry((*name).into());
                let by_application = by_transport.entry(transport.into());
                for application in &applications {
                    let by_direct = by_application.entry((*application).into());
                    for direct in ranges(&m.direct_source_ranges) {
                        let by_type = by_direct.entry(direct);
                        for source in ranges(&m.source_ranges) {
                            let by_port = by_type.0[source_type].entry(source);
                            for port in &ports {
                                if let Some(first) = by_port.get(port) {
                                    return Err(*first);
                                }
                                *by_port.entry(*port) = index;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The index of the chain that matches.
    pub fn find(&self, facts: &Facts<'_>) -> Option<usize> {
        let port = facts.local.map_or(0, |a| a.port());
        // A port that any chain names is decided among those chains alone.
        let by_ip = self.ports.get(&port).filter(|_| port != 0).or_else(|| self.ports.get(&0))?;
        let by_name = by_ip.find(facts.local)?;
        let by_transport = find_name(by_name, facts.server_name)?;
        let by_application = by_transport.get(facts.transport_protocol).or_else(|| by_transport.get(""))?;
        let wanted = facts.application_protocols.iter().find_map(|p| by_application.get(&**p));
        let by_direct = wanted.or_else(|| by_application.get(""))?;
        let sources = by_direct.find(facts.direct_remote)?;
        let by_source = sources.of(facts)?;
        let by_port = by_source.find(facts.remote)?;
        let port = facts.remote.map_or(0, |a| a.port());
        by_port.get(&port).or_else(|| by_port.get(&0)).copied()
    }
}

fn find_name<'t>(names: &'t Names, name: &str) -> Option<&'t Transports> {
    if !name.is_empty() {
        if let Some(exact) = names.get(name) {
            return Some(exact);
        }
        let mut from = 1;
        while let Some(dot) = name.get(from..).and_then(|s| s.find('.')).map(|d| d + from) {
            if dot + 1 >= name.len() {
                break;
            }
            if let Some(suffix) = names.get(&name[dot..]) {
                return Some(suffix);
            }
            from = dot + 1;
        }
    }
    names.get("")
}

impl Sources {
    fn of(&self, facts: &Facts<'_>) -> Option<&Cidrs<SourcePorts>> {
        let of = |t: SourceType| Some(&self.0[t as usize]).filter(|c| !c.is_empty());
        let specific = match (of(SourceType::SameIpOrLoopback), of(SourceType::External)) {
            (None, None) => None,
            (local, external) => {
                if same_ip_or_loopback(facts) {
                    local
                } else {
                    external
                }
            }
        };
        specific.or_else(|| of(SourceType::Any))
    }
}

fn same_ip_or_loopback(facts: &Facts<'_>) -> bool {
    match (facts.remote, facts.local) {
        (Some(remote), local) => {
            remote.ip().to_canonical().is_loopback() || local.is_some_and(|l| l.ip() == remote.ip())
        }
        // Unix sockets are local.
        (None, _) => true,
    }
}

/// A sorted small map: most levels hold one value, and 5,000 hash tables would weigh more than they help.
#[derive(Debug)]
struct Map<K, V>(Vec<(K, V)>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Map(Vec::new())
    }
}

impl<K: Ord, V: Default> Map<K, V> {
    fn entry(&mut self, key: K) -> &mut V {
        let at = match self.0.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (key, V::default()));
                at
            }
        };
        &mut self.0[at].1
    }

    fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        let at = self.0.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        Some(&self.0[at].1)
    }
}

/// Values by address range; the longest prefix wins. One sorted table per prefix length, longest first.
#[derive(Debug)]
struct Cidrs<T>(Vec<(u8, Map<IpAddr, T>)>);

impl<T> Default for Cidrs<T> {
    fn default() -> Self {
        Cidrs(Vec::new())
    }
}

impl<T: Default> Cidrs<T> {
    fn entry(&mut self, range: Cidr) -> &mut T {
        let at = match self.0.binary_search_by(|(len, _)| range.len.cmp(len)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (range.len, Map::default()));
                at
            }
        };
        self.0[at].1.entry(range.addr)
    }

    /// A Unix socket has no address: only ranges that hold every IPv4 address match it, as in Envoy.
    fn find(&self, address: Option<SocketAddr>) -> Option<&T> {
        let ip = address.map_or(IpAddr::V4(Ipv4Addr::BROADCAST), |a| a.ip().to_canonical());
        let width = if ip.is_ipv4() { 32 } else { 128 };
        self.0
            .iter()
            .filter(|(len, _)| *len <= width)
            .find_map(|(len, map)| map.get(&Cidr::new(ip, *len).addr))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// No range is the same as the two that cover everything.
fn ranges(ranges: &[Cidr]) -> Vec<Cidr> {
    if ranges.is_empty() {
        vec![Cidr::new(Ipv4Addr::UNSPECIFIED.into(), 0), Cidr::new(Ipv6Addr::UNSPECIFIED.into(), 0)]
    } else {
        ranges.to_vec()
    }
}

fn or_any<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let values: Vec<_> = values.collect();
    if values.is_empty() { vec![""] } else { values }
}

fn or_zero(ports: &[u16]) -> Vec<u16> {
    if ports.is_empty() { vec![0] } else { ports.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::listener::ChainMatch;
    use crate::config::tls::TransportSocket;

    fn chain(name: &str, matcher: ChainMatch) -> Arc<FilterChain> {
        Arc::new(FilterChain {
            name: name.into(),
            matcher,
            transport: TransportSocket::RawBuffer,
            transport_connect_timeout: None,
            filters: vec![],
            metadata: None,
        })
    }

    fn cidr(s: &str) -> Cidr {
        let (ip, len) = s.split_once('/').unwrap();
        Cidr::new(ip.parse().unwrap(), len.parse().unwrap())
    }

    fn exact(n: &str) -> Vec<ServerName> {
        vec![ServerName::Exact(n.into())]
    }

    fn find<'c>(
        chains: &'c [Arc<FilterChain>],
        to: &str,
        from: &str,
        sni: &str,
        tp: &str,
        alpn: &[&str],
    ) -> &'c str {
        let table = ChainTable::new(chains).unwrap();
        let alpn: Vec<Arc<str>> = alpn.iter().map(|a| (*a).into()).collect();
        let remote: SocketAddr = from.parse().unwrap();
        let facts = Facts {
            local: Some(to.parse().unwrap()),
            remote: Some(remote),
            direct_remote: Some(remote),
            server_name: sni,
            transport_protocol: tp,
            application_protocols: &alpn,
        };
        table.find(&facts).map_or("-", |i| &chains[i].name)
    }

    #[test]
    fn istio_inbound_listener_tells_its_chains_apart() {
        let istio = vec!["istio".into(), "istio-http/1.0".into(), "istio-http/1.1".into(), "istio-h2".into()];
        let all = || vec![cidr("0.0.0.0/0")];
        let chains = [
            chain("blackhole", ChainMatch { destination_port: Some(15006), ..ChainMatch::default() }),
            chain(
                "mtls-http",
                ChainMatch {
                    prefix_ranges: all(),
                    transport_protocol: Some("tls".into()),
                    application_protocols: istio,
                    ..ChainMatch::default()
                },
            ),
            chain(
                "tls-any",
                ChainMatch {
                    prefix_ranges: all(),
                    transport_protocol: Some("tls".into()),
                    ..ChainMatch::default()
                },
            ),
            chain(
                "plain",
                ChainMatch {
                    prefix_ranges: all(),
                    transport_protocol: Some("raw_buffer".into()),
                    ..ChainMatch::default()
                },
            ),
            chain(
                "9898",
                ChainMatch {
                    destination_port: Some(9898),
                    transport_protocol: Some("tls".into()),
                    ..ChainMatch::default()
                },
            ),
        ];
        let from = "10.0.0.9:4000";
        for (to, tp, alpn, expected) in [
            ("10.0.0.1:15006", "raw_buffer", &[][..], "blackhole"),
            ("10.0.0.1:80", "tls", &["istio-peer-exchange", "istio"], "mtls-http"),
            ("10.0.0.1:80", "tls", &["h2"], "tls-any"),
            ("10.0.0.1:80", "raw_buffer", &["http/1.1"], "plain"),
            ("10.0.0.1:9898", "tls", &["istio"], "9898"),
            // No way back from a port that a chain names.
            ("10.0.0.1:9898", "raw_buffer", &[], "-"),
        ] {
            assert_eq!(find(&chains, to, from, "", tp, alpn), expected, "{to} {tp} {alpn:?}");
        }
    }

    #[test]
    fn longest_prefix_and_most_specific_name_win() {
        let names = |n: Vec<ServerName>| ChainMatch { server_names: n, ..ChainMatch::default() };
        let suffix = |n: &str| vec![ServerName::Suffix(n.into())];
        let chains = [
            chain("exact", names(exact("a.b.example.com"))),
            chain("near", names(suffix(".b.example.com"))),
            chain("far", names(suffix(".com"))),
            chain("any", names(vec![])),
            chain("net8", ChainMatch { prefix_ranges: vec![cidr("10.0.0.0/8")], ..ChainMatch::default() }),
            chain(
                "net16",
                ChainMatch {
                    prefix_ranges: vec![cidr("10.1.0.0/16")],
                    server_names: exact("only.example.com"),
                    ..ChainMatch::default()
                },
            ),
            chain("v6", ChainMatch { prefix_ranges: vec![cidr("fd00::/16")], ..ChainMatch::default() }),
        ];
        for (to, sni, expected) in [
            ("192.0.2.1:1", "a.b.example.com", "exact"),
            ("192.0.2.1:1", "x.b.example.com", "near"),
            ("192.0.2.1:1", "y.x.b.example.com", "near"),
            ("192.0.2.1:1", "b.example.com", "far"),
            ("192.0.2.1:1", "com.", "any"),
            ("192.0.2.1:1", "", "any"),
            ("10.2.0.1:1", "a.b.example.com", "net8"),
            // The longer prefix decides; its chain wants another name: no match.
            ("10.1.0.1:1", "a.b.example.com", "-"),
            ("10.1.0.1:1", "only.example.com", "net16"),
            ("[fd00::1]:1", "", "v6"),
            ("[::ffff:10.2.0.1]:1", "", "net8"),
        ] {
            assert_eq!(find(&chains, to, "192.0.2.9:5", sni, "", &[]), expected, "{to} {sni}");
        }
    }

    #[test]
    fn source_criteria_come_last() {
        let chains = [
            chain("local", ChainMatch { source_type: SourceType::SameIpOrLoopback, ..ChainMatch::default() }),
            chain("external", ChainMatch { source_type: SourceType::External, ..ChainMatch::default() }),
            chain(
                "net",
                ChainMatch {
                    source_type: SourceType::External,
                    source_ranges: vec![cidr("10.0.0.0/8")],
                    ..ChainMatch::default()
                },
            ),
            chain(
                "port",
                ChainMatch {
                    source_type: SourceType::External,
                    source_ranges: vec![cidr("10.0.0.0/8")],
                    source_ports: vec![77],
                    ..ChainMatch::default()
                },
            ),
            chain(
                "direct",
                ChainMatch { direct_source_ranges: vec![cidr("172.16.0.0/12")], ..ChainMatch::default() },
            ),
        ];
        for (from, expected) in [
            ("127.0.0.1:9", "local"),
            ("192.0.2.1:9", "local"),
            ("192.0.2.2:9", "external"),
            ("10.1.1.1:9", "net"),
            ("10.1.1.1:77", "port"),
            ("172.16.0.1:9", "direct"),
        ] {
            assert_eq!(find(&chains, "192.0.2.1:80", from, "", "", &[]), expected, "{from}");
        }
    }

    #[test]
    fn same_rules_twice_are_refused() {
        let m = || ChainMatch { server_names: exact("a"), ..ChainMatch::default() };
        let refused = ChainTable::new(&[chain("one", m()), chain("two", m())]).unwrap_err();
        assert_eq!((&*refused.first, &*refused.second), ("one", "two"));
    }

    #[test]
    fn thousands_of_chains_are_found() {
        let chains: Vec<_> = (0..5000u32)
            .map(|i| {
                let m = ChainMatch {
                    destination_port: Some(80),
                    prefix_ranges: vec![Cidr::new(IpAddr::V4((0x0a00_0000 + i).into()), 32)],
                    server_names: exact(&format!("s{i}.svc")),
                    ..ChainMatch::default()
                };
                chain(&i.to_string(), m)
            })
            .collect();
        assert_eq!(find(&chains, "10.0.18.52:80", "10.9.9.9:1", "s4660.svc", "tls", &[]), "4660");
        assert_eq!(find(&chains, "10.0.18.52:80", "10.9.9.9:1", "s4661.svc", "tls", &[]), "-");
    }
}
