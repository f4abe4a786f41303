//! The upstream side of an HTTP/1 connection: a request out, its response in; then, perhaps, the next.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::{BodyEvent, CodecError, Counts, Http1Error, ResponseMeta};
use super::body::{Body, Framing};
use super::buffer::ReadBuffer;
use super::encode::{self, Message};
use super::semantics::Asked;
use super::write::Writer;
use super::{Options, lines, parse, semantics};
use crate::head::{Head, HeaderId};
use crate::net::Io;

/// An upstream connection. Dropping it closes the socket at once.
#[derive(Debug)]
pub struct ClientConn<T = Io> {
    io: T,
    options: Arc<Options>,
    buffer: ReadBuffer,
    scanned: usize,
    body: Body,
    writer: Writer,
    counts: Counts,
    asked: Asked,
    /// The response's final head was read.
    answered: bool,
    keep_alive: bool,
    eof: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> ClientConn<T> {
    /// Speaks HTTP/1 on `io`.
    pub fn new(io: T, options: Arc<Options>) -> ClientConn<T> {
        ClientConn {
            io,
            options,
            buffer: ReadBuffer::default(),
            scanned: 0,
            body: Body::default(),
            writer: Writer::default(),
            counts: Counts::default(),
            asked: Asked::default(),
            answered: true,
            keep_alive: true,
            eof: false,
        }
    }

    /// The byte stream under it.
    pub fn io(&self) -> &T {
        &self.io
    }

    /// The same, to change.
    pub fn io_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// Puts the request's head into the write buffer; it leaves with the first body bytes or with `poll_finish`.
    pub fn send_head(&mut self, head: &Head, end: bool) {
        let connect = head.method() == b"CONNECT";
        let upgrade = !connect && head.contains(HeaderId::Upgrade) && semantics::is_upgrade(head);
        self.asked = Asked { head: head.method() == b"HEAD", connect, upgrade };
        self.answered = false;
        self.keep_alive = true;
        self.counts = Counts::default();
        self.body.begin(Framing::None);
        let message = Message { end, to_head: false, tunnel: connect || upgrade, http10: false };
        let framing = encode::request(self.writer.out(), head, message, &self.options, &mut self.counts);
        self.writer.begin(framing);
    }

    /// As for the server side.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_send_data(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, CodecError>> {
        self.writer.poll_data(cx, &mut self.io, data, end, &mut self.counts)
    }

