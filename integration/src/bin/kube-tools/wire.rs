//! What goes over the wire of a pod: reads raw frames, keeps the first bytes of each direction of each TCP flow, and tells
//! TLS 1.3 (by the ServerHello's supported_versions), older TLS and plaintext apart.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

/// All protocols, in network byte order as AF_PACKET wants it.
const ETH_P_ALL: u16 = 0x0003;
/// Enough for a ServerHello, which follows the TCP handshake in one or two segments.
const KEEP: usize = 4096;

type Flow = (Ipv4Addr, u16, Ipv4Addr, u16);

/// Captures until the time is over, then prints `{"tls13":n,"tls_older":n,"plaintext":n,"unknown":n,"samples":[…]}`.
pub(crate) fn watch(port: u16, duration: Duration) -> io::Result<()> {
    let mut socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ETH_P_ALL.to_be()))))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut flows: BTreeMap<Flow, Vec<u8>> = BTreeMap::new();
    let mut frame = vec![0; 65_536];
    let end = Instant::now() + duration;
    while Instant::now() < end {
        let length = match socket.read(&mut frame) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some((flow, payload)) = segment(&frame[..length]) {
            let between_pods = flow.0 != flow.2 && !flow.0.is_loopback() && !flow.2.is_loopback();
            if between_pods && (flow.1 == port || flow.3 == port) && !payload.is_empty() {
                let kept = flows.entry(flow).or_default();
                let room = KEEP.saturating_sub(kept.len());
                kept.extend_from_slice(&payload[..payload.len().min(room)]);
            }
        }
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut samples = Vec::new();
    for ((source, source_port, target, target_port), bytes) in flows {
        let server_side = source_port == port;
        let kind = if server_side { server_kind(&bytes) } else { client_kind(&bytes) };
        if let Some(kind) = kind {
            *counts.entry(kind).or_default() += 1;
            if kind != "tls13" && samples.len() < 8 {
                let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
                samples.push(format!("{source}:{source_port} > {target}:{target_port} {kind}: {start:?}"));
            }
        }
    }
    let count = |kind| counts.get(kind).copied().unwrap_or(0);
    let (tls13, older) = (count("tls13"), count("tls_older"));
    println!(
        "{}",
        json!({"tls13": tls13, "tls_older": older, "plaintext": count("plaintext"), "encrypted": count("encrypted"), "samples": samples})
    );
    Ok(())
}

/// The TCP payload of an Ethernet frame with IPv4 in it.
fn segment(frame: &[u8]) -> Option<(Flow, &[u8])> {
    // Frames of the loopback have no hardware addresses: there goes what the sidecar and its application say to each other.
    if frame.get(..12)?.iter().all(|byte| *byte == 0) {
        return None;
    }
    let packet = frame.get(14..)?;
    if frame.get(12..14)? != [0x08, 0x00] || packet.first()? >> 4 != 4 || *packet.get(9)? != 6 {
        return None;
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    // The frame may be padded: the packet says how long it is.
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let tcp = packet.get(header..total.min(packet.len()))?;
    let number = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
    Some(((address(12)?, number(0)?, address(16)?, number(2)?), payload))
}

/// What the server's first bytes are. Application data means a connection from before the capture began.
fn server_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x16, 3, ..] => Some(if hello_is_tls13(bytes) { "tls13" } else { "tls_older" }),
        [0x14 | 0x15 | 0x17, 3, ..] => Some("encrypted"),
        _ => Some("plaintext"),
    }
}

/// The client's side only shows plaintext: a ClientHello offers versions, it does not choose.
fn client_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x14..=0x17, 3, ..] => None,
        _ => Some("plaintext"),
    }
}

/// RFC 8446 4.1.3 and 4.2.1: TLS 1.3 is chosen by `supported_versions` (43) = 0x0304 in the ServerHello's extensions.
fn hello_is_tls13(record: &[u8]) -> bool {
    let chosen = || {
        let hello = record.get(5..)?;
        if *hello.first()? != 2 {
            return None;
        }
        // Type and length 4, version 2, random 32, then the session id.
        let session = usize::from(*hello.get(38)?);
        // Cipher suite 2, compression 1, length of the extensions 2.
        let mut extensions = hello.get(39 + session + 5..)?;
        while let [a, b, c, d, rest @ ..] = extensions {
            let length = usize::from(u16::from_be_bytes([*c, *d]));
            if u16::from_be_bytes([*a, *b]) == 43 {
                return Some(rest.get(..2)? == [3, 4]);
            }
            extensions = rest.get(length..)?;
        }
        None
    };
    chosen().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::{client_kind, hello_is_tls13, segment, server_kind};

    /// A ServerHello with the given extensions.
    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x16, 3, 3, 0, 0, 2, 0, 0, 0, 3, 3];
        bytes.extend([7; 32]);
        bytes.extend([2, 9, 9, 0x13, 1, 0, 0, extensions.len() as u8]);
        bytes.extend(extensions);
        bytes
    }

    #[test]
    fn server_hello_tells_the_version() {
        assert!(hello_is_tls13(&hello(&[0, 51, 0, 1, 0, 0, 43, 0, 2, 3, 4])));
        assert!(!hello_is_tls13(&hello(&[0, 43, 0, 2, 3, 3])));
        assert_eq!(server_kind(&hello(&[])), Some("tls_older"));
        assert_eq!(server_kind(b"HTTP/1.1 200 OK"), Some("plaintext"));
        assert_eq!(client_kind(b"GET / HTTP/1.1"), Some("plaintext"));
    }

    #[test]
    fn truncated_frames_are_skipped() {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 45, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 0, 90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(b"hello, padding");
        let (flow, payload) = segment(&frame).unwrap();
        assert_eq!((flow.1, flow.3, payload), (80, 90, &b"hello"[..]));
        for length in 0..54 {
            assert!(segment(&frame[..length]).is_none_or(|(_, payload)| payload.is_empty()));
        }
        frame[..12].fill(0);
        assert!(segment(&frame).is_none(), "loopback");
    }
}
