//! A downstream HTTP connection: which codec, request after request, and how it ends.
//!
//! HTTP/1.1: one loop, one exchange at a time. HTTP/2: the connection's task drives the codec and gives each stream a local
//! task. Timeouts between requests, drain and delayed close are here.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::hcm::CodecType;
use crate::http::codec::{CodecError, DownStream, RequestMeta, Tunnel, h1, h2};
use crate::http::exchange::{After, Exchange};
use crate::http::hcm::HcmRuntime;
use crate::http::timer::Timer;
use crate::listener::{ActiveChain, Connection};
use crate::net::Io;
use crate::stream_info::ConnInfo;
use crate::worker::Worker;

/// Serves a connection to its end.
pub async fn serve(connection: Connection, worker: Rc<Worker>) {
    let Connection { io, info: conn, chain: source } = connection;
    let Some(config) = source.hcm() else { return };
    let hcm = worker.hcm(&config, &conn.listener_stat, conn.direction);
    let stats = &hcm.stats;
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    let tls = conn.tls.is_some();
    if tls {
        stats.downstream_cx_ssl_total.inc();
        stats.downstream_cx_ssl_active.inc();
    }
    let start = conn.start;
    let ended = serve_codec(io, conn, source, worker, &hcm).await;
    if tls {
        stats.downstream_cx_ssl_active.dec();
    }
    stats.downstream_cx_active.dec();
    stats.downstream_cx_destroy.inc();
    match ended {
        Ended::Remote => stats.downstream_cx_destroy_remote.inc(),
        Ended::Local => stats.downstream_cx_destroy_local.inc(),
    }
    stats.downstream_cx_length_ms.record(start.elapsed().as_millis() as u64);
}

/// Who ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Remote,
    Local,
}

async fn serve_codec(
    mut io: Io,
    conn: Rc<ConnInfo>,
    source: Rc<ActiveChain>,
    worker: Rc<Worker>,
    hcm: &Rc<HcmRuntime>,
) -> Ended {
    let alpn = conn.tls.as_ref().and_then(|t| t.alpn.as_deref());
    let http2 = match hcm.config.codec {
        CodecType::Http1 => false,
        CodecType::Http2 => true,
        CodecType::Auto => match alpn {
            Some("h2") => true,
            Some("http/1.1" | "http/1.0") => false,
            _ => {
                let idle = hcm.config.idle_timeout;
                let Some((h2, seen)) = sniff(&mut io, idle).await else { return Ended::Remote };
                io = io.unread(seen.into());
                h2
            }
        },
    };
    if http2 {
        hcm.stats.downstream_cx_http2_total.inc();
        hcm.stats.downstream_cx_http2_active.inc();
        let ended = serve_h2(io, conn, source, worker, hcm).await;
        hcm.stats.downstream_cx_http2_active.dec();
        ended
    } else {
        hcm.stats.downstream_cx_http1_total.inc();
        hcm.stats.downstream_cx_http1_active.inc();
        let ended = serve_h1(io, conn, source, worker, hcm).await;
        hcm.stats.downstream_cx_http1_active.dec();
        ended
    }
}

/// HTTP/2's connection preface (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of the first read: mostly a whole head, so that the codec need not read again.
const SNIFF: usize = 2048;

/// Reads until the bytes are HTTP/2's preface or differ from it, and tells which, with what was read.
async fn sniff(io: &mut Io, idle: Option<Duration>) -> Option<(bool, Vec<u8>)> {
    use tokio::io::AsyncReadExt as _;
    let mut seen = Vec::with_capacity(SNIFF);
    let read = async {
        loop {
            io.read_buf(&mut seen).await.ok().filter(|n| *n > 0)?;
            if seen.starts_with(PREFACE) {
                return Some(true);
            }
            if !PREFACE.starts_with(&seen) {
                return Some(false);
            }
        }
    };
    let found = match idle {
        Some(d) => tokio::time::timeout(d, read).await.ok()??,
        None => read.await?,
    };
    Some((found, seen))
}

