//! Tag extraction: which parts of a dotted name are tags (Envoy docs: api `envoy.config.metrics.v3.TagSpecifier`; the
//! default tags are those of Envoy's well_known_names).
//!
//! Every extractor sees the full name. What it takes out is removed at the end, when all have spoken. Extractors without a
//! literal first token come first, then those of the name's first token, each in the order of their definition: that is the
//! order of a metric's labels.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use regex::Regex;

use super::Stat;
use crate::config::bootstrap::{StatsConfig, TagRule};

/// A name without its tags, and the tags.
#[derive(Debug, PartialEq, Eq)]
pub struct Extracted {
    pub name: Arc<str>,
    pub tags: Vec<(Arc<str>, Arc<str>)>,
}

/// The extractors of a configuration, with a cache of what they found.
#[derive(Debug)]
pub struct Tagger {
    fixed: Vec<(Arc<str>, Arc<str>)>,
    /// Without a literal first token.
    general: Vec<Extractor>,
    by_token: HashMap<String, Vec<Extractor>>,
    cache: Mutex<HashMap<Arc<str>, Arc<Extracted>>>,
}

#[derive(Debug)]
struct Extractor {
    tag: Arc<str>,
    rule: Rule,
    /// A value that is none.
    except: &'static str,
}

#[derive(Debug)]
enum Rule {
    Regex(Regex),
    Tokens(&'static [&'static str]),
}

impl Tagger {
    /// The extractors of `stats_config`.
    pub fn new(config: &StatsConfig) -> Tagger {
        let mut tagger = Tagger {
            fixed: Vec::new(),
            general: Vec::new(),
            by_token: HashMap::new(),
            cache: Mutex::default(),
        };
        if config.use_default_tags {
            for (tag, pattern, except) in DEFAULT_REGEXES {
                tagger.add_pattern(&format!("envoy.{tag}").into(), &expand(pattern), except);
            }
            for (tag, tokens) in DEFAULT_TOKENS {
                let first = tokens.first().filter(|t| **t != "$").map(|t| (*t).to_owned());
                let tag = format!("envoy.{tag}").into();
                tagger.add(first, Extractor { tag, rule: Rule::Tokens(tokens), except: "" });
            }
        }
        for (tag, rule) in &config.tags {
            match rule {
                TagRule::Fixed(value) => tagger.fixed.push((tag.clone(), value.clone())),
                TagRule::Regex(regex) => tagger.add_regex(tag, regex.clone(), ""),
                TagRule::Unsupported(pattern) => tagger.add_pattern(tag, &without_look_ahead(pattern), ""),
            }
        }
        tagger
    }

    fn add_pattern(&mut self, tag: &Arc<str>, pattern: &str, except: &'static str) {
        match Regex::new(pattern) {
            Ok(regex) => self.add_regex(tag, regex, except),
            Err(error) => tracing::warn!(%tag, %error, "stats tag left out"),
        }
    }

    fn add_regex(&mut self, tag: &Arc<str>, regex: Regex, except: &'static str) {
        let first = literal_token(regex.as_str());
        self.add(first, Extractor { tag: tag.clone(), rule: Rule::Regex(regex), except });
    }

    fn add(&mut self, first: Option<String>, extractor: Extractor) {
        match first {
            Some(token) => self.by_token.entry(token).or_default().push(extractor),
            None => self.general.push(extractor),
        }
    }

