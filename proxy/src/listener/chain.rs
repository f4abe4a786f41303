//! A filter chain as a worker runs it: the current configuration under a stable handle, and the word that it is time to go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::shared::Draining;
use crate::config::filter::{NetworkFilter, TcpProxy};
use crate::config::hcm::Hcm;
use crate::config::listener::{Direction, FilterChain};

/// One chain of one listener on one worker. Live connections hold it, so an update reaches them: they read the new
/// configuration at their next request, and drain only when the chain is gone.
#[derive(Debug)]
pub struct ActiveChain {
    current: RefCell<Arc<FilterChain>>,
    life: Cell<Life>,
    changed: Notify,
    direction: Direction,
    draining: watch::Receiver<Draining>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Serving,
    /// The chain is gone from the configuration: connections end at their next opportunity.
    Gone,
    /// The drain time is over: connections are closed.
    Closing,
}

impl ActiveChain {
    pub(super) fn new(
        chain: Arc<FilterChain>,
        direction: Direction,
        draining: watch::Receiver<Draining>,
    ) -> Rc<Self> {
        Rc::new(ActiveChain {
            current: RefCell::new(chain),
            life: Cell::new(Life::Serving),
            changed: Notify::new(),
            direction,
            draining,
        })
    }

    /// The chain's configuration as it is now.
    pub fn config(&self) -> Arc<FilterChain> {
        self.current.borrow().clone()
    }

    /// The connection manager the chain ends in now; `None`: it ends in something else by now.
    pub fn hcm(&self) -> Option<Arc<Hcm>> {
        match self.current.borrow().filters.last() {
            Some(NetworkFilter::Hcm(h)) => Some(h.clone()),
            _ => None,
        }
    }

    /// The TCP proxy the chain ends in now.
    pub fn tcp_proxy(&self) -> Option<Arc<TcpProxy>> {
        match self.current.borrow().filters.last() {
            Some(NetworkFilter::TcpProxy(t)) => Some(t.clone()),
            _ => None,
        }
    }

    /// Whether its connections should end at the next opportunity (`connection: close`, GOAWAY).
    pub fn is_draining(&self) -> bool {
        self.life.get() != Life::Serving || self.draining.borrow().covers(self.direction)
    }

    /// Resolves once the chain drains.
    pub async fn draining(&self) {
        let mut shared = self.draining.clone();
        loop {
            let notified = self.changed.notified();
            if self.is_draining() {
                return;
            }
            tokio::select! {
                () = notified => {}
                changed = shared.changed() => if changed.is_err() { return std::future::pending().await },
            }
        }
    }

    /// Resolves when connections must be closed: the drain time of a chain that is gone has passed.
    pub(super) async fn closing(&self) {
        loop {
            let notified = self.changed.notified();
            if self.life.get() == Life::Closing {
                return;
            }
            notified.await;
        }
    }

    pub(super) fn replace(&self, chain: Arc<FilterChain>) {
        *self.current.borrow_mut() = chain;
    }

    pub(super) fn retire(&self) {
        self.life.set(Life::Gone);
        self.changed.notify_waiters();
    }

    pub(super) fn close(&self) {
        self.life.set(Life::Closing);
        self.changed.notify_waiters();
    }
}
