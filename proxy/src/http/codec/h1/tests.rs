//! Conformance as data: bytes in, events out. Each case is the verdict that Envoy 1.40 gave for the same bytes.
//!
//! Every request is fed whole, and again split at each byte, and must come out alike.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

use super::super::{BodyEvent, CodecError, Counts, Http1Error, Tunnel};
use super::{ClientConn, Options, ServerConn};
use crate::head::{Head, HeaderId};

/// A peer that has said all it will say, in pieces of at most `step` bytes, and keeps what it hears.
#[derive(Debug, Default)]
struct Script {
    input: Vec<u8>,
    at: usize,
    step: usize,
    /// Pending instead of the end of the stream.
    open: bool,
    output: Vec<u8>,
    writes: usize,
    reads: usize,
    /// Bytes that a single write takes.
    window: usize,
    /// The next write is Pending (and wakes at once).
    stall: bool,
    stalls: bool,
}

fn script(input: &[u8], step: usize) -> Script {
    Script { input: input.to_vec(), step, window: usize::MAX, ..Script::default() }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.reads += 1;
        if self.at == self.input.len() && self.open {
            return Poll::Pending;
        }
        if self.stalls {
            self.stall = !self.stall;
            if self.stall {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let n = self.step.min(buf.remaining()).min(self.input.len() - self.at);
        let at = self.at;
        buf.put_slice(&self.input[at..at + n]);
        self.at += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.stalls {
            self.stall = !self.stall;
            if self.stall {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.writes += 1;
        let n = b.len().min(self.window);
        self.output.extend_from_slice(&b[..n]);
        Poll::Ready(Ok(n))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let all: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
        self.poll_write(cx, &all)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn text(head: &Head) -> String {
    head.iter()
        .map(|(_, n, v)| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
        .collect::<Vec<_>>()
        .join("|")
}

/// Reads all requests of a connection: one line for each head, body, trailers, error, and the end.
async fn events(io: Script, options: &Arc<Options>, raw: bool) -> Vec<String> {
    let mut conn = ServerConn::new(io, options.clone());
    let mut head = Head::new();
    let mut seen = Vec::new();
    loop {
        match poll_fn(|cx| conn.poll_head(cx, &mut head)).await {
            Ok(None) => {
                seen.push("end".to_owned());
                return seen;
            }
            Ok(Some(_)) => seen.push(text(&head)),
            Err(e) => {
                seen.push(format!("error {}", e.details()));
                return seen;
            }
        }
        conn.set_raw_chunked(raw);
        let mut body = Vec::new();
        loop {
            match poll_fn(|cx| conn.poll_body(cx)).await {
                Ok(BodyEvent::Data) => {
                    body.extend_from_slice(conn.data());
                    let n = conn.data().len();
                    conn.consume(n);
                }
                Ok(BodyEvent::Trailers) => seen.push(format!("trailers {}", text(conn.trailers()))),
                Ok(BodyEvent::End) => break,
                Err(e) => {
                    seen.push(format!("body {}", String::from_utf8_lossy(&body)));
                    seen.push(format!("error {}", e.details()));
                    return seen;
                }
            }
        }
        if !body.is_empty() {
            seen.push(format!("body {}", String::from_utf8_lossy(&body)));
        }
    }
}

/// A request with these lines behind `GET / HTTP/1.1` and a Host.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

const SIMPLE: &str = ":method=GET|:path=/|:authority=a";
const BAD: &str = "error http1.codec_error";
const CHUNKED: &str = ":method=POST|:path=/|:authority=a|transfer-encoding=chunked";

fn with(fields: &str) -> String {
    format!("{SIMPLE}|{fields}")
}

/// Name, bytes, events.
fn cases() -> Vec<(&'static str, String, Vec<String>)> {
    let ok = |head: &str| vec![head.to_owned(), "end".to_owned()];
    let err = |details: &str| vec![format!("error {details}")];
    let post = |fields: &str| format!(":method=POST|:path=/|:authority=a|{fields}");
    let length = |value: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {value}\r\n\r\nabc");
    let coding = |value: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {value}\r\n\r\n");
    let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    let chunk_ok = || vec![CHUNKED.to_owned(), "body abc".to_owned(), "end".to_owned()];
    let chunk_bad = |body: &str| vec![CHUNKED.to_owned(), format!("body {body}"), BAD.to_owned()];
    vec![
        ("simple", get(""), ok(SIMPLE)),
        ("leading line ends", format!("\r\n\n\r\n{}", get("")), ok(SIMPLE)),
        ("leading space", format!(" {}", get("")), err("http1.codec_error")),
        ("bare line feeds", "GET / HTTP/1.1\nHost: a\n\n".into(), ok(SIMPLE)),
        ("a CR inside a value vanishes", get("X: b\rc\r\n"), ok(&with("x=bc"))),
        ("NUL", get("X: b\0c\r\n"), err("http1.invalid_characters")),
        ("control character", get("X: b\x01c\r\n"), err("http1.invalid_characters")),
        ("DEL", get("X: b\x7fc\r\n"), err("http1.invalid_characters")),
        ("control character in the target", line("GET /\x01 HTTP/1.1"), err("http1.invalid_characters")),
        ("UTF-8 in a value", get("X: ä\r\n"), ok(&with("x=ä"))),
        ("tab in a value", get("X: b\tc\r\n"), ok(&with("x=b\tc"))),
        ("blanks around a value", get("X:   b \t \r\n"), ok(&with("x=b"))),
        ("empty value", get("X:\r\n"), ok(&with("x="))),
        ("space before the colon", get("X : b\r\n"), err("http1.codec_error")),
        ("no colon", get("Xb\r\n"), err("http1.codec_error")),
        ("empty name", get(": b\r\n"), err("http1.codec_error")),
        ("pseudo-header", get(":path: b\r\n"), err("http1.codec_error")),
        ("space in a name", get("X y: b\r\n"), err("http1.codec_error")),
        ("bad character in a name", get("X(y: b\r\n"), err("http1.codec_error")),
        ("UTF-8 in a name", get("Xä: b\r\n"), err("http1.codec_error")),
        ("folded value", get("X: b\r\n c\r\nY: d\r\n"), ok(&with("x=b c|y=d"))),
        ("folded value with tab", get("X: b\r\n\tc\r\n"), ok(&with("x=b\tc"))),
        ("fold behind the request line", "GET / HTTP/1.1\r\n X: b\r\n\r\n".into(), err("http1.codec_error")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), ok(":method=GET|:path=/")),
        ("two hosts", get("Host: b\r\n"), ok(":method=GET|:path=/|:authority=a,b")),
        ("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), ok(":method=GET|:path=/|:authority=")),
        ("host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), err("http.invalid_authority")),
        ("host with a slash", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), err("http.invalid_authority")),
        (
            "absolute target",
            line("GET http://h:81/x?y HTTP/1.1"),
            ok(":method=GET|:path=/x?y|:authority=h:81|:scheme=http"),
        ),
        (
            "absolute target without path",
            line("GET http://h HTTP/1.1"),
            ok(":method=GET|:path=/|:authority=h|:scheme=http"),
        ),
        (
            "absolute target, query alone",
            line("GET http://h?x HTTP/1.1"),
            ok(":method=GET|:path=?x|:authority=h|:scheme=http"),
        ),
        (
            "absolute target in capitals",
            line("GET HTTPS://H/ HTTP/1.1"),
            ok(":method=GET|:path=/|:authority=H|:scheme=https"),
        ),
        (
            "absolute target with user",
            line("GET http://u@h/ HTTP/1.1"),
            ok(":method=GET|:path=/|:authority=h|:scheme=http"),
        ),
        ("absolute target, other scheme", line("GET ftp://h/ HTTP/1.1"), err("http1.invalid_scheme")),
        ("absolute target, no host", line("GET http:/// HTTP/1.1"), err("http1.invalid_url")),
        ("OPTIONS *", line("OPTIONS * HTTP/1.1"), ok(":method=OPTIONS|:path=*|:authority=a")),
        ("GET *", line("GET * HTTP/1.1"), err("http1.invalid_url")),
        ("target without slash", line("GET abc HTTP/1.1"), err("http1.codec_error")),
        ("fragment", line("GET /a#b HTTP/1.1"), ok(":method=GET|:path=/a#b|:authority=a")),
        ("blanks in the request line", line("GET \t /  HTTP/1.1 "), ok(SIMPLE)),
        ("space in the target", line("GET /a b HTTP/1.1"), err("http1.codec_error")),
        ("UTF-8 in the target", line("GET /ä HTTP/1.1"), err("http1.codec_error")),
        (
            "odd characters in the target",
            line("GET /\"<>`{}|\\^ HTTP/1.1"),
            ok(":method=GET|:path=/\"<>`{}|\\^|:authority=a"),
        ),
        ("method in small letters", line("get / HTTP/1.1"), err("http1.codec_error")),
        ("unknown method", line("FOO / HTTP/1.1"), err("http1.codec_error")),
        ("PURGE", line("PURGE / HTTP/1.1"), ok(":method=PURGE|:path=/|:authority=a")),
        ("CONNECT with a path", line("CONNECT /a HTTP/1.1"), err("http1.invalid_url")),
        ("HTTP/1.0", line("GET / HTTP/1.0"), err("low_version")),
        ("HTTP/0.9", "GET /\r\n\r\n".into(), err("low_version")),
        ("HTTP/1.2", line("GET / HTTP/1.2"), err("low_version")),
        ("HTTP/2.0", line("GET / HTTP/2.0"), err("low_version")),
        ("HTTP/1.10", line("GET / HTTP/1.10"), err("http1.codec_error")),
        ("other protocol", line("GET / HTTX/1.1"), err("http1.codec_error")),
        ("protocol in small letters", line("GET / http/1.1"), err("http1.codec_error")),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00".into(), err("http1.codec_error")),
        ("length", length("3"), vec![post("content-length=3"), "body abc".into(), "end".into()]),
        (
            "length with zeros",
            length("0003"),
            vec![post("content-length=0003"), "body abc".into(), "end".into()],
        ),
        ("length twice", length("3\r\nContent-Length: 3"), err("http1.codec_error")),
        ("length as a list", length("3, 3"), err("http1.codec_error")),
        ("lengths that differ", length("3\r\nContent-Length: 4"), err("http1.codec_error")),
        ("length with plus", length("+3"), err("http1.codec_error")),
        ("length below zero", length("-3"), err("http1.codec_error")),
        ("length empty", length(""), err("http1.codec_error")),
        ("length in hex", length("0x3"), err("http1.codec_error")),
        ("length of two words", length("1 2"), err("http1.codec_error")),
        ("length too large", length("99999999999999999999"), err("http1.codec_error")),
        (
            "body too short",
            length("4"),
            vec![post("content-length=4"), "body abc".into(), "error downstream_remote_disconnect".into()],
        ),
        ("gzip, chunked", coding("gzip, chunked"), err("http1.invalid_transfer_encoding")),
        ("gzip", coding("gzip"), err("http1.invalid_transfer_encoding")),
        ("identity", coding("identity"), err("http1.invalid_transfer_encoding")),
        (
            "chunked twice",
            coding("chunked\r\nTransfer-Encoding: chunked"),
            err("http1.invalid_transfer_encoding"),
        ),
        ("xchunked", coding("xchunked"), err("http1.invalid_transfer_encoding")),
        ("empty coding", coding(""), err("http1.invalid_transfer_encoding")),
        ("coding behind VT", coding("\x0bchunked"), err("http1.invalid_characters")),
        (
            "length and chunked",
            coding("chunked\r\nContent-Length: 3"),
            err("http1.content_length_and_chunked_not_allowed"),
        ),
        (
            "length and gzip",
            coding("gzip\r\nContent-Length: 3"),
            err("http1.content_length_and_chunked_not_allowed"),
        ),
        ("chunked", chunked("3\r\nabc\r\n0\r\n\r\n"), chunk_ok()),
        ("two chunks", chunked("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"), chunk_ok()),
        ("chunk extension", chunked("3;a=b\r\nabc\r\n0\r\n\r\n"), chunk_ok()),
        ("chunk extension, open quote", chunked("3;a=\"b\r\nabc\r\n0\r\n\r\n"), chunk_ok()),
        ("chunk extension with a CR", chunked("3;a\rb\r\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk extension with LF end", chunked("3;a\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk size, blank", chunked("3 ;a\r\nabc\r\n0\r\n\r\n"), chunk_ok()),
        ("chunk size, leading blank", chunked(" 3\r\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk size, plus", chunked("+3\r\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk size, 0x", chunked("0x3\r\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk size, zeros", chunked("00000000000000000000000000000003\r\nabc\r\n0\r\n\r\n"), chunk_ok()),
        ("chunk size over 64 bits", chunked("fffffffffffffffff\r\nabc"), chunk_bad("")),
        ("chunk size missing", chunked("\r\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk size with LF end", chunked("3\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk size with CR X", chunked("3\rX\nabc\r\n0\r\n\r\n"), chunk_bad("")),
        ("chunk data with LF end", chunked("3\r\nabc\n0\r\n\r\n"), chunk_ok()),
        ("chunk data too long", chunked("3\r\nabcd\r\n0\r\n\r\n"), chunk_ok()),
        ("last chunk with LF end", chunked("3\r\nabc\r\n0\n\r\n"), chunk_bad("abc")),
        ("message with LF end", chunked("3\r\nabc\r\n0\r\n\n"), chunk_ok()),
        ("trailers are dropped", chunked("3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"), chunk_ok()),
        ("bad trailer", chunked("3\r\nabc\r\n0\r\nX(T: 1\r\n\r\n"), chunk_bad("abc")),
        ("trailer without colon", chunked("3\r\nabc\r\n0\r\nXT\r\n\r\n"), chunk_bad("abc")),
        (
            "pipelined",
            format!("{}{}{}", length("3"), chunked("3\r\nabc\r\n0\r\n\r\n"), get("")),
            vec![
                post("content-length=3"),
                "body abc".into(),
                CHUNKED.into(),
                "body abc".into(),
                SIMPLE.into(),
                "end".into(),
            ],
        ),
        (
            "connection names a header",
            get("Connection: foo, Close\r\nFoo: x\r\nY: z\r\n"),
            ok(&with("connection=Close|y=z")),
        ),
        (
            "connection names TE",
            get("Connection: te\r\nTE: gzip, trailers\r\n"),
            ok(&with("connection=te|te=trailers")),
        ),
        ("connection names TE without trailers", get("Connection: te\r\nTE: gzip\r\n"), ok(SIMPLE)),
        (
            "connection names a forwarded header",
            get("Connection: x-forwarded-for\r\n"),
            err("http1.connection_header_rejected"),
        ),
        ("connection names itself", get("Connection: connection, close\r\n"), ok(&with("connection=close"))),
        (
            "an offer of h2c is taken out",
            get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
            ok(SIMPLE),
        ),
        (
            "joined headers",
            get("X-Forwarded-For: a\r\nCookie: 1\r\nX-Forwarded-For: b\r\nCookie: 2\r\n"),
            ok(&with("x-forwarded-for=a,b|cookie=1|cookie=2")),
        ),
        ("a head cut off", "GET / HTTP/1.1\r\nHost".into(), err("downstream_remote_disconnect")),
        ("nothing", String::new(), vec!["end".into()]),
    ]
}

#[tokio::test]
async fn verdicts_are_envoys_whole_and_at_every_split() {
    let options = Arc::new(Options::default());
    for (name, bytes, expected) in cases() {
        assert_eq!(events(script(bytes.as_bytes(), usize::MAX), &options, false).await, expected, "{name}");
        assert_eq!(
            events(script(bytes.as_bytes(), 1), &options, false).await,
            expected,
            "{name}, byte by byte"
        );
        for first in 1..bytes.len() {
            let io = script(bytes.as_bytes(), first);
            assert_eq!(events(io, &options, false).await, expected, "{name}, pieces of {first}");
        }
    }
}

#[tokio::test]
async fn a_raw_chunked_body_decodes_to_the_same_data_and_carries_nothing_irregular() {
    let options = Arc::new(Options::default());
    for (name, bytes, expected) in cases().into_iter().filter(|(_, _, e)| e[0] == CHUNKED && e[2] == "end") {
        for step in 1..=bytes.len() {
            let raw = events(script(bytes.as_bytes(), step), &options, true).await;
            // What was handed on, ended as the writer ends it, is a body of its own: decode it.
            let framed = raw[1].strip_prefix("body ").unwrap();
            assert!(!framed.contains(';') && !framed.contains("X-T"), "{name}: {framed:?}");
            let again = chunked(&format!("{framed}0\r\n\r\n"));
            let mut strict = super::chunk::Scanner::default();
            assert_eq!(strict.framed(framed.as_bytes()).unwrap(), (framed.len(), 3), "{name}: {framed:?}");
            assert_eq!(
                events(script(again.as_bytes(), usize::MAX), &options, false).await,
                expected,
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn limits_on_heads_are_envoys() {
    let options = Arc::new(Options::default());
    let lines = |n: usize| (0..n).map(|i| format!("h{i}: x\r\n")).collect::<String>();
    for (bytes, details) in [
        (get(&lines(100)), "error http1.too_many_headers"),
        (format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(61_500)), "error http1.headers_too_large"),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(61_500)), "error http1.headers_too_large"),
    ] {
        assert_eq!(events(script(bytes.as_bytes(), usize::MAX), &options, false).await, [details]);
    }
    assert_eq!(events(script(get(&lines(99)).as_bytes(), usize::MAX), &options, false).await.len(), 2);
    let large = get(&format!("x: {}\r\n", "y".repeat(61_000)));
    assert_eq!(events(script(large.as_bytes(), 1000), &options, false).await.len(), 2);
    let trailers = chunked(&format!("0\r\n{}\r\n", lines(101)));
    assert_eq!(
        events(script(trailers.as_bytes(), 100), &options, false).await[2],
        "error http1.too_many_trailers"
    );
}

#[tokio::test]
async fn options_change_the_verdict() {
    let mut options = Options::default();
    options.http1.accept_http_10 = true;
    options.http1.default_host_for_http_10 = Some("d".into());
    options.http1.enable_trailers = true;
    options.http1.allow_chunked_length = true;
    options.http1.allow_custom_methods = true;
    let options = Arc::new(options);
    for (bytes, expected) in [
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), ":method=GET|:path=/|:authority=d".to_owned()),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            CHUNKED.to_owned(),
        ),
        ("FOO / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), ":method=FOO|:path=/|:authority=a".to_owned()),
        (chunked("0\r\nX-T: 1\r\n\r\n"), format!("{CHUNKED}+trailers x-t=1")),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            CHUNKED.to_owned(),
        ),
    ] {
        let mut seen = events(script(bytes.as_bytes(), usize::MAX), &options, false).await;
        assert_eq!(seen.pop().as_deref(), Some("end"));
        assert_eq!(seen.join("+"), expected);
    }
}

#[tokio::test]
async fn keep_alive_follows_version_and_connection() {
    let mut options = Options::default();
    options.http1.accept_http_10 = true;
    let options = Arc::new(options);
    for (version, connection, expected) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, CLOSE\r\n", false),
        ("1.1", "Proxy-Connection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        let mut conn = ServerConn::new(script(bytes.as_bytes(), 999), options.clone());
        let mut head = Head::new();
        let meta = poll_fn(|cx| conn.poll_head(cx, &mut head)).await.unwrap().unwrap();
        assert_eq!(meta.keep_alive, expected, "{version} {connection}");
    }
}

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.append(name.as_bytes(), value.as_bytes());
    }
    head
}

/// Answers one request with this head and these pieces; returns the bytes, the writes made, whether it may go on.
async fn answer(
    request: &str,
    response: &Head,
    pieces: &[&str],
    io: impl Fn(&mut Script),
) -> (String, usize, bool) {
    let mut options = Options::default();
    options.http1.accept_http_10 = true;
    let mut script = Script { open: true, ..script(request.as_bytes(), usize::MAX) };
    io(&mut script);
    let mut conn = ServerConn::new(script, Arc::new(options));
    let mut head = Head::new();
    poll_fn(|cx| conn.poll_head(cx, &mut head)).await.unwrap().unwrap();
    conn.send_head(response, pieces.is_empty());
    for (i, piece) in pieces.iter().enumerate() {
        let mut rest = piece.as_bytes();
        while !rest.is_empty() {
            let n = poll_fn(|cx| conn.poll_send_data(cx, rest, i + 1 == pieces.len())).await.unwrap();
            rest = &rest[n..];
        }
    }
    poll_fn(|cx| conn.poll_finish(cx)).await.unwrap();
    let again = conn.is_reusable();
    (String::from_utf8(conn.io().output.clone()).unwrap(), conn.io().writes, again)
}

#[tokio::test]
async fn responses_are_framed_as_envoy_frames_them() {
    let ok = head(&[(":status", "200"), ("x", "y")]);
    let sized = head(&[(":status", "200"), ("content-length", "2")]);
    let closing = head(&[(":status", "200"), ("content-length", "2"), ("connection", "close")]);
    let none = head(&[(":status", "204")]);
    let encoded = head(&[(":status", "200"), ("transfer-encoding", "gzip")]);
    for (method, version, response, pieces, expected, again) in [
        (
            "GET",
            "1.1",
            &ok,
            &["ab", "c"][..],
            "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            true,
        ),
        ("GET", "1.1", &ok, &[], "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 0\r\n\r\n", true),
        ("GET", "1.1", &sized, &["ok"], "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        ("GET", "1.1", &sized, &["o"], "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no", false),
        ("GET", "1.1", &sized, &["okay"], "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        (
            "GET",
            "1.1",
            &closing,
            &["ok"],
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
            false,
        ),
        ("GET", "1.1", &none, &[], "HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HEAD", "1.1", &sized, &["ok"], "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", true),
        ("GET", "1.0", &ok, &["ab"], "HTTP/1.0 200 OK\r\nx: y\r\nconnection: close\r\n\r\nab", false),
        ("HEAD", "1.1", &ok, &[], "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n", true),
        ("GET", "1.1", &encoded, &[], "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
    ] {
        let request = format!("{method} / HTTP/{version}\r\nHost: a\r\n\r\n");
        let (bytes, writes, reusable) = answer(&request, response, pieces, |_| {}).await;
        assert_eq!(bytes, expected);
        assert_eq!(reusable, again, "{expected}");
        assert_eq!(writes, pieces.len().max(1), "head and first piece leave together: {expected}");
        // The same through a socket that takes three bytes at a time and stalls in between.
        let (bytes, _, reusable) = answer(&request, response, pieces, |s| {
            s.window = 3;
            s.stalls = true;
        })
        .await;
        assert_eq!((bytes.as_str(), reusable), (expected, again));
    }
}

async fn exchange(
    client: &mut ClientConn<DuplexStream>,
    request: &Head,
    answer: &[u8],
    peer: &mut DuplexStream,
) -> Result<(String, String, bool), CodecError> {
    client.send_head(request, true);
    poll_fn(|cx| client.poll_finish(cx)).await?;
    peer.write_all(answer).await.unwrap();
    let mut head = Head::new();
    let mut heads = Vec::new();
    let meta = loop {
        let meta = poll_fn(|cx| client.poll_head(cx, &mut head)).await?;
        heads.push(text(&head));
        if !meta.informational {
            break meta;
        }
    };
    let mut body = Vec::new();
    let mut more = !meta.end;
    while more {
        match poll_fn(|cx| client.poll_body(cx)).await? {
            BodyEvent::Data => body.extend_from_slice(&client.take_data()),
            BodyEvent::Trailers | BodyEvent::End => more = false,
        }
    }
    Ok((heads.join("+"), String::from_utf8(body).unwrap(), client.is_reusable()))
}

#[tokio::test]
async fn responses_are_read_as_envoy_reads_them() {
    let ok = |h: &str, b: &str, again| Ok((h.to_owned(), b.to_owned(), again));
    let bad = |e| Err(CodecError::Http1(e));
    for (method, answer, close, expected) in [
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            false,
            ok(":status=200|content-length=2", "ok", true),
        ),
        (
            "GET",
            "HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
            false,
            ok(":status=200|content-length=0", "", true),
        ),
        ("GET", "HTTP/1.1 200 OK\r\n\r\nok", true, ok(":status=200", "ok", false)),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
            false,
            ok(":status=200|content-length=2|connection=close", "ok", false),
        ),
        (
            "GET",
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
            false,
            ok(":status=200|content-length=2", "ok", false),
        ),
        ("GET", "HTTP/1.1 204 No\r\n\r\n", false, ok(":status=204", "", true)),
        (
            "GET",
            "HTTP/1.1 304 No\r\ncontent-length: 9\r\n\r\n",
            false,
            ok(":status=304|content-length=9", "", true),
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
            false,
            ok(":status=200|content-length=9", "", true),
        ),
        (
            "GET",
            "HTTP/1.1 103 Early\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            false,
            ok(":status=103|x=y+:status=200|content-length=0", "", true),
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
            ok(":status=200|transfer-encoding=chunked", "ok", true),
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP",
            false,
            ok(":status=200|content-length=2", "ok", false),
        ),
        ("GET", "HTTP/1.1 101 Switch\r\n\r\n", false, ok(":status=101", "", false)),
        ("GET", "HTTP/1.1 204 No\r\ncontent-length: 0\r\n\r\n", false, ok(":status=204", "", true)),
        (
            "GET",
            "HTTP/1.1 204 No\r\ncontent-length: 1\r\n\r\n",
            false,
            bad(Http1Error::ContentLengthNotAllowed),
        ),
        (
            "GET",
            "HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n",
            false,
            bad(Http1Error::TransferEncodingNotAllowed),
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nhost: z\r\ncontent-length: 0\r\n\r\n",
            false,
            ok(":status=200|host=z|content-length=0", "", true),
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            true,
            bad(Http1Error::Syntax),
        ),
        ("GET", "", true, Err(CodecError::Closed)),
        ("GET", "HTTX/1.1 200 OK\r\n\r\n", false, bad(Http1Error::Syntax)),
        ("GET", "HTTP/1.1 2000 OK\r\n\r\n", false, bad(Http1Error::Syntax)),
        ("GET", "garbage", false, bad(Http1Error::Syntax)),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
            false,
            bad(Http1Error::ChunkedWithContentLength),
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            false,
            bad(Http1Error::InvalidTransferEncoding),
        ),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-le", true, bad(Http1Error::Syntax)),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", true, bad(Http1Error::Syntax)),
    ] {
        let (near, mut far) = duplex(65_536);
        let mut client = ClientConn::new(near, Arc::new(Options::default()));
        let request = head(&[(":method", method), (":path", "/"), (":authority", "a")]);
        if close {
            // The peer has closed behind its answer.
            far.write_all(answer.as_bytes()).await.unwrap();
            far.shutdown().await.unwrap();
            let (mut sink, _other) = duplex(64);
            assert_eq!(exchange(&mut client, &request, b"", &mut sink).await, expected, "{answer}");
        } else {
            assert_eq!(
                exchange(&mut client, &request, answer.as_bytes(), &mut far).await,
                expected,
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn requests_are_framed_as_envoy_frames_them() {
    for (fields, end, body, expected) in [
        (&[(":method", "GET")][..], true, "", "GET /p HTTP/1.1\r\nhost: a\r\n\r\n"),
        (&[(":method", "POST")], true, "", "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        (&[(":method", "OPTIONS")], true, "", "OPTIONS /p HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        (&[(":method", "DELETE")], true, "", "DELETE /p HTTP/1.1\r\nhost: a\r\n\r\n"),
        (
            &[(":method", "GET"), ("transfer-encoding", "chunked")],
            false,
            "abc",
            "GET /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        (
            &[(":method", "POST"), ("content-length", "3")],
            false,
            "abc",
            "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
        ),
        (
            &[(":method", "GET"), ("x", "a\r\nb: c")],
            true,
            "",
            "GET /p HTTP/1.1\r\nhost: a\r\nx: ab: c\r\n\r\n",
        ),
        (
            &[(":method", "GET"), ("connection", "upgrade"), ("upgrade", "websocket")],
            false,
            "raw",
            "GET /p HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nraw",
        ),
    ] {
        let (near, mut far) = duplex(65_536);
        let mut client = ClientConn::new(near, Arc::new(Options::default()));
        let mut request = head(fields);
        request.set(HeaderId::Path, b"/p");
        request.set(HeaderId::Authority, b"a");
        client.send_head(&request, end);
        if !body.is_empty() {
            assert_eq!(poll_fn(|cx| client.poll_send_data(cx, body.as_bytes(), true)).await, Ok(body.len()));
        }
        poll_fn(|cx| client.poll_finish(cx)).await.unwrap();
        drop(client);
        let mut bytes = String::new();
        far.read_to_string(&mut bytes).await.unwrap();
        // Pseudo-headers stand first in the list, so the host does too.
        assert_eq!(bytes, expected);
    }
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_on_both_sides() {
    let (client_near, client_far) = duplex(65_536);
    let (mut raw_client, server_io) = (client_near, client_far);
    let mut server = ServerConn::new(server_io, Arc::new(Options::default()));
    raw_client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
        .await
        .unwrap();
    let mut request = Head::new();
    let meta = poll_fn(|cx| server.poll_head(cx, &mut request)).await.unwrap().unwrap();
    assert_eq!((meta.tunnel, meta.end), (Tunnel::Upgrade, false));
    let switching = head(&[(":status", "101"), ("connection", "upgrade"), ("upgrade", "websocket")]);
    server.send_head(&switching, false);
    assert_eq!(poll_fn(|cx| server.poll_send_data(cx, b"hello", false)).await, Ok(5));
    assert_eq!(poll_fn(|cx| server.poll_body(cx)).await, Ok(BodyEvent::Data));
    assert_eq!(server.data(), b"early");
    server.consume(5);
    raw_client.shutdown().await.unwrap();
    assert_eq!(poll_fn(|cx| server.poll_body(cx)).await, Ok(BodyEvent::End));
    assert!(!server.is_reusable());
    drop(server);
    let mut seen = String::new();
    raw_client.read_to_string(&mut seen).await.unwrap();
    assert!(seen.ends_with("upgrade: websocket\r\n\r\nhello"), "{seen}");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer_and_counts_are_envoys() {
    let bytes = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let io = Script { open: true, ..script(bytes.as_bytes(), usize::MAX) };
    let mut conn = ServerConn::new(io, Arc::new(Options::default()));
    let mut request = Head::new();
    poll_fn(|cx| conn.poll_head(cx, &mut request)).await.unwrap().unwrap();
    assert_eq!(poll_fn(|cx| conn.poll_body(cx)).await, Ok(BodyEvent::Data));
    assert!(conn.data_ends());
    conn.consume(3);
    let counts = conn.counts();
    // What Envoy logs for these bytes.
    assert_eq!((counts.wire_received, counts.header_received, counts.body_received), (50, 26, 3));
    assert_eq!(conn.io().reads, 1);
    conn.send_head(&head(&[(":status", "200"), ("content-length", "2"), ("server", "envoy")]), false);
    poll_fn(|cx| conn.poll_send_data(cx, b"ok", true)).await.unwrap();
    let counts = conn.counts();
    assert_eq!((counts.wire_sent, counts.header_sent, counts.body_sent), (55, 34, 2));
    assert!(conn.is_reusable());
    let pending = poll_fn(|cx| Poll::Ready(conn.poll_head(cx, &mut request).is_pending())).await;
    assert_eq!(conn.counts(), Counts::default(), "the next stream counts for itself");
    assert!(pending && !conn.has_buffered());
    assert!(format!("{conn:?}").contains("ReadBuffer { bytes: [], start: 0, end: 0 }"));
}

#[tokio::test]
async fn an_interim_response_leaves_before_the_body_is_waited_for() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let io = Script { open: true, ..script(request.as_bytes(), usize::MAX) };
    let mut conn = ServerConn::new(io, Arc::new(Options::default()));
    let mut seen = Head::new();
    let meta = poll_fn(|cx| conn.poll_head(cx, &mut seen)).await.unwrap().unwrap();
    assert!(meta.expect_continue);
    conn.send_informational(&head(&[(":status", "100")]));
    assert!(poll_fn(|cx| Poll::Ready(conn.poll_body(cx).is_pending())).await);
    assert_eq!(conn.io().output, b"HTTP/1.1 100 Continue\r\n\r\n");
}
