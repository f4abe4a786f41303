//! Bodies between the two sides of an exchange: the request's upstream, with what a retry would need kept, and the
//! response's downstream. Both are polled from the exchange's one task; backpressure is the sink being `Pending`.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use crate::head::Head;
use crate::http::codec::{BodyEvent, CodecError, DownStream, UpStream};
use crate::http::filters::grpc_stats::Messages;

/// The request body's way.
#[derive(Debug)]
pub struct Upload {
    /// The whole request has arrived.
    pub received: bool,
    /// The whole request has gone to the current upstream.
    pub sent: bool,
    /// What has gone upstream so far, while a retry may need it again.
    kept: Option<BytesMut>,
    /// How much of `kept` the current try has been given.
    replayed: usize,
    limit: usize,
    trailers: Option<Head>,
    trailers_sent: bool,
    /// HTTP/2: bytes taken from the source that the sink has not accepted yet.
    pending: Bytes,
    /// Bytes have gone that a further try could not get.
    let_go: bool,
}

/// Which side failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Down(CodecError),
    Up(CodecError),
}

impl Upload {
    /// The upload of a request; `end`: it has no body.
    pub fn new(end: bool) -> Upload {
        Upload {
            received: end,
            sent: false,
            kept: None,
            replayed: 0,
            limit: 0,
            trailers: None,
            trailers_sent: false,
            pending: Bytes::new(),
            let_go: false,
        }
    }

    /// Keeps up to `limit` bytes for retries.
    pub fn keep(&mut self, limit: usize) {
        if !self.received {
            self.kept = Some(BytesMut::new());
        }
        self.limit = limit;
    }

    /// Whether another try could get the whole request: nothing that was sent has been let go.
    pub fn can_replay(&self) -> bool {
        self.kept.is_some() || !self.let_go
    }

    /// Nothing is to be sent: the request had no body at all.
    pub fn is_empty(&self) -> bool {
        self.received && self.trailers.is_none() && self.kept.is_none() && !self.let_go
    }

    /// No more tries: what was kept is let go as soon as it has been sent.
    pub fn stop_keeping(&mut self) {
        if self.kept.as_ref().is_some_and(|k| k.len() == self.replayed) {
            self.kept = None;
            self.replayed = 0;
            self.let_go = true;
        }
    }

    /// Begins anew for the next try.
    pub fn rewind(&mut self) {
        self.sent = false;
        self.replayed = 0;
        self.trailers_sent = false;
        self.pending = Bytes::new();
    }

    /// The body so far, for mirrors.
    pub fn kept(&self) -> Option<&[u8]> {
        self.kept.as_deref()
    }

    /// Moves bytes until the request is sent whole (`Ready`), or one side is not ready.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut DownStream,
        up: &mut UpStream,
        mut messages: Option<&mut Messages>,
        moved: &mut bool,
    ) -> Poll<Result<(), Side>> {
        if self.sent {
            return Poll::Ready(Ok(()));
        }
        loop {
            // What an earlier try has used, or what this one could not write yet.
            if let Some(kept) = &self.kept {
                while self.replayed < kept.len() {
                    let n = ready!(up.poll_send_data(
                        cx,
                        &kept[self.replayed..],
                        self.received && self.trailers.is_none()
                    ))
                    .map_err(Side::Up)?;
                    self.replayed += n;
                    *moved = true;
                }
                if kept.len() > self.limit {
                    self.kept = None;
                    self.replayed = 0;
                    self.let_go = true;
                }
            }
            while !self.pending.is_empty() {
                ready!(up.poll_send_bytes(cx, &mut self.pending, self.received && self.trailers.is_none()))
                    .map_err(Side::Up)?;
                *moved = true;
            }
            if self.received {
                if let (Some(t), false) = (&self.trailers, self.trailers_sent) {
                    up.send_trailers(t);
                    self.trailers_sent = true;
                }
                ready!(up.poll_finish(cx)).map_err(Side::Up)?;
                self.sent = true;
                return Poll::Ready(Ok(()));
            }
            if down.data().is_empty() {
                match down.poll_body(cx) {
                    Poll::Pending => {
                        // The head, and data written before, must not wait for more data.
                        if let Poll::Ready(Err(e)) = up.poll_flush(cx) {
                            return Poll::Ready(Err(Side::Up(e)));
                        }
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(Side::Down(e))),
                    Poll::Ready(Ok(BodyEvent::Data)) => *moved = true,
                    Poll::Ready(Ok(BodyEvent::Trailers)) => {
                        self.trailers = Some(down.trailers().clone());
                        self.received = true;
                        continue;
                    }
                    Poll::Ready(Ok(BodyEvent::End)) => {
                        self.received = true;
                        continue;
                    }
                }
            }
            let ends = down.data_ends();
            if let Some(kept) = &mut self.kept {
                let n = down.data().len();
                feed(&mut messages, down.data());
                kept.extend_from_slice(down.data());
                down.consume(n);
            } else if !up.is_h1() {
                self.let_go = true;
                self.pending = down.take_data();
                feed(&mut messages, &self.pending);
            } else {
                self.let_go = true;
                // A full sink leaves the rest in the source's buffer, where the next poll finds it.
                while !down.data().is_empty() {
                    let n = ready!(up.poll_send_data(cx, down.data(), ends)).map_err(Side::Up)?;
                    feed(&mut messages, &down.data()[..n]);
                    down.consume(n);
                    *moved = true;
                }
            }
            if ends {
                self.received = true;
            }
        }
    }
}

