//! The downstream side of an HTTP/2 connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::{Connection, Handshake, SendResponse};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::{BodyEvent, CodecError, Counts, Http2Error, RequestMeta, ResetReason, Tunnel};
use super::cork::{Cork, Corked, cork};
use super::stream::{Incoming, Outgoing, count_head, error, wire_reason};
use super::{Options, convert};
use crate::config::hcm::Protocol;
use crate::head::{Head, HeaderId};
use crate::net::Io;

enum State<T> {
    Handshaking(Handshake<Corked<T>, Bytes>),
    Open(Connection<Corked<T>, Bytes>),
    /// Only what is gathered is still to be written.
    Ended,
}

/// A downstream connection. Dropping it resets its streams and closes the socket.
pub struct ServerConn<T = Io> {
    state: State<T>,
    cork: Cork<T>,
    options: Arc<Options>,
    drain: bool,
}

/// A request that came.
pub struct Accepted {
    pub head: Head,
    pub meta: RequestMeta,
    pub stream: ServerStream,
}

impl<T: AsyncRead + AsyncWrite + Unpin> ServerConn<T> {
    /// Serves HTTP/2 on `io`.
    pub fn new(io: T, options: Arc<Options>) -> ServerConn<T> {
        let (cork, corked) = cork(io);
        let http2 = &options.http2;
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(http2.max_concurrent_streams)
            .initial_window_size(http2.initial_stream_window)
            .initial_connection_window_size(http2.initial_connection_window)
            .header_table_size(http2.hpack_table_size)
            .max_header_list_size(options.max_headers_kb.saturating_mul(1024));
        if let Some(size) = http2.max_frame_size {
            builder.max_frame_size(size);
        }
        if http2.allow_connect {
            builder.enable_connect_protocol();
        }
        ServerConn { state: State::Handshaking(builder.handshake(corked)), cork, options, drain: false }
    }

