//! `x-forwarded-client-cert`: what a connection manager does with the header and with the peer's certificate.
//! (Envoy: `forward_client_cert_details`, `set_current_client_cert_details`.)

use crate::config::hcm::{ForwardClientCert, Hcm};
use crate::head::{Head, HeaderId};
use crate::stream_info::{ConnInfo, TlsInfo};

/// Applies the configured handling to a request's head.
pub fn apply(hcm: &Hcm, head: &mut Head, conn: &ConnInfo) {
    if hcm.forward_client_cert == ForwardClientCert::AlwaysForwardOnly {
        return;
    }
    // Only a connection with a client certificate may forward.
    let peer = conn.tls.as_deref().filter(|t| !t.peer_chain.is_empty());
    let Some(tls) = peer else {
        head.remove(HeaderId::XForwardedClientCert);
        return;
    };
    match hcm.forward_client_cert {
        ForwardClientCert::Sanitize => {
            head.remove(HeaderId::XForwardedClientCert);
        }
        ForwardClientCert::ForwardOnly | ForwardClientCert::AlwaysForwardOnly => {}
        ForwardClientCert::AppendForward => {
            let own = element(hcm, tls);
            let joined = match head.get(HeaderId::XForwardedClientCert) {
                Some(v) if !v.is_empty() => [v, b",", own.as_bytes()].concat(),
                _ => own.into_bytes(),
            };
            head.set(HeaderId::XForwardedClientCert, &joined);
        }
        ForwardClientCert::SanitizeSet => {
            head.set(HeaderId::XForwardedClientCert, element(hcm, tls).as_bytes());
        }
    }
}

/// One element: `By=…;Hash=…;Cert="…";Subject="…";URI=…;DNS=…`.
fn element(hcm: &Hcm, tls: &TlsInfo) -> String {
    let want = hcm.client_cert_details;
    let mut parts: Vec<String> = tls.local_uri_sans.iter().map(|u| format!("By={u}")).collect();
    if !tls.peer_fingerprint_256.is_empty() {
        parts.push(format!("Hash={}", tls.peer_fingerprint_256));
    }
    if want.cert
        && let Some(leaf) = tls.peer_chain.first()
    {
        parts.push(format!("Cert=\"{}\"", crate::tls::xfcc::certificate(leaf)));
    }
    if want.chain {
        let chain = crate::tls::xfcc::chain(tls.peer_chain.iter().map(Vec::as_slice));
        parts.push(format!("Chain=\"{chain}\""));
    }
    if want.subject {
        let escaped = tls.peer_subject.replace('\\', "\\\\").replace('"', "\\\"");
        parts.push(format!("Subject=\"{escaped}\""));
    }
    if want.uri {
        if tls.peer_uri_sans.is_empty() {
            parts.push("URI=".into());
        }
        parts.extend(tls.peer_uri_sans.iter().map(|u| format!("URI={u}")));
    }
    if want.dns {
        parts.extend(tls.peer_dns_sans.iter().map(|d| format!("DNS={d}")));
    }
    parts.join(";")
}
