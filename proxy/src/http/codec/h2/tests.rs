//! Both sides against each other over an in-memory stream.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::task::{LocalSet, spawn_local};

use super::super::{BodyEvent, CodecError, ResetReason, Tunnel};
use super::{Accepted, ClientConn, ClientHandle, ClientStream, Options, ServerConn};
use crate::head::Head;

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.append(name.as_bytes(), value.as_bytes());
    }
    head
}

fn text(head: &Head) -> String {
    head.iter()
        .map(|(_, n, v)| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
        .collect::<Vec<_>>()
        .join("|")
}

fn request(more: &[(&str, &str)]) -> Head {
    let mut all = vec![(":method", "POST"), (":path", "/p?q"), (":authority", "a"), (":scheme", "http")];
    all.extend_from_slice(more);
    head(&all)
}

async fn client<T>(io: T, options: Options) -> ClientHandle
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (handle, driver) = ClientConn::handshake(io, Arc::new(options)).await.unwrap();
    spawn_local(driver);
    handle
}

async fn open(handle: &mut ClientHandle, head: &Head, end: bool) -> Result<ClientStream, CodecError> {
    poll_fn(|cx| handle.poll_ready(cx)).await?;
    handle.open_stream(head, end)
}

/// Serves a connection, each stream by `serve` in a task of its own.
fn server<F, R>(io: DuplexStream, options: Options, serve: F) -> Rc<Cell<bool>>
where
    F: Fn(Accepted) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let drain = Rc::new(Cell::new(false));
    let asked = drain.clone();
    spawn_local(async move {
        let mut conn = ServerConn::new(io, Arc::new(options));
        while let Some(Ok(accepted)) = poll_fn(|cx| {
            if asked.take() {
                conn.graceful_shutdown();
            }
            conn.poll_accept(cx)
        })
        .await
        {
            spawn_local(serve(accepted));
        }
    });
    drain
}

async fn read_all(stream: &mut ClientStream) -> Result<(String, String), CodecError> {
    let mut body = Vec::new();
    loop {
        match poll_fn(|cx| stream.poll_body(cx)).await? {
            BodyEvent::Data => body.extend_from_slice(&stream.take_data()),
            BodyEvent::Trailers => break,
            BodyEvent::End => break,
        }
    }
    Ok((String::from_utf8(body).unwrap(), text(stream.trailers())))
}

/// Answers with what came: the head as a header, the body, the trailers.
async fn echo(accepted: Accepted) {
    let Accepted { head: request, mut stream, .. } = accepted;
    let mut response = head(&[(":status", "200"), ("connection", "close"), ("x-empty", "")]);
    response.append(b"x-head", text(&request).as_bytes());
    stream.send_head(&response, false);
    loop {
        match poll_fn(|cx| stream.poll_body(cx)).await.unwrap() {
            BodyEvent::Data => {
                let mut data = stream.take_data();
                poll_fn(|cx| stream.poll_send_bytes(cx, &mut data, false)).await.unwrap();
            }
            BodyEvent::Trailers => {
                let trailers = stream.trailers().clone();
                stream.send_trailers(&trailers);
                break;
            }
            BodyEvent::End => break,
        }
    }
    poll_fn(|cx| stream.poll_finish(cx)).await.unwrap();
}

#[tokio::test]
async fn a_message_with_body_and_trailers_goes_both_ways() {
    LocalSet::new()
        .run_until(async {
            let (near, far) = duplex(1 << 20);
            server(far, Options::default(), echo);
            let mut handle = client(near, Options::default()).await;
            let sent = request(&[("host", "b"), ("cookie", "1"), ("cookie", "2"), ("te", "trailers"), ("connection", "x")]);
            let mut stream = open(&mut handle, &sent, false).await.unwrap();
            assert_eq!(handle.active_streams(), 1);
            let n = poll_fn(|cx| stream.poll_send_data(cx, b"hello ", false)).await.unwrap();
            assert_eq!(n, 6);
            let mut rest = Bytes::from_static(b"world");
            poll_fn(|cx| stream.poll_send_bytes(cx, &mut rest, false)).await.unwrap();
            stream.send_trailers(&head(&[("grpc-status", "0")]));
            let mut response = Head::new();
            let meta = poll_fn(|cx| stream.poll_head(cx, &mut response)).await.unwrap();
            assert_eq!((meta.status, meta.end, meta.informational), (200, false, false));
            assert_eq!(
                text(&response),
                ":status=200|x-empty=|x-head=:method=POST|:path=/p?q|:authority=a|:scheme=http|cookie=1; 2|te=trailers"
            );
            assert_eq!(read_all(&mut stream).await.unwrap(), ("hello world".into(), "grpc-status=0".into()));
            let counts = stream.counts();
            assert_eq!((counts.body_sent, counts.body_received), (11, 11));
            drop(stream);
            assert_eq!(handle.active_streams(), 0);
        })
        .await;
}