async fn serve_h1(
    io: Io,
    conn: Rc<ConnInfo>,
    source: Rc<ActiveChain>,
    worker: Rc<Worker>,
    first: &Rc<HcmRuntime>,
) -> Ended {
    let mut hcm = first.clone();
    let mut down = DownStream::H1(Box::new(h1::ServerConn::new(io, hcm.h1.clone())));
    let mut served = 0u64;
    let mut timer = Timer::default();
    let mut drain = worker.drain_signal();
    let born = conn.start;
    loop {
        let idle_from = Instant::now();
        timer.rearm();
        let first_byte = wait_first_byte(&mut down, &mut timer, &hcm, &mut drain, idle_from, born).await;
        match first_byte {
            Waited::Byte => {}
            Waited::Closed => return Ended::Remote,
            Waited::Limit => return Ended::Local,
        }
        // The newest configuration serves the next request.
        match source.hcm() {
            Some(config) if !Arc::ptr_eq(&config, &hcm.config) => {
                hcm = worker.hcm(&config, &conn.listener_stat, conn.direction);
            }
            Some(_) => {}
            None => return Ended::Local,
        }
        let start = Instant::now();
        let mut head = hcm.head();
        let deadline = hcm.config.request_headers_timeout.map(|d| start + d);
        let got = poll_fn(|cx| {
            if let Poll::Ready(r) = h1(&mut down).poll_head(cx, &mut head) {
                return Poll::Ready(Some(r));
            }
            match deadline {
                Some(d) if timer.poll_reached(cx, d) => Poll::Ready(None),
                _ => Poll::Pending,
            }
        })
        .await;
        let after = match got {
            Some(Ok(Some(meta))) => {
                served += 1;
                let last = hcm.config.max_requests_per_connection.is_some_and(|m| served >= u64::from(m));
                if last {
                    hcm.stats.downstream_cx_max_requests_reached.inc();
                }
                Exchange::new(&worker, &hcm, &conn, &mut down, &mut timer, head, meta, start)
                    .last(last)
                    .run()
                    .await
            }
            Some(Ok(None)) => return Ended::Remote,
            Some(Err(e)) => {
                let meta = refused_meta();
                // Envoy has made no head of it: the log shows neither method nor path.
                head.clear();
                let cut = !e.is_protocol_error();
                if !cut {
                    hcm.stats.downstream_cx_protocol_error.inc();
                }
                let exchange = Exchange::new(&worker, &hcm, &conn, &mut down, &mut timer, head, meta, start);
                let after = exchange.refuse(e).await;
                if cut {
                    return Ended::Remote;
                }
                after
            }
            None => {
                hcm.stats.downstream_rq_header_timeout.inc();
                let meta = refused_meta();
                Exchange::new(&worker, &hcm, &conn, &mut down, &mut timer, head, meta, start)
                    .header_timeout()
                    .await
            }
        };
        match after {
            After::KeepAlive if h1(&mut down).is_reusable() => {}
            After::KeepAlive | After::Close => {
                delayed_close(&mut down, &hcm).await;
                return Ended::Local;
            }
            After::Abort => return Ended::Local,
        }
    }
}

/// The HTTP/1 connection under a downstream of this loop.
fn h1(down: &mut DownStream) -> &mut h1::ServerConn {
    match down {
        DownStream::H1(s) => s,
        // `serve_h1` makes no other.
        DownStream::H2(_) => unreachable!("an HTTP/1 loop has an HTTP/1 connection"),
    }
}

/// What stands for the head of a request that could not be read.
fn refused_meta() -> RequestMeta {
    RequestMeta {
        protocol: crate::config::hcm::Protocol::Http11,
        end: true,
        tunnel: Tunnel::No,
        expect_continue: false,
        keep_alive: false,
    }
}

enum Waited {
    Byte,
    Closed,
    Limit,
}

/// Between requests: the next one's first byte, the peer's close, idle timeout, maximum age, or drain.
async fn wait_first_byte(
    down: &mut DownStream,
    timer: &mut Timer,
    hcm: &HcmRuntime,
    drain: &mut crate::worker::Signal,
    idle_from: Instant,
    born: Instant,
) -> Waited {
    let idle = hcm.config.idle_timeout.map(|d| idle_from + d);
    let age = hcm.config.max_connection_duration.map(|d| born + d);
    let deadline = [idle, age].into_iter().flatten().min();
    poll_fn(|cx| {
        if let Poll::Ready(r) = h1(down).poll_first_byte(cx) {
            return Poll::Ready(if matches!(r, Ok(true)) { Waited::Byte } else { Waited::Closed });
        }
        if drain.poll(cx).is_ready() {
            hcm.stats.downstream_cx_drain_close.inc();
            return Poll::Ready(Waited::Limit);
        }
        match deadline {
            Some(d) if timer.poll_reached(cx, d) => {
                if age.is_some_and(|a| a <= d) {
                    hcm.stats.downstream_cx_max_duration_reached.inc();
                } else {
                    hcm.stats.downstream_cx_idle_timeout.inc();
                }
                Poll::Ready(Waited::Limit)
            }
            _ => Poll::Pending,
        }
    })
    .await
}

