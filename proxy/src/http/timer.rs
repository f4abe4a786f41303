//! One timer a connection, set again only when it fires too early: most requests end long before their deadline, so most
//! of them never touch the runtime's timer wheel.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep};

/// The timer.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether the sleep has this task's waker.
    armed: bool,
}

impl Timer {
    /// Whether `deadline` has passed; if not, the task is woken then, or earlier.
    pub fn poll_reached(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        let sleep = match &mut self.sleep {
            None => {
                self.armed = false;
                self.sleep.insert(Box::pin(tokio::time::sleep_until(deadline)))
            }
            Some(s) => {
                // A sleep that ends before the deadline stays: it wakes the task once too often at most.
                if s.deadline() > deadline {
                    s.as_mut().reset(deadline);
                    self.armed = false;
                }
                s
            }
        };
        if self.armed && !sleep.is_elapsed() {
            return false;
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return true;
            }
            sleep.as_mut().reset(deadline);
        }
        self.armed = true;
        false
    }

    /// Forgets that the task is registered: a new task, or a new poll loop with another waker, must call it.
    pub fn rearm(&mut self) {
        self.armed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_later_deadline_reuses_the_sleep_and_an_earlier_one_moves_it() {
        let mut t = Timer::default();
        let start = Instant::now();
        for ms in [100u64, 50, 400] {
            t.rearm();
            let deadline = Instant::now() + Duration::from_millis(ms);
            std::future::poll_fn(
                |cx| if t.poll_reached(cx, deadline) { Poll::Ready(()) } else { Poll::Pending },
            )
            .await;
            assert!(Instant::now() >= deadline);
        }
        assert!(start.elapsed() >= Duration::from_millis(550));
    }
}
