//! Reads a message's body out of the read buffer: by length, chunked, or until the peer closes.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::super::{BodyEvent, CodecError, Counts, Http1Error};
use super::buffer::ReadBuffer;
use super::chunk::{Chunk, Scanner};
use super::{Options, lines, parse};
use crate::head::Head;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framing {
    #[default]
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// What follows the last chunk's data when nothing unusual does.
const LAST: &[u8] = b"\r\n0\r\n\r\n";
/// The same behind forwarded framing, which has the CRLF in it.
const LAST_FRAMED: &[u8] = b"0\r\n\r\n";

/// State of one body. The bytes handed out stand at the start of the read buffer, or in `own`.
#[derive(Debug, Default)]
pub(super) struct Body {
    framing: Framing,
    scanner: Scanner,
    /// Chunked bodies are handed out framed.
    raw: bool,
    ended: bool,
    /// Bytes handed out and not consumed, at the start of the buffer.
    span: usize,
    /// When `span` is consumed the body is over, and so many more bytes belong to it.
    last: Option<usize>,
    /// Framing that we write in place of what came irregular.
    own: Option<Own>,
    /// Where the search for the end of trailers goes on.
    trailers_from: usize,
    pub(super) trailers: Head,
}

/// A size line or a line end of our own.
#[derive(Clone, Copy, Debug)]
struct Own {
    bytes: [u8; 18],
    start: u8,
    end: u8,
}

impl Own {
    fn line_end() -> Own {
        let mut bytes = [0; 18];
        bytes[..2].copy_from_slice(b"\r\n");
        Own { bytes, start: 0, end: 2 }
    }

    fn size(value: u64) -> Own {
        let mut bytes = [0; 18];
        let mut at = 16;
        let mut left = value;
        bytes[16..].copy_from_slice(b"\r\n");
        while left > 0 {
            at -= 1;
            bytes[at] = b"0123456789abcdef"[(left & 15) as usize];
            left >>= 4;
        }
        Own { bytes, start: at as u8, end: 18 }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..usize::from(self.end)]
    }
}

impl Body {
    /// Starts a body. `trailers` of the former one are forgotten.
    pub(super) fn begin(&mut self, framing: Framing) {
        self.framing = framing;
        self.scanner = Scanner::default();
        self.raw = false;
        self.ended = matches!(framing, Framing::None | Framing::Length(0));
        self.span = 0;
        self.last = None;
        self.own = None;
        self.trailers_from = 0;
        self.trailers.clear();
    }

    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    /// Asks for framed chunks; only before the first `poll`.
    pub(super) fn set_raw(&mut self, raw: bool) {
        self.raw = raw && self.framing == Framing::Chunked;
    }

    pub(super) fn is_raw(&self) -> bool {
        self.raw
    }

    /// The whole body was read and consumed.
    pub(super) fn is_done(&self) -> bool {
        self.ended && self.span == 0
    }

    pub(super) fn data<'a>(&'a self, buffer: &'a ReadBuffer) -> &'a [u8] {
        match &self.own {
            Some(own) => own.bytes(),
            None => &buffer.filled()[..self.span],
        }
    }

    /// Whether `data` is the end of the body.
    pub(super) fn data_ends(&self) -> bool {
        self.own.is_none() && self.last.is_some()
    }

    pub(super) fn consume(&mut self, buffer: &mut ReadBuffer, n: usize) {
        if let Some(own) = &mut self.own {
            own.start = own.end.min(own.start + n as u8);
            if own.start == own.end {
                self.own = None;
            }
            return;
        }
        let n = n.min(self.span);
        buffer.consume(n);
        self.span -= n;
        if self.span == 0
            && let Some(rest) = self.last.take()
        {
            buffer.consume(rest);
            self.ended = true;
        }
    }

    pub(super) fn take(&mut self, buffer: &mut ReadBuffer) -> Bytes {
        let bytes = Bytes::copy_from_slice(self.data(buffer));
        self.consume(buffer, bytes.len());
        bytes
    }

