//! An HTTP/1.1 upstream: reads a request as it came, writes the scripted response to the letter.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Shared;
use crate::case::{Cut, Response};
use crate::h1::{Framing, Reader, show};
use crate::io::Io;

pub(super) async fn serve(io: Io, number: usize, shared: &Shared) {
    let mut reader = Reader::new(io);
    loop {
        // A closed or reset idle connection is the client's right.
        let Ok(Some(head)) = reader.head().await else { return };
        let mut parts = head.first_line.split(' ');
        let method = parts.next().unwrap_or_default().to_owned();
        let path = parts.next().unwrap_or_default().to_owned();
        let response = shared.next_response(&path);
        let framing = head.request_framing();
        if head.header("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) && !response.early {
            let _ = reader.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        let mut record = json!({
            "connection": number,
            "line": head.first_line,
            "headers": head.headers,
        });
        if response.early {
            shared.record_request(record);
        } else {
            let body = reader.body(framing).await;
            if framing != Framing::None {
                record["body"] = show(&body.bytes);
            }
            if !body.trailers.is_empty() {
                record["trailers"] = json!(body.trailers);
            }
            if body.cut {
                record["body_cut"] = json!(true);
            }
            shared.record_request(record);
            if body.cut {
                return;
            }
        }
        if answer(&mut reader, &method, &response, shared).await.is_none() {
            return;
        }
        if response.early && framing != Framing::None {
            reader.body(framing).await;
        }
    }
}

/// Writes one response; `None` if the connection ends with it.
async fn answer(reader: &mut Reader<Io>, method: &str, response: &Response, shared: &Shared) -> Option<()> {
    if response.never {
        // Holds the connection until the client gives up.
        let mut sink = [0; 1024];
        while matches!(reader.stream.read(&mut sink).await, Ok(n) if n > 0) {}
        return None;
    }
    tokio::time::sleep(Duration::from_millis(response.delay_ms)).await;
    if response.reset == Some(Cut::BeforeHead) {
        reader.stream.reset_on_close();
        return None;
    }
    if response.close == Some(Cut::BeforeHead) {
        let _ = reader.stream.shutdown().await;
        return None;
    }
    if let Some(raw) = &response.raw {
        reader.stream.write_all(raw.as_bytes()).await.ok()?;
    } else {
        structured(reader, method, response, shared).await?;
    }
    reader.stream.flush().await.ok()?;
    if response.echo {
        echo(reader).await;
        return None;
    }
    if response.reset.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        reader.stream.reset_on_close();
        return None;
    }
    if response.close.is_some() {
        let _ = reader.stream.shutdown().await;
        return None;
    }
    Some(())
}

async fn structured(
    reader: &mut Reader<Io>,
    method: &str,
    response: &Response,
    shared: &Shared,
) -> Option<()> {
    for status in &response.informational {
        let head = format!("HTTP/1.1 {status} Info\r\nx-info: {status}\r\n\r\n");
        reader.stream.write_all(head.as_bytes()).await.ok()?;
    }
    let status = response.status.unwrap_or(200);
    let body = shared.body_of(response);
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    for header in &response.headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    let has = |name: &str| response.headers.iter().any(|h| h.to_ascii_lowercase().starts_with(name));
    let bodyless = method == "HEAD" || matches!(status, 101 | 204 | 304) || method == "CONNECT";
    let until_close = response.close.is_some() && !response.chunked && has("connection:");
    if response.chunked {
        head.push_str("transfer-encoding: chunked\r\n");
    } else if !matches!(status, 101 | 204 | 304)
        && method != "CONNECT"
        && !until_close
        && !has("content-length:")
    {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    if bodyless {
        return reader.stream.write_all(head.as_bytes()).await.ok();
    }
    let cut = response.reset == Some(Cut::MidBody) || response.close == Some(Cut::MidBody);
    let body = if cut { &body[..body.len() / 2] } else { &body[..] };
    let mut out = Vec::new();
    if response.chunked {
        for piece in body.chunks(16 * 1024) {
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        if !cut {
            out.extend_from_slice(b"0\r\n");
            for trailer in &response.trailers {
                out.extend_from_slice(trailer.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"\r\n");
        }
    } else {
        out.extend_from_slice(body);
    }
    if response.body_delay_ms > 0 {
        reader.stream.write_all(head.as_bytes()).await.ok()?;
        reader.stream.flush().await.ok()?;
        tokio::time::sleep(Duration::from_millis(response.body_delay_ms)).await;
        return reader.stream.write_all(&out).await.ok();
    }
    let mut whole = head.into_bytes();
    whole.extend_from_slice(&out);
    reader.stream.write_all(&whole).await.ok()
}

async fn echo(reader: &mut Reader<Io>) {
    let mut pending = std::mem::take(&mut reader.buf);
    loop {
        if !pending.is_empty() {
            if reader.stream.write_all(&pending).await.is_err() || reader.stream.flush().await.is_err() {
                return;
            }
            pending.clear();
        }
        if !matches!(reader.stream.read_buf(&mut pending).await, Ok(n) if n > 0) {
            let _ = reader.stream.shutdown().await;
            return;
        }
    }
}
