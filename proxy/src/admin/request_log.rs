//! `admin.access_log`: a line for each admin request.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::AdminState;
use super::page::Page;
use crate::config::hcm::Protocol;
use crate::config::listener::Direction;
use crate::head::{Head, HeaderId};
use crate::stream_info::{ConnInfo, StreamInfo};
use crate::telemetry::access_log::{AccessLogger, WorkerFiles};
use crate::telemetry::format::{FormatContext, LogType};

/// Peer and local address.
pub(super) type Peers = (SocketAddr, SocketAddr);

/// When the request came.
pub(super) struct Started {
    at: Instant,
    time: SystemTime,
}

impl Started {
    pub(super) fn now() -> Started {
        Started { at: Instant::now(), time: SystemTime::now() }
    }
}

/// Logs one request. Built from scratch each time: admin requests are few, and the buffers must not outlive the task's turn.
pub(super) fn write(
    state: &AdminState,
    request: &http::request::Parts,
    peers: Option<Peers>,
    started: &Started,
    received: usize,
    page: &Page,
) {
    if state.access_log.is_empty() {
        return;
    }
    let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let (remote, local) = peers.unwrap_or((unspecified, unspecified));
    let conn = ConnInfo {
        id: 0,
        remote,
        direct_remote: remote,
        local,
        direct_local: local,
        local_restored: false,
        sni: None,
        transport_protocol: "raw_buffer",
        tls: None,
        listener_name: "admin".into(),
        listener_stat: "admin".into(),
        filter_chain_name: "".into(),
        direction: Direction::Unspecified,
        start: started.at,
        start_time: started.time,
        is_unix: peers.is_none(),
    };
    let mut info = StreamInfo::new(Rc::new(conn), started.at, started.time);
    info.protocol = Some(Protocol::Http11);
    info.response_code = Some(page.status);
    info.bytes_received = received as u64;
    info.bytes_sent = page.body.len() as u64;
    info.times.complete = Some(started.at.elapsed());
    let mut head = Head::new();
    head.append_id(HeaderId::Method, request.method.as_str().as_bytes());
    head.append_id(HeaderId::Path, request.uri.path_and_query().map_or("/", |p| p.as_str()).as_bytes());
    for (name, value) in &request.headers {
        let name = if name == http::header::HOST { ":authority" } else { name.as_str() };
        head.append(name.as_bytes(), value.as_bytes());
    }
    let mut ctx = FormatContext::new(Some(&head), &info);
    ctx.log_type = LogType::DownstreamEnd;
    let files = WorkerFiles::new(state.shared.logs.clone());
    AccessLogger::new(&state.access_log, &files).log(&ctx);
}