#[tokio::test]
async fn the_sender_waits_for_the_receiver_to_consume() {
    LocalSet::new()
        .run_until(async {
            let mut options = Options::default();
            options.http2.initial_stream_window = 65_535;
            options.http2.initial_connection_window = 65_535;
            let (near, far) = duplex(1 << 20);
            let allowed = Rc::new(tokio::sync::Notify::new());
            let gate = allowed.clone();
            server(far, options.clone(), move |accepted| {
                let gate = gate.clone();
                async move {
                    gate.notified().await;
                    echo(accepted).await;
                }
            });
            let mut handle = client(near, options).await;
            let mut stream = open(&mut handle, &request(&[]), false).await.unwrap();
            let data = vec![b'x'; 200_000];
            let mut sent = 0;
            while let Ok(n) = tokio::time::timeout(
                std::time::Duration::from_millis(50),
                poll_fn(|cx| stream.poll_send_data(cx, &data[sent..], false)),
            )
            .await
            {
                sent += n.unwrap();
            }
            assert_eq!(sent, 65_535, "one window and no more");
            allowed.notify_one();
            let mut response = Head::new();
            poll_fn(|cx| stream.poll_head(cx, &mut response)).await.unwrap();
            // Reads and writes in turn, as an exchange does.
            let mut received = 0;
            let end = poll_fn(|cx| {
                loop {
                    if sent < data.len()
                        && let Poll::Ready(n) = stream.poll_send_data(cx, &data[sent..], true)
                    {
                        sent += n.unwrap();
                    }
                    match stream.poll_body(cx) {
                        Poll::Ready(Ok(BodyEvent::Data)) => {
                            let n = stream.data().len();
                            received += n;
                            stream.consume(n);
                        }
                        Poll::Ready(event) => return Poll::Ready(event),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            })
            .await;
            assert_eq!((end, received), (Ok(BodyEvent::End), data.len()));
        })
        .await;
}

#[tokio::test]
async fn resets_are_mapped_to_envoys_reasons() {
    LocalSet::new()
        .run_until(async {
            for (reason, seen) in [
                (ResetReason::LocalRefusedStreamReset, ResetReason::RemoteRefusedStreamReset),
                (ResetReason::LocalReset, ResetReason::RemoteReset),
                (ResetReason::ConnectError, ResetReason::ConnectError),
            ] {
                let (near, far) = duplex(1 << 20);
                server(far, Options::default(), move |mut accepted| async move {
                    accepted.stream.reset(reason);
                });
                let mut handle = client(near, Options::default()).await;
                let mut stream = open(&mut handle, &request(&[]), true).await.unwrap();
                let mut response = Head::new();
                let got = poll_fn(|cx| stream.poll_head(cx, &mut response)).await;
                assert_eq!(got.unwrap_err(), CodecError::Reset(seen));
            }
            // The other way: the client gives up.
            let (near, far) = duplex(1 << 20);
            let (tell, told) = tokio::sync::oneshot::channel();
            let tell = Cell::new(Some(tell));
            server(far, Options::default(), move |mut accepted| {
                let tell = tell.take();
                async move {
                    let reason = poll_fn(|cx| accepted.stream.poll_closed(cx)).await;
                    tell.unwrap().send(reason).unwrap();
                }
            });
            let mut handle = client(near, Options::default()).await;
            let mut stream = open(&mut handle, &request(&[]), true).await.unwrap();
            tokio::task::yield_now().await;
            stream.reset(ResetReason::LocalReset);
            assert_eq!(told.await.unwrap(), CodecError::Reset(ResetReason::RemoteReset));
        })
        .await;
}

#[tokio::test]
async fn an_upgrade_crosses_as_extended_connect() {
    LocalSet::new()
        .run_until(async {
            let mut options = Options::default();
            options.http2.allow_connect = true;
            let (near, far) = duplex(1 << 20);
            server(far, options.clone(), |mut accepted| async move {
                assert_eq!(accepted.meta.tunnel, Tunnel::Upgrade);
                assert_eq!(
                    text(&accepted.head),
                    ":method=GET|:path=/p?q|:authority=a|:scheme=http|upgrade=websocket|connection=upgrade"
                );
                accepted.stream.send_head(
                    &head(&[(":status", "101"), ("upgrade", "websocket"), ("connection", "upgrade")]),
                    false,
                );
                poll_fn(|cx| accepted.stream.poll_send_data(cx, b"hi", true)).await.unwrap();
            });
            let mut handle = client(near, options).await;
            // The server's settings have to be here first.
            while !handle.allows_extended_connect() {
                tokio::task::yield_now().await;
            }
            let mut sent = request(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
            sent.set(crate::head::HeaderId::Method, b"GET");
            let mut stream = open(&mut handle, &sent, false).await.unwrap();
            let mut response = Head::new();
            poll_fn(|cx| stream.poll_head(cx, &mut response)).await.unwrap();
            assert_eq!(text(&response), ":status=101|upgrade=websocket|connection=upgrade");
            assert_eq!(read_all(&mut stream).await.unwrap().0, "hi");
        })
        .await;
}

#[tokio::test]
async fn interim_responses_come_before_the_final_one() {
    LocalSet::new()
        .run_until(async {
            let (near, far) = duplex(1 << 20);
            server(far, Options::default(), |mut accepted| async move {
                accepted.stream.send_informational(&head(&[(":status", "103"), ("link", "x")]));
                tokio::task::yield_now().await;
                accepted.stream.send_head(&head(&[(":status", "204")]), true);
            });
            let mut handle = client(near, Options::default()).await;
            let mut stream = open(&mut handle, &request(&[]), true).await.unwrap();
            let mut response = Head::new();
            let meta = poll_fn(|cx| stream.poll_head(cx, &mut response)).await.unwrap();
            assert_eq!(
                (meta.status, meta.informational, text(&response)),
                (103, true, ":status=103|link=x".into())
            );
            let meta = poll_fn(|cx| stream.poll_head(cx, &mut response)).await.unwrap();
            assert_eq!((meta.status, meta.informational, meta.end), (204, false, true));
        })
        .await;
}

#[tokio::test]
async fn a_graceful_shutdown_lets_streams_finish_and_takes_no_new_ones() {
    LocalSet::new()
        .run_until(async {
            let (near, far) = duplex(1 << 20);
            let drain = server(far, Options::default(), echo);
            let mut handle = client(near, Options::default()).await;
            let mut first = open(&mut handle, &request(&[]), false).await.unwrap();
            let mut response = Head::new();
            poll_fn(|cx| first.poll_head(cx, &mut response)).await.unwrap();
            drain.set(true);
            poll_fn(|cx| first.poll_send_data(cx, b"late", true)).await.unwrap();
            assert_eq!(read_all(&mut first).await.unwrap().0, "late");
            drop(first);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            let refused = open(&mut handle, &request(&[]), true).await;
            assert!(refused.is_err());
            assert!(!handle.is_open());
        })
        .await;
}

#[tokio::test]
async fn too_many_headers_reset_the_stream_and_spare_the_connection() {
    LocalSet::new()
        .run_until(async {
            let (near, far) = duplex(1 << 20);
            server(far, Options { max_headers_count: 6, ..Options::default() }, echo);
            let mut handle = client(near, Options::default()).await;
            let mut bad =
                open(&mut handle, &request(&[("a", "1"), ("b", "2"), ("c", "3")]), true).await.unwrap();
            let mut response = Head::new();
            let got = poll_fn(|cx| bad.poll_head(cx, &mut response)).await;
            assert_eq!(got.unwrap_err(), CodecError::Reset(ResetReason::RemoteReset));
            let mut good = open(&mut handle, &request(&[]), true).await.unwrap();
            assert_eq!(poll_fn(|cx| good.poll_head(cx, &mut response)).await.unwrap().status, 200);
        })
        .await;
}

/// Counts the writes of an inner stream.
struct Counting(DuplexStream, Rc<Cell<usize>>);

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<std::io::Result<usize>> {
        self.1.set(self.1.get() + 1);
        Pin::new(&mut self.0).poll_write(cx, b)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn frames_of_one_poll_leave_in_one_write() {
    LocalSet::new()
        .run_until(async {
            let (near, far) = duplex(1 << 20);
            server(far, Options::default(), echo);
            let writes = Rc::new(Cell::new(0));
            let mut handle = client(Counting(near, writes.clone()), Options::default()).await;
            let mut settle = Vec::new();
            for _ in 0..4 {
                let mut stream = open(&mut handle, &request(&[]), true).await.unwrap();
                let mut response = Head::new();
                poll_fn(|cx| stream.poll_head(cx, &mut response)).await.unwrap();
                settle.push(stream);
            }
            writes.set(0);
            let mut streams = Vec::new();
            for _ in 0..8 {
                // As exchanges do: each has a handle of its own.
                let mut stream = open(&mut handle.clone(), &request(&[]), false).await.unwrap();
                poll_fn(|cx| stream.poll_send_data(cx, b"data", true)).await.unwrap();
                streams.push(stream);
            }
            for stream in &mut streams {
                let mut response = Head::new();
                poll_fn(|cx| stream.poll_head(cx, &mut response)).await.unwrap();
            }
            assert!(writes.get() <= 2, "{} writes for 16 frames", writes.get());
        })
        .await;
}
