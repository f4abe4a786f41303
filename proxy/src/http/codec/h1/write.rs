//! Writes a message: what is encoded waits in a small buffer and leaves with the first body bytes in one writev.

use std::cell::RefCell;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::super::{CodecError, Counts};
use super::Options;
use super::body::Framing;
use super::encode;
use crate::head::Head;

/// Encoded bytes beyond which a buffer is not kept for later.
const KEEP_CAPACITY: usize = 16 * 1024;
/// Buffers that a thread keeps.
const KEEP: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// One message on its way out.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Encoded and not yet written: `out[at..]`. Without capacity when idle.
    out: Vec<u8>,
    at: usize,
    framing: Framing,
    /// Bytes of the announced chunk still to come from the caller.
    chunk_left: u64,
    /// The terminating chunk is in `out`, or none is needed.
    terminated: bool,
}

impl Writer {
    /// The buffer to encode a head into.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(2048));
        }
        &mut self.out
    }

    /// Starts a body, the head being in `out`.
    pub(super) fn begin(&mut self, framing: Framing) {
        self.framing = framing;
        self.chunk_left = 0;
        self.terminated = framing != Framing::Chunked;
    }

    /// Whether what was declared is also what was sent, as far as `finish` got.
    pub(super) fn is_complete(&self) -> bool {
        self.terminated
            && self.chunk_left == 0
            && !matches!(self.framing, Framing::Length(1..))
            && self.is_flushed()
    }

    /// Whether the message's end is told by closing the connection.
    pub(super) fn is_until_close(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Whether the body goes in chunks.
    pub(super) fn is_chunked(&self) -> bool {
        self.framing == Framing::Chunked
    }

    /// Whether nothing waits here.
    pub(super) fn is_flushed(&self) -> bool {
        self.at == self.out.len()
    }

    fn wrote(&mut self, n: usize) {
        self.at += n;
        if self.at >= self.out.len() {
            self.at = 0;
            let mut out = std::mem::take(&mut self.out);
            if out.capacity() > 0 && out.capacity() <= KEEP_CAPACITY {
                out.clear();
                POOL.with_borrow_mut(|p| {
                    if p.len() < KEEP {
                        p.push(out);
                    }
                });
            }
        }
    }

    /// Writes body bytes; `end` when they are the last ones. Returns how many were taken. After `Pending` the caller comes
    /// back with the same bytes.
    pub(super) fn poll_data<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        data: &[u8],
        end: bool,
        counts: &mut Counts,
    ) -> Poll<Result<usize, CodecError>> {
        let (data, surplus) = match self.framing {
            // A response to HEAD, and the like: the body is dropped.
            Framing::None => (&data[..0], data.len()),
            Framing::Length(left) => {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
                (&data[..n], data.len() - n)
            }
            Framing::Chunked | Framing::UntilClose => (data, 0),
        };
        if data.is_empty() {
            if end {
                ready!(self.poll_finish(cx, io, counts))?;
            }
            return Poll::Ready(Ok(surplus));
        }
        if self.framing == Framing::Chunked && self.chunk_left == 0 {
            self.chunk_left = data.len() as u64;
            let len = data.len();
            size_line(self.out(), len);
        }
        let chunked = self.framing == Framing::Chunked;
        let take = if chunked { data.len().min(self.chunk_left as usize) } else { data.len() };
        let closes = chunked && take as u64 == self.chunk_left;
        let tail: &[u8] = match (closes, end && take == data.len()) {
            (false, _) => b"",
            (true, false) => b"\r\n",
            (true, true) => b"\r\n0\r\n\r\n",
        };
        let n = self.poll_three(cx, io, &data[..take], tail, counts);
        let n = ready!(n)?;
        counts.body_sent += n as u64;
        match &mut self.framing {
            Framing::Length(left) => *left -= n as u64,
            Framing::Chunked => {
                self.chunk_left -= n as u64;
                self.terminated = closes && n == take && tail.len() > 2;
            }
            Framing::None | Framing::UntilClose => {}
        }
        Poll::Ready(Ok(if n == take { n + surplus } else { n }))
    }

    /// Writes `out`, then `data`, then `tail`, until some of `data` is taken. A part of `tail` that finds no room waits in
    /// `out`.
    fn poll_three<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        data: &[u8],
        tail: &[u8],
        counts: &mut Counts,
    ) -> Poll<Result<usize, CodecError>> {
        loop {
            let waiting = self.out.len() - self.at;
            let n = if waiting == 0 && tail.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, data))?
            } else {
                let parts = [IoSlice::new(&self.out[self.at..]), IoSlice::new(data), IoSlice::new(tail)];
                let parts = if waiting == 0 { &parts[1..] } else { &parts[..] };
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, parts))?
            };
            if n == 0 {
                return Poll::Ready(Err(CodecError::Closed));
            }
            counts.wire_sent += n as u64;
            if n < waiting {
                self.wrote(n);
                continue;
            }
            self.wrote(waiting);
            let n = n - waiting;
            if n == 0 {
                continue;
            }
            if n >= data.len() {
                let unsent = &tail[n - data.len()..];
                if !unsent.is_empty() {
                    self.out().extend_from_slice(unsent);
                }
            }
            return Poll::Ready(Ok(n.min(data.len())));
        }
    }

    /// Passes on bytes that are chunks already; `end` adds the last chunk.
    pub(super) fn poll_raw<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        data: &[u8],
        end: bool,
        counts: &mut Counts,
    ) -> Poll<Result<usize, CodecError>> {
        if data.is_empty() {
            if end {
                ready!(self.poll_finish(cx, io, counts))?;
            }
            return Poll::Ready(Ok(0));
        }
        if self.framing == Framing::None {
            return Poll::Ready(Ok(data.len()));
        }
        let tail: &[u8] = if end && self.framing == Framing::Chunked { b"0\r\n\r\n" } else { b"" };
        let n = ready!(self.poll_three(cx, io, data, tail, counts))?;
        self.terminated |= end && n == data.len();
        Poll::Ready(Ok(n))
    }

    /// Ends the body with trailers (dropped unless chunked and enabled).
    pub(super) fn trailers(&mut self, head: &Head, options: &Options, counts: &mut Counts) {
        if self.framing == Framing::Chunked && !self.terminated && options.http1.enable_trailers {
            self.terminated = true;
            self.out().extend_from_slice(b"0\r\n");
            encode::trailers(self.out(), head, options, counts);
        }
    }

    /// Ends the body and flushes.
    pub(super) fn poll_finish<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        counts: &mut Counts,
    ) -> Poll<Result<(), CodecError>> {
        if !self.terminated && self.chunk_left == 0 {
            self.terminated = true;
            self.out().extend_from_slice(b"0\r\n\r\n");
        }
        self.poll_flush(cx, io, counts)
    }

    pub(super) fn poll_flush<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        counts: &mut Counts,
    ) -> Poll<Result<(), CodecError>> {
        while !self.is_flushed() {
            let n = ready!(Pin::new(&mut *io).poll_write(cx, &self.out[self.at..]))?;
            if n == 0 {
                return Poll::Ready(Err(CodecError::Closed));
            }
            counts.wire_sent += n as u64;
            self.wrote(n);
        }
        ready!(Pin::new(io).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }
}

fn size_line(out: &mut Vec<u8>, n: usize) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut left = n;
    while left > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}
