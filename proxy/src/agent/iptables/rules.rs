//! The rules for REDIRECT, as data: chains, then rules in the order in which they must stand. Nothing here runs anything.
//!
//! OUTPUT → ISTIO_OUTPUT: the proxy's own traffic goes out; what it sends to the pod's own address comes in again through
//! 15006; loopback is left alone; the rest goes to 15001. PREROUTING → ISTIO_INBOUND: excluded ports pass, the rest goes to 15006.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use super::{IptablesError, IptablesOptions};

/// Where the agent's DNS server listens.
const DNS_PORT: &str = "15053";
const JUMPED_FROM: [&str; 2] = ["PREROUTING", "OUTPUT"];

/// Which of the two tables of addresses a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    const fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1/32",
            Self::V6 => "::1/128",
        }
    }

    /// Source of what the proxy sends to its application.
    const fn inbound_source(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.6/32",
            Self::V6 => "::6/128",
        }
    }
}

/// The options, taken apart and checked.
#[derive(Debug)]
pub struct Plan {
    proxy_port: u16,
    inbound_port: u16,
    tunnel_port: u16,
    /// `--uid-owner ID` and `--gid-owner ID`, in this order.
    owners: Vec<(&'static str, u32)>,
    inbound: Ports,
    inbound_exclude: Vec<u16>,
    outbound: Ranges,
    outbound_exclude: Vec<String>,
    outbound_ports: Vec<u16>,
    outbound_ports_exclude: Vec<u16>,
    virtual_interfaces: Vec<String>,
    exclude_interfaces: Vec<String>,
    dns: Dns,
    drop_invalid: bool,
}

#[derive(Debug)]
enum Ports {
    All,
    These(Vec<u16>),
}

#[derive(Debug)]
enum Ranges {
    All,
    These(Vec<String>),
}

#[derive(Debug, PartialEq, Eq)]
enum Dns {
    Off,
    All,
    Servers(Vec<IpAddr>),
}

impl Plan {
    /// `resolv_conf` is the text of that file: its servers are those whose traffic DNS capture takes.
    ///
    /// # Errors
    /// Names the option whose value is not understood, or not supported.
    pub fn new(options: &IptablesOptions, resolv_conf: &str) -> Result<Self, IptablesError> {
        if options.interception_mode != "REDIRECT" {
            let (value, expected) = (options.interception_mode.clone(), "only REDIRECT is supported");
            return Err(IptablesError::Option { option: "-m", value, expected });
        }
        let gids = options.proxy_gid.as_ref().unwrap_or(&options.proxy_uid);
        let owners = numbers("-u", &options.proxy_uid)?.into_iter().map(|uid| ("--uid-owner", uid));
        let servers = resolv_conf
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
        let dns = match (options.redirect_dns, options.capture_all_dns) {
            (false, _) => Dns::Off,
            (true, true) => Dns::All,
            (true, false) => Dns::Servers(servers.collect()),
        };
        Ok(Self {
            proxy_port: number("-p", &options.proxy_port)?,
            inbound_port: number("-z", &options.inbound_capture_port)?,
            tunnel_port: number("-e", &options.inbound_tunnel_port)?,
            owners: owners.chain(numbers("-g", gids)?.into_iter().map(|gid| ("--gid-owner", gid))).collect(),
            inbound: match options.inbound_ports_include.as_str() {
                "*" => Ports::All,
                ports => Ports::These(numbers("-b", ports)?),
            },
            inbound_exclude: numbers("-d", &options.inbound_ports_exclude)?,
            outbound: match options.outbound_ranges_include.as_str() {
                "*" => Ranges::All,
                ranges => Ranges::These(cidrs("-i", ranges)?),
            },
            outbound_exclude: cidrs("-x", &options.outbound_ranges_exclude)?,
            outbound_ports: numbers("-q", &options.outbound_ports_include)?,
            outbound_ports_exclude: numbers("-o", &options.outbound_ports_exclude)?,
            virtual_interfaces: interfaces("-k", &options.virtual_interfaces)?,
            exclude_interfaces: interfaces("-c", &options.exclude_interfaces)?,
            dns,
            drop_invalid: options.drop_invalid,
        })
    }

