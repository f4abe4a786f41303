//! The upstream side of an HTTP/2 connection: a driver for the pool to spawn, a handle to open streams with.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::{BodyEvent, CodecError, Counts, ResetReason, ResponseMeta};
use super::cork::{Cork, Corked, cork};
use super::stream::{Incoming, Outgoing, count_head, error, wire_reason};
use super::{Options, convert};
use crate::head::Head;
use crate::net::Io;

/// Makes upstream connections.
pub struct ClientConn;

impl ClientConn {
    /// Starts HTTP/2 on `io`. The preface leaves with the driver's first poll; nothing is waited for.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
        io: T,
        options: Arc<Options>,
    ) -> Result<(ClientHandle, Driver<T>), CodecError> {
        let (cork, corked) = cork(io);
        let http2 = &options.http2;
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .max_concurrent_streams(http2.max_concurrent_streams)
            .initial_max_send_streams(http2.max_concurrent_streams as usize)
            .initial_window_size(http2.initial_stream_window)
            .initial_connection_window_size(http2.initial_connection_window)
            .header_table_size(http2.hpack_table_size)
            .max_header_list_size(options.max_headers_kb.saturating_mul(1024));
        if let Some(size) = http2.max_frame_size {
            builder.max_frame_size(size);
        }
        let (sender, connection) = builder.handshake(corked).await.map_err(|e| error(&e))?;
        let shared = Rc::new(Shared::default());
        Ok((
            ClientHandle { sender, shared: shared.clone(), options },
            Driver { connection, cork, shared, ended: None },
        ))
    }
}

#[derive(Default)]
struct Shared {
    closed: Cell<bool>,
    /// The peer sent GOAWAY, or we drain: no new stream.
    draining: Cell<bool>,
    /// Streams not yet dropped.
    active: Cell<usize>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

/// The future that moves the connection's bytes; ready when the connection is over. Dropping it closes the connection.
pub struct Driver<T = Io> {
    connection: Connection<Corked<T>, Bytes>,
    cork: Cork<T>,
    shared: Rc<Shared>,
    ended: Option<Result<(), CodecError>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// The handle for keepalive pings; once only.
    pub fn ping_pong(&mut self) -> Option<h2::PingPong> {
        self.connection.ping_pong()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = Result<(), CodecError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.ended.is_none()
            && let Poll::Ready(result) = Pin::new(&mut this.connection).poll(cx)
        {
            this.shared.closed.set(true);
            this.ended = Some(result.map_err(|e| error(&e)));
        }
        let drained = this.cork.poll_drain(cx);
        let (received, sent) = this.cork.wire_bytes();
        this.shared.received.set(received);
        this.shared.sent.set(sent);
        match (drained, this.ended) {
            (Poll::Ready(Err(e)), _) => {
                this.shared.closed.set(true);
                Poll::Ready(Err(e.into()))
            }
            (Poll::Ready(Ok(())), Some(result)) => Poll::Ready(result),
            (Poll::Pending, _) | (_, None) => Poll::Pending,
        }
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.shared.closed.set(true);
    }
}

/// Opens streams on a connection. Cheap to clone; the connection ends when all handles and streams are gone.
#[derive(Clone)]
pub struct ClientHandle {
    sender: SendRequest<Bytes>,
    shared: Rc<Shared>,
    options: Arc<Options>,
}

impl ClientHandle {
    /// Ready when a stream may be opened; an error when none will ever be again (closed, GOAWAY).
    ///
    /// # Errors
    /// The connection's end.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        let polled = ready!(self.sender.poll_ready(cx)).map_err(|e| error(&e));
        if polled.is_err() {
            self.shared.draining.set(true);
        }
        Poll::Ready(polled)
    }

    /// Opens a stream with a request's head.
    ///
    /// # Errors
    /// A head that HTTP/2 cannot carry, or the connection's end.
    pub fn open_stream(&mut self, head: &Head, end: bool) -> Result<ClientStream, CodecError> {
        let (request, upgrade) = convert::to_request(head)?;
        let sent = self.sender.send_request(request, end).map_err(|e| error(&e));
        let (response, stream) = sent.inspect_err(|_| self.shared.draining.set(true))?;
        self.shared.active.set(self.shared.active.get() + 1);
        let mut counts = Counts::default();
        count_head(head, &mut counts.header_sent, &mut counts.wire_sent);
        Ok(ClientStream {
            response: Some(response),
            incoming: Incoming::new(None),
            outgoing: Outgoing::new(stream, end),
            upgrade,
            max_headers_count: self.options.max_headers_count,
            shared: self.shared.clone(),
            counts,
        })
    }

    /// Whether a new stream may be tried.
    pub fn is_open(&self) -> bool {
        !self.shared.closed.get() && !self.shared.draining.get()
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.get()
    }

