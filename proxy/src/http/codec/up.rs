//! The upstream side of an exchange, whichever protocol it speaks.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use super::{BodyEvent, CodecError, Counts, ResetReason, ResponseMeta, h1, h2};
use crate::head::Head;

/// An upstream message pair: the pooled HTTP/1 connection itself, or one HTTP/2 stream, whose request head
/// `h2::ClientHandle::open_stream` has sent.
pub enum UpStream {
    H1(Box<h1::ClientConn>),
    H2(Box<h2::ClientStream>),
}

macro_rules! dispatch {
    ($self:ident, $s:ident => $call:expr) => {
        match $self {
            UpStream::H1($s) => $call,
            UpStream::H2($s) => $call,
        }
    };
}

impl UpStream {
    /// Sends the request's head on HTTP/1; it leaves with the first body bytes or `poll_finish`. On HTTP/2 opening the
    /// stream has sent it, and this does nothing.
    pub fn send_head(&mut self, head: &Head, end: bool) {
        if let UpStream::H1(s) = self {
            s.send_head(head, end);
        }
    }

    /// Reads the response's head; interim heads come one by one.
    ///
    /// # Errors
    /// What the codec says.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
    ) -> Poll<Result<ResponseMeta, CodecError>> {
        dispatch!(self, s => s.poll_head(cx, head))
    }

    /// Reads on in the response's body.
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

    /// Asks for a chunked body still framed, for `DownStream::poll_send_raw`; tells whether it will be so.
    pub fn set_raw_chunked(&mut self, raw: bool) -> bool {
        match self {
            UpStream::H1(s) => s.set_raw_chunked(raw),
            UpStream::H2(_) => false,
        }
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
            UpStream::H2(s) => s.poll_send_bytes(cx, data, end),
            UpStream::H1(s) => loop {
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
            UpStream::H1(s) => s.poll_send_raw(cx, data, end),
            UpStream::H2(_) => Poll::Ready(Err(CodecError::Reset(ResetReason::LocalReset))),
        }
    }

    /// Ends the body with trailers.
    pub fn send_trailers(&mut self, head: &Head) {
        dispatch!(self, s => s.send_trailers(head));
    }

    /// Ends the request and flushes it.
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
            UpStream::H1(s) => s.poll_flush(cx),
            UpStream::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Resets an HTTP/2 stream; an HTTP/1 connection the owner drops.
    pub fn reset(&mut self, reason: ResetReason) {
        if let UpStream::H2(s) = self {
            s.reset(reason);
        }
    }

    /// Whether the HTTP/1 connection may be pooled again; an HTTP/2 stream never is.
    pub fn is_reusable(&self) -> bool {
        match self {
            UpStream::H1(s) => s.is_reusable(),
            UpStream::H2(_) => false,
        }
    }

    /// The stream's counters so far.
    pub fn counts(&self) -> Counts {
        dispatch!(self, s => s.counts())
    }

    /// Whether it is HTTP/1.
    pub fn is_h1(&self) -> bool {
        matches!(self, UpStream::H1(_))
    }
}
