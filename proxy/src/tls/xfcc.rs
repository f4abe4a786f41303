//! Pieces of `x-forwarded-client-cert`: URI-encoded PEM of a certificate or of a whole chain. Follows "x-forwarded-client-cert"
//! of the HTTP connection manager's headers page.

use base64::Engine as _;

/// `Cert="…"`: the leaf as URI-encoded PEM.
pub fn certificate(der: &[u8]) -> String {
    encode(&pem(der))
}

/// `Chain="…"`: all certificates, leaf first, as one URI-encoded PEM text.
pub fn chain<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> String {
    encode(&ders.into_iter().map(pem).collect::<String>())
}

/// PEM with lines of 64 characters, as OpenSSL writes it.
pub fn pem(der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::with_capacity(body.len() + body.len() / 64 + 64);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = &*body;
    while !rest.is_empty() {
        // base64 is ASCII: every index is a character boundary.
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// The escapes Envoy applies to PEM: what base64 and PEM lines can hold beside letters and digits.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            c => out.push(c),
        }
    }
    out
}
