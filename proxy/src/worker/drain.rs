//! The drain signal as connections see it. A connection registers its task's waker once; a check is a look at a flag.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A worker's side: the flag and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Drains {
    begun: Cell<bool>,
    waiting: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

impl Drains {
    pub(super) fn begun(&self) -> bool {
        self.begun.get()
    }

    /// Draining begins: everybody is woken.
    pub(super) fn begin(&self) {
        self.begun.set(true);
        for w in self.waiting.borrow_mut().iter_mut().filter_map(Option::take) {
            w.wake();
        }
    }
}

/// One connection's side. Belongs to the task that first polls it.
#[derive(Debug)]
pub struct Signal {
    drains: Rc<Drains>,
    slot: Option<usize>,
}

impl Signal {
    pub(super) fn new(drains: &Rc<Drains>) -> Signal {
        Signal { drains: drains.clone(), slot: None }
    }

    /// Ready once draining has begun.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.drains.begun.get() {
            return Poll::Ready(());
        }
        if self.slot.is_none() {
            let mut waiting = self.drains.waiting.borrow_mut();
            let slot = self.drains.free.borrow_mut().pop().unwrap_or_else(|| {
                waiting.push(None);
                waiting.len() - 1
            });
            waiting[slot] = Some(cx.waker().clone());
            self.slot = Some(slot);
        }
        Poll::Pending
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.drains.waiting.borrow_mut()[slot] = None;
            self.drains.free.borrow_mut().push(slot);
        }
    }
}
