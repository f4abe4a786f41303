//! Asking one host: a GET, a TCP exchange, or `grpc.health.v1.Health/Check`.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::cluster::Core;
use super::super::host::Host;
use super::super::pool::connect::{self, Opened};
use super::Verdict;
use crate::config::cluster::{HealthCheck, HealthCheckKind};
use crate::config::format::Part;
use crate::config::route::{AppendAction, HeaderAdd};
use crate::head::{Head, HeaderId, HeaderName};
use crate::http::codec::{BodyEvent, CodecError, UpStream, h1, h2};
use crate::net::Io;
use crate::tls::ConnectOptions;

/// Most of a TCP or gRPC answer that is looked at.
const ANSWER: usize = 64 * 1024;

/// Checks one host, on one connection where the check allows it.
pub(super) struct Probe {
    core: Rc<Core>,
    host: Arc<Host>,
    config: HealthCheck,
    kept: Option<Kept>,
}

enum Kept {
    H1(Box<h1::ClientConn>),
    H2(h2::ClientHandle),
}

impl Probe {
    pub(super) fn new(core: Rc<Core>, host: Arc<Host>, config: HealthCheck) -> Probe {
        Probe { core, host, config, kept: None }
    }

    /// The check timed out: its connection is of no more use.
    pub(super) fn abandon(&mut self) {
        self.kept = None;
    }

    pub(super) async fn check(&mut self) -> Verdict {
        match self.config.kind.clone() {
            HealthCheckKind::Http { http2, .. } => self.http(http2).await,
            HealthCheckKind::Grpc { service, authority } => self.grpc(&service, authority.as_deref()).await,
            HealthCheckKind::Tcp { send, receive } => {
                self.tcp(send.as_deref(), &receive).await.unwrap_or(Verdict::Network)
            }
        }
    }

    async fn connect(&self) -> Option<Io> {
        let transports = &self.core.shared.transports;
        let (_, transport) = transports.select(&self.host);
        let alpn: Option<Arc<[Arc<str>]>> =
            (!self.config.alpn.is_empty()).then(|| self.config.alpn.clone().into());
        let options = ConnectOptions { alpn, ..ConnectOptions::default() };
        let address = self.host.health_check.as_ref().unwrap_or(&self.host.address);
        let opened = connect::open(&self.core, address, transport, &options, None).await;
        opened.ok().map(|Opened { io, .. }| io)
    }

    /// Opens a stream, on the kept connection if that still stands.
    async fn stream(&mut self, head: &Head, end: bool, http2: bool) -> Option<UpStream> {
        let mut cx = Context::from_waker(Waker::noop());
        match self.kept.take() {
            Some(Kept::H1(mut c)) => {
                if c.poll_closed(&mut cx).is_pending() {
                    c.send_head(head, end);
                    return Some(UpStream::H1(c));
                }
            }
            Some(Kept::H2(mut handle)) if handle.is_open() => {
                if let Ok(s) = handle.open_stream(head, end) {
                    self.kept = Some(Kept::H2(handle));
                    return Some(UpStream::H2(Box::new(s)));
                }
            }
            Some(Kept::H2(_)) | None => {}
        }
        let io = self.connect().await?;
        if !http2 {
            let mut c = Box::new(h1::ClientConn::new(io, self.core.h1.clone()));
            c.send_head(head, end);
            return Some(UpStream::H1(c));
        }
        let (mut handle, driver) = h2::ClientConn::handshake(io, self.core.h2.clone()).await.ok()?;
        tokio::task::spawn_local(async move {
            // The end of the connection shows in the handle.
            let _ = driver.await;
        });
        let stream = handle.open_stream(head, end).ok()?;
        self.kept = Some(Kept::H2(handle));
        Some(UpStream::H2(Box::new(stream)))
    }

    fn done(&mut self, stream: UpStream) {
        if !self.config.reuse_connection {
            self.kept = None;
        } else if let UpStream::H1(c) = stream
            && c.is_reusable()
        {
            self.kept = Some(Kept::H1(c));
        }
    }

    fn authority(&self, configured: Option<&str>) -> Vec<u8> {
        let own = self.host.health_check_hostname.as_deref().filter(|h| !h.is_empty());
        let name = own.or(configured.filter(|h| !h.is_empty()));
        name.unwrap_or(&self.core.shared.info.name).as_bytes().to_vec()
    }

