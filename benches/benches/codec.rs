//! The codec's pieces: a head parsed, looked up, encoded; a whole keep-alive exchange through both sides in memory, with its
//! allocations counted. `cargo bench -p outrigger-benches --bench codec`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, criterion_group, criterion_main};
use outrigger::config::hcm::Http1Options;
use outrigger::head::{Head, HeaderId};
use outrigger::http::codec::BodyEvent;
use outrigger::http::codec::h1::{ClientConn, Options, ServerConn, fuzzing};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

struct Counted;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

const REQUEST: &[u8] =
    b"GET /service17/path?query=1 HTTP/1.1\r\nHost: service17.example\r\nUser-Agent: wrk/4.1\r\n\
    Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nX-Request-Id: 0c527bbf-0d57-4fc4-9903-e612057d2d16\r\n\
    Cookie: session=abcdefghijklmnop\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1024\r\n\
    date: Wed, 25 Nov 2026 01:10:48 GMT\r\nserver: backend\r\n\r\n";

/// A socket whose peer sends the same message whenever it is read, and to which everything is written at once.
struct Loop {
    message: Vec<u8>,
    ready: bool,
    written: usize,
}

impl AsyncRead for Loop {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !std::mem::take(&mut self.ready) {
            return Poll::Pending;
        }
        buf.put_slice(&self.message);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Loop {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, b: &[u8]) -> Poll<std::io::Result<usize>> {
        self.written += b.len();
        Poll::Ready(Ok(b.len()))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let n = parts.iter().map(|p| p.len()).sum();
        self.written += n;
        Poll::Ready(Ok(n))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Exchange {
    down: ServerConn<Loop>,
    up: ClientConn<Loop>,
    request: Head,
    response: Head,
}

impl Exchange {
    fn new() -> Exchange {
        let options = Arc::new(Options::default());
        let response = [RESPONSE, &[b'x'; 1024][..]].concat();
        let io = |message: &[u8]| Loop { message: message.to_vec(), ready: true, written: 0 };
        Exchange {
            down: ServerConn::new(io(REQUEST), options.clone()),
            up: ClientConn::new(io(&response), options),
            request: Head::new(),
            response: Head::new(),
        }
    }

    /// One request through both codecs, as an exchange without filters does it.
    fn run(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        self.down.io_mut().ready = true;
        self.up.io_mut().ready = true;
        assert!(matches!(self.down.poll_head(&mut cx, &mut self.request), Poll::Ready(Ok(Some(_)))));
        self.up.send_head(&self.request, true);
        assert!(self.up.poll_finish(&mut cx).is_ready());
        assert!(matches!(self.up.poll_head(&mut cx, &mut self.response), Poll::Ready(Ok(_))));
        self.down.send_head(&self.response, false);
        assert!(matches!(self.up.poll_body(&mut cx), Poll::Ready(Ok(BodyEvent::Data))));
        let ends = self.up.data_ends();
        let Poll::Ready(Ok(n)) = self.down.poll_send_data(&mut cx, self.up.data(), ends) else {
            panic!("written at once")
        };
        self.up.consume(n);
        assert!(self.down.poll_finish(&mut cx).is_ready());
        assert!(self.down.is_reusable() && self.up.is_reusable());
        black_box(self.down.counts());
        black_box(self.up.counts());
    }
}

fn codec(c: &mut Criterion) {
    let options = Http1Options::default();
    let mut head = Head::new();
    c.bench_function("parse request head", |b| {
        b.iter(|| {
            head.clear();
            fuzzing::request(black_box(REQUEST), &options, 100, &mut head).map(|p| p.header_bytes)
        });
    });
    c.bench_function("parse response head", |b| {
        b.iter(|| {
            head.clear();
            fuzzing::response(black_box(RESPONSE), 100, &mut head).map(|p| p.header_bytes)
        });
    });
    c.bench_function("look up a header name", |b| b.iter(|| HeaderId::lookup(black_box(b"X-Request-Id"))));
    let mut exchange = Exchange::new();
    for _ in 0..100 {
        exchange.run();
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..1000 {
        exchange.run();
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!("allocations for 1,000 keep-alive exchanges: {allocations}");
    assert_eq!(allocations, 0);
    c.bench_function("exchange, 1 KiB, both codecs", |b| b.iter(|| exchange.run()));
}

criterion_group!(benches, codec);
criterion_main!(benches);