fn feed(messages: &mut Option<&mut Messages>, bytes: &[u8]) {
    if let Some(m) = messages.as_deref_mut() {
        m.feed(bytes);
    }
}

/// The response body's way.
#[derive(Debug, Default)]
pub struct Download {
    pending: Bytes,
    /// The upstream's message is over.
    ended: bool,
    trailers: bool,
    /// Chunks go on as they came; `None` before the first bytes.
    raw: Option<bool>,
}

impl Download {
    /// A response without a body is over with its head.
    pub fn new(end: bool) -> Download {
        Download { ended: end, ..Download::default() }
    }

    /// Whether the upstream has sent everything.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Moves bytes until the response is sent whole, or one side is not ready. Trailers are left in `trailers`.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut UpStream,
        down: &mut DownStream,
        trailers: &mut Option<Head>,
        mut messages: Option<&mut Messages>,
        moved: &mut bool,
    ) -> Poll<Result<(), Side>> {
        let raw = *self
            .raw
            .get_or_insert_with(|| messages.is_none() && down.takes_raw() && up.set_raw_chunked(true));
        loop {
            while !self.pending.is_empty() {
                ready!(down.poll_send_bytes(cx, &mut self.pending, self.ended && trailers.is_none()))
                    .map_err(Side::Down)?;
                *moved = true;
            }
            if self.ended {
                if let (Some(t), false) = (trailers.as_ref(), self.trailers) {
                    down.send_trailers(t);
                    self.trailers = true;
                }
                return down.poll_finish(cx).map_err(Side::Down);
            }
            if up.data().is_empty() {
                match up.poll_body(cx) {
                    Poll::Pending => {
                        if let Poll::Ready(Err(e)) = down.poll_flush(cx) {
                            return Poll::Ready(Err(Side::Down(e)));
                        }
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(e)) => {
                        // What has arrived before the failure goes out first.
                        if let Poll::Ready(Err(e)) = down.poll_flush(cx) {
                            return Poll::Ready(Err(Side::Down(e)));
                        }
                        return Poll::Ready(Err(Side::Up(e)));
                    }
                    Poll::Ready(Ok(BodyEvent::Data)) => *moved = true,
                    Poll::Ready(Ok(BodyEvent::Trailers)) => {
                        *trailers = Some(up.trailers().clone());
                        self.ended = true;
                        continue;
                    }
                    Poll::Ready(Ok(BodyEvent::End)) => {
                        self.ended = true;
                        continue;
                    }
                }
            }
            let ends = up.data_ends();
            if raw {
                while !up.data().is_empty() {
                    let n = ready!(down.poll_send_raw(cx, up.data(), ends)).map_err(Side::Down)?;
                    up.consume(n);
                    *moved = true;
                }
                down.sent_raw(up.counts().body_received);
            } else if !down.is_h1() {
                self.pending = up.take_data();
                feed(&mut messages, &self.pending);
            } else {
                while !up.data().is_empty() {
                    let n = ready!(down.poll_send_data(cx, up.data(), ends)).map_err(Side::Down)?;
                    feed(&mut messages, &up.data()[..n]);
                    up.consume(n);
                    *moved = true;
                }
            }
            if ends {
                self.ended = true;
            }
        }
    }
}
