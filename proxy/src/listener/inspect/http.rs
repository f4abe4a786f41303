//! The HTTP inspector's parser: HTTP/1.0, 1.1 or 2 from a connection's first bytes. Follows
//! `envoy.filters.listener.http_inspector`.

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided yet.
    More,
    NotHttp,
    Http10,
    Http11,
    Http2,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line longer than this is not waited for.
pub const MAX: usize = 64 * 1024;

/// Methods that Envoy's HTTP/1 parser knows.
const METHODS: [&[u8]; 34] = [
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"MSEARCH",
    b"NOTIFY",
    b"OPTIONS",
    b"PATCH",
    b"POST",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"PUT",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"TRACE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];

/// Looks at the bytes that have come so far.
pub fn inspect(bytes: &[u8]) -> Verdict {
    if bytes.is_empty() || (bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes)) {
        return Verdict::More;
    }
    if bytes.starts_with(PREFACE) {
        return Verdict::Http2;
    }
    // Empty lines before a request are passed over (RFC 9112 section 2.2).
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = &bytes[start..];
    let Some(space) = line.iter().position(|b| *b == b' ') else {
        let plausible = METHODS.iter().any(|m| m.starts_with(line));
        return if plausible { Verdict::More } else { Verdict::NotHttp };
    };
    if !METHODS.contains(&&line[..space]) {
        return Verdict::NotHttp;
    }
    let Some(end) = line.iter().position(|b| *b == b'\n') else {
        return if line.len() < MAX { Verdict::More } else { Verdict::NotHttp };
    };
    let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
    if line.ends_with(b" HTTP/1.1") {
        Verdict::Http11
    } else if line.ends_with(b" HTTP/1.0") {
        Verdict::Http10
    } else {
        Verdict::NotHttp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_by_the_request_line() {
        for (bytes, expected) in [
            (&b""[..], Verdict::More),
            (b"G", Verdict::More),
            (b"GET", Verdict::More),
            (b"GET /index HTTP/1.1\r", Verdict::More),
            (b"GET /index HTTP/1.1\r\n", Verdict::Http11),
            (b"\r\nPOST / HTTP/1.0\n", Verdict::Http10),
            (b"GET /index\r\n", Verdict::NotHttp),
            (b"GET / HTTP/2.0\r\n", Verdict::NotHttp),
            (b"GARBAGE", Verdict::NotHttp),
            (b"get / HTTP/1.1\r\n", Verdict::NotHttp),
            (b"PRI", Verdict::More),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Verdict::Http2),
            (b"PRI * HTTP/1.1\r\n", Verdict::NotHttp),
            (b"\x16\x03\x01", Verdict::NotHttp),
            (b"*1\r\n$4\r\nPING\r\n", Verdict::NotHttp),
        ] {
            assert_eq!(inspect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_endless_line_is_given_up() {
        let mut line = b"GET /".to_vec();
        line.resize(MAX + 1, b'a');
        assert_eq!(inspect(&line), Verdict::NotHttp);
    }
}
