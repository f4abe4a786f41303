//! Writes docs/COMPATIBILITY.md from the `take!` lists in this folder, and holds the file to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// How a field is treated.
enum Treatment {
    Served,
    Refused(String),
    Harmless(String),
}

type Messages = BTreeMap<String, BTreeMap<String, Treatment>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// `use envoy_types::pb::envoy::config::cluster::v3 as pb;` and nested `use` of modules: alias → package.
fn aliases(source: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for line in source.lines().map(str::trim) {
        let Some(path) = line.strip_prefix("use ").and_then(|l| l.strip_suffix(';')) else { continue };
        let (path, alias) = match path.split_once(" as ") {
            Some((p, a)) => (p, a),
            None => (path, path.rsplit("::").next().unwrap_or(path)),
        };
        if let Some(package) = path.strip_prefix("envoy_types::pb::") {
            out.insert(alias.to_owned(), package.replace("r#", "").replace("::", "."));
        } else if path.starts_with("pb::") || path.starts_with("policies::") {
            // An alias of a module that another alias names.
            let (head, rest) = path.split_once("::").unwrap_or((path, ""));
            if let Some(base) = out.get(head).cloned() {
                // Below a package stand messages, and between packages folders.
                let rest: Vec<String> = rest
                    .split("::")
                    .map(|p| if base.ends_with(".v3") { camel(p) } else { p.to_owned() })
                    .collect();
                out.insert(alias.to_owned(), format!("{base}.{}", rest.join(".").replace("r#", "")));
            }
        } else if path == "outrigger_xds::istio" {
            out.insert(alias.to_owned(), "istio".to_owned());
        }
    }
    out
}

/// prost's module of a message → the message's name.
fn camel(part: &str) -> String {
    part.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect()
}

/// `pb::circuit_breakers::Thresholds` → `envoy.config.cluster.v3.CircuitBreakers.Thresholds`.
fn full_name(path: &str, aliases: &BTreeMap<String, String>) -> String {
    let (head, rest) = path.split_once("::").unwrap_or((path, ""));
    let package = aliases.get(head).unwrap_or_else(|| panic!("{path}: no `use` names {head}"));
    if package == "istio" {
        return match rest {
            "MetadataExchange" => "envoy.tcp.metadataexchange.config.MetadataExchange".into(),
            "PeerMetadataConfig" => "io.istio.http.peer_metadata.Config".into(),
            "DiscoveryMethod" => "io.istio.http.peer_metadata.Config.DiscoveryMethod".into(),
            "StatsConfig" => "stats.PluginConfig".into(),
            "StatsMetric" => "stats.MetricConfig".into(),
            "StatsMetricDefinition" => "stats.MetricDefinition".into(),
            "AlpnFilterConfig" => "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig".into(),
            "AlpnOverride" => "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride".into(),
            other => panic!("{other}"),
        };
    }
    let nested: Vec<String> = rest
        .split("::")
        .map(|p| p.trim_start_matches("r#"))
        .map(|p| if p.starts_with(|c: char| c.is_lowercase()) { camel(p) } else { p.to_owned() })
        .collect();
    // prost's spelling of names that are all capitals in the proto.
    let nested = nested.join(".").replace("Rbac", "RBAC").replace("HttpFault", "HTTPFault");
    format!("{package}.{nested}")
}

/// The text of one `take!(…)`, without the parentheses.
fn invocations(source: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find("take!(") {
        let body = &rest[at + 6..];
        let (mut depth, mut quoted, mut escaped) = (1, false, false);
        let mut end = body.len();
        for (i, c) in body.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                '(' if !quoted => depth += 1,
                ')' if !quoted => {
                    depth -= 1;
                    if depth == 0 {
                        end = i;
                        break;
                    }
                }
                _ => {}
            }
        }
        out.push(&body[..end]);
        rest = &body[end..];
    }
    out
}

/// Splits at `separator` outside of string literals.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut out, mut quoted) = (vec![String::new()], false);
    for c in text.chars() {
        if c == '"' {
            quoted = !quoted;
        }
        if c == separator && !quoted {
            out.push(String::new());
        } else if let Some(last) = out.last_mut() {
            last.push(c);
        }
    }
    out
}