/// Shuts the write half down and waits for the peer to close, so that it can read the response before a reset could reach it.
async fn delayed_close(down: &mut DownStream, hcm: &HcmRuntime) {
    let _ = poll_fn(|cx| h1(down).poll_shutdown(cx)).await;
    if let Some(limit) = hcm.config.delayed_close_timeout {
        let drained = tokio::time::timeout(limit, poll_fn(|cx| h1(down).poll_drain(cx))).await;
        if drained.is_err() {
            hcm.stats.downstream_cx_delayed_close_timeout.inc();
        }
    }
}

async fn serve_h2(
    io: Io,
    conn: Rc<ConnInfo>,
    source: Rc<ActiveChain>,
    worker: Rc<Worker>,
    first: &Rc<HcmRuntime>,
) -> Ended {
    let mut hcm = first.clone();
    let mut server = h2::ServerConn::new(io, hcm.h2.clone());
    let active = Rc::new(Cell::new(0u32));
    let mut timer = Timer::default();
    let mut idle_from = Instant::now();
    let mut draining = false;
    let mut drain = worker.drain_signal();
    let mut served = 0u64;
    loop {
        let age = hcm.config.max_connection_duration.map(|d| conn.start + d);
        let busy = active.get() > 0;
        if busy {
            idle_from = Instant::now();
        }
        let idle = hcm.config.idle_timeout.filter(|_| !busy).map(|d| idle_from + d);
        timer.rearm();
        let event = poll_fn(|cx| {
            match server.poll_accept(cx) {
                Poll::Ready(r) => return Poll::Ready(H2Event::Accept(r)),
                Poll::Pending => {}
            }
            if !draining && drain.poll(cx).is_ready() {
                return Poll::Ready(H2Event::Drain);
            }
            if let Some(d) = age.filter(|_| !draining) {
                if timer.poll_reached(cx, d) {
                    return Poll::Ready(H2Event::Age);
                }
            } else if let Some(d) = idle
                && timer.poll_reached(cx, d)
            {
                return Poll::Ready(H2Event::Idle);
            }
            Poll::Pending
        })
        .await;
        match event {
            H2Event::Accept(None) => return if draining { Ended::Local } else { Ended::Remote },
            H2Event::Accept(Some(Err(e))) => {
                if e.is_protocol_error() {
                    hcm.stats.downstream_cx_protocol_error.inc();
                }
                return Ended::Remote;
            }
            H2Event::Accept(Some(Ok(accepted))) => {
                match source.hcm() {
                    Some(config) if !Arc::ptr_eq(&config, &hcm.config) => {
                        hcm = worker.hcm(&config, &conn.listener_stat, conn.direction);
                    }
                    Some(_) => {}
                    None => {
                        draining = true;
                        server.graceful_shutdown();
                    }
                }
                served += 1;
                if hcm.config.max_requests_per_connection.is_some_and(|m| served >= u64::from(m)) && !draining
                {
                    hcm.stats.downstream_cx_max_requests_reached.inc();
                    draining = true;
                    server.graceful_shutdown();
                }
                let (worker, hcm, conn, active) = (worker.clone(), hcm.clone(), conn.clone(), active.clone());
                active.set(active.get() + 1);
                tokio::task::spawn_local(async move {
                    let mut timer = Timer::default();
                    let h2::Accepted { head, meta, stream } = accepted;
                    let mut down = DownStream::H2(Box::new(stream));
                    let start = Instant::now();
                    let _ = Exchange::new(&worker, &hcm, &conn, &mut down, &mut timer, head, meta, start)
                        .run()
                        .await;
                    active.set(active.get() - 1);
                });
            }
            H2Event::Drain => {
                hcm.stats.downstream_cx_drain_close.inc();
                draining = true;
                server.graceful_shutdown();
            }
            H2Event::Age => {
                hcm.stats.downstream_cx_max_duration_reached.inc();
                draining = true;
                server.graceful_shutdown();
            }
            H2Event::Idle => {
                if active.get() > 0 {
                    idle_from = Instant::now();
                    continue;
                }
                hcm.stats.downstream_cx_idle_timeout.inc();
                draining = true;
                server.graceful_shutdown();
            }
        }
    }
}

#[allow(
    clippy::large_enum_variant,
    reason = "lives between two lines; a box would cost an allocation a stream"
)]
enum H2Event {
    Accept(Option<Result<h2::Accepted, CodecError>>),
    Drain,
    Age,
    Idle,
}
