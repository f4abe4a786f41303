//! One upstream connection's accounts, from the first SYN to the close, and the lease that a request holds on it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::time::Instant;

use super::super::breaker::Permit;
use super::super::cluster::Core;
use super::super::host::Host;
use super::super::stats::TrafficStats;
use super::Pool;
use crate::config::hcm::Protocol;
use crate::head::Head;
use crate::http::codec::{CodecError, UpStream, h1, h2};
use crate::net::Io;
use crate::stream_info::TlsInfo;
use crate::telemetry::stats::Unit;

/// What is known of an upstream connection.
#[derive(Debug)]
pub struct ConnFacts {
    /// `%UPSTREAM_CONNECTION_ID%`.
    pub id: u64,
    pub local: Option<SocketAddr>,
    /// `None` for a TCP proxy's connection.
    pub protocol: Option<Protocol>,
    pub tls: Option<Arc<TlsInfo>>,
    pub connect_begin: Instant,
    pub connect_end: Instant,
}

/// The accounts of a connection: dropping them closes the books (`upstream_cx_destroy*`, `upstream_cx_length_ms`).
pub(crate) struct Conn {
    core: Rc<Core>,
    host: Arc<Host>,
    pub(super) begin: Instant,
    pub(super) facts: RefCell<Option<Rc<ConnFacts>>>,
    /// Requests that it has taken.
    pub(super) requests: Cell<u32>,
    /// Requests on it now.
    pub(super) active: Cell<u32>,
    /// When the last request left it.
    pub(super) idle_since: Cell<Instant>,
    /// No more requests: the limit is reached or its pool is gone.
    pub(super) draining: Cell<bool>,
    /// The other side closed it.
    pub(super) remote: Cell<bool>,
    /// It ended with a request under way.
    pub(super) cut_short: Cell<bool>,
    _permit: Permit,
}

impl Conn {
    /// Opens the books of a connection that is about to be made.
    /// `protocol` is known before ALPN speaks, or not.
    pub(super) fn open(core: Rc<Core>, host: Arc<Host>, permit: Permit, protocol: Option<Protocol>) -> Conn {
        let t = &core.stats.traffic;
        t.upstream_cx_total.inc();
        count_protocol(t, protocol);
        t.upstream_cx_active.inc();
        host.state.stats.cx_total.inc();
        host.state.stats.cx_active.inc();
        let begin = Instant::now();
        Conn {
            core,
            host,
            begin,
            facts: RefCell::default(),
            requests: Cell::new(0),
            active: Cell::new(0),
            idle_since: Cell::new(begin),
            draining: Cell::new(false),
            remote: Cell::new(false),
            cut_short: Cell::new(false),
            _permit: permit,
        }
    }

    /// The connection stands.
    pub(super) fn established(
        &self,
        local: Option<SocketAddr>,
        tls: Option<Arc<TlsInfo>>,
        protocol: Option<Protocol>,
    ) {
        let now = Instant::now();
        let t = &self.core.stats.traffic;
        t.upstream_cx_connect_ms.record_time(now - self.begin, Unit::Milliseconds);
        self.idle_since.set(now);
        *self.facts.borrow_mut() = Some(Rc::new(ConnFacts {
            id: self.core.ctx.next_connection_id(),
            local,
            protocol,
            tls,
            connect_begin: self.begin,
            connect_end: now,
        }));
    }

    /// A request takes the connection.
    fn attach(&self) {
        self.active.set(self.active.get() + 1);
        self.requests.set(self.requests.get().saturating_add(1));
        if self
            .core
            .shared
            .info
            .max_requests_per_connection
            .is_some_and(|max| max > 0 && self.requests.get() >= max)
        {
            self.core.stats.traffic.upstream_cx_max_requests.inc();
            self.draining.set(true);
        }
    }