    /// Drives the connection and all its streams; ready with each new request, and with `None` when it is over. Whoever
    /// holds the connection polls this for as long as there are streams.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, CodecError>>> {
        loop {
            let polled = self.poll_inner(cx);
            // One write for all frames of this poll.
            match self.cork.poll_drain(cx) {
                Poll::Ready(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
                Poll::Pending if matches!(self.state, State::Ended) => return Poll::Pending,
                Poll::Pending | Poll::Ready(Ok(())) => {}
            }
            match ready!(polled) {
                Some(Ok(Some(accepted))) => return Poll::Ready(Some(Ok(accepted))),
                // The handshake is through, or a stream was refused.
                Some(Ok(None)) => {}
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Option<Accepted>, CodecError>>> {
        match &mut self.state {
            State::Ended => Poll::Ready(None),
            State::Handshaking(handshake) => match ready!(Pin::new(handshake).poll(cx)) {
                Ok(mut connection) => {
                    if self.drain {
                        connection.graceful_shutdown();
                    }
                    self.state = State::Open(connection);
                    Poll::Ready(Some(Ok(None)))
                }
                Err(e) => {
                    self.state = State::Ended;
                    Poll::Ready(Some(Err(error(&e))))
                }
            },
            State::Open(connection) => match ready!(connection.poll_accept(cx)) {
                None => {
                    self.state = State::Ended;
                    Poll::Ready(None)
                }
                Some(Err(e)) => {
                    self.state = State::Ended;
                    Poll::Ready(Some(Err(error(&e))))
                }
                Some(Ok((request, respond))) => {
                    Poll::Ready(Some(Ok(accept(&self.options, request, respond))))
                }
            },
        }
    }

    /// Sends GOAWAY: streams that live go on, new ones are refused, and `poll_accept` ends when the last is through.
    pub fn graceful_shutdown(&mut self) {
        self.drain = true;
        if let State::Open(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }

    /// Sends GOAWAY with a code and ends all streams.
    pub fn abrupt_shutdown(&mut self, reason: ResetReason) {
        match &mut self.state {
            State::Open(connection) => connection.abrupt_shutdown(wire_reason(reason, false)),
            State::Handshaking(_) => self.state = State::Ended,
            State::Ended => {}
        }
    }

    /// The handle for keepalive pings; once only, after the handshake.
    pub fn ping_pong(&mut self) -> Option<h2::PingPong> {
        match &mut self.state {
            State::Open(connection) => connection.ping_pong(),
            State::Handshaking(_) | State::Ended => None,
        }
    }

    /// Bytes received and sent so far on the wire.
    pub fn wire_bytes(&self) -> (u64, u64) {
        self.cork.wire_bytes()
    }
}

/// `None`: the request broke a limit and its stream was reset.
fn accept(
    options: &Options,
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Option<Accepted> {
    let mut head = Head::new();
    convert::from_request(&request, &mut head);
    let authority = head.authority();
    let valid = super::super::h1::valid_authority(authority);
    if head.len() > options.max_headers_count as usize || !valid {
        respond.send_reset(if valid { h2::Reason::INTERNAL_ERROR } else { h2::Reason::PROTOCOL_ERROR });
        return None;
    }
    let upgrade = request.extensions().get::<h2::ext::Protocol>().is_some();
    let tunnel = match (upgrade, head.method()) {
        (true, _) => Tunnel::Upgrade,
        (false, b"CONNECT") => Tunnel::Connect,
        (false, _) => Tunnel::No,
    };
    let recv = request.into_body();
    let end = recv.is_end_stream();
    let meta = RequestMeta {
        protocol: Protocol::Http2,
        end,
        tunnel,
        expect_continue: head.get(HeaderId::Expect).is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue")),
        keep_alive: true,
    };
    let mut counts = Counts::default();
    count_head(&head, &mut counts.header_received, &mut counts.wire_received);
    let stream = ServerStream {
        incoming: Incoming::new((!end).then_some(recv)),
        respond,
        outgoing: None,
        upgrade,
        to_head: head.method() == b"HEAD",
        counts,
        failed: None,
    };
    Some(Accepted { head, meta, stream })
}

/// One downstream stream. Dropping it before its response has ended resets it.
pub struct ServerStream {
    incoming: Incoming,
    respond: SendResponse<Bytes>,
    /// Since the response's head was sent.
    outgoing: Option<Outgoing>,
    upgrade: bool,
    to_head: bool,
    counts: Counts,
    /// What `send_head` ran into; the next poll says it.
    failed: Option<CodecError>,
}

impl ServerStream {
    /// Reads on in the body. See `h1::ServerConn` for this and the next ones.
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

    /// Whether the request was read to its end.
    pub fn request_done(&self) -> bool {
        self.incoming.is_done()
    }

    /// Sends an interim response.
    pub fn send_informational(&mut self, head: &Head) {
        match convert::to_response(head, false) {
            Ok(response) => {
                count_head(head, &mut self.counts.header_sent, &mut self.counts.wire_sent);
                if let Err(e) = self.respond.send_informational(response) {
                    self.failed = Some(error(&e));
                }
            }
            Err(e) => self.failed = Some(e.into()),
        }
    }

    /// Sends the response's head.
    pub fn send_head(&mut self, head: &Head, end: bool) {
        let end = end || (self.to_head && !self.upgrade);
        let sent = convert::to_response(head, self.upgrade)
            .map_err(CodecError::from)
            .and_then(|r| self.respond.send_response(r, end).map_err(|e| error(&e)));
        match sent {
            Ok(stream) => {
                count_head(head, &mut self.counts.header_sent, &mut self.counts.wire_sent);
                self.outgoing = Some(Outgoing::new(stream, end));
            }
            Err(e) => {
                self.failed = Some(e);
                if matches!(e, CodecError::Http2(_)) {
                    self.respond.send_reset(h2::Reason::INTERNAL_ERROR);
                }
            }
        }
    }

    fn outgoing(&mut self) -> Result<(&mut Outgoing, &mut Counts), CodecError> {
        match (&mut self.outgoing, self.failed) {
            (_, Some(e)) => Err(e),
            (Some(outgoing), None) => Ok((outgoing, &mut self.counts)),
            (None, None) => Err(CodecError::Reset(ResetReason::LocalReset)),
        }
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
        let (outgoing, counts) = self.outgoing()?;
        if outgoing.ended {
            return Poll::Ready(Ok(data.len()));
        }
        outgoing.poll_data(cx, data, end, counts)
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
        let (outgoing, counts) = self.outgoing()?;
        if outgoing.ended {
            data.clear();
            return Poll::Ready(Ok(()));
        }
        outgoing.poll_bytes(cx, data, end, counts)
    }

    /// Ends the body with trailers.
    pub fn send_trailers(&mut self, head: &Head) {
        let sent = self.outgoing().and_then(|(outgoing, counts)| outgoing.trailers(head, counts));
        if let Err(e) = sent {
            self.failed = Some(e);
        }
    }

    /// Ends the response. The connection's task writes it.
    ///
    /// # Errors
    /// The stream's or the connection's end.
    pub fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        let (outgoing, counts) = self.outgoing()?;
        Poll::Ready(outgoing.finish(counts))
    }

    /// Ready when the client has reset the stream, or the connection has gone.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<CodecError> {
        let polled = match &mut self.outgoing {
            Some(outgoing) if outgoing.ended => return Poll::Pending,
            Some(outgoing) => outgoing.stream.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        Poll::Ready(match ready!(polled) {
            Ok(h2::Reason::REFUSED_STREAM) => CodecError::Reset(ResetReason::RemoteRefusedStreamReset),
            Ok(_) => CodecError::Reset(ResetReason::RemoteReset),
            Err(e) => error(&e),
        })
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: ResetReason) {
        let reason = wire_reason(reason, false);
        match &mut self.outgoing {
            Some(outgoing) => outgoing.stream.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    /// The stream's counters.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A failure that the connection found before anything was sent, as `Http2Error`s are.
    pub fn failure(&self) -> Option<Http2Error> {
        match self.failed {
            Some(CodecError::Http2(e)) => Some(e),
            _ => None,
        }
    }
}
