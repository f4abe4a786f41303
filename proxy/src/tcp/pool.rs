//! Relay buffers, pooled per thread: a direction that has nothing buffered holds none, so idle connections cost no memory.

use std::cell::RefCell;

/// What one read takes at most. Larger ones gained nothing in measurements; tokio's 8 KiB cost twice as much per byte.
pub(super) const SIZE: usize = 32 * 1024;
/// Buffers a thread keeps: 2 MiB.
const KEEP: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn take() -> Box<[u8]> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

pub(super) fn give(buffer: Box<[u8]>) {
    FREE.with_borrow_mut(|free| {
        if free.len() < KEEP && buffer.len() == SIZE {
            free.push(buffer);
        }
    });
}
