//! A transport that gathers what the h2 crate writes during one poll of its connection, and reads in large pieces.
//!
//! h2 flushes after every DATA frame, which is one write each. Here flushing does nothing; whoever polls the connection calls
//! `Cork::poll_drain` afterwards.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one read: h2 itself asks for 8 KiB at most.
const READ: usize = 32 * 1024;
/// Waiting bytes at which a write goes to the socket at once.
const HIGH: usize = 256 * 1024;
/// Capacity kept for the next poll.
const KEEP: usize = 64 * 1024;

thread_local! {
    /// Bytes are only in it during a poll unless they did not fit h2's buffer; then the connection keeps it.
    static READ_POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Inner<T> {
    io: T,
    out: Vec<u8>,
    at: usize,
    input: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    received: u64,
    sent: u64,
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.out.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.at..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.at += n;
            self.sent += n as u64;
        }
        self.at = 0;
        if self.out.capacity() > KEEP {
            self.out = Vec::new();
        } else {
            self.out.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn make_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() - self.at >= HIGH {
            ready!(self.poll_write_out(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// The handle for whoever polls the connection.
#[derive(Debug)]
pub(super) struct Cork<T>(Rc<RefCell<Inner<T>>>);

/// The half that h2 owns.
#[derive(Debug)]
pub(super) struct Corked<T>(Rc<RefCell<Inner<T>>>);

/// Wraps a transport.
pub(super) fn cork<T>(io: T) -> (Cork<T>, Corked<T>) {
    let inner = Inner { io, out: Vec::new(), at: 0, input: None, start: 0, end: 0, received: 0, sent: 0 };
    let inner = Rc::new(RefCell::new(inner));
    (Cork(inner.clone()), Corked(inner))
}

impl<T: AsyncWrite + Unpin> Cork<T> {
    /// Writes what was gathered, then flushes the transport.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if inner.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(inner.poll_write_out(cx))?;
        Pin::new(&mut inner.io).poll_flush(cx)
    }

    /// Bytes received and sent on the connection so far.
    pub(super) fn wire_bytes(&self) -> (u64, u64) {
        let inner = self.0.borrow();
        (inner.received, inner.sent)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Corked<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        if inner.start == inner.end {
            let mut input = inner.input.take().unwrap_or_else(|| {
                READ_POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ].into_boxed_slice())
            });
            let mut target = ReadBuf::new(&mut input);
            let polled = Pin::new(&mut inner.io).poll_read(cx, &mut target);
            let n = target.filled().len();
            if n == 0 || polled.is_pending() {
                give(input);
                return polled;
            }
            (inner.start, inner.end) = (0, n);
            inner.received += n as u64;
            inner.input = Some(input);
        }
        if let Some(input) = inner.input.take() {
            let n = buf.remaining().min(inner.end - inner.start);
            buf.put_slice(&input[inner.start..inner.start + n]);
            inner.start += n;
            if inner.start == inner.end {
                give(input);
            } else {
                inner.input = Some(input);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn give(buffer: Box<[u8]>) {
    READ_POOL.with_borrow_mut(|p| {
        if p.len() < 16 {
            p.push(buffer);
        }
    });
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.make_room(cx))?;
        inner.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.make_room(cx))?;
        for part in parts {
            inner.out.extend_from_slice(part);
        }
        Poll::Ready(Ok(parts.iter().map(|p| p.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_write_out(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}