    /// Name and tags of a stat.
    pub fn extract(&self, stat: &Stat) -> Arc<Extracted> {
        if let Some((name, tags)) = &stat.explicit {
            return Arc::new(Extracted { name: name.clone(), tags: tags.to_vec() });
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = cache.get(&stat.name) {
            return found.clone();
        }
        // Names come and go with clusters: what is not asked for again is forgotten in time.
        if cache.len() > 200_000 {
            cache.clear();
        }
        let fresh = Arc::new(self.take_apart(&stat.name));
        cache.insert(stat.name.clone(), fresh.clone());
        fresh
    }

    fn take_apart(&self, name: &str) -> Extracted {
        let mut tags = self.fixed.clone();
        let mut removed: Vec<Range<usize>> = Vec::new();
        let first = name.split('.').next().unwrap_or_default();
        let own = self.by_token.get(first).map_or(&[][..], Vec::as_slice);
        for e in self.general.iter().chain(own) {
            if tags.iter().any(|(t, _)| *t == e.tag) {
                continue;
            }
            if let Some((range, value)) = e.find(name).filter(|(_, v)| e.except.is_empty() || *v != e.except)
            {
                tags.push((e.tag.clone(), value.into()));
                removed.push(range);
            }
        }
        removed.sort_by_key(|r| r.start);
        let mut rest = String::with_capacity(name.len());
        let mut at = 0;
        for r in removed {
            rest.push_str(&name[at..r.start.max(at)]);
            at = at.max(r.end);
        }
        rest.push_str(&name[at..]);
        Extracted { name: rest.into(), tags }
    }
}

impl Extractor {
    /// The bytes to remove, and the value.
    fn find<'n>(&self, name: &'n str) -> Option<(Range<usize>, &'n str)> {
        match &self.rule {
            Rule::Regex(regex) => {
                let found = regex.captures(name)?;
                let remove = found.get(1)?;
                Some((remove.range(), found.get(2).unwrap_or(remove).as_str()))
            }
            Rule::Tokens(pattern) => {
                let value = by_tokens(pattern, name, 0)?;
                let text = &name[value.clone()];
                let remove = if value.end < name.len() {
                    value.start..value.end + 1
                } else {
                    value.start.saturating_sub(1)..value.end
                };
                Some((remove, text))
            }
        }
    }
}

/// Matches tokens from byte `at`: `$` is the value, `*` any token, `**` one or more. The outer `None`: no match.
fn by_tokens(pattern: &[&str], name: &str, at: usize) -> Option<Range<usize>> {
    match_tokens(pattern, name, at).flatten()
}

fn match_tokens(pattern: &[&str], name: &str, at: usize) -> Option<Option<Range<usize>>> {
    let Some((first, rest)) = pattern.split_first() else {
        return (at > name.len()).then_some(None);
    };
    if at > name.len() {
        return None;
    }
    let end = name[at..].find('.').map_or(name.len(), |d| at + d);
    match *first {
        "$" => match_tokens(rest, name, end + 1).map(|_| Some(at..end)),
        "*" => match_tokens(rest, name, end + 1),
        "**" => {
            let mut end = end;
            loop {
                if let Some(found) = match_tokens(rest, name, end + 1) {
                    return Some(found);
                }
                if end >= name.len() {
                    return None;
                }
                end = name[end + 1..].find('.').map_or(name.len(), |d| end + 1 + d);
            }
        }
        literal => (name[at..end] == *literal).then(|| match_tokens(rest, name, end + 1)).flatten(),
    }
}

/// The token that every match starts with: `^token\.` or `^token(?=\.)`, as Envoy reads it off a regex.
fn literal_token(pattern: &str) -> Option<String> {
    let rest = pattern.strip_prefix('^')?;
    let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let (token, after) = rest.split_at(len);
    // What look-ahead was rewritten to starts with a dot as well.
    (len > 0 && after.starts_with("\\.")).then(|| token.to_owned())
}

/// `(?=\.).*?\.` without look-ahead: the dot that is asserted is either the one that ends the lazy part or its first byte.
fn without_look_ahead(pattern: &str) -> String {
    pattern.replace(r"(?=\.).*?\.", r"\.(?:.*?\.)??")
}

fn expand(pattern: &str) -> String {
    pattern
        .replace("<ADDRESS>", r"(?:(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[[a-fA-F_\d]+\])_\d+)")
        .replace("<CIPHER>", r"[\w-]+")
        .replace("<TLS_VERSION>", r"TLSv\d\.\d")
        .replace("<VALUE>", r"[^\.]+")
        .replace("<ROUTE_CONFIG>", r"[\w\-\.]+")
        .replace("<SIDE>", r"(?:listener|cluster)\..*?")
}