    /// Input for `iptables-restore --noflush`. `before` is what iptables-save printed: jumps that it has are taken away first, and
    /// declaring a chain empties it, so that a second run leaves what the first left.
    #[must_use]
    pub fn restore_input(&self, family: Family, before: &str) -> String {
        let rules = self.rules(family);
        let stale = stale_jumps(before);
        let mut input = String::new();
        for table in ["raw", "mangle", "nat"] {
            let of_table: Vec<&Rule> = rules.iter().filter(|rule| rule.table == table).collect();
            let old: &[String] = stale.get(table).map_or(&[], Vec::as_slice);
            if of_table.is_empty() && old.is_empty() {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = writeln!(input, "*{table}");
            let mut chains: Vec<&str> = Vec::new();
            for rule in &of_table {
                let target = rule
                    .text
                    .rsplit("-j ")
                    .next()
                    .and_then(|rest| rest.split(' ').next())
                    .unwrap_or_default();
                for name in [rule.chain, target] {
                    if name.starts_with("ISTIO_") && !chains.contains(&name) {
                        chains.push(name);
                    }
                }
            }
            for chain in chains {
                let _ = writeln!(input, ":{chain} - [0:0]");
            }
            for jump in old {
                let _ = writeln!(input, "-D {jump}");
            }
            for rule in of_table {
                let _ =
                    writeln!(input, "{} {} {}", if rule.first { "-I" } else { "-A" }, rule.chain, rule.text);
            }
            input.push_str("COMMIT\n");
        }
        input
    }

    fn rules(&self, family: Family) -> Vec<Rule> {
        let mut rules = Rules(Vec::new());
        for name in &self.exclude_interfaces {
            rules.nat("PREROUTING", format!("-i {name} -j RETURN"));
            rules.nat("OUTPUT", format!("-o {name} -j RETURN"));
        }
        for name in &self.virtual_interfaces {
            rules.first("PREROUTING", format!("-i {name} -j RETURN"));
        }
        if self.drop_invalid {
            rules.add("mangle", "PREROUTING", "-m conntrack --ctstate INVALID -j ISTIO_DROP".into());
            rules.add("mangle", "ISTIO_DROP", "-j DROP".into());
        }
        rules.nat("ISTIO_INBOUND", format!("-p tcp --dport {} -j RETURN", self.tunnel_port));
        rules.nat("ISTIO_REDIRECT", format!("-p tcp -j REDIRECT --to-ports {}", self.proxy_port));
        rules.nat("ISTIO_IN_REDIRECT", format!("-p tcp -j REDIRECT --to-ports {}", self.inbound_port));
        self.inbound_rules(&mut rules);
        rules.nat("OUTPUT", "-j ISTIO_OUTPUT".into());
        self.outbound_rules(family, &mut rules);
        rules.0
    }

    fn inbound_rules(&self, rules: &mut Rules) {
        match &self.inbound {
            Ports::These(ports) if ports.is_empty() => {}
            Ports::These(ports) => {
                rules.nat("PREROUTING", "-p tcp -j ISTIO_INBOUND".into());
                for port in ports {
                    rules.nat("ISTIO_INBOUND", format!("-p tcp --dport {port} -j ISTIO_IN_REDIRECT"));
                }
            }
            Ports::All => {
                rules.nat("PREROUTING", "-p tcp -j ISTIO_INBOUND".into());
                for port in &self.inbound_exclude {
                    rules.nat("ISTIO_INBOUND", format!("-p tcp --dport {port} -j RETURN"));
                }
                rules.nat("ISTIO_INBOUND", "-p tcp -j ISTIO_IN_REDIRECT".into());
            }
        }
    }

    fn outbound_rules(&self, family: Family, rules: &mut Rules) {
        for port in &self.outbound_ports_exclude {
            rules.nat("ISTIO_OUTPUT", format!("-p tcp --dport {port} -j RETURN"));
            rules.nat("ISTIO_OUTPUT", format!("-p udp --dport {port} -j RETURN"));
        }
        rules.nat("ISTIO_OUTPUT", format!("-o lo -s {} -j RETURN", family.inbound_source()));
        let dns = self.dns != Dns::Off && self.dns != Dns::Servers(Vec::new());
        let loopback_captured =
            matches!(&self.outbound, Ranges::These(cidrs) if cidrs.iter().any(|cidr| is_loopback(cidr)));
        for (owner, id) in &self.owners {
            // The application calls its own Service: proxy (client) → proxy (server) → application. Not for DNS, which the
            // agent sends on itself. Istio makes that exception for users alone.
            let ports = if dns && *owner == "--uid-owner" {
                format!("-m multiport ! --dports 53,{}", self.tunnel_port)
            } else {
                format!("! --dport {}", self.tunnel_port)
            };
            let loopback = family.loopback();
            rules.nat(
                "ISTIO_OUTPUT",
                format!("-o lo ! -d {loopback} -p tcp {ports} -m owner {owner} {id} -j ISTIO_IN_REDIRECT"),
            );
            if !loopback_captured {
                let not_dns = if dns { "-p tcp ! --dport 53 " } else { "" };
                rules.nat("ISTIO_OUTPUT", format!("-o lo {not_dns}-m owner ! {owner} {id} -j RETURN"));
            }
            // The proxy's own traffic, of any protocol: no loops.
            rules.nat("ISTIO_OUTPUT", format!("-m owner {owner} {id} -j RETURN"));
        }
        if dns {
            self.dns_rules(family, rules);
        }
        rules.nat("ISTIO_OUTPUT", format!("-d {} -j RETURN", family.loopback()));
        for cidr in self.outbound_exclude.iter().filter(|cidr| is_of(family, cidr)) {
            rules.nat("ISTIO_OUTPUT", format!("-d {cidr} -j RETURN"));
        }
        for port in &self.outbound_ports {
            rules.nat("ISTIO_OUTPUT", format!("-p tcp --dport {port} -j ISTIO_REDIRECT"));
        }
        match &self.outbound {
            Ranges::All => {
                rules.nat("ISTIO_OUTPUT", "-j ISTIO_REDIRECT".into());
                for name in &self.virtual_interfaces {
                    rules.first("PREROUTING", format!("-i {name} -j ISTIO_REDIRECT"));
                }
            }
            Ranges::These(cidrs) => {
                for cidr in cidrs.iter().filter(|cidr| is_of(family, cidr)) {
                    for name in &self.virtual_interfaces {
                        rules.first("PREROUTING", format!("-i {name} -d {cidr} -j ISTIO_REDIRECT"));
                    }
                    rules.nat("ISTIO_OUTPUT", format!("-d {cidr} -j ISTIO_REDIRECT"));
                }
            }
        }
    }

    /// Queries go to the agent. Its own to the real servers, and the application's to it, live in connection tracking zones of
    /// their own: they have the same addresses and ports and would be taken for one another.
    fn dns_rules(&self, family: Family, rules: &mut Rules) {
        // Matches of one server's queries and answers; of all servers' if they are not told apart.
        let servers: Vec<(String, String)> = match &self.dns {
            Dns::Off => Vec::new(),
            Dns::All => vec![(String::new(), String::new())],
            Dns::Servers(servers) => servers
                .iter()
                .filter(|server| server.is_ipv4() == (family == Family::V4))
                .map(|server| (format!(" -d {server}"), format!(" -s {server}")))
                .collect(),
        };
        rules.add("raw", "OUTPUT", "-j ISTIO_OUTPUT_DNS".into());
        if !servers.is_empty() {
            rules.nat("ISTIO_OUTPUT", "-j ISTIO_OUTPUT_DNS".into());
            rules.add("raw", "PREROUTING", "-j ISTIO_INBOUND".into());
        }
        for protocol in ["tcp", "udp"] {
            for (to, _) in &servers {
                rules.nat(
                    "ISTIO_OUTPUT_DNS",
                    format!("-p {protocol} --dport 53{to} -j REDIRECT --to-ports {DNS_PORT}"),
                );
            }
        }
        for (owner, id) in &self.owners {
            rules.add(
                "raw",
                "ISTIO_OUTPUT_DNS",
                format!("-p udp --dport 53 -m owner {owner} {id} -j CT --zone 1"),
            );
            rules.add(
                "raw",
                "ISTIO_OUTPUT_DNS",
                format!("-p udp --sport {DNS_PORT} -m owner {owner} {id} -j CT --zone 2"),
            );
        }
        for (to, from) in &servers {
            rules.add("raw", "ISTIO_OUTPUT_DNS", format!("-p udp --dport 53{to} -j CT --zone 2"));
            rules.add("raw", "ISTIO_INBOUND", format!("-p udp --sport 53{from} -j CT --zone 1"));
        }
    }
}

/// Input that takes away all that a run set up.
pub(super) fn cleanup_input(before: &str) -> String {
    let mut input = String::new();
    let jumps = stale_jumps(before);
    let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    each_line(before, |table, line| {
        if let Some(chain) = line
            .strip_prefix(':')
            .and_then(|rest| rest.split(' ').next())
            .filter(|name| name.starts_with("ISTIO_"))
        {
            chains.entry(table).or_default().push(chain);
        }
    });
    for (table, chains) in chains {
        let _ = writeln!(input, "*{table}");
        for jump in jumps.get(table).into_iter().flatten() {
            let _ = writeln!(input, "-D {jump}");
        }
        for chain in &chains {
            let _ = writeln!(input, "-F {chain}");
        }
        for chain in &chains {
            let _ = writeln!(input, "-X {chain}");
        }
        input.push_str("COMMIT\n");
    }
    input
}

struct Rule {
    table: &'static str,
    chain: &'static str,
    /// Inserted before the others instead of after them.
    first: bool,
    text: String,
}

struct Rules(Vec<Rule>);

impl Rules {
    fn add(&mut self, table: &'static str, chain: &'static str, text: String) {
        self.0.push(Rule { table, chain, first: false, text });
    }