    /// Takes no new streams: the owner drains the connection.
    pub fn drain(&self) {
        self.shared.draining.set(true);
    }

    /// Streams that the peer lets us have at once.
    pub fn max_concurrent_streams(&self) -> usize {
        self.sender.current_max_send_streams().min(self.options.http2.max_concurrent_streams as usize)
    }

    /// Streams open now.
    pub fn active_streams(&self) -> usize {
        self.shared.active.get()
    }

    /// Whether the peer takes extended CONNECT.
    pub fn allows_extended_connect(&self) -> bool {
        self.sender.is_extended_connect_protocol_enabled()
    }

    /// Bytes received and sent so far on the wire.
    pub fn wire_bytes(&self) -> (u64, u64) {
        (self.shared.received.get(), self.shared.sent.get())
    }
}

/// One upstream stream. Dropping it before its end resets it.
pub struct ClientStream {
    response: Option<ResponseFuture>,
    incoming: Incoming,
    outgoing: Outgoing,
    upgrade: Option<Vec<u8>>,
    max_headers_count: u32,
    shared: Rc<Shared>,
    counts: Counts,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get().saturating_sub(1));
    }
}

impl ClientStream {
    /// Reads the response's head; interim heads come one by one.
    ///
    /// # Errors
    /// The stream's or the connection's end, or too many headers.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
    ) -> Poll<Result<ResponseMeta, CodecError>> {
        let Some(future) = &mut self.response else {
            return Poll::Ready(Err(CodecError::Reset(ResetReason::LocalReset)));
        };
        if let Poll::Ready(Some(Ok(interim))) = future.poll_informational(cx) {
            head.clear();
            convert::from_response(&interim, None, head);
            count_head(head, &mut self.counts.header_received, &mut self.counts.wire_received);
            let status = interim.status().as_u16();
            return Poll::Ready(Ok(ResponseMeta { status, end: false, informational: true }));
        }
        let response = ready!(Pin::new(future).poll(cx)).map_err(|e| error(&e))?;
        self.response = None;
        head.clear();
        convert::from_response(&response, self.upgrade.as_deref(), head);
        count_head(head, &mut self.counts.header_received, &mut self.counts.wire_received);
        if head.len() > self.max_headers_count as usize {
            self.reset(ResetReason::ProtocolError);
            return Poll::Ready(Err(super::super::Http2Error::TooManyHeaders.into()));
        }
        let recv = response.into_body();
        let end = recv.is_end_stream();
        self.incoming = Incoming::new((!end).then_some(recv));
        let status = head.status().unwrap_or_default();
        Poll::Ready(Ok(ResponseMeta { status, end, informational: false }))
    }

    /// Reads on in the body.
    ///
    /// # Errors
    /// The stream's or the connection's end.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, CodecError>> {
        self.incoming.poll(cx, &mut self.counts)
    }

    /// Body bytes not yet consumed.
    pub fn data(&self) -> &[u8] {
        self.incoming.data()
    }

    /// Whether `data()` is the end of the body, without trailers.
    pub fn data_ends(&self) -> bool {
        self.incoming.data_ends()
    }

    /// Drops the first `n` bytes of `data()` and opens the window for them.
    pub fn consume(&mut self, n: usize) {
        self.incoming.consume(n);
    }

    /// `data()` without a copy, consumed.
    pub fn take_data(&mut self) -> Bytes {
        self.incoming.take()
    }

    /// The trailers, after `BodyEvent::Trailers`.
    pub fn trailers(&self) -> &Head {
        &self.incoming.trailers
    }

    /// Sends body bytes (copied); returns how many were taken.
    ///
    /// # Errors
    /// The stream's or the connection's end.
    pub fn poll_send_data(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, CodecError>> {
        self.outgoing.poll_data(cx, data, end, &mut self.counts)
    }

    /// Sends body bytes without a copy; ready when all were taken.
    ///
    /// # Errors
    /// The stream's or the connection's end.
    pub fn poll_send_bytes(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
        end: bool,
    ) -> Poll<Result<(), CodecError>> {
        self.outgoing.poll_bytes(cx, data, end, &mut self.counts)
    }

    /// Ends the body with trailers.
    pub fn send_trailers(&mut self, head: &Head) {
        if self.outgoing.trailers(head, &mut self.counts).is_err() {
            self.outgoing.stream.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    }

    /// Ends the request. The driver writes it.
    ///
    /// # Errors
    /// The stream's or the connection's end.
    pub fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        Poll::Ready(self.outgoing.finish(&mut self.counts))
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: ResetReason) {
        self.outgoing.stream.send_reset(wire_reason(reason, true));
    }

    /// The stream's counters.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
