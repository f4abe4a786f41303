//! What both sides' streams share: a body in, a body out, flow control, resets.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};

use super::super::{BodyEvent, CodecError, Counts, Http2Error, ResetReason};
use super::convert;
use crate::head::Head;

/// Bytes of a frame's header.
const FRAME: u64 = 9;

/// Bytes that a stream may send before it has been given room: h2 gives none until the head is on the wire, and then head and
/// first data would need two writes.
const HEAD_START: usize = 16 * 1024;

/// The h2 crate's error as the seam's.
pub(super) fn error(e: &h2::Error) -> CodecError {
    if let Some(io) = e.get_io() {
        return match io.kind() {
            std::io::ErrorKind::UnexpectedEof
            | std::io::ErrorKind::BrokenPipe
            | std::io::ErrorKind::ConnectionReset => CodecError::Closed,
            kind => CodecError::Io(kind),
        };
    }
    if e.is_go_away() {
        return match e.reason() {
            Some(Reason::NO_ERROR) | None => CodecError::Closed,
            Some(_) if e.is_library() => CodecError::Http2(Http2Error::Protocol),
            Some(_) => CodecError::Closed,
        };
    }
    match e.reason() {
        Some(reason) if e.is_remote() => CodecError::Reset(match reason {
            Reason::REFUSED_STREAM => ResetReason::RemoteRefusedStreamReset,
            Reason::CONNECT_ERROR => ResetReason::ConnectError,
            _ => ResetReason::RemoteReset,
        }),
        Some(Reason::PROTOCOL_ERROR) => CodecError::Http2(Http2Error::Violation),
        Some(_) => CodecError::Reset(ResetReason::LocalReset),
        None => CodecError::Closed,
    }
}

/// The code that a reset of ours has on the wire.
pub(super) fn wire_reason(reason: ResetReason, client: bool) -> Reason {
    match reason {
        ResetReason::LocalRefusedStreamReset | ResetReason::RemoteRefusedStreamReset => {
            Reason::REFUSED_STREAM
        }
        ResetReason::ConnectError => Reason::CONNECT_ERROR,
        ResetReason::ProtocolError => Reason::PROTOCOL_ERROR,
        ResetReason::OverloadManager => Reason::ENHANCE_YOUR_CALM,
        _ if client => Reason::CANCEL,
        _ => Reason::INTERNAL_ERROR,
    }
}

/// A body coming in.
#[derive(Debug)]
pub(super) struct Incoming {
    stream: Option<RecvStream>,
    data: Bytes,
    pub(super) trailers: Head,
}

impl Incoming {
    pub(super) fn new(stream: Option<RecvStream>) -> Incoming {
        Incoming { stream, data: Bytes::new(), trailers: Head::new() }
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        counts: &mut Counts,
    ) -> Poll<Result<BodyEvent, CodecError>> {
        if !self.data.is_empty() {
            return Poll::Ready(Ok(BodyEvent::Data));
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(BodyEvent::End)) };
        while let Some(data) = ready!(stream.poll_data(cx)) {
            let data = data.map_err(|e| error(&e))?;
            counts.wire_received += data.len() as u64 + FRAME;
            if !data.is_empty() {
                counts.body_received += data.len() as u64;
                self.data = data;
                return Poll::Ready(Ok(BodyEvent::Data));
            }
        }
        let trailers = ready!(stream.poll_trailers(cx)).map_err(|e| error(&e))?;
        self.stream = None;
        let Some(trailers) = trailers else { return Poll::Ready(Ok(BodyEvent::End)) };
        convert::append_map(&trailers, &mut self.trailers);
        let size = self.trailers.byte_size() as u64;
        counts.header_received += size;
        counts.wire_received += size + FRAME;
        Poll::Ready(Ok(BodyEvent::Trailers))
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.data
    }

    pub(super) fn data_ends(&self) -> bool {
        self.stream.as_ref().is_some_and(RecvStream::is_end_stream)
    }

    pub(super) fn is_done(&self) -> bool {
        self.data.is_empty() && self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    pub(super) fn consume(&mut self, n: usize) {
        let n = n.min(self.data.len());
        self.data.advance(n);
        self.release(n);
    }

    pub(super) fn take(&mut self) -> Bytes {
        let data = std::mem::take(&mut self.data);
        self.release(data.len());
        data
    }

    /// Opens the window for what has gone on to the other side.
    fn release(&mut self, n: usize) {
        if let Some(stream) = &mut self.stream
            && n > 0
        {
            // Fails only for more than was received.
            let _ = stream.flow_control().release_capacity(n);
        }
    }
}

/// A body going out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) stream: SendStream<Bytes>,
    pub(super) ended: bool,
    /// Data was sent.
    started: bool,
}

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>, ended: bool) -> Outgoing {
        Outgoing { stream, ended, started: false }
    }

    /// Waits for room in the flow-control window and in h2's buffer.
    fn poll_capacity(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, CodecError>> {
        if !self.started && want <= HEAD_START {
            return Poll::Ready(Ok(want));
        }
        self.stream.reserve_capacity(want);
        loop {
            let n = self.stream.capacity();
            if n > 0 {
                return Poll::Ready(Ok(n.min(want)));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(e)) => return Poll::Ready(Err(error(&e))),
                None => return Poll::Ready(Err(CodecError::Closed)),
            }
        }
    }

    fn send(&mut self, data: Bytes, end: bool, counts: &mut Counts) -> Result<(), CodecError> {
        counts.wire_sent += data.len() as u64 + FRAME;
        counts.body_sent += data.len() as u64;
        self.ended |= end;
        self.started = true;
        self.stream.send_data(data, end).map_err(|e| error(&e))
    }

    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
        counts: &mut Counts,
    ) -> Poll<Result<usize, CodecError>> {
        if data.is_empty() {
            if end {
                self.finish(counts)?;
            }
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_capacity(cx, data.len()))?;
        self.send(Bytes::copy_from_slice(&data[..n]), end && n == data.len(), counts)?;
        Poll::Ready(Ok(n))
    }

    /// Ready when all of `data` was taken.
    pub(super) fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
        end: bool,
        counts: &mut Counts,
    ) -> Poll<Result<(), CodecError>> {
        while !data.is_empty() {
            let n = ready!(self.poll_capacity(cx, data.len()))?;
            let part = data.split_to(n);
            self.send(part, end && data.is_empty(), counts)?;
        }
        if end {
            self.finish(counts)?;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn finish(&mut self, counts: &mut Counts) -> Result<(), CodecError> {
        if self.ended { Ok(()) } else { self.send(Bytes::new(), true, counts) }
    }

    pub(super) fn trailers(&mut self, head: &Head, counts: &mut Counts) -> Result<(), CodecError> {
        if self.ended {
            return Ok(());
        }
        let map = convert::to_map(head)?;
        self.ended = true;
        let size = head.byte_size() as u64;
        counts.header_sent += size;
        counts.wire_sent += size + FRAME;
        self.stream.send_trailers(map).map_err(|e| error(&e))
    }
}

/// Counts a head as h2 carries it; its compressed size is h2's secret, so this is the size of its text.
pub(super) fn count_head(head: &Head, header: &mut u64, wire: &mut u64) {
    let size = head.byte_size() as u64;
    *header += size;
    *wire += size + FRAME;
}