    fn nat(&mut self, chain: &'static str, text: String) {
        self.add("nat", chain, text);
    }

    fn first(&mut self, chain: &'static str, text: String) {
        self.0.push(Rule { table: "nat", chain, first: true, text });
    }
}

/// By table, the rules of built-in chains that lead into ours.
fn stale_jumps(saved: &str) -> BTreeMap<&str, Vec<String>> {
    let mut jumps: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    each_line(saved, |table, line| {
        let Some(rule) = line.strip_prefix("-A ") else { return };
        let built_in = JUMPED_FROM.iter().any(|chain| rule.split(' ').next() == Some(chain));
        if built_in && rule.split(' ').any(|word| word.starts_with("ISTIO_")) {
            jumps.entry(table).or_default().push(rule.to_owned());
        }
    });
    jumps
}

/// Calls with each line of iptables-save's output and the table it stands in.
fn each_line<'a>(saved: &'a str, mut visit: impl FnMut(&'a str, &'a str)) {
    let mut table = "";
    for line in saved.lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name,
            None => visit(table, line),
        }
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn number<T: std::str::FromStr>(option: &'static str, value: &str) -> Result<T, IptablesError> {
    value.trim().parse().map_err(|_| IptablesError::Option {
        option,
        value: value.to_owned(),
        expected: "expected a number",
    })
}

fn numbers<T: std::str::FromStr>(option: &'static str, values: &str) -> Result<Vec<T>, IptablesError> {
    list(values).map(|value| number(option, value)).collect()
}

/// Address ranges, with a prefix length each, as iptables prints them.
fn cidrs(option: &'static str, values: &str) -> Result<Vec<String>, IptablesError> {
    list(values)
        .map(|value| {
            let (address, length) = value.split_once('/').unwrap_or((value, ""));
            let address: Option<IpAddr> = address.parse().ok();
            let most = if address.is_some_and(|address| address.is_ipv4()) { 32 } else { 128 };
            let length = if length.is_empty() {
                Some(most)
            } else {
                length.parse().ok().filter(|length: &u8| *length <= most)
            };
            match (address, length) {
                (Some(address), Some(length)) => Ok(format!("{address}/{length}")),
                _ => Err(IptablesError::Option {
                    option,
                    value: value.to_owned(),
                    expected: "expected an address range",
                }),
            }
        })
        .collect()
}

fn interfaces(option: &'static str, values: &str) -> Result<Vec<String>, IptablesError> {
    list(values)
        .map(|name| {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@+".contains(&byte));
            let wrong = || IptablesError::Option {
                option,
                value: name.to_owned(),
                expected: "expected the name of an interface",
            };
            if plain && !name.starts_with('-') { Ok(name.to_owned()) } else { Err(wrong()) }
        })
        .collect()
}

fn is_of(family: Family, cidr: &str) -> bool {
    cidr.contains(':') == (family == Family::V6)
}

fn is_loopback(cidr: &str) -> bool {
    cidr.split('/')
        .next()
        .and_then(|address| address.parse::<IpAddr>().ok())
        .is_some_and(|address| address.is_loopback())
}
