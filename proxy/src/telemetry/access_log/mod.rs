//! Access logs (Envoy docs: configuration/observability/access_log). A worker formats lines into a buffer of its own per
//! file; full buffers, and every buffer once per flush interval, go to one writer thread, so that a slow disk or a stalled
//! pipe never holds a worker up and lines of two workers never mix.

mod filter;
mod writer;

pub(crate) use filter::request_id_number;
pub use filter::{header_matches, matches};
pub use writer::Files;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::format::{FormatContext, write_log};
use crate::config::access_log::{AccessLog, LogFormat, Sink};
use crate::stats_struct;
use writer::SinkId;

/// A buffer is handed to the writer once it holds this much, as Envoy's `AccessLogFileImpl`.
const FLUSH_AT: usize = 64 * 1024;

/// The buffers of one worker.
#[derive(Debug)]
pub struct WorkerFiles {
    files: Arc<Files>,
    buffers: RefCell<Vec<Rc<Buffer>>>,
    stats: BufferStats,
}

stats_struct! {
    /// A worker's part of `filesystem.*`.
    struct BufferStats {
        counter write_buffered,
        counter flushed_by_timer,
        gauge write_total_buffered,
    }
}

#[derive(Debug)]
struct Buffer {
    sink: Sink,
    id: SinkId,
    lines: RefCell<Vec<u8>>,
}

impl WorkerFiles {
    /// Buffers of one worker in front of `files`.
    pub fn new(files: Arc<Files>) -> Rc<WorkerFiles> {
        let stats = BufferStats::new(files.stats(), "filesystem.");
        Rc::new(WorkerFiles { files, buffers: RefCell::default(), stats })
    }

    fn buffer(&self, sink: &Sink) -> std::io::Result<Rc<Buffer>> {
        let mut all = self.buffers.borrow_mut();
        if let Some(found) = all.iter().find(|b| b.sink == *sink) {
            return Ok(found.clone());
        }
        let id = self.files.open(sink)?;
        let fresh = Rc::new(Buffer { sink: sink.clone(), id, lines: RefCell::default() });
        all.push(fresh.clone());
        Ok(fresh)
    }

    /// Hands all buffered lines to the writer.
    pub fn flush(&self) {
        for buffer in self.buffers.borrow().iter() {
            self.hand_over(buffer);
        }
    }

    fn hand_over(&self, buffer: &Buffer) {
        let mut lines = buffer.lines.borrow_mut();
        if !lines.is_empty() {
            self.stats.write_total_buffered.sub(lines.len() as u64);
            let full = std::mem::replace(&mut *lines, self.files.spare());
            self.files.write(buffer.id, full);
        }
    }

    /// Flushes once per interval, for ever: a task of the worker. Dropping it stops the timer only.
    pub async fn flush_periodically(self: Rc<Self>) {
        let mut tick = tokio::time::interval(self.files.flush_interval());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let waiting = self.buffers.borrow().iter().filter(|b| !b.lines.borrow().is_empty()).count();
            self.stats.flushed_by_timer.add(waiting as u64);
            self.flush();
        }
    }
}

impl Drop for WorkerFiles {
    /// What is buffered is still written.
    fn drop(&mut self) {
        self.flush();
    }
}

/// The configured loggers of a connection manager, a tcp_proxy or a listener, on one worker.
#[derive(Debug)]
pub struct AccessLogger {
    logs: Vec<(AccessLog, Rc<Buffer>)>,
    files: Rc<WorkerFiles>,
}

impl AccessLogger {
    /// Opens the files of `logs`. A file that cannot be opened is reported and its logger left out.
    pub fn new(logs: &[AccessLog], files: &Rc<WorkerFiles>) -> AccessLogger {
        let open = |log: &AccessLog| match files.buffer(&log.sink) {
            Ok(buffer) => Some((log.clone(), buffer)),
            Err(error) => {
                tracing::error!(sink = ?log.sink, %error, "cannot open access log");
                None
            }
        };
        AccessLogger { logs: logs.iter().filter_map(open).collect(), files: files.clone() }
    }

    /// Whether there is nothing to log to.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Writes a line to each logger whose filter passes.
    pub fn log(&self, ctx: &FormatContext<'_>) {
        for (log, buffer) in &self.logs {
            if log.filter.as_ref().is_some_and(|f| !matches(f, ctx)) {
                continue;
            }
            let mut lines = buffer.lines.borrow_mut();
            let before = lines.len();
            write_log(&log.format, ctx, &mut lines);
            if matches!(log.format, LogFormat::Json(_)) {
                lines.push(b'\n');
            }
            self.files.stats.write_buffered.inc();
            self.files.stats.write_total_buffered.add((lines.len() - before) as u64);
            if lines.len() >= FLUSH_AT {
                drop(lines);
                self.files.hand_over(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests;