    /// Whether `max_connection_duration` has passed.
    pub(super) fn is_too_old(&self, now: Instant) -> bool {
        let max = self.core.shared.info.http.max_connection_duration;
        max.is_some_and(|max| now.saturating_duration_since(self.begin) >= max)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let t = &self.core.stats.traffic;
        t.upstream_cx_active.dec();
        self.host.state.stats.cx_active.dec();
        t.upstream_cx_destroy.inc();
        let (side, with_request) = if self.remote.get() {
            (&t.upstream_cx_destroy_remote, &t.upstream_cx_destroy_remote_with_active_rq)
        } else {
            (&t.upstream_cx_destroy_local, &t.upstream_cx_destroy_local_with_active_rq)
        };
        side.inc();
        if self.cut_short.get() {
            with_request.inc();
            t.upstream_cx_destroy_with_active_rq.inc();
        }
        t.upstream_cx_length_ms.record_time(self.begin.elapsed(), Unit::Milliseconds);
        if self.requests.get() > 0 {
            t.upstream_rq_per_cx.record(u64::from(self.requests.get()));
        }
    }
}

/// `upstream_cx_http1_total`, `upstream_cx_http2_total`; TCP counts in neither.
pub(super) fn count_protocol(t: &TrafficStats, protocol: Option<Protocol>) {
    match protocol {
        Some(Protocol::Http2) => t.upstream_cx_http2_total.inc(),
        Some(Protocol::Http10 | Protocol::Http11) => t.upstream_cx_http1_total.inc(),
        None => {}
    }
}

/// A request's share of the accounts: `upstream_rq_active` and the breaker's request.
#[derive(Debug)]
pub(super) struct RequestGuard {
    core: Rc<Core>,
    host: Arc<Host>,
    _permit: Option<Permit>,
}

impl RequestGuard {
    pub(super) fn new(core: &Rc<Core>, host: &Arc<Host>, permit: Option<Permit>) -> RequestGuard {
        let t = &core.stats.traffic;
        t.upstream_rq_total.inc();
        t.upstream_rq_active.inc();
        host.state.stats.rq_total.inc();
        host.state.stats.rq_active.inc();
        RequestGuard { core: core.clone(), host: host.clone(), _permit: permit }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.core.stats.traffic.upstream_rq_active.dec();
        self.host.state.stats.rq_active.dec();
    }
}

/// What a lease holds.
enum Held {
    /// The HTTP/1 connection itself, or an open HTTP/2 stream.
    Stream(UpStream),
    /// An HTTP/2 connection on which the stream is still to be opened.
    Handle(h2::ClientHandle),
    Nothing,
}