    /// As for the server side.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_send_raw(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, CodecError>> {
        self.writer.poll_raw(cx, &mut self.io, data, end, &mut self.counts)
    }

    /// Ends the body with trailers; dropped unless `enable_trailers`.
    pub fn send_trailers(&mut self, head: &Head) {
        self.writer.trailers(head, &self.options, &mut self.counts);
    }

    /// Ends the request and flushes it.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        self.writer.poll_finish(cx, &mut self.io, &mut self.counts)
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        self.writer.poll_flush(cx, &mut self.io, &mut self.counts)
    }

    /// Reads the response's head. Interim heads come one by one, marked `informational`: call again.
    ///
    /// # Errors
    /// A verdict on the head, `Closed`, or what the socket says.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
    ) -> Poll<Result<ResponseMeta, CodecError>> {
        loop {
            if let Some(meta) = self.parse_buffered(head).inspect_err(|_| self.keep_alive = false)? {
                return Poll::Ready(Ok(meta));
            }
            if !self.eof {
                let n = ready!(self.buffer.poll_fill(cx, &mut self.io))
                    .inspect_err(|_| self.keep_alive = false)?;
                self.counts.wire_received += n as u64;
                self.eof = n == 0;
            }
            if self.eof {
                self.keep_alive = false;
                // Envoy: half a head is a broken protocol, none at all a connection that ended.
                let cut = if self.buffer.is_empty() { CodecError::Closed } else { Http1Error::Syntax.into() };
                return Poll::Ready(Err(cut));
            }
        }
    }

    fn parse_buffered(&mut self, head: &mut Head) -> Result<Option<ResponseMeta>, Http1Error> {
        let filled = self.buffer.filled();
        let Some(first) = filled.first() else { return Ok(None) };
        if *first != b'H' {
            return Err(Http1Error::Syntax);
        }
        let limit = self.options.max_headers_kb as usize * 1024;
        let Some(end) = lines::head_end(filled, &mut self.scanned) else {
            return if filled.len() > limit { Err(Http1Error::HeadersTooLarge) } else { Ok(None) };
        };
        if end > limit {
            return Err(Http1Error::HeadersTooLarge);
        }
        self.scanned = 0;
        head.clear();
        let parsed = parse::response(&filled[..end], self.options.max_headers_count, head)?;
        self.counts.header_received += parsed.header_bytes;
        let (meta, framing, keep_alive) =
            semantics::response(head, parsed.version, &self.options, self.asked)?;
        self.buffer.consume(end);
        if !meta.informational {
            self.body.begin(framing);
            self.answered = true;
            self.keep_alive &= keep_alive;
        }
        Ok(Some(meta))
    }

    /// Reads on in the body.
    ///
    /// # Errors
    /// A verdict on the framing, `Closed` before the body's end, or what the socket says.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, CodecError>> {
        let polled = self.body.poll(cx, &mut self.io, &mut self.buffer, &self.options, &mut self.counts);
        match polled {
            Poll::Ready(Err(e)) => {
                self.keep_alive = false;
                // A body cut short is a protocol error to Envoy too.
                Poll::Ready(Err(if e == CodecError::Closed { Http1Error::Syntax.into() } else { e }))
            }
            other => other,
        }
    }

    /// Body bytes not yet consumed.
    pub fn data(&self) -> &[u8] {
        self.body.data(&self.buffer)
    }

    /// Whether `data()` is the end of the body, without trailers.
    pub fn data_ends(&self) -> bool {
        self.body.data_ends()
    }

    /// Drops the first `n` bytes of `data()`.
    pub fn consume(&mut self, n: usize) {
        self.body.consume(&mut self.buffer, n);
    }

    /// `data()` as owned bytes, consumed.
    pub fn take_data(&mut self) -> Bytes {
        self.body.take(&mut self.buffer)
    }

    /// The trailers, after `BodyEvent::Trailers`.
    pub fn trailers(&self) -> &Head {
        &self.body.trailers
    }

    /// As for the server side.
    pub fn set_raw_chunked(&mut self, raw: bool) -> bool {
        self.body.set_raw(raw);
        self.body.is_raw()
    }

    /// Whether the current response's body is chunked.
    pub fn is_chunked(&self) -> bool {
        self.body.framing() == Framing::Chunked
    }

    /// Ready when the upstream has gone, or talks out of turn, while it owes us nothing; for a pooled connection at checkout.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<CodecError> {
        if self.eof {
            return Poll::Ready(CodecError::Closed);
        }
        if !self.buffer.is_empty() {
            return Poll::Ready(CodecError::Http1(Http1Error::Syntax));
        }
        match ready!(self.buffer.poll_fill(cx, &mut self.io)) {
            Ok(0) => {
                self.eof = true;
                Poll::Ready(CodecError::Closed)
            }
            Ok(n) => {
                self.counts.wire_received += n as u64;
                Poll::Ready(CodecError::Http1(Http1Error::Syntax))
            }
            Err(e) => Poll::Ready(e.into()),
        }
    }

    /// Whether the connection may carry another request: this one sent whole, answered whole, nobody said close.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive
            && !self.eof
            && self.answered
            && self.body.is_done()
            && self.writer.is_complete()
            && self.buffer.is_empty()
    }

    /// Whether the exchange is over: request sent whole, response read whole, whatever becomes of the connection.
    pub fn is_finished(&self) -> bool {
        self.answered && self.body.is_done() && self.writer.is_complete()
    }

    /// Whether the peer has closed its side.
    pub fn is_peer_closed(&self) -> bool {
        self.eof
    }

    /// The counters of the stream that was begun last.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Shuts the write half down.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