fn collect() -> Messages {
    let mut messages = Messages::new();
    let folder = root().join("src/config/proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if ["mod.rs", "compatibility.rs", "tests.rs"].contains(&name.as_str()) {
            continue;
        }
        let source = std::fs::read_to_string(&file).unwrap();
        let aliases = aliases(&source);
        for body in invocations(&source) {
            let open = body.find('{').unwrap_or_else(|| panic!("{name}: {body}"));
            let path = body[..open].trim().rsplit([',', ' ']).next().unwrap_or_default().trim();
            let fields = messages.entry(full_name(path, &aliases)).or_default();
            let inner = body[open + 1..].trim().trim_end_matches(',').trim_end().trim_end_matches('}');
            for (i, section) in split(inner, ';').into_iter().enumerate() {
                let section = section.trim();
                let (kind, list) = match (i, section.split_once(char::is_whitespace)) {
                    (1.., Some((kind @ ("refuse" | "harmless"), list))) => (kind, list),
                    _ => ("served", section),
                };
                for item in split(list, ',') {
                    let (field, text) = match item.split_once('=') {
                        Some((f, t)) => (f.trim().to_owned(), t.trim().trim_matches('"').replace('|', "\\|")),
                        None => (item.trim().to_owned(), String::new()),
                    };
                    if field.is_empty() {
                        continue;
                    }
                    let treatment = match kind {
                        "refuse" => Treatment::Refused(text),
                        "harmless" => Treatment::Harmless(text),
                        _ => Treatment::Served,
                    };
                    fields.insert(field.trim_start_matches("r#").to_owned(), treatment);
                }
            }
        }
    }
    messages
}

fn render(messages: &Messages) -> String {
    let count = |want: fn(&Treatment) -> bool| {
        messages.values().flat_map(BTreeMap::values).filter(|t| want(t)).count()
    };
    let mut out = String::new();
    let (served, refused, harmless) = (
        count(|t| matches!(t, Treatment::Served)),
        count(|t| matches!(t, Treatment::Refused(_))),
        count(|t| matches!(t, Treatment::Harmless(_))),
    );
    let _ = write!(
        out,
        "# What of Envoy's configuration is served\n\n\
         Made from the conversion in `proxy/src/config/proto`; `UPDATE_DOCS=1 cargo test -p outrigger compatibility` writes it anew.\n\n\
         Every field of a message below is in one of three groups. **Served**: it acts as in Envoy, though single values of it may\n\
         be refused. **Refused**: where it is set, the resource is refused with an error that names the resource, the field and its\n\
         value. **Harmless**: it may be set and needs nothing, for the reason given. A message or an extension that is not listed is\n\
         refused by name, except messages whose fields are all served (they are not listed for their shortness).\n\n\
         {} messages: {served} fields served, {refused} refused, {harmless} harmless.\n",
        messages.len()
    );
    for (name, fields) in messages {
        let _ = write!(out, "\n## {name}\n\n");
        let served: Vec<String> = fields
            .iter()
            .filter(|(_, t)| matches!(t, Treatment::Served))
            .map(|(f, _)| format!("`{f}`"))
            .collect();
        if !served.is_empty() {
            let _ = writeln!(out, "Served: {}.", served.join(", "));
        }
        let rest: Vec<_> = fields.iter().filter(|(_, t)| !matches!(t, Treatment::Served)).collect();
        if rest.is_empty() {
            continue;
        }
        if !served.is_empty() {
            out.push('\n');
        }
        out.push_str("| field | | |\n|---|---|---|\n");
        for (field, treatment) in rest {
            let (word, text) = match treatment {
                Treatment::Served => continue,
                Treatment::Refused(t) => ("refused", t),
                Treatment::Harmless(t) => ("harmless", t),
            };
            let _ = writeln!(out, "| `{field}` | {word} | {text} |");
        }
    }
    out
}

#[test]
fn the_compatibility_page_says_what_the_conversion_does() {
    let messages = collect();
    assert!(messages["envoy.config.cluster.v3.Cluster"].contains_key("lb_policy"));
    let text = render(&messages);
    let page = root().join("../docs/COMPATIBILITY.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(page.parent().unwrap()).unwrap();
        std::fs::write(&page, &text).unwrap();
    }
    let there = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        there == text,
        "docs/COMPATIBILITY.md is out of date; run UPDATE_DOCS=1 cargo test -p outrigger compatibility"
    );
}

/// Every field of a listed message is in one of the three groups, by the API's own descriptors; a name that is not the API's shows.
#[test]
fn every_listed_message_and_field_is_the_apis() {
    use outrigger_xds::json::Schema;
    let schema = Schema::load();
    let mut unknown = Vec::new();
    for (name, fields) in collect() {
        if !schema.knows(&name) {
            unknown.push(name);
            continue;
        }
        let empty = schema.to_json(&name, &[]);
        assert!(empty.is_ok(), "{name}");
        assert!(!fields.is_empty(), "{name}");
    }
    assert_eq!(unknown, Vec::<String>::new());
}
