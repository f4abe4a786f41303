//! One request and response over HTTP/2, on the h2 crate.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use serde_json::{Value, json};

use crate::case::Request;
use crate::h1::{filler, show};
use crate::io::Io;
use crate::upstream::{header_lines, header_map, send_all};

pub(super) async fn handshake(io: Io) -> io::Result<SendRequest<Bytes>> {
    let (send, connection) = h2::client::handshake(io).await.map_err(io::Error::other)?;
    // It ends when the last sender is dropped.
    tokio::spawn(connection);
    Ok(send)
}

pub(super) async fn exchange(send: SendRequest<Bytes>, request: &Request) -> io::Result<Value> {
    let mut send = send.ready().await.map_err(|e| io::Error::other(reason(&e)))?;
    let scheme =
        request.scheme.clone().unwrap_or_else(|| if request.tls.is_some() { "https" } else { "http" }.into());
    let uri = if request.method == "CONNECT" && !request.path.starts_with('/') {
        request.host.clone()
    } else {
        format!("{scheme}://{}{}", request.host, request.path)
    };
    let mut head = http::Request::builder().method(request.method.as_str()).uri(uri);
    for header in &request.headers {
        let (name, value) = header.split_once(':').unwrap_or((header, ""));
        head = head.header(name.trim(), value.trim());
    }
    let head = head.version(http::Version::HTTP_2).body(()).map_err(io::Error::other)?;
    let body: Option<Bytes> = match (&request.body, request.size) {
        (Some(text), _) => Some(text.clone().into_bytes().into()),
        (None, Some(size)) => Some(filler(size).into()),
        (None, None) => None,
    };
    let ends = body.is_none() && request.trailers.is_empty();
    let (mut response, mut stream) =
        send.send_request(head, ends).map_err(|e| io::Error::other(reason(&e)))?;
    if !ends {
        let has_trailers = !request.trailers.is_empty();
        // An early answer may stop the upload: what counts is the response.
        if send_all(&mut stream, body.unwrap_or_default(), !has_trailers).await.is_ok() && has_trailers {
            let _ = stream.send_trailers(header_map(&request.trailers));
        }
    }
    if let Some(ms) = request.abandon_after_ms {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        stream.send_reset(h2::Reason::CANCEL);
        return Ok(json!({"abandoned": true}));
    }
    let mut seen = json!({});
    let mut informational = Vec::new();
    while let Some(Ok(info)) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
        informational
            .push(json!({"status": info.status().as_u16(), "headers": header_lines(info.headers())}));
    }
    if !informational.is_empty() {
        seen["informational"] = informational.into();
    }
    let response = match response.await {
        Ok(response) => response,
        Err(e) => {
            seen["error"] = reason(&e).into();
            return Ok(seen);
        }
    };
    let (parts, mut incoming) = response.into_parts();
    seen["status"] = parts.status.as_u16().into();
    seen["headers"] = json!(header_lines(&parts.headers));
    if incoming.is_end_stream() {
        return Ok(seen);
    }
    let mut received = Vec::new();
    let failed = loop {
        match incoming.data().await {
            None => break None,
            Some(Ok(data)) => {
                let _ = incoming.flow_control().release_capacity(data.len());
                received.extend_from_slice(&data);
            }
            Some(Err(e)) => break Some(reason(&e)),
        }
    };
    seen["body"] = show(&received);
    if let Some(failed) = failed {
        seen["body_cut"] = failed.into();
    } else if let Ok(Some(trailers)) = incoming.trailers().await {
        seen["trailers"] = json!(header_lines(&trailers));
    }
    Ok(seen)
}

fn reason(e: &h2::Error) -> String {
    let what = if e.is_go_away() {
        "goaway"
    } else if e.is_reset() {
        "stream reset"
    } else {
        "error"
    };
    match e.reason() {
        Some(reason) => format!("{what}: {reason:?}"),
        None if e.is_io() => "connection closed".into(),
        None => format!("{what}: {e}"),
    }
}