/// A connection, or a place on one, for one request. Dropping it gives an HTTP/1 connection back to its pool if the exchange
/// ended well, and closes it otherwise; on HTTP/2 an unfinished stream is reset.
pub struct Lease {
    held: Held,
    conn: Rc<Conn>,
    facts: Rc<ConnFacts>,
    pool: Weak<Pool>,
    reused: bool,
    opened: bool,
    _request: RequestGuard,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("facts", &self.facts)
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl Lease {
    pub(super) fn h1(
        pool: &Rc<Pool>,
        conn: Rc<Conn>,
        facts: Rc<ConnFacts>,
        stream: Box<h1::ClientConn>,
        request: RequestGuard,
    ) -> Lease {
        Lease::new(pool, conn, facts, Held::Stream(UpStream::H1(stream)), request)
    }

    pub(super) fn h2(
        pool: &Rc<Pool>,
        conn: Rc<Conn>,
        facts: Rc<ConnFacts>,
        handle: h2::ClientHandle,
        request: RequestGuard,
    ) -> Lease {
        Lease::new(pool, conn, facts, Held::Handle(handle), request)
    }

    fn new(
        pool: &Rc<Pool>,
        conn: Rc<Conn>,
        facts: Rc<ConnFacts>,
        held: Held,
        request: RequestGuard,
    ) -> Lease {
        let reused = conn.requests.get() > 0;
        conn.attach();
        Lease { held, conn, facts, pool: Rc::downgrade(pool), reused, opened: false, _request: request }
    }

    /// Begins the request: opens the HTTP/2 stream, or buffers the head on HTTP/1. To be called once.
    ///
    /// # Errors
    /// A head that the protocol cannot carry, or the connection's end.
    pub fn open(&mut self, head: &Head, end: bool) -> Result<&mut UpStream, CodecError> {
        self.opened = true;
        if let Held::Handle(handle) = &mut self.held {
            let stream = handle.open_stream(head, end)?;
            self.held = Held::Stream(UpStream::H2(Box::new(stream)));
        } else if let Held::Stream(s) = &mut self.held {
            s.send_head(head, end);
        }
        match &mut self.held {
            Held::Stream(s) => Ok(s),
            // `Nothing` is there only after `drop`.
            Held::Handle(_) | Held::Nothing => Err(CodecError::Closed),
        }
    }

    /// The stream, once `open` was called; on HTTP/1 before, too.
    pub fn stream(&mut self) -> Option<&mut UpStream> {
        match &mut self.held {
            Held::Stream(s) => Some(s),
            Held::Handle(_) | Held::Nothing => None,
        }
    }

    /// Facts of the connection.
    pub fn facts(&self) -> &Rc<ConnFacts> {
        &self.facts
    }

    /// Whether the connection carried a request before: one that then fails before the response's first byte may have met
    /// an idle close, and is safe to retry where `reset-before-request` is.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Tells who ended the connection, before the lease is dropped: the peer's doing counts as `destroy_remote`.
    pub fn closed_by_peer(&self) {
        self.conn.remote.set(true);
    }

    /// The peer broke the protocol: `upstream_cx_protocol_error`.
    pub fn protocol_error(&self) {
        self.conn.core.stats.traffic.upstream_cx_protocol_error.inc();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let conn = &self.conn;
        conn.active.set(conn.active.get().saturating_sub(1));
        let now = Instant::now();
        conn.idle_since.set(now);
        let pool = self.pool.upgrade();
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Stream(UpStream::H1(stream)) => {
                let t = &conn.core.stats.traffic;
                if self.opened {
                    // Without a request of its own the stream still holds the counts of the one before.
                    let counts = stream.counts();
                    t.upstream_cx_rx_bytes_total.add(counts.wire_received);
                    t.upstream_cx_tx_bytes_total.add(counts.wire_sent);
                }
                if stream.is_peer_closed() {
                    conn.remote.set(true);
                }
                if stream.is_reusable() || !self.opened && !stream.is_peer_closed() {
                    if conn.is_too_old(now) {
                        t.upstream_cx_max_duration_reached.inc();
                    } else if let Some(pool) = &pool
                        && !conn.draining.get()
                    {
                        pool.give_back(stream, conn.clone());
                    }
                } else if !stream.is_finished() {
                    conn.cut_short.set(true);
                } else {
                    // The response said close, or ended by the close.
                    t.upstream_cx_close_notify.inc();
                }
            }
            Held::Stream(UpStream::H2(stream)) => drop(stream),
            Held::Handle(_) | Held::Nothing => {}
        }
        if let Some(pool) = pool {
            pool.released();
        }
    }
}

/// A TCP proxy's connection: never pooled. Dropping it closes it.
pub struct TcpLease {
    pub io: Io,
    facts: Rc<ConnFacts>,
    conn: Rc<Conn>,
    _request: RequestGuard,
}

impl TcpLease {
    pub(super) fn new(io: Io, conn: Conn, facts: Rc<ConnFacts>, request: RequestGuard) -> TcpLease {
        conn.active.set(1);
        TcpLease { io, facts, conn: Rc::new(conn), _request: request }
    }

    /// Facts of the connection.
    pub fn facts(&self) -> &Rc<ConnFacts> {
        &self.facts
    }

    /// Counts bytes read from and written to the host.
    pub fn count(&self, received: u64, sent: u64) {
        let t = &self.conn.core.stats.traffic;
        t.upstream_cx_rx_bytes_total.add(received);
        t.upstream_cx_tx_bytes_total.add(sent);
    }

    /// The host closed first; otherwise the close counts as local.
    pub fn closed_by_peer(&self) {
        self.conn.remote.set(true);
    }
}
