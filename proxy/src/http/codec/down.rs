//! The downstream side of an exchange, whichever protocol it speaks.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use super::{BodyEvent, CodecError, Counts, ResetReason, h1, h2};
use crate::head::Head;

/// A downstream message pair: an HTTP/1 connection (one exchange after the other) or one HTTP/2 stream.
pub enum DownStream {
    H1(Box<h1::ServerConn>),
    H2(Box<h2::ServerStream>),
}

macro_rules! dispatch {
    ($self:ident, $s:ident => $call:expr) => {
        match $self {
            DownStream::H1($s) => $call,
            DownStream::H2($s) => $call,
        }
    };
}

impl DownStream {
    /// Reads on in the request's body.
    ///
    /// # Errors
    /// What the codec says.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, CodecError>> {
        dispatch!(self, s => s.poll_body(cx))
    }

    /// Body bytes not yet consumed.
    pub fn data(&self) -> &[u8] {
        dispatch!(self, s => s.data())
    }

    /// Whether `data()` is the end of the body, without trailers.
    pub fn data_ends(&self) -> bool {
        dispatch!(self, s => s.data_ends())
    }

    /// Drops the first `n` bytes of `data()`.
    pub fn consume(&mut self, n: usize) {
        dispatch!(self, s => s.consume(n));
    }

    /// `data()` as owned bytes, consumed; without a copy on HTTP/2.
    pub fn take_data(&mut self) -> Bytes {
        dispatch!(self, s => s.take_data())
    }

    /// The trailers, after `BodyEvent::Trailers`.
    pub fn trailers(&self) -> &Head {
        dispatch!(self, s => s.trailers())
    }

    /// Whether the request was read to its end.
    pub fn request_done(&self) -> bool {
        dispatch!(self, s => s.request_done())
    }

    /// Asks for a chunked body still framed, for `UpStream::poll_send_raw`; tells whether it will be so.
    pub fn set_raw_chunked(&mut self, raw: bool) -> bool {
        match self {
            DownStream::H1(s) => s.set_raw_chunked(raw),
            DownStream::H2(_) => false,
        }
    }

    /// Sends an interim response (flush it on HTTP/1).
    pub fn send_informational(&mut self, head: &Head) {
        dispatch!(self, s => s.send_informational(head));
    }

    /// Sends the response's head; on HTTP/1 it leaves with the first body bytes or `poll_finish`.
    pub fn send_head(&mut self, head: &Head, end: bool) {
        dispatch!(self, s => s.send_head(head, end));
    }

    /// Sends body bytes; `end` with the last ones. Returns how many were taken. After `Pending`, the same bytes again.
    ///
    /// # Errors
    /// What the codec says.
    pub fn poll_send_data(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, CodecError>> {
        dispatch!(self, s => s.poll_send_data(cx, data, end))
    }

    /// Sends owned body bytes, on HTTP/2 without a copy; ready when all were taken.
    ///
    /// # Errors
    /// What the codec says.
    pub fn poll_send_bytes(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
        end: bool,
    ) -> Poll<Result<(), CodecError>> {
        match self {
            DownStream::H2(s) => s.poll_send_bytes(cx, data, end),
            DownStream::H1(s) => loop {
                let n = ready!(s.poll_send_data(cx, data, end))?;
                data.advance(n);
                if data.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            },
        }
    }

    /// Sends chunks as they came from a raw chunked body. HTTP/1 only: ask `is_h1`.
    ///
    /// # Errors
    /// What the codec says.
    pub fn poll_send_raw(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, CodecError>> {
        match self {
            DownStream::H1(s) => s.poll_send_raw(cx, data, end),
            DownStream::H2(_) => Poll::Ready(Err(CodecError::Reset(ResetReason::LocalReset))),
        }
    }

    /// Whether the response, whose head was sent, is framed in chunks, so that `poll_send_raw` may be used.
    pub fn takes_raw(&self) -> bool {
        match self {
            DownStream::H1(s) => s.takes_raw(),
            DownStream::H2(_) => false,
        }
    }

    /// Tells the counters how many payload bytes `poll_send_raw` has carried so far.
    pub fn sent_raw(&mut self, payload: u64) {
        if let DownStream::H1(s) = self {
            s.sent_raw(payload);
        }
    }

    /// Ends the body with trailers.
    pub fn send_trailers(&mut self, head: &Head) {
        dispatch!(self, s => s.send_trailers(head));
    }

    /// Ends the response and flushes it.
    ///
    /// # Errors
    /// What the codec says.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        dispatch!(self, s => s.poll_finish(cx))
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// What the codec says.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        match self {
            DownStream::H1(s) => s.poll_flush(cx),
            DownStream::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the client has gone or reset the stream.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<CodecError> {
        dispatch!(self, s => s.poll_closed(cx))
    }

    /// Resets an HTTP/2 stream; an HTTP/1 connection is closed after what was written.
    pub fn reset(&mut self, reason: ResetReason) {
        match self {
            DownStream::H1(s) => s.set_close(),
            DownStream::H2(s) => s.reset(reason),
        }
    }

    /// The stream's counters so far.
    pub fn counts(&self) -> Counts {
        dispatch!(self, s => s.counts())
    }

    /// Whether it is HTTP/1.
    pub fn is_h1(&self) -> bool {
        matches!(self, DownStream::H1(_))
    }
}
