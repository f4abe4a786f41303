//! A connection's read buffer: 32 KiB from a per-thread pool, taken when bytes may come and given back when none are held.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Size of a pooled buffer, bytes: a 16 KiB body with its head in one read.
pub(super) const SIZE: usize = 32 * 1024;
/// Buffers that a thread keeps for later.
const KEEP: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take() -> Box<[u8]> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

fn give(buffer: Box<[u8]>) {
    // A grown one (a head larger than the pool's size) is not worth keeping.
    if buffer.len() == SIZE {
        POOL.with_borrow_mut(|p| {
            if p.len() < KEEP {
                p.push(buffer);
            }
        });
    }
}

/// Bytes read and not yet consumed.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    /// Empty when no buffer is held.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReadBuffer {
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `n` bytes. `n` is at most what is filled.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Gives the buffer back when it holds nothing.
    pub(super) fn release_if_empty(&mut self) {
        if self.is_empty() && !self.bytes.is_empty() {
            give(std::mem::take(&mut self.bytes));
        }
    }

    /// Reads once behind what is filled; `Ok(0)` is the end of the stream. Grows when full.
    pub(super) fn poll_fill<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut target = ReadBuf::new(&mut self.bytes[self.end..]);
        let polled = Pin::new(io).poll_read(cx, &mut target);
        let n = target.filled().len();
        if polled.is_pending() {
            self.release_if_empty();
        }
        ready!(polled)?;
        self.end += n;
        if n == 0 {
            self.release_if_empty();
        }
        Poll::Ready(Ok(n))
    }

    fn make_room(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = take();
            (self.start, self.end) = (0, 0);
            return;
        }
        if self.end < self.bytes.len() {
            return;
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            return;
        }
        let mut larger = vec![0; self.bytes.len() * 2].into_boxed_slice();
        larger[..self.end].copy_from_slice(&self.bytes[..self.end]);
        give(std::mem::replace(&mut self.bytes, larger));
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            give(std::mem::take(&mut self.bytes));
        }
    }
}
