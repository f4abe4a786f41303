//! An HTTP/2 upstream on the h2 crate. It sees names in order, but no bytes of the wire.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request};
use serde_json::json;
use tokio::task::JoinSet;

use super::Shared;
use crate::case::{Cut, Response};
use crate::h1::show;
use crate::io::Io;

pub(super) async fn serve(io: Io, number: usize, shared: Arc<Shared>) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    // The streams end with the connection.
    let mut streams = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let response = shared.next_response(request.uri().path());
        if response.close.is_some() {
            connection.graceful_shutdown();
        }
        streams.spawn(stream(request, respond, response, number, Arc::clone(&shared)));
    }
}

async fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    response: Response,
    number: usize,
    shared: Arc<Shared>,
) {
    let (parts, mut incoming) = request.into_parts();
    let mut entry = json!({
        "connection": number,
        "method": parts.method.as_str(),
        "scheme": parts.uri.scheme_str(),
        "authority": parts.uri.authority().map(http::uri::Authority::as_str),
        "path": parts.uri.path_and_query().map(http::uri::PathAndQuery::as_str),
        "headers": lines(&parts.headers),
    });
    if !response.early {
        let ended = incoming.is_end_stream();
        let mut received = Vec::new();
        let cut = loop {
            match incoming.data().await {
                None => break false,
                Some(Ok(data)) => {
                    let _ = incoming.flow_control().release_capacity(data.len());
                    received.extend_from_slice(&data);
                }
                Some(Err(_)) => break true,
            }
        };
        if !ended {
            entry["body"] = show(&received);
        }
        if cut {
            entry["body_cut"] = json!(true);
        } else if let Ok(Some(trailers)) = incoming.trailers().await {
            entry["trailers"] = json!(lines(&trailers));
        }
    }
    shared.record_request(entry);
    // A client that is gone makes the rest pointless; there is nobody to tell.
    let _ = answer(&mut respond, &response, shared.body_of(&response)).await;
}

async fn answer(
    respond: &mut SendResponse<Bytes>,
    response: &Response,
    body: Vec<u8>,
) -> Result<(), h2::Error> {
    if response.never {
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(response.delay_ms)).await;
    if response.reset == Some(Cut::BeforeHead) || response.close == Some(Cut::BeforeHead) {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let mut head = http::Response::builder().status(response.status.unwrap_or(200));
    for header in &response.headers {
        let (name, value) = header.split_once(':').unwrap_or((header, ""));
        head = head.header(name.trim(), value.trim());
    }
    let trailers_only = response.body.as_deref() == Some("") && response.trailers.is_empty();
    let head = head.body(()).map_err(|_| h2::Error::from(Reason::INTERNAL_ERROR))?;
    let mut send = respond.send_response(head, trailers_only)?;
    if trailers_only {
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(response.body_delay_ms)).await;
    let cut = response.reset == Some(Cut::MidBody);
    let body = if cut { body[..body.len() / 2].to_vec() } else { body };
    let has_trailers = !response.trailers.is_empty();
    send_all(&mut send, body.into(), !has_trailers && !cut).await?;
    if cut {
        tokio::time::sleep(Duration::from_millis(50)).await;
        send.send_reset(Reason::INTERNAL_ERROR);
    } else if has_trailers {
        send.send_trailers(map(&response.trailers))?;
    }
    Ok(())
}

/// Sends a body within the peer's window.
pub(crate) async fn send_all(
    send: &mut h2::SendStream<Bytes>,
    mut body: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !body.is_empty() {
        send.reserve_capacity(body.len());
        let granted = match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(granted) => granted?,
            None => return Ok(()),
        };
        let piece = body.split_to(granted.min(body.len()));
        send.send_data(piece, end && body.is_empty())?;
        if body.is_empty() && end {
            return Ok(());
        }
    }
    if end { send.send_data(Bytes::new(), true) } else { Ok(()) }
}

/// A header map as `name: value` lines.
pub(crate) fn lines(map: &HeaderMap) -> Vec<String> {
    map.iter().map(|(n, v)| format!("{n}: {}", String::from_utf8_lossy(v.as_bytes()))).collect()
}

/// `name: value` lines as a header map; lines that are none are left out.
pub(crate) fn map(lines: &[String]) -> HeaderMap {
    lines
        .iter()
        .filter_map(|l| l.split_once(':'))
        .filter_map(|(n, v)| {
            Some((n.trim().parse::<http::HeaderName>().ok()?, v.trim().parse::<http::HeaderValue>().ok()?))
        })
        .fold(HeaderMap::new(), |mut m, (n, v)| {
            m.append(n, v);
            m
        })
}
