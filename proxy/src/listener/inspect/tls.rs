//! The TLS inspector's parser: server name and protocols of a ClientHello, without a handshake. Follows
//! `envoy.filters.listener.tls_inspector`. RFC 8446 section 4.1.2; RFC 6066 section 3; RFC 7301.

use std::sync::Arc;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided yet.
    More,
    NotTls,
    Hello(Hello),
}

/// The parts of a ClientHello that filter chains match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Lower case.
    pub server_name: Option<Arc<str>>,
    pub protocols: Vec<Arc<str>>,
}

const RECORD_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
/// A record holds at most this much (RFC 8446 section 5.1); longer ones are no TLS.
const MAX_RECORD: usize = 1 << 14;

/// Looks at the bytes that have come so far. A hello may be spread over records.
pub fn inspect(bytes: &[u8]) -> Verdict {
    let mut rest = bytes;
    let mut message: Option<Vec<u8>> = None;
    loop {
        let Some(&kind) = rest.first() else { return Verdict::More };
        if kind != HANDSHAKE || rest.get(1).is_some_and(|major| *major != 3) {
            return Verdict::NotTls;
        }
        if rest.len() < RECORD_HEADER {
            return Verdict::More;
        }
        let len = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        if len == 0 || len > MAX_RECORD {
            return Verdict::NotTls;
        }
        let body = &rest[RECORD_HEADER..rest.len().min(RECORD_HEADER + len)];
        if message.is_none() && body.first().is_some_and(|t| *t != CLIENT_HELLO) {
            return Verdict::NotTls;
        }
        // The common case, one record, is parsed where it lies.
        match &mut message {
            None => {
                if let Some(v) = complete(body) {
                    return v;
                }
                if body.len() < len {
                    return Verdict::More;
                }
                message = Some(body.to_vec());
            }
            Some(m) => {
                m.extend_from_slice(body);
                if let Some(v) = complete(m) {
                    return v;
                }
                if body.len() < len {
                    return Verdict::More;
                }
            }
        }
        rest = &rest[RECORD_HEADER + len..];
    }
}

/// `None`: the message is not whole.
fn complete(message: &[u8]) -> Option<Verdict> {
    let mut m = Reader(message);
    m.u8()?;
    let len = m.u24()?;
    let body = m.take(len)?;
    Some(parse(body).map_or(Verdict::NotTls, Verdict::Hello))
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut r = Reader(body);
    // legacy_version, random.
    r.take(2 + 32)?;
    let session = r.u8()?;
    r.take(usize::from(session))?;
    let suites = r.u16()?;
    r.take(usize::from(suites))?;
    let compressions = r.u8()?;
    r.take(usize::from(compressions))?;
    let mut hello = Hello::default();
    if r.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = r.vec16()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut data = extensions.vec16()?;
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(data.vec16()?),
            EXTENSION_ALPN => hello.protocols = protocols(data.vec16()?)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(mut list: Reader<'_>) -> Option<Arc<str>> {
    let kind = list.u8()?;
    let name = list.vec16()?.0;
    let text = std::str::from_utf8(name).ok().filter(|t| kind == 0 && !t.is_empty())?;
    Some(text.to_ascii_lowercase().into())
}

fn protocols(mut list: Reader<'_>) -> Option<Vec<Arc<str>>> {
    let mut out = Vec::new();
    while !list.0.is_empty() {
        let len = list.u8()?;
        out.push(String::from_utf8_lossy(list.take(usize::from(len))?).as_ref().into());
    }
    Some(out)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn u24(&mut self) -> Option<usize> {
        self.take(3).map(|b| usize::from(b[0]) << 16 | usize::from(b[1]) << 8 | usize::from(b[2]))
    }

    fn vec16(&mut self) -> Option<Reader<'a>> {
        let n = self.u16()?;
        self.take(usize::from(n)).map(Reader)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A ClientHello in records of at most `split` bytes.
    pub(crate) fn client_hello(sni: Option<&str>, alpn: &[&str], padding: usize, split: usize) -> Vec<u8> {
        let v16 = |b: &[u8]| [&u16::try_from(b.len()).unwrap().to_be_bytes()[..], b].concat();
        let mut extensions = Vec::new();
        let mut extension = |kind: u16, data: Vec<u8>| {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(v16(&data));
        };
        extension(21, vec![0; padding]);
        if let Some(sni) = sni {
            extension(0, v16(&[&[0][..], &v16(sni.as_bytes())].concat()));
        }
        if !alpn.is_empty() {
            let list: Vec<u8> = alpn
                .iter()
                .flat_map(|p| [&[u8::try_from(p.len()).unwrap()][..], p.as_bytes()].concat())
                .collect();
            extension(16, v16(&list));
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(v16(&[0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(v16(&extensions));
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[CLIENT_HELLO][..], &len[1..], &body].concat();
        message.chunks(split).flat_map(|c| [&[HANDSHAKE, 3, 1][..], &v16(c)].concat()).collect()
    }

    #[test]
    fn name_and_protocols_are_found_however_the_hello_is_cut() {
        for (padding, split) in [(0, 16_000), (0, 40), (12_000, 4_000), (12_000, 16_000)] {
            let bytes = client_hello(Some("Svc.Example.com"), &["istio", "h2"], padding, split);
            let Verdict::Hello(h) = inspect(&bytes) else { panic!("no hello: {padding} {split}") };
            assert_eq!(h.server_name.as_deref(), Some("svc.example.com"));
            assert_eq!(h.protocols, ["istio".into(), "h2".into()]);
            for cut in (0..bytes.len()).step_by(if padding > 0 { 997 } else { 1 }) {
                assert_eq!(inspect(&bytes[..cut]), Verdict::More, "cut at {cut}");
            }
        }
        let Verdict::Hello(h) = inspect(&client_hello(None, &[], 0, 16_000)) else { panic!() };
        assert_eq!(h, Hello::default());
    }

    #[test]
    fn other_protocols_are_told_at_their_first_bytes() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"\x17\x03\x03\x00\x05",
            b"\x16\x02",
            b"\x16\x03\x01\x00\x00\x01",
            b"\x16\x03\x01\x00\x05\x02",
        ] {
            assert_eq!(inspect(bytes), Verdict::NotTls, "{bytes:?}");
        }
        assert_eq!(inspect(b""), Verdict::More);
        assert_eq!(inspect(b"\x16"), Verdict::More);
    }

    #[test]
    fn damaged_hellos_never_panic() {
        let good = client_hello(Some("a.example.com"), &["h2"], 3, 60);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = inspect(&bad);
            }
        }
    }
}
