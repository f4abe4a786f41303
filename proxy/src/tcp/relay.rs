//! Both directions of a connection and its timers in one future: no select, no second task. Follows `tcp_proxy`'s half-close,
//! `idle_timeout` and `max_downstream_connection_duration`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::pump::{Pump, PumpError, Step};
use crate::net::{Io, Socket};

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides have ended; `upstream_first`: the host closed before the client.
    Closed {
        upstream_first: bool,
    },
    /// A side reset the connection; the reset is passed on.
    DownstreamReset,
    UpstreamReset,
    IdleTimeout,
    MaxDuration,
    /// The periodic work is due; run again.
    Tick,
}

/// The relay's state.
pub(super) struct Relay {
    pub to_upstream: Pump,
    pub to_downstream: Pump,
    upstream_ended: bool,
    downstream_ended: bool,
    upstream_first: bool,
    idle: Option<Timer>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Periodic work: reports and access logs.
    tick: Option<Timer>,
    moved: u64,
}

/// A timer that is re-armed only when it fires early.
struct Timer {
    after: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    fn new(after: Duration) -> Timer {
        Timer { after, last: Instant::now(), sleep: Box::pin(tokio::time::sleep(after)) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            let due = self.last + self.after;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(due);
        }
        Poll::Pending
    }

    fn restart(&mut self) {
        self.last = Instant::now();
        self.sleep.as_mut().reset(self.last + self.after);
    }
}

impl Relay {
    pub(super) fn new(
        to_upstream: Pump,
        to_downstream: Pump,
        idle: Option<Duration>,
        deadline: Option<Instant>,
        tick: Option<Duration>,
    ) -> Relay {
        Relay {
            to_upstream,
            to_downstream,
            upstream_ended: false,
            downstream_ended: false,
            upstream_first: false,
            idle: idle.map(Timer::new),
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            tick: tick.map(Timer::new),
            moved: 0,
        }
    }

    /// Moves bytes until something ends. `on_exchange` is called when a metadata header has been read (or found absent); it
    /// takes `Pump::exchanged`.
    pub(super) async fn run(
        &mut self,
        down: &mut Io,
        up: &mut Io,
        mut on_exchange: impl FnMut(&mut Pump, &mut Pump),
    ) -> End {
        std::future::poll_fn(|cx| self.poll(cx, down, up, &mut on_exchange)).await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Io,
        up: &mut Io,
        on_exchange: &mut impl FnMut(&mut Pump, &mut Pump),
    ) -> Poll<End> {
        if let Some(end) = self.move_up(cx, down, up) {
            return Poll::Ready(end);
        }
        // Before the other way writes: our own header has to go first.
        if self.to_upstream.exchanged.is_some() {
            on_exchange(&mut self.to_upstream, &mut self.to_downstream);
        }
        match self.to_downstream.poll(cx, up, down) {
            Ok(Step::Pending) => {}
            Ok(Step::Ended) => {
                if !self.downstream_ended {
                    self.downstream_ended = true;
                    self.upstream_first = !self.upstream_ended;
                }
            }
            Err(PumpError::Read(e)) => return Poll::Ready(upstream_failed(&e)),
            Err(PumpError::Write(e)) => return Poll::Ready(downstream_failed(&e)),
        }
        if self.to_downstream.exchanged.is_some() {
            on_exchange(&mut self.to_upstream, &mut self.to_downstream);
        }
        if self.upstream_ended && self.downstream_ended {
            return Poll::Ready(End::Closed { upstream_first: self.upstream_first });
        }
        self.poll_timers(cx)
    }

    fn move_up(&mut self, cx: &mut Context<'_>, down: &mut Io, up: &mut Io) -> Option<End> {
        match self.to_upstream.poll(cx, down, up) {
            Ok(Step::Pending) => None,
            Ok(Step::Ended) => {
                self.upstream_ended = true;
                None
            }
            Err(PumpError::Read(e)) => Some(downstream_failed(&e)),
            Err(PumpError::Write(e)) => Some(upstream_failed(&e)),
        }
    }

    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let moved = self.to_upstream.read
            + self.to_downstream.read
            + self.to_upstream.written
            + self.to_downstream.written;
        if let Some(idle) = &mut self.idle {
            if moved != self.moved {
                idle.last = Instant::now();
                self.moved = moved;
            }
            if idle.poll(cx).is_ready() {
                return Poll::Ready(End::IdleTimeout);
            }
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(End::MaxDuration);
        }
        if let Some(tick) = &mut self.tick
            && tick.poll(cx).is_ready()
        {
            tick.restart();
            return Poll::Ready(End::Tick);
        }
        Poll::Pending
    }
}

fn upstream_failed(e: &io::Error) -> End {
    tracing::debug!("upstream connection: {e}");
    End::UpstreamReset
}

fn downstream_failed(e: &io::Error) -> End {
    tracing::debug!("downstream connection: {e}");
    End::DownstreamReset
}

/// Makes the next close of a socket a reset, so that the other side's reset arrives as one.
pub(super) fn reset_on_close(io: &Io) {
    if let Socket::Tcp(tcp) = &io.raw().socket {
        let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
    }
}
