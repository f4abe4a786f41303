//! Hands out loopback ports and replaces the placeholders of a case by them: `{{listener}}`, `{{admin}}`,
//! `{{upstream.NAME}}`, `{{port.NAME}}`, and the paths `{{dir}}` and `{{certs}}`.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use regex::Regex;

/// Below the kernel's ephemeral range, so that no outgoing connection takes a port between the check and its use.
const FIRST: u16 = 20000;
const LAST: u16 = 23999;

/// Gives each caller ports that nobody else of this process holds and that were free a moment ago.
#[derive(Debug)]
pub struct Ports(AtomicU16);

impl Default for Ports {
    fn default() -> Self {
        // Two runs on one machine begin at different places.
        let offset = u16::try_from(std::process::id() * 97 % 4000).unwrap_or(0);
        Self(AtomicU16::new(FIRST + offset))
    }
}

impl Ports {
    /// A port that is free on 127.0.0.1.
    ///
    /// # Errors
    /// The whole range is taken.
    pub fn next(&self) -> std::io::Result<u16> {
        for _ in FIRST..=LAST {
            let port = self
                .0
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |p| {
                    Some(if p >= LAST { FIRST } else { p + 1 })
                })
                .unwrap_or(FIRST);
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
        Err(std::io::Error::other("no free port between 20000 and 23999"))
    }
}

/// Placeholder name → what stands for it in this run.
#[derive(Debug, Clone, Default)]
pub struct Places(pub BTreeMap<String, String>);

impl Places {
    /// Gives every port placeholder of `text` a port, and `{{dir}}`, `{{certs}}` their paths.
    ///
    /// # Errors
    /// No port is free.
    pub fn allocate(text: &str, ports: &Ports, dir: &Path, certs: &Path) -> std::io::Result<Self> {
        let mut map = BTreeMap::new();
        map.insert("dir".to_owned(), dir.display().to_string());
        map.insert("certs".to_owned(), certs.display().to_string());
        let mut names = vec!["listener".to_owned(), "admin".to_owned()];
        names.extend(placeholders(text));
        names.extend(upstream_names(text).into_iter().map(|n| format!("upstream.{n}")));
        for name in names {
            if let std::collections::btree_map::Entry::Vacant(place) = map.entry(name) {
                place.insert(ports.next()?.to_string());
            }
        }
        Ok(Self(map))
    }

    /// `text` with all placeholders replaced.
    #[must_use]
    pub fn fill(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (name, value) in &self.0 {
            out = out.replace(&format!("{{{{{name}}}}}"), value);
        }
        out
    }

    /// The port behind a placeholder.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<u16> {
        self.0.get(name)?.parse().ok()
    }
}

fn placeholders(text: &str) -> impl Iterator<Item = String> {
    let re = Regex::new(r"\{\{(listener(?:\.[a-z0-9_-]+)?|admin|(?:upstream|port)\.[a-z0-9_-]+)\}\}")
        .expect("constant pattern");
    re.captures_iter(text).map(|c| c[1].to_owned()).collect::<Vec<_>>().into_iter()
}

/// The names of the upstreams, read before the case is parsed for good, because parsing needs the ports.
fn upstream_names(text: &str) -> Vec<String> {
    let numbers = Regex::new(r"\{\{[a-z0-9_.-]+\}\}").expect("constant pattern").replace_all(text, "1");
    // A file that is no YAML is reported when it is parsed.
    let value: serde_json::Value = serde_yaml_ng::from_str(&numbers).unwrap_or_default();
    value["upstreams"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_gets_its_own_port() {
        let text = "a: {{listener}} {{upstream.a}} {{port.x}}\nupstreams: {b: {}}\nsteps: []\n";
        let places = Places::allocate(text, &Ports::default(), Path::new("/d"), Path::new("/c"))
            .expect("ports are free");
        let mut ports: Vec<_> = ["listener", "admin", "upstream.a", "upstream.b", "port.x"]
            .iter()
            .map(|n| places.port(n).expect("allocated"))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 5);
        assert!(!places.fill(text).contains("{{"));
    }
}
