//! The writer thread behind all access logs: it owns the files, appends whole buffers with one write each, and reopens the
//! files on `/reopen_logs` and SIGUSR1 for log rotation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::access_log::Sink;
use crate::telemetry::stats::{SharedCounter, Stats};

/// Buffers that may wait for the disk before lines are dropped: 16 MiB of 64 KiB buffers.
const WAITING: usize = 256;

/// A file's place in the writer's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SinkId(usize);

enum Order {
    Open(Output),
    Write(SinkId, Vec<u8>),
    Reopen,
    /// Answers when all before is on its way to the kernel.
    Sync(SyncSender<()>),
}

#[derive(Debug)]
enum Output {
    File(Arc<str>, File),
    Stdout,
    Stderr,
}

/// Process-wide access log files.
#[derive(Debug)]
pub struct Files {
    orders: SyncSender<Order>,
    state: Mutex<State>,
    flush_interval: Duration,
    stats: FileStats,
    registry: Stats,
}

#[derive(Debug, Default)]
struct State {
    sinks: Vec<Sink>,
    /// Written buffers, to be filled again.
    spare: Vec<Vec<u8>>,
}

/// Envoy's `filesystem.*`.
#[derive(Clone, Debug)]
struct FileStats {
    write_completed: SharedCounter,
    write_failed: SharedCounter,
    reopen_failed: SharedCounter,
}

impl Files {
    /// Starts the writer thread. `flush_interval` is `--file-flush-interval-msec` (Envoy's default: 10 s).
    pub fn new(flush_interval: Duration, stats: &Stats) -> Arc<Files> {
        let (orders, receiver) = sync_channel(WAITING);
        let registry = stats.clone();
        let stats = FileStats {
            write_completed: stats.shared_counter("filesystem.write_completed"),
            write_failed: stats.shared_counter("filesystem.write_failed"),
            reopen_failed: stats.shared_counter("filesystem.reopen_failed"),
        };
        let files = Arc::new(Files {
            orders,
            state: Mutex::default(),
            flush_interval,
            stats: stats.clone(),
            registry,
        });
        // The thread holds no strong reference: it ends with the last sender.
        let weak = Arc::downgrade(&files);
        let give_back = move |buffer: Vec<u8>| {
            if let Some(files) = weak.upgrade() {
                files.state().spare.push(buffer);
            }
        };
        let spawned = std::thread::Builder::new()
            .name("AccessLogFlush".to_owned())
            .spawn(move || run(&receiver, &stats, &give_back));
        if let Err(error) = spawned {
            tracing::error!(%error, "no access log thread: access logs are dropped");
        }
        files
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a line may wait in a worker's buffer.
    pub fn flush_interval(&self) -> Duration {
        self.flush_interval
    }

    pub(super) fn stats(&self) -> &Stats {
        &self.registry
    }

    /// The place of `sink`, opened if it is new.
    pub(super) fn open(&self, sink: &Sink) -> std::io::Result<SinkId> {
        let mut state = self.state();
        if let Some(at) = state.sinks.iter().position(|s| s == sink) {
            return Ok(SinkId(at));
        }
        let output = match sink {
            // Under these names Envoy's file logger means the process's own streams, which may not be reopened.
            Sink::File(path) if &**path == "/dev/stdout" => Output::Stdout,
            Sink::File(path) if &**path == "/dev/stderr" => Output::Stderr,
            Sink::File(path) => Output::File(path.clone(), append_to(path)?),
            Sink::Stdout => Output::Stdout,
            Sink::Stderr => Output::Stderr,
        };
        // Sent under the lock, so that the writer's table grows in the order of ours.
        self.orders.send(Order::Open(output)).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        state.sinks.push(sink.clone());
        Ok(SinkId(state.sinks.len() - 1))
    }

    /// Queues a buffer. With the queue full (a pipe that nobody reads) its lines are lost and counted.
    pub(super) fn write(&self, sink: SinkId, lines: Vec<u8>) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.orders.try_send(Order::Write(sink, lines))
        {
            self.stats.write_failed.inc();
        }
    }

    /// An empty buffer, used before if there is one.
    pub(super) fn spare(&self) -> Vec<u8> {
        self.state().spare.pop().unwrap_or_default()
    }

    /// Opens all files anew under their paths.
    pub fn reopen(&self) {
        // A gone thread has no files to reopen.
        let _ = self.orders.send(Order::Reopen);
    }

    /// Waits until everything queued is written: on shutdown.
    pub fn sync(&self) {
        let (done, wait) = sync_channel(1);
        if self.orders.send(Order::Sync(done)).is_ok() {
            // An error means that the thread is gone, and with it all that could be waited for.
            let _ = wait.recv();
        }
    }
}

fn append_to(path: &str) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn run(orders: &Receiver<Order>, stats: &FileStats, give_back: &dyn Fn(Vec<u8>)) {
    let mut outputs: Vec<Output> = Vec::new();
    while let Ok(order) = orders.recv() {
        match order {
            Order::Open(output) => outputs.push(output),
            Order::Write(SinkId(at), mut lines) => {
                let written = match outputs.get_mut(at) {
                    Some(Output::File(_, file)) => file.write_all(&lines),
                    Some(Output::Stdout) => {
                        let mut out = std::io::stdout().lock();
                        out.write_all(&lines).and_then(|()| out.flush())
                    }
                    Some(Output::Stderr) => std::io::stderr().write_all(&lines),
                    None => Ok(()),
                };
                match written {
                    Ok(()) => stats.write_completed.inc(),
                    Err(_) => stats.write_failed.inc(),
                }
                lines.clear();
                give_back(lines);
            }
            Order::Reopen => {
                for output in &mut outputs {
                    if let Output::File(path, file) = output {
                        match append_to(path) {
                            Ok(fresh) => *file = fresh,
                            Err(_) => stats.reopen_failed.inc(),
                        }
                    }
                }
            }
            Order::Sync(done) => {
                // Nobody waits any more: nothing to tell.
                let _ = done.send(());
            }
        }
    }
}
