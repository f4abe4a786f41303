//! Operators about TLS sessions and certificates of both sides.

use base64::Engine as _;

use super::command::opt;
use super::{Wrote, time};
use crate::config::format::Simple;
use crate::stream_info::{StreamInfo, TlsInfo};

/// Writes a TLS operator; anything that is none is absent.
pub(super) fn write(simple: Simple, info: &StreamInfo, out: &mut Vec<u8>) -> Wrote {
    use Simple as S;
    let (down, up) = (info.conn.tls.as_deref(), info.upstream.tls.as_deref());
    match simple {
        S::UpstreamTlsVersion => field(up, |t| t.version, out),
        S::UpstreamTlsCipher => field(up, |t| t.cipher, out),
        S::UpstreamTlsSessionId => field(up, |t| &t.session_id, out),
        S::UpstreamPeerSubject => field(up, |t| &t.peer_subject, out),
        S::UpstreamPeerIssuer => field(up, |t| &t.peer_issuer, out),
        S::UpstreamPeerUriSan => list(up, |t| &t.peer_uri_sans, out),
        S::UpstreamPeerDnsSan => list(up, |t| &t.peer_dns_sans, out),
        S::UpstreamLocalUriSan => list(up, |t| &t.local_uri_sans, out),
        S::UpstreamLocalSubject => field(up, |t| &t.local_subject, out),
        S::UpstreamPeerCert => certificate(up, out),
        S::DownstreamLocalUriSan => list(down, |t| &t.local_uri_sans, out),
        S::DownstreamLocalDnsSan => list(down, |t| &t.local_dns_sans, out),
        S::DownstreamLocalSubject => field(down, |t| &t.local_subject, out),
        S::DownstreamPeerUriSan => list(down, |t| &t.peer_uri_sans, out),
        S::DownstreamPeerDnsSan => list(down, |t| &t.peer_dns_sans, out),
        S::DownstreamPeerIpSan => list(down, |t| &t.peer_ip_sans, out),
        S::DownstreamPeerSubject => field(down, |t| &t.peer_subject, out),
        S::DownstreamPeerIssuer => field(down, |t| &t.peer_issuer, out),
        S::DownstreamPeerSerial => field(down, |t| &t.peer_serial, out),
        S::DownstreamPeerFingerprint256 => field(down, |t| &t.peer_fingerprint_256, out),
        S::DownstreamPeerCert => certificate(down, out),
        S::DownstreamPeerCertVStart => validity(down, |t| t.peer_not_before, out),
        S::DownstreamPeerCertVEnd => validity(down, |t| t.peer_not_after, out),
        S::DownstreamTlsVersion => field(down, |t| t.version, out),
        S::DownstreamTlsCipher => field(down, |t| t.cipher, out),
        S::DownstreamTlsSessionId => field(down, |t| &t.session_id, out),
        // SHA-1 of the peer's certificate is not kept.
        _ => Wrote::Absent,
    }
}

fn field<'a>(tls: Option<&'a TlsInfo>, f: impl Fn(&'a TlsInfo) -> &'a str, out: &mut Vec<u8>) -> Wrote {
    opt(tls.map(f), out)
}

fn list<'a>(
    tls: Option<&'a TlsInfo>,
    f: impl Fn(&'a TlsInfo) -> &'a Vec<std::sync::Arc<str>>,
    out: &mut Vec<u8>,
) -> Wrote {
    let Some(names) = tls.map(f).filter(|n| !n.is_empty()) else { return Wrote::Absent };
    for (i, name) in names.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
    }
    Wrote::Text
}

fn validity(tls: Option<&TlsInfo>, f: impl Fn(&TlsInfo) -> i64, out: &mut Vec<u8>) -> Wrote {
    let secs = tls.map(f).and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    secs.map_or(Wrote::Absent, |s| time::write_at(std::time::Duration::from_secs(s), None, out))
}

/// The leaf as PEM, percent-encoded as `x-forwarded-client-cert` has it.
fn certificate(tls: Option<&TlsInfo>, out: &mut Vec<u8>) -> Wrote {
    let Some(leaf) = tls.and_then(|t| t.peer_chain.first()) else { return Wrote::Absent };
    out.extend_from_slice(b"-----BEGIN%20CERTIFICATE-----%0A");
    let text = base64::engine::general_purpose::STANDARD.encode(leaf);
    for line in text.as_bytes().chunks(64) {
        for b in line {
            match b {
                b'+' => out.extend_from_slice(b"%2B"),
                b'/' => out.extend_from_slice(b"%2F"),
                b'=' => out.extend_from_slice(b"%3D"),
                b => out.push(*b),
            }
        }
        out.extend_from_slice(b"%0A");
    }
    out.extend_from_slice(b"-----END%20CERTIFICATE-----%0A");
    Wrote::Text
}
