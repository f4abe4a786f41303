//! The PROXY protocol's header, versions 1 and 2. Follows `envoy.filters.listener.proxy_protocol` and HAProxy's
//! `proxy-protocol.txt`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided yet.
    More,
    /// The bytes are no such header.
    Absent,
    /// A header that breaks the rules.
    Malformed,
    Header {
        version: u8,
        /// Source and destination; `None` for `UNKNOWN` and `LOCAL`, where the socket's own addresses stand.
        addresses: Option<(SocketAddr, SocketAddr)>,
        /// Bytes to take away.
        len: usize,
    },
}

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end.
const V1_MAX: usize = 107;

/// Looks at the bytes that have come so far.
pub fn inspect(bytes: &[u8]) -> Verdict {
    let starts = |sig: &[u8]| bytes.starts_with(sig) || (bytes.len() < sig.len() && sig.starts_with(bytes));
    if starts(V2_SIGNATURE) {
        return version_2(bytes);
    }
    if starts(b"PROXY ") {
        return version_1(bytes);
    }
    Verdict::Absent
}

fn version_1(bytes: &[u8]) -> Verdict {
    let head = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = head.windows(2).position(|w| w == b"\r\n") else {
        return if bytes.len() < V1_MAX { Verdict::More } else { Verdict::Malformed };
    };
    let Ok(line) = std::str::from_utf8(&head[..end]) else { return Verdict::Malformed };
    let mut parts = line.split(' ').skip(1);
    let family = parts.next().unwrap_or("");
    if family == "UNKNOWN" {
        return Verdict::Header { version: 1, addresses: None, len: end + 2 };
    }
    let fields: Vec<&str> = parts.collect();
    let [source, destination, source_port, destination_port] = fields[..] else { return Verdict::Malformed };
    let read = |ip: &str, port: &str| -> Option<SocketAddr> {
        let ip: IpAddr = ip.parse().ok()?;
        let right_family = matches!((family, ip), ("TCP4", IpAddr::V4(_)) | ("TCP6", IpAddr::V6(_)));
        let plain = port.bytes().all(|b| b.is_ascii_digit());
        (right_family && plain).then_some(())?;
        Some(SocketAddr::new(ip, port.parse().ok()?))
    };
    match (read(source, source_port), read(destination, destination_port)) {
        (Some(s), Some(d)) => Verdict::Header { version: 1, addresses: Some((s, d)), len: end + 2 },
        _ => Verdict::Malformed,
    }
}

fn version_2(bytes: &[u8]) -> Verdict {
    let Some(&[version_command, family, len_high, len_low]) = bytes.get(12..16) else { return Verdict::More };
    let body = usize::from(u16::from_be_bytes([len_high, len_low]));
    let len = 16 + body;
    if version_command >> 4 != 2 || version_command & 0xf > 1 {
        return Verdict::Malformed;
    }
    let Some(body) = bytes.get(16..len) else { return Verdict::More };
    if version_command & 0xf == 0 {
        return Verdict::Header { version: 2, addresses: None, len };
    }
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let v4 = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(at..at + 4)?).ok()?)));
    let v6 = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(body.get(at..at + 16)?).ok()?)));
    let pair = |s: Option<IpAddr>, d: Option<IpAddr>, ports: usize| {
        Some((SocketAddr::new(s?, port(ports)?), SocketAddr::new(d?, port(ports + 2)?)))
    };
    let addresses = match family {
        0x11 => pair(v4(0), v4(4), 8),
        0x21 => pair(v6(0), v6(16), 32),
        // Unspecified and Unix: the socket's own addresses stand.
        0x00 | 0x31 => return Verdict::Header { version: 2, addresses: None, len },
        _ => return Verdict::Malformed,
    };
    match addresses {
        Some(a) => Verdict::Header { version: 2, addresses: Some(a), len },
        None => Verdict::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(s: &str, d: &str) -> Option<(SocketAddr, SocketAddr)> {
        Some((s.parse().unwrap(), d.parse().unwrap()))
    }

    #[test]
    fn version_1_lines() {
        let header = |addresses, len| Verdict::Header { version: 1, addresses, len };
        for (bytes, expected) in [
            (&b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET"[..], header(pair("1.2.3.4:9", "5.6.7.8:10"), 33)),
            (b"PROXY TCP6 ::1 ::2 9 10\r\n", header(pair("[::1]:9", "[::2]:10"), 25)),
            (b"PROXY UNKNOWN\r\n", header(None, 15)),
            (b"PROXY UNKNOWN ff:ff 1 2\r\n", header(None, 25)),
            (b"PROXY TCP4 1.2.3.4", Verdict::More),
            (b"PRO", Verdict::More),
            (b"", Verdict::More),
            (b"PROXY TCP4 ::1 ::2 9 10\r\n", Verdict::Malformed),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 +9 10\r\n", Verdict::Malformed),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 70000\r\n", Verdict::Malformed),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n", Verdict::Malformed),
            (b"GET / HTTP/1.1\r\n", Verdict::Absent),
        ] {
            assert_eq!(inspect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(inspect(&[&b"PROXY TCP4 "[..], &[b'1'; 100]].concat()), Verdict::Malformed);
    }

    #[test]
    fn version_2_headers() {
        let v2 = |vc: u8, family: u8, body: &[u8]| {
            [V2_SIGNATURE, &[vc, family], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
        };
        let four = v2(0x21, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10]);
        assert_eq!(
            inspect(&four),
            Verdict::Header { version: 2, addresses: pair("1.2.3.4:9", "5.6.7.8:10"), len: 28 }
        );
        for cut in 0..four.len() {
            assert_eq!(inspect(&four[..cut]), Verdict::More, "cut at {cut}");
        }
        assert_eq!(inspect(&v2(0x20, 0, &[])), Verdict::Header { version: 2, addresses: None, len: 16 });
        assert_eq!(inspect(&v2(0x21, 0x11, &[1, 2])), Verdict::Malformed);
        assert_eq!(inspect(&v2(0x31, 0x11, &[0; 12])), Verdict::Malformed);
        assert_eq!(inspect(&v2(0x21, 0x44, &[0; 12])), Verdict::Malformed);
    }
}