/// Tag, regex, a value that is none.
const DEFAULT_REGEXES: &[(&str, &str, &str)] = &[
    ("response_code", r"_rq(_(\d{3}))$", ""),
    ("response_code_class", r"_rq_((\d))xx$", ""),
    (
        "dynamo_partition_id",
        r"^http\.<VALUE>\.dynamodb\.table\.<VALUE>\.capacity\.<VALUE>(\.__partition_id=(\w{7}))$",
        "",
    ),
    (
        "dynamo_operation",
        r"^http\.<VALUE>\.dynamodb.(?:operation|table\.<VALUE>\.capacity)(\.(<VALUE>))(?:\.|$)",
        "",
    ),
    ("dynamo_table", r"^http\.<VALUE>\.dynamodb.(?:table|error)\.((<VALUE>)\.)", ""),
    ("ssl_cipher", r"^listener\..*?\.ssl\.ciphers(\.(<CIPHER>))$", ""),
    ("ssl_curve", r"^<SIDE>\.ssl\.curves(\.(<CIPHER>))$", ""),
    ("ssl_sigalg", r"^<SIDE>\.ssl\.sigalgs(\.(<CIPHER>))$", ""),
    ("ssl_version", r"^<SIDE>\.ssl\.versions(\.(<TLS_VERSION>))$", ""),
    ("cipher_suite", r"^cluster\.<VALUE>\.ssl\.ciphers(\.(<CIPHER>))$", ""),
    ("http_conn_manager_prefix", r"^listener\..*?\.http\.((<VALUE>)\.)", ""),
    (
        "worker_id",
        r"^(?:listener\.(?:<ADDRESS>|<VALUE>)\.|server\.|listener_manager\.|thread_local_cluster_manager\.)worker_((\d+)\.)",
        "",
    ),
    ("listener_address", r"^listener\.((<ADDRESS>|<VALUE>)\.)", "admin"),
    ("rds_route_config", r"^http\.<VALUE>\.rds\.((<ROUTE_CONFIG>)\.)\w+?$", ""),
];