    async fn http(&mut self, http2: bool) -> Verdict {
        let HealthCheckKind::Http {
            host,
            path,
            method,
            headers,
            remove,
            expected,
            retriable,
            service_name,
            ..
        } = self.config.kind.clone()
        else {
            return Verdict::Network;
        };
        let mut head = Head::new();
        head.append_id(HeaderId::Method, method.as_bytes());
        head.append_id(HeaderId::Scheme, b"http");
        head.append_id(HeaderId::Authority, &self.authority(host.as_deref()));
        head.append_id(HeaderId::Path, path.as_bytes());
        head.append_id(HeaderId::UserAgent, b"Envoy/HC");
        headers.iter().for_each(|h| add(&mut head, h));
        for name in &remove {
            head.remove_name(name);
        }
        let Some(mut up) = self.stream(&head, true, http2).await else { return Verdict::Network };
        let mut response = Head::new();
        let Ok(status) = answer(&mut up, &mut response, |_| true).await else { return Verdict::Network };
        self.done(up);
        let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(from, to)| (*from..*to).contains(&status));
        let named = |name: &str| response.joined(&HeaderName::new(name)).map(|v| v.into_owned());
        if !within(&expected) {
            let exclude = named("x-envoy-immediate-health-check-fail").is_some();
            return if within(&retriable) { Verdict::Network } else { Verdict::Failure { exclude } };
        }
        if let Some(matcher) = &service_name {
            let service = named("x-envoy-upstream-healthchecked-cluster").unwrap_or_default();
            if !matcher.matches(&service) {
                return Verdict::WrongService;
            }
        }
        Verdict::Success { degraded: named("x-envoy-degraded").is_some() }
    }

    async fn grpc(&mut self, service: &str, authority: Option<&str>) -> Verdict {
        let mut head = Head::new();
        head.append_id(HeaderId::Method, b"POST");
        head.append_id(HeaderId::Scheme, b"http");
        head.append_id(HeaderId::Authority, &self.authority(authority));
        head.append_id(HeaderId::Path, b"/grpc.health.v1.Health/Check");
        head.append_id(HeaderId::ContentType, b"application/grpc");
        head.append_id(HeaderId::Te, b"trailers");
        head.append_id(HeaderId::UserAgent, b"Envoy/HC");
        let Some(mut up) = self.stream(&head, false, true).await else { return Verdict::Network };
        let message = grpc_request(service);
        if send(&mut up, &message).await.is_err() {
            return Verdict::Network;
        }
        let (mut response, mut body) = (Head::new(), Vec::new());
        let collect = |data: &[u8]| {
            body.extend_from_slice(data);
            body.len() < ANSWER
        };
        let Ok(status) = answer(&mut up, &mut response, collect).await else { return Verdict::Network };
        let trailer = up.trailers().get(HeaderId::GrpcStatus).or(response.get(HeaderId::GrpcStatus));
        let ok = status == 200 && trailer.is_none_or(|s| s == b"0") && serving(&body);
        self.done(up);
        if ok { Verdict::Success { degraded: false } } else { Verdict::Failure { exclude: false } }
    }

    async fn tcp(&mut self, payload: Option<&[u8]>, receive: &[Arc<[u8]>]) -> Option<Verdict> {
        let mut io = self.connect().await?;
        if let Some(bytes) = payload {
            io.write_all(bytes).await.ok()?;
            io.flush().await.ok()?;
        }
        let mut got = Vec::new();
        while !contains_in_order(&got, receive) {
            if got.len() >= ANSWER || io.read_buf(&mut got).await.ok()? == 0 {
                return None;
            }
        }
        Some(Verdict::Success { degraded: false })
    }
}

async fn send(up: &mut UpStream, message: &[u8]) -> Result<(), CodecError> {
    let mut rest = message;
    while !rest.is_empty() {
        let n = poll_fn(|cx| up.poll_send_data(cx, rest, true)).await?;
        rest = &rest[n..];
    }
    poll_fn(|cx| up.poll_finish(cx)).await
}

/// Reads the final head and the body, which goes to `data` piece by piece for as long as it wants more.
async fn answer(
    up: &mut UpStream,
    head: &mut Head,
    mut data: impl FnMut(&[u8]) -> bool,
) -> Result<u16, CodecError> {
    poll_fn(|cx| up.poll_finish(cx)).await?;
    let meta = loop {
        let meta = poll_fn(|cx| up.poll_head(cx, head)).await?;
        if !meta.informational {
            break meta;
        }
    };
    let mut end = meta.end;
    while !end {
        match poll_fn(|cx| up.poll_body(cx)).await? {
            BodyEvent::Data => {
                end = up.data_ends() || !data(up.data());
                if up.data_ends() {
                    data(&[]);
                }
                up.consume(up.data().len());
            }
            BodyEvent::Trailers | BodyEvent::End => end = true,
        }
    }
    Ok(meta.status)
}

/// Each piece after the one before it.
fn contains_in_order(mut bytes: &[u8], pieces: &[Arc<[u8]>]) -> bool {
    pieces.iter().filter(|p| !p.is_empty()).all(|p| {
        let at = memchr::memmem::find(bytes, p);
        if let Some(at) = at {
            bytes = &bytes[at + p.len()..];
        }
        at.is_some()
    })
}

/// A header of the configuration. There is no request that a command could speak of: it prints as absent.
fn add(head: &mut Head, h: &HeaderAdd) {
    let value: String = h
        .value
        .parts
        .iter()
        .map(|p| match p {
            Part::Literal(text) => &**text,
            Part::Command(..) => "-",
        })
        .collect();
    let there = head.get_name(&h.name).is_some();
    match h.action {
        AppendAction::AppendIfExistsOrAdd => head.append_name(&h.name, value.as_bytes()),
        AppendAction::AddIfAbsent if there => {}
        AppendAction::OverwriteIfExists if !there => {}
        AppendAction::AddIfAbsent
        | AppendAction::OverwriteIfExists
        | AppendAction::OverwriteIfExistsOrAdd => {
            head.set_name(&h.name, value.as_bytes());
        }
    }
}

/// A gRPC frame with `HealthCheckRequest { service = 1 }`.
fn grpc_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut len = service.len();
        while len >= 0x80 {
            message.push((len & 0x7f) as u8 | 0x80);
            len >>= 7;
        }
        message.push(len as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(message);
    frame
}

/// Whether a gRPC frame holds `HealthCheckResponse { status = SERVING }`.
fn serving(frame: &[u8]) -> bool {
    // Flag, length, then field 1 as a varint: 1 is SERVING. Zero values are not written.
    matches!(frame, [0, 0, 0, 0, 2, 0x08, 0x01, ..])
}
