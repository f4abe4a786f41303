//! Which virtual host serves an authority: exact domain, longest suffix wildcard, longest prefix wildcard, `*`.
//! (Envoy: `config.route.v3.VirtualHost.domains`.)

use std::sync::Arc;

use crate::config::route::{DomainTable, RouteConfig, VirtualHost};

/// Finds the virtual host for an authority as the request carries it.
pub fn find<'a>(config: &'a RouteConfig, authority: &[u8]) -> Option<&'a Arc<VirtualHost>> {
    let table = &config.domains;
    // The common sidecar case: one virtual host for everything.
    if table.exact.is_empty() && table.suffix.is_empty() && table.prefix.is_empty() {
        return config.virtual_hosts.get(table.any?);
    }
    let authority = if config.ignore_port { without_port(authority) } else { authority };
    let mut lower = [0u8; 256];
    let index = match lower.get_mut(..authority.len()) {
        Some(buf) => {
            buf.copy_from_slice(authority);
            buf.make_ascii_lowercase();
            lookup(table, buf)
        }
        None => lookup(table, &authority.to_ascii_lowercase()),
    };
    config.virtual_hosts.get(index?)
}

fn lookup(table: &DomainTable, host: &[u8]) -> Option<usize> {
    // Domains are text: an authority that is none matches only `*`.
    let Ok(host) = std::str::from_utf8(host) else { return table.any };
    if host.is_empty() {
        return table.any;
    }
    if let Some(i) = table.exact.get(host) {
        return Some(*i);
    }
    for (len, map) in &table.suffix {
        // The star stands for at least one character.
        if host.len() > *len
            && host.is_char_boundary(host.len() - len)
            && let Some(i) = map.get(&host[host.len() - len..])
        {
            return Some(*i);
        }
    }
    for (len, map) in &table.prefix {
        if host.len() > *len
            && host.is_char_boundary(*len)
            && let Some(i) = map.get(&host[..*len])
        {
            return Some(*i);
        }
    }
    table.any
}

/// The authority without its port, brackets of an IPv6 literal kept.
pub fn without_port(authority: &[u8]) -> &[u8] {
    match port_start(authority) {
        Some(i) => &authority[..i],
        None => authority,
    }
}

/// Where `:port` begins, if there is one.
pub fn port_start(authority: &[u8]) -> Option<usize> {
    let i = authority.iter().rposition(|b| *b == b':')?;
    if authority[i + 1..].is_empty() || !authority[i + 1..].iter().all(u8::is_ascii_digit) {
        return None;
    }
    // An IPv6 literal without a port: the last colon lies inside the brackets, or there are no brackets at all.
    let bracketed = authority.first() == Some(&b'[');
    if bracketed && authority.get(i.wrapping_sub(1)) != Some(&b']') {
        return None;
    }
    if !bracketed && authority[..i].contains(&b':') {
        return None;
    }
    Some(i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn config(domains: &[&str]) -> RouteConfig {
        let mut c = RouteConfig::default();
        let wild = |v: &mut Vec<(usize, HashMap<Box<str>, usize>)>, s: &str, i| match v
            .iter_mut()
            .find(|(l, _)| *l == s.len())
        {
            Some((_, m)) => {
                m.insert(s.into(), i);
            }
            None => v.push((s.len(), HashMap::from([(s.into(), i)]))),
        };
        for (i, d) in domains.iter().enumerate() {
            c.virtual_hosts.push(Arc::new(VirtualHost {
                name: (*d).into(),
                routes: vec![],
                require_tls: crate::config::route::RequireTls::None,
                mutations: Default::default(),
                attempt_count_in_request: false,
                attempt_count_in_response: false,
                is_timeout_retry_header: false,
                retry: None,
                mirrors: vec![],
                overrides: vec![],
                retry_buffer_limit: None,
                metadata: None,
            }));
            match *d {
                "*" => c.domains.any = Some(i),
                d if d.starts_with('*') => wild(&mut c.domains.suffix, &d[1..], i),
                d if d.ends_with('*') => wild(&mut c.domains.prefix, &d[..d.len() - 1], i),
                d => {
                    c.domains.exact.insert(d.into(), i);
                }
            }
        }
        c.domains.suffix.sort_by_key(|(l, _)| std::cmp::Reverse(*l));
        c.domains.prefix.sort_by_key(|(l, _)| std::cmp::Reverse(*l));
        c
    }

    #[test]
    fn most_specific_domain_wins() {
        let c = config(&["a.example.com", "*.example.com", "*-x.example.com", "a.*", "*"]);
        for (host, want) in [
            ("a.example.com", "a.example.com"),
            ("A.Example.Com", "a.example.com"),
            ("b.example.com", "*.example.com"),
            ("b-x.example.com", "*-x.example.com"),
            (".example.com", "*"),
            ("a.org", "a.*"),
            ("a.example.com:80", "a.*"),
            ("other", "*"),
            ("", "*"),
        ] {
            assert_eq!(&*find(&c, host.as_bytes()).unwrap().name, want, "{host}");
        }
    }

    #[test]
    fn ports_are_told_from_addresses() {
        for (a, want) in [
            ("h:80", "h"),
            ("h", "h"),
            ("h:", "h:"),
            ("h:x", "h:x"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
        ] {
            assert_eq!(without_port(a.as_bytes()), want.as_bytes(), "{a}");
        }
    }
}
