//! Idle connections: closed after `idle_timeout`, and as soon as the other side closes them.
//!
//! A busy pool gives and takes thousands of times a second, so a connection that becomes idle wakes nobody: the pool's one
//! task looks after a pause what is still idle then, and only those connections get a waker.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::Pool;

/// How long a connection is idle before the task looks at it.
const PAUSE: Duration = Duration::from_millis(20);

/// The pool's task, which lives while there is something idle.
#[derive(Default)]
pub(super) struct Reaper {
    running: Cell<bool>,
    /// Set while the task waits for a close or a timeout.
    parked: RefCell<Option<Waker>>,
}

impl Reaper {
    /// Something became idle.
    pub(super) fn watch(&self, pool: &Rc<Pool>) {
        if !self.running.replace(true) {
            tokio::task::spawn_local(run(Rc::downgrade(pool)));
        } else if let Some(waker) = self.parked.borrow_mut().take() {
            waker.wake();
        }
    }
}

async fn run(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(deadline) = pool.upgrade().and_then(|p| p.expire(Instant::now())) else { break };
        let mut timer = Box::pin(tokio::time::sleep_until(deadline));
        let mut first = true;
        poll_fn(|cx| {
            let Some(pool) = pool.upgrade() else { return Poll::Ready(()) };
            let woken = !first && pool.reaper.parked.borrow().is_none();
            first = false;
            let closed = pool.drop_closed(cx);
            if woken || closed || timer.as_mut().poll(cx).is_ready() {
                pool.reaper.parked.borrow_mut().take();
                return Poll::Ready(());
            }
            *pool.reaper.parked.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
    if let Some(pool) = pool.upgrade() {
        pool.reaper.running.set(false);
    }
}

impl Pool {
    /// Closes what has been idle too long. Returns when to look again; `None`: nothing is idle.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let info = &self.core.shared.info;
        let t = &self.core.stats.traffic;
        let timeout = info.http.idle_timeout.filter(|t| !t.is_zero());
        let far = now + Duration::from_secs(3600);
        let mut next: Option<Instant> = None;
        let mut keep = |conn: &super::Conn| {
            let deadline = timeout.map_or(far, |t| conn.idle_since.get() + t);
            if deadline <= now {
                t.upstream_cx_idle_timeout.inc();
                return false;
            }
            if conn.is_too_old(now) {
                t.upstream_cx_max_duration_reached.inc();
                return false;
            }
            let oldest = info.http.max_connection_duration.map_or(deadline, |max| conn.begin + max);
            let deadline = deadline.min(oldest);
            next = Some(next.map_or(deadline, |n| n.min(deadline)));
            true
        };
        self.idle.borrow_mut().retain(|i| keep(&i.conn));
        self.shared.borrow_mut().retain(|s| {
            let kept = s.conn.active.get() > 0 || keep(&s.conn);
            if !kept {
                s.conn.draining.set(true);
                s.handle.drain();
            }
            kept
        });
        next
    }

    /// Drops idle HTTP/1 connections that the other side has closed, and listens to the rest.
    fn drop_closed(&self, cx: &mut Context<'_>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain_mut(|i| {
            let open = i.stream.poll_closed(cx).is_pending();
            if !open {
                i.conn.remote.set(true);
            }
            open
        });
        idle.len() < before
    }
}