    pub(super) fn poll<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        buffer: &mut ReadBuffer,
        options: &Options,
        counts: &mut Counts,
    ) -> Poll<Result<BodyEvent, CodecError>> {
        loop {
            if self.span > 0 || self.own.is_some() {
                return Poll::Ready(Ok(BodyEvent::Data));
            }
            if self.ended {
                return Poll::Ready(Ok(BodyEvent::End));
            }
            if let Some(event) = self.step(buffer, options, counts)? {
                return Poll::Ready(Ok(event));
            }
            if self.span > 0 || self.own.is_some() || self.ended {
                continue;
            }
            let n = ready!(buffer.poll_fill(cx, io))?;
            counts.wire_received += n as u64;
            if n == 0 {
                if self.framing != Framing::UntilClose {
                    return Poll::Ready(Err(CodecError::Closed));
                }
                self.ended = true;
            }
        }
    }

    /// Looks at what is buffered. Afterwards `span` or `own` has data, or `ended` is set, or more bytes are needed.
    fn step(
        &mut self,
        buffer: &mut ReadBuffer,
        options: &Options,
        counts: &mut Counts,
    ) -> Result<Option<BodyEvent>, Http1Error> {
        match self.framing {
            Framing::None => self.ended = true,
            Framing::Length(left) => {
                self.span = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.filled().len());
                counts.body_received += self.span as u64;
                let left = left - self.span as u64;
                self.framing = Framing::Length(left);
                if left == 0 {
                    self.last = Some(0);
                }
            }
            Framing::UntilClose => {
                self.span = buffer.filled().len();
                counts.body_received += self.span as u64;
            }
            Framing::Chunked if self.raw => return self.step_raw(buffer, options, counts),
            Framing::Chunked => return self.step_chunked(buffer, options, counts),
        }
        Ok(None)
    }

    fn step_chunked(
        &mut self,
        buffer: &mut ReadBuffer,
        options: &Options,
        counts: &mut Counts,
    ) -> Result<Option<BodyEvent>, Http1Error> {
        loop {
            match self.scanner.next(buffer.filled())? {
                Chunk::Skip(n) => buffer.consume(n),
                Chunk::Incomplete => return Ok(None),
                Chunk::Data(n) => {
                    self.span = n;
                    counts.body_received += n as u64;
                    if self.scanner.at_data_end() && buffer.filled()[n..].starts_with(LAST) {
                        self.last = Some(LAST.len());
                        self.scanner.finish();
                    }
                    return Ok(None);
                }
                Chunk::Trailers => return self.step_trailers(buffer, options, counts),
            }
        }
    }

    fn step_raw(
        &mut self,
        buffer: &mut ReadBuffer,
        options: &Options,
        counts: &mut Counts,
    ) -> Result<Option<BodyEvent>, Http1Error> {
        loop {
            let (n, data) = self.scanner.framed(buffer.filled())?;
            if n > 0 {
                self.span = n;
                counts.body_received += data;
                if !self.scanner.at_data_end()
                    && self.scanner.data_left() == 0
                    && buffer.filled()[n..].starts_with(LAST_FRAMED)
                {
                    self.last = Some(LAST_FRAMED.len());
                    self.scanner.finish();
                }
                return Ok(None);
            }
            // Something irregular, the last chunk, or not enough bytes: have it read, and write our own in its place.
            let was_data_end = self.scanner.at_data_end();
            match self.scanner.next(buffer.filled())? {
                Chunk::Skip(n) => {
                    buffer.consume(n);
                    if was_data_end && !self.scanner.at_data_end() {
                        self.own = Some(Own::line_end());
                        return Ok(None);
                    }
                    if self.scanner.data_left() > 0 {
                        self.own = Some(Own::size(self.scanner.data_left()));
                        return Ok(None);
                    }
                }
                Chunk::Trailers => return self.step_trailers(buffer, options, counts),
                // `framed` would have taken data.
                Chunk::Incomplete | Chunk::Data(_) => return Ok(None),
            }
        }
    }

    fn step_trailers(
        &mut self,
        buffer: &mut ReadBuffer,
        options: &Options,
        counts: &mut Counts,
    ) -> Result<Option<BodyEvent>, Http1Error> {
        let filled = buffer.filled();
        let end = match filled {
            [b'\n', ..] => Some(1),
            [b'\r', b'\n', ..] => Some(2),
            _ => lines::head_end(filled, &mut self.trailers_from),
        };
        let limit = options.max_headers_kb as usize * 1024;
        let Some(end) = end else {
            return if filled.len() > limit { Err(Http1Error::TrailersTooLarge) } else { Ok(None) };
        };
        if end > limit {
            return Err(Http1Error::TrailersTooLarge);
        }
        if end > 2 {
            lines::check_characters(&filled[..end])?;
            let bytes = parse::append_fields(
                &filled[..end],
                &mut self.trailers,
                options.max_headers_count,
                parse::Block::Trailers,
            )?;
            if options.http1.enable_trailers {
                counts.header_received += bytes;
            }
        }
        buffer.consume(end);
        self.ended = true;
        if options.http1.enable_trailers && !self.trailers.is_empty() {
            return Ok(Some(BodyEvent::Trailers));
        }
        self.trailers.clear();
        Ok(None)
    }
}
