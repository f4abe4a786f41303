//! The downstream side of an HTTP/1 connection: requests in, responses out, one after the other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::{BodyEvent, CodecError, Counts, Http1Error, RequestMeta, Tunnel};
use super::body::{Body, Framing};
use super::buffer::ReadBuffer;
use super::encode::{self, Message};
use super::write::Writer;
use super::{Options, lines, parse, semantics};
use crate::config::hcm::Protocol;
use crate::head::{Head, HeaderId};
use crate::net::Io;

/// A downstream connection. Dropping it closes the socket at once.
#[derive(Debug)]
pub struct ServerConn<T = Io> {
    io: T,
    options: Arc<Options>,
    buffer: ReadBuffer,
    /// Where the search for the head's end goes on.
    scanned: usize,
    body: Body,
    writer: Writer,
    counts: Counts,
    /// Of the current request.
    to_head: bool,
    http10: bool,
    tunnel: Tunnel,
    keep_alive: bool,
    /// A response's final head was sent.
    responded: bool,
    /// The peer closed its half.
    eof: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> ServerConn<T> {
    /// Serves HTTP/1 on `io`.
    pub fn new(io: T, options: Arc<Options>) -> ServerConn<T> {
        ServerConn {
            io,
            options,
            buffer: ReadBuffer::default(),
            scanned: 0,
            body: Body::default(),
            writer: Writer::default(),
            counts: Counts::default(),
            to_head: false,
            http10: false,
            tunnel: Tunnel::No,
            keep_alive: true,
            responded: false,
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

    /// Whether bytes of a next request stand in the buffer: the time to start its clock.
    pub fn has_buffered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Waits for the first byte of a next request; `false`: the peer closed between requests.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_first_byte(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, CodecError>> {
        self.begin_message();
        if self.buffer.is_empty() && !self.eof {
            let n = ready!(self.buffer.poll_fill(cx, &mut self.io))?;
            self.counts.wire_received += n as u64;
            self.eof = n == 0;
        }
        Poll::Ready(Ok(!self.buffer.is_empty()))
    }

    /// Reads the next request's head; `None`: the peer closed between requests. Only after the former exchange is through
    /// (`is_reusable`).
    ///
    /// # Errors
    /// A verdict on the head, `Closed` in the middle of one, or what the socket says. After a verdict the connection can
    /// still send a response (`send_head` and on), then it must close.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
    ) -> Poll<Result<Option<RequestMeta>, CodecError>> {
        self.begin_message();
        loop {
            match self.parse_buffered(head) {
                Ok(Some(meta)) => return Poll::Ready(Ok(Some(meta))),
                Ok(None) => {}
                Err(e) => {
                    // Envoy's log has nothing of a head that it could not read.
                    head.clear();
                    self.fail();
                    return Poll::Ready(Err(e.into()));
                }
            }
            if !self.eof {
                let n = ready!(self.buffer.poll_fill(cx, &mut self.io))?;
                self.counts.wire_received += n as u64;
                self.eof = n == 0;
            }
            if self.eof {
                let clean = self.buffer.is_empty();
                return Poll::Ready(if clean { Ok(None) } else { Err(CodecError::Closed) });
            }
        }
    }

    /// Begins the counters anew behind a response. Bytes that are here already count for the new stream too, as in Envoy.
    fn begin_message(&mut self) {
        if std::mem::take(&mut self.responded) {
            self.counts = Counts { wire_received: self.buffer.filled().len() as u64, ..Counts::default() };
        }
    }

    /// Makes the connection fit to answer what could not be read.
    fn fail(&mut self) {
        self.keep_alive = false;
        self.responded = false;
        self.to_head = false;
        self.http10 = false;
        self.tunnel = Tunnel::No;
        self.body.begin(Framing::None);
    }

    fn parse_buffered(&mut self, head: &mut Head) -> Result<Option<RequestMeta>, Http1Error> {
        // Line ends before a request line are skipped, as robust servers do.
        let blank = self.buffer.filled().iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        if blank > 0 && self.scanned == 0 {
            self.buffer.consume(blank);
        }
        let filled = self.buffer.filled();
        let Some(first) = filled.first() else { return Ok(None) };
        if !parse::may_begin_request(*first, &self.options.http1) {
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
        let options = &self.options;
        let parsed = parse::request(&filled[..end], &options.http1, options.max_headers_count, head)?;
        let judged = semantics::request(head, parsed.version, options);
        // Envoy's parser refuses a malformed length before its meter has seen a field.
        if !matches!(judged, Err(Http1Error::Syntax)) {
            self.counts.header_received += parsed.header_bytes;
        }
        let (meta, framing) = judged?;
        self.buffer.consume(end);
        self.body.begin(framing);
        self.to_head = head.method() == b"HEAD";
        self.http10 = meta.protocol == Protocol::Http10;
        self.tunnel = meta.tunnel;
        self.keep_alive = meta.keep_alive;
        self.responded = false;
        Ok(Some(meta))
    }

    /// Reads on in the body.
    ///
    /// # Errors
    /// A verdict on the framing, `Closed` before the body's end, or what the socket says.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, CodecError>> {
        self.flush_interim(cx)?;
        let polled = self.body.poll(cx, &mut self.io, &mut self.buffer, &self.options, &mut self.counts);
        if let Poll::Ready(Err(_)) = polled {
            self.keep_alive = false;
        }
        polled
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

    /// Asks for a chunked body still framed; call it between head and body. Tells whether it will be so: then `data()` goes
    /// to the other side's `poll_send_raw`.
    pub fn set_raw_chunked(&mut self, raw: bool) -> bool {
        self.body.set_raw(raw);
        self.body.is_raw()
    }

    /// Whether the request was read to its end.
    pub fn request_done(&self) -> bool {
        self.body.is_done()
    }

    /// Whether the current request's body is chunked.
    pub fn is_chunked(&self) -> bool {
        self.body.framing() == Framing::Chunked
    }

    /// Puts an interim response (`100 Continue`, `103 Early Hints`) into the write buffer; waiting for the
    /// request's body or for the client's end sends it.
    pub fn send_informational(&mut self, head: &Head) {
        let message = Message { end: true, to_head: true, tunnel: false, http10: false };
        encode::response(self.writer.out(), head, message, &self.options, &mut self.counts);
    }

    /// An interim response must not wait for the final one: the client may wait for it with its body.
    fn flush_interim(&mut self, cx: &mut Context<'_>) -> Result<(), CodecError> {
        if self.responded || self.writer.is_flushed() {
            return Ok(());
        }
        match self.writer.poll_flush(cx, &mut self.io, &mut self.counts) {
            Poll::Ready(Err(e)) => Err(e),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Puts the response's head into the write buffer; it leaves with the first body bytes or with `poll_finish`. A head
    /// that says `connection: close` closes the connection afterwards.
    pub fn send_head(&mut self, head: &Head, end: bool) {
        let status = head.status().unwrap_or(500);
        let tunnel = match self.tunnel {
            Tunnel::No => false,
            Tunnel::Upgrade => status == 101,
            Tunnel::Connect => (200..300).contains(&status),
        };
        let message = Message { end, to_head: self.to_head, tunnel, http10: self.http10 };
        let framing = encode::response(self.writer.out(), head, message, &self.options, &mut self.counts);
        self.writer.begin(framing);
        self.responded = true;
        let closes = head
            .get(HeaderId::Connection)
            .is_some_and(|v| semantics::tokens(v).any(|t| t.eq_ignore_ascii_case(b"close")));
        self.keep_alive &= !closes && !self.writer.is_until_close();
    }

    /// Sends body bytes, with whatever is buffered before them in the same write; `end` when they are the last ones. Returns
    /// how many were taken, all of a body that may not be sent (HEAD). After `Pending`, come back with the same bytes.
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

    /// Sends bytes that are chunks already, to a message whose framing is chunked.
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

    /// Whether the response is framed in chunks.
    pub fn takes_raw(&self) -> bool {
        self.writer.is_chunked()
    }

    /// Tells the counters how many payload bytes `poll_send_raw` has carried so far.
    pub fn sent_raw(&mut self, payload: u64) {
        self.counts.body_sent = payload;
    }

    /// Ends the body with trailers; dropped unless `enable_trailers`.
    pub fn send_trailers(&mut self, head: &Head) {
        self.writer.trailers(head, &self.options, &mut self.counts);
    }

    /// Ends the response and flushes it.
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

    /// Ready when the peer has gone, while we only wait (for the upstream). Bytes that come are kept for `poll_body` or the
    /// next head; when some are held it does not look further.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<CodecError> {
        if self.eof {
            return Poll::Ready(CodecError::Closed);
        }
        if let Err(e) = self.flush_interim(cx) {
            return Poll::Ready(e);
        }
        if !self.buffer.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.buffer.poll_fill(cx, &mut self.io)) {
            Ok(0) => {
                self.eof = true;
                Poll::Ready(CodecError::Closed)
            }
            Ok(n) => {
                self.counts.wire_received += n as u64;
                Poll::Pending
            }
            Err(e) => Poll::Ready(e.into()),
        }
    }

    /// Whether the connection may carry another request: request read whole, response written whole, nobody said close.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive && self.body.is_done() && self.responded && self.writer.is_complete()
    }

    /// Whether both sides let the connection live on (so far).
    pub fn keeps_alive(&self) -> bool {
        self.keep_alive
    }

    /// Closes the connection after the current response.
    pub fn set_close(&mut self) {
        self.keep_alive = false;
    }

    /// The counters of the stream that is served or was served last.
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

    /// Reads and drops what still comes; ready when the peer has closed. For the delayed close.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let n = self.buffer.filled().len();
            self.buffer.consume(n);
            match ready!(self.buffer.poll_fill(cx, &mut self.io)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }
}
