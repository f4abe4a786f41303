//! One direction of a relay: reads into one buffer, writes it out, flushes when the source pauses, passes the end on as a
//! half-close. A slow reader stops the reading: nothing is buffered beyond one chunk.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange::{self, Parsed};
use super::pool;
use crate::net::Io;

/// Which end failed.
#[derive(Debug)]
pub(super) enum PumpError {
    Read(io::Error),
    Write(io::Error),
}

/// How a direction stands after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Waits for one of the sockets.
    Pending,
    /// The end was passed on.
    Ended,
}

#[derive(Debug)]
enum Ending {
    Open,
    /// The source has ended; what is buffered goes out, then the half-close.
    SourceEnded,
    Done,
}

/// Bytes that are no application data.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    pub read: u64,
    pub written: u64,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Pump {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    ending: Ending,
    /// Bytes were written since the last flush.
    unflushed: bool,
    /// Goes out before anything else.
    lead: Vec<u8>,
    /// The source begins with a metadata exchange header.
    strip: bool,
    /// What the header said; `Some(None)`: there was none.
    pub exchanged: Option<Option<exchange::Header>>,
    /// Bytes read and written, with headers; `framing` are those of headers.
    pub read: u64,
    pub written: u64,
    pub framing: Framing,
}

impl Pump {
    pub(super) fn new(lead: Vec<u8>, strip: bool) -> Pump {
        Pump {
            buffer: None,
            start: 0,
            end: 0,
            ending: Ending::Open,
            unflushed: false,
            framing: Framing { read: 0, written: lead.len() as u64 },
            lead,
            strip,
            exchanged: None,
            read: 0,
            written: 0,
        }
    }

    /// Puts bytes in front of what is still to come. Only before the first byte has been written.
    pub(super) fn set_lead(&mut self, lead: Vec<u8>) {
        if self.written == 0 {
            self.framing.written = lead.len() as u64;
            self.lead = lead;
        }
    }

    /// Moves what can be moved.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
    ) -> Result<Step, PumpError> {
        loop {
            if !self.poll_drain(cx, to)? {
                return Ok(Step::Pending);
            }
            match self.ending {
                Ending::Done => return Ok(Step::Ended),
                Ending::SourceEnded => {
                    return match Pin::new(&mut *to).poll_shutdown(cx) {
                        Poll::Pending => Ok(Step::Pending),
                        Poll::Ready(done) => {
                            self.ending = Ending::Done;
                            // A peer that is gone already cannot be told: what counts is that all bytes went out.
                            match done {
                                Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(PumpError::Write(e)),
                                _ => Ok(Step::Ended),
                            }
                        }
                    };
                }
                Ending::Open => {}
            }
            if !self.poll_fill(cx, from)? {
                if self.unflushed && Pin::new(&mut *to).poll_flush(cx).map_err(PumpError::Write)?.is_ready() {
                    self.unflushed = false;
                }
                return Ok(Step::Pending);
            }
        }
    }

    /// Writes everything there is. False: the target takes no more now.
    fn poll_drain(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Result<bool, PumpError> {
        while !self.lead.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, &self.lead).map_err(PumpError::Write)? {
                Poll::Pending => return Ok(false),
                Poll::Ready(n) => {
                    self.wrote(n)?;
                    self.lead.drain(..n);
                }
            }
        }
        while self.start < self.end && !self.strip {
            let Some(buffer) = &self.buffer else { break };
            match Pin::new(&mut *to)
                .poll_write(cx, &buffer[self.start..self.end])
                .map_err(PumpError::Write)?
            {
                Poll::Pending => return Ok(false),
                Poll::Ready(n) => {
                    self.wrote(n)?;
                    self.start += n;
                }
            }
        }
        Ok(true)
    }

    fn wrote(&mut self, n: usize) -> Result<(), PumpError> {
        if n == 0 {
            return Err(PumpError::Write(io::ErrorKind::WriteZero.into()));
        }
        self.written += n as u64;
        self.unflushed = true;
        Ok(())
    }

    /// Reads once. False: the source has nothing now.
    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut Io) -> Result<bool, PumpError> {
        if !self.strip {
            (self.start, self.end) = (0, 0);
        }
        let mut buffer = self.buffer.take().unwrap_or_else(pool::take);
        let mut target = ReadBuf::new(&mut buffer[self.end..]);
        let polled = Pin::new(from).poll_read(cx, &mut target);
        let n = target.filled().len();
        if polled.is_pending() && self.end == 0 {
            pool::give(buffer);
        } else {
            self.buffer = Some(buffer);
        }
        match polled {
            Poll::Pending => Ok(false),
            // A TLS peer that closes without close_notify has ended all the same.
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                self.source_ended();
                Ok(true)
            }
            Poll::Ready(Err(e)) => Err(PumpError::Read(e)),
            Poll::Ready(Ok(())) if n == 0 => {
                self.source_ended();
                Ok(true)
            }
            Poll::Ready(Ok(())) => {
                self.end += n;
                self.read += n as u64;
                self.look_for_header();
                Ok(true)
            }
        }
    }

    fn source_ended(&mut self) {
        self.ending = Ending::SourceEnded;
        if std::mem::take(&mut self.strip) {
            self.exchanged = Some(None);
        }
    }

    fn look_for_header(&mut self) {
        if !self.strip {
            return;
        }
        let Some(buffer) = &self.buffer else { return };
        let whole = self.end == buffer.len();
        match exchange::parse(&buffer[self.start..self.end]) {
            Parsed::More if !whole => return,
            Parsed::Header { len, header } => {
                self.start += len;
                self.framing.read = len as u64;
                self.exchanged = Some(Some(header));
            }
            Parsed::More | Parsed::Absent => self.exchanged = Some(None),
        }
        self.strip = false;
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            pool::give(buffer);
        }
    }
}
