//! Replaces what differs from run to run by placeholders: dates, UUIDs, durations, ports and paths. Everything else
//! is compared to the letter.

use regex::{Captures, Regex};
use serde_json::Value;

use crate::ports::Places;

#[derive(Debug)]
pub struct Normaliser {
    /// Port → placeholder name.
    ports: Vec<(String, String)>,
    paths: Vec<(String, String)>,
    /// What a proxy puts into `x-forwarded-for` for a peer on the loopback interface.
    own_address: Option<String>,
    /// Text of the case: a UUID in it was sent by the case and is no matter of luck.
    case_text: String,
    address: Regex,
    uuid: Regex,
    constant: Vec<(Regex, &'static str)>,
    own: Vec<(Regex, String)>,
    ignored: Vec<String>,
}

impl Normaliser {
    /// # Errors
    /// A regex of the case does not compile.
    pub fn new(
        places: &Places,
        case_text: &str,
        own: &[(String, String)],
        ignored_headers: &[String],
    ) -> Result<Self, regex::Error> {
        let (mut ports, mut paths) = (Vec::new(), Vec::new());
        for (name, value) in &places.0 {
            let into = if value.starts_with('/') { &mut paths } else { &mut ports };
            into.push((value.clone(), format!("{{{{{name}}}}}")));
        }
        // The longer path first: one lies inside the other.
        paths.sort_by_key(|p| std::cmp::Reverse(p.0.len()));
        let constant = [
            (r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", "{{date}}"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", "{{time}}"),
            (r"(?i)(x-envoy-upstream-service-time: )\d+", "${1}{{ms}}"),
        ];
        Ok(Self {
            ports,
            paths,
            own_address: own_address(),
            case_text: case_text.to_owned(),
            address: Regex::new(r"(127\.0\.0\.\d+|localhost|0\.0\.0\.0|\[::1?\])([:_])(\d+)")?,
            uuid: Regex::new(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")?,
            constant: constant
                .into_iter()
                .map(|(re, to)| Regex::new(re).map(|re| (re, to)))
                .collect::<Result<_, _>>()?,
            own: own
                .iter()
                .map(|(re, to)| Regex::new(re).map(|re| (re, to.clone())))
                .collect::<Result<_, _>>()?,
            ignored: ignored_headers.iter().map(|h| format!("{}:", h.to_ascii_lowercase())).collect(),
        })
    }

    /// The value with every string replaced, names of stats too.
    #[must_use]
    pub fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => self.text(&text).into(),
            Value::Array(items) => items
                .into_iter()
                .filter(|i| {
                    let lower = i.as_str().map(str::to_ascii_lowercase).unwrap_or_default();
                    !self.ignored.iter().any(|h| lower.starts_with(h))
                })
                .map(|i| self.value(i))
                .collect(),
            Value::Object(map) => map.into_iter().map(|(k, v)| (self.text(&k), self.value(v))).collect(),
            other => other,
        }
    }

    fn text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (path, name) in &self.paths {
            out = out.replace(path, name);
        }
        if let Some(own) = &self.own_address {
            out = out.replace(own, "{{own address}}");
        } else if out.starts_with("x-forwarded-for: ") {
            out = out.replace("127.0.0.1", "{{own address}}");
        }
        out = self
            .address
            .replace_all(&out, |c: &Captures<'_>| {
                let name = self.ports.iter().find(|(p, _)| *p == c[3]).map_or("{{port}}", |(_, n)| n);
                format!("{}{}{name}", &c[1], &c[2])
            })
            .into_owned();
        out = self
            .uuid
            .replace_all(&out, |c: &Captures<'_>| {
                if self.case_text.contains(&c[0]) { c[0].to_owned() } else { "{{uuid}}".to_owned() }
            })
            .into_owned();
        for (re, to) in &self.constant {
            out = re.replace_all(&out, *to).into_owned();
        }
        for (re, to) in &self.own {
            out = re.replace_all(&out, to.as_str()).into_owned();
        }
        out
    }
}

/// The machine's own address, if it has one beside the loopback's. Connecting a UDP socket sends nothing.
fn own_address() -> Option<String> {
    let routed = || {
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
        socket.connect(("203.0.113.1", 9)).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    routed().or_else(local_address).filter(|ip| !ip.starts_with("127."))
}

/// Where no route leads outside: the first local address in the kernel's table.
fn local_address() -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/fib_trie").ok()?;
    let mut last = "";
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address;
        } else if line.starts_with("/32 host LOCAL") && !last.starts_with("127.") {
            return Some(last.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normaliser(case: &str) -> Normaliser {
        let mut places = Places::default();
        places.0.insert("listener".into(), "20001".into());
        places.0.insert("dir".into(), "/t/x".into());
        Normaliser::new(&places, case, &[("took \\d+".into(), "took {{ms}}".into())], &["X-Luck".into()])
            .expect("patterns compile")
    }

    #[test]
    fn volatile_parts_become_placeholders() {
        let n = normaliser("");
        let seen = serde_json::json!([
            "date: Tue, 24 Nov 2026 10:00:00 GMT",
            "x-request-id: 0a1b2c3d-0000-4000-8000-0a1b2c3d4e5f",
            "x-envoy-upstream-service-time: 12",
            "127.0.0.1:20001 from 127.0.0.1:40000 took 7",
            "/t/x/access.log",
            "x-luck: 5",
        ]);
        assert_eq!(
            n.value(seen),
            serde_json::json!([
                "date: {{date}}",
                "x-request-id: {{uuid}}",
                "x-envoy-upstream-service-time: {{ms}}",
                "127.0.0.1:{{listener}} from 127.0.0.1:{{port}} took {{ms}}",
                "{{dir}}/access.log",
            ])
        );
    }

    #[test]
    fn a_uuid_that_the_case_sent_stays() {
        let id = "0a1b2c3d-0000-4000-8000-0a1b2c3d4e5f";
        assert_eq!(normaliser(id).value(id.into()), Value::from(id));
    }
}