/// Tag, tokens.
const DEFAULT_TOKENS: &[(&str, &[&str])] = &[
    ("mongo_callsite", &["mongo", "*", "collection", "*", "callsite", "$", "query", "**"]),
    ("mongo_collection", &["mongo", "*", "collection", "$", "**", "query", "*"]),
    ("mongo_cmd", &["mongo", "*", "cmd", "$", "**"]),
    ("grpc_bridge_method", &["cluster", "*", "grpc", "*", "$", "**"]),
    ("http_user_agent", &["http", "*", "user_agent", "$", "**"]),
    ("virtual_cluster", &["vhost", "*", "vcluster", "$", "**"]),
    ("fault_downstream_cluster", &["http", "*", "fault", "$", "**"]),
    ("grpc_bridge_service", &["cluster", "*", "grpc", "$", "**"]),
    ("tcp_prefix", &["tcp", "$", "**"]),
    ("udp_prefix", &["udp", "$", "**"]),
    ("clientssl_prefix", &["auth", "clientssl", "$", "**"]),
    ("ratelimit_prefix", &["ratelimit", "$", "**"]),
    ("cluster_name", &["cluster", "$", "**"]),
    ("ext_authz_prefix", &["cluster", "*", "ext_authz", "$", "**"]),
    ("ext_authz_prefix", &["http", "*", "ext_authz", "$", "**"]),
    ("http_conn_manager_prefix", &["http", "$", "**"]),
    ("virtual_host", &["vhost", "$", "**"]),
    ("mongo_prefix", &["mongo", "$", "**"]),
    ("route", &["vhost", "*", "route", "$", "**"]),
    ("thrift_prefix", &["thrift", "$", "**"]),
    ("redis_prefix", &["redis", "$", "**"]),
    ("local_http_ratelimit_prefix", &["$", "http_local_rate_limit", "**"]),
    ("local_network_ratelimit_prefix", &["local_rate_limit", "$", "**"]),
    ("local_listener_ratelimit_prefix", &["listener_local_ratelimit", "$", "**"]),
    ("dns_filter_prefix", &["dns_filter", "$", "**"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn show(tagger: &Tagger, name: &str) -> String {
        let e = tagger.take_apart(name);
        let tags: Vec<String> = e.tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{} {}", e.name, tags.join(","))
    }

    #[test]
    fn default_tags_are_found_where_envoy_finds_them() {
        let tagger = Tagger::new(&StatsConfig { use_default_tags: true, ..StatsConfig::default() });
        for (name, want) in [
            (
                "cluster.up.upstream_rq_200",
                "cluster.upstream_rq envoy.response_code=200,envoy.cluster_name=up",
            ),
            (
                "cluster.up.upstream_rq_2xx",
                "cluster.upstream_rq_xx envoy.response_code_class=2,envoy.cluster_name=up",
            ),
            (
                "listener.127.0.0.1_80.http.in.downstream_rq_2xx",
                "listener.http.downstream_rq_xx envoy.response_code_class=2,envoy.http_conn_manager_prefix=in,envoy.listener_address=127.0.0.1_80",
            ),
            ("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total "),
            (
                "listener.web.worker_0.downstream_cx_total",
                "listener.worker_downstream_cx_total envoy.worker_id=0,envoy.listener_address=web",
            ),
            ("listener_manager.worker_1.dispatcher", "listener_manager.worker_dispatcher envoy.worker_id=1"),
            ("http.in.downstream_cx_total", "http.downstream_cx_total envoy.http_conn_manager_prefix=in"),
            (
                "http.in.rds.a.b.update_success",
                "http.rds.update_success envoy.rds_route_config=a.b,envoy.http_conn_manager_prefix=in",
            ),
            (
                "cluster.c.grpc.svc.method.success",
                "cluster.grpc.success envoy.grpc_bridge_method=method,envoy.grpc_bridge_service=svc,envoy.cluster_name=c",
            ),
            (
                "vhost.v.vcluster.other.upstream_rq",
                "vhost.vcluster.upstream_rq envoy.virtual_cluster=other,envoy.virtual_host=v",
            ),
            ("rl.http_local_rate_limit.ok", "http_local_rate_limit.ok envoy.local_http_ratelimit_prefix=rl"),
            ("server.live", "server.live "),
        ] {
            assert_eq!(show(&tagger, name), want, "{name}");
        }
    }

    #[test]
    fn istios_tags_with_and_without_look_ahead() {
        let regex = |tag: &str, r: &str| (tag.into(), TagRule::Regex(Regex::new(r).unwrap()));
        let tags = vec![
            regex("cluster_name", r"^cluster(\.(.+);)"),
            regex("response_code", r"_rq(_(\d{3}))$"),
            regex("authz_enforce_result", r"rbac(\.(allowed|denied))"),
            (
                "http_conn_manager_listener_prefix".into(),
                TagRule::Unsupported(
                    r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"
                        .into(),
                ),
            ),
            ("zone".into(), TagRule::Fixed("z".into())),
        ];
        let tagger = Tagger::new(&StatsConfig { tags, ..StatsConfig::default() });
        for (name, want) in [
            (
                "cluster.xds-grpc;.internal.upstream_rq_200",
                "cluster.internal.upstream_rq zone=z,cluster_name=xds-grpc,response_code=200",
            ),
            ("cluster.outbound|80||a.b;.x", "cluster.x zone=z,cluster_name=outbound|80||a.b"),
            ("http.inbound.rbac.denied", "http.inbound.rbac zone=z,authz_enforce_result=denied"),
            (
                "listener.0.0.0.0_80.http.0.0.0.0_80.x",
                "listener.0.0.0.0_80.http.x zone=z,http_conn_manager_listener_prefix=0.0.0.0_80",
            ),
            ("listener.http.1.x", "listener.http.x zone=z,http_conn_manager_listener_prefix=1"),
        ] {
            assert_eq!(show(&tagger, name), want, "{name}");
        }
    }
}
