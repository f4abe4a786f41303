//! One request and response over HTTP/1.1.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::case::Request;
use crate::h1::{Framing, Reader, filler, show};
use crate::io::Io;

/// Sends the request and reads the response; also whether the connection can take another one.
pub(super) async fn exchange(reader: &mut Reader<Io>, request: &Request) -> io::Result<(Value, bool)> {
    let wire = encode(request);
    // A proxy may answer and close before it has read everything: the answer still counts.
    let sent = reader.stream.write_all(&wire).await;
    let sent = match sent {
        Ok(()) => reader.stream.flush().await,
        e => e,
    };
    if let Some(ms) = request.abandon_after_ms {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        return Ok((json!({"abandoned": true}), false));
    }
    let mut seen = json!({});
    let mut informational = Vec::new();
    let head = loop {
        let Some(head) = reader.head().await? else {
            sent?;
            return Ok((json!({"error": "closed"}), false));
        };
        if (100..200).contains(&head.status()) && head.status() != 101 {
            let mut all = vec![head.first_line.clone()];
            all.extend(head.headers.clone());
            informational.push(json!(all));
            continue;
        }
        break head;
    };
    if !informational.is_empty() {
        seen["informational"] = informational.into();
    }
    let framing = head.response_framing(&request.method);
    let body = reader.body(framing).await;
    seen["status"] = head.status().into();
    seen["line"] = head.first_line.clone().into();
    seen["headers"] = json!(head.headers);
    if framing != Framing::None {
        seen["body"] = show(&body.bytes);
    }
    if !body.trailers.is_empty() {
        seen["trailers"] = json!(body.trailers);
    }
    if body.cut {
        seen["body_cut"] = true.into();
    }
    let says_close = head.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
    let closed = body.cut || framing == Framing::UntilClose || ended(reader, says_close).await;
    seen["closed"] = closed.into();
    Ok((seen, !closed))
}

/// Whether the peer has closed: it gets long to do so if it announced it.
async fn ended(reader: &mut Reader<Io>, announced: bool) -> bool {
    use tokio::io::AsyncReadExt;
    let limit = Duration::from_millis(if announced { 3000 } else { 30 });
    let read = tokio::time::timeout(limit, reader.stream.read_buf(&mut reader.buf)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

fn encode(request: &Request) -> Vec<u8> {
    let body = match (&request.body, request.size) {
        (Some(text), _) => Some(text.clone().into_bytes()),
        (None, Some(size)) => Some(filler(size)),
        (None, None) => None,
    };
    let mut out = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", request.method, request.path, request.host);
    for header in &request.headers {
        out.push_str(header);
        out.push_str("\r\n");
    }
    if request.chunked || !request.trailers.is_empty() {
        out.push_str("transfer-encoding: chunked\r\n\r\n");
    } else if let Some(body) = &body {
        out.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    } else {
        out.push_str("\r\n");
    }
    let mut out = out.into_bytes();
    if request.chunked || !request.trailers.is_empty() {
        for piece in body.unwrap_or_default().chunks(16 * 1024) {
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n");
        for trailer in &request.trailers {
            out.extend_from_slice(trailer.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    } else if let Some(body) = body {
        out.extend_from_slice(&body);
    }
    out
}
