//! Byte streams: what a connection reads and writes, plain or TLS, without dynamic dispatch.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A kernel socket, with bytes that an inspector has read from it already.
#[derive(Debug)]
pub struct Raw {
    /// Read before the socket.
    pub prefix: Bytes,
    pub socket: Socket,
}

/// The kernel's side of a connection.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection's byte stream.
#[derive(Debug)]
pub enum Io {
    Plain(Raw),
    Tls(Box<tokio_rustls::TlsStream<Raw>>),
    /// Decrypted bytes that were read to tell the protocol, before the rest.
    TlsUnread(Bytes, Box<tokio_rustls::TlsStream<Raw>>),
}

impl From<TcpStream> for Raw {
    fn from(s: TcpStream) -> Raw {
        Raw { prefix: Bytes::new(), socket: Socket::Tcp(s) }
    }
}

impl From<UnixStream> for Raw {
    fn from(s: UnixStream) -> Raw {
        Raw { prefix: Bytes::new(), socket: Socket::Unix(s) }
    }
}

impl From<Raw> for Io {
    fn from(r: Raw) -> Io {
        Io::Plain(r)
    }
}

impl Io {
    /// The socket under any TLS.
    pub fn raw(&self) -> &Raw {
        match self {
            Io::Plain(r) => r,
            Io::Tls(t) | Io::TlsUnread(_, t) => t.get_ref().0,
        }
    }

    /// Puts bytes back in front of what is still to be read.
    #[must_use]
    pub fn unread(self, bytes: Bytes) -> Io {
        match self {
            Io::Plain(r) => Io::Plain(Raw { prefix: join(&bytes, &r.prefix), ..r }),
            Io::Tls(t) => Io::TlsUnread(bytes, t),
            Io::TlsUnread(old, t) => Io::TlsUnread(join(&bytes, &old), t),
        }
    }

    /// Whether bytes travel encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Io::Tls(_) | Io::TlsUnread(..))
    }
}

fn join(first: &Bytes, second: &Bytes) -> Bytes {
    if second.is_empty() { first.clone() } else { [&first[..], &second[..]].concat().into() }
}

impl AsyncRead for Raw {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            if self.prefix.is_empty() {
                // An empty view would still hold the memory.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut self.socket {
            Socket::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

macro_rules! forward_write {
    ($ty:ty, $self:ident => $target:expr) => {
        impl AsyncWrite for $ty {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                b: &[u8],
            ) -> Poll<io::Result<usize>> {
                let $self = &mut *self;
                $target.poll_write(cx, b)
            }
            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                b: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $self = &mut *self;
                $target.poll_write_vectored(cx, b)
            }
            fn is_write_vectored(&self) -> bool {
                true
            }
            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = &mut *self;
                $target.poll_flush(cx)
            }
            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = &mut *self;
                $target.poll_shutdown(cx)
            }
        }
    };
}

/// Both kinds of sockets behind one pinned pointer type, so that the forwarding is written once.
enum SocketMut<'a> {
    Tcp(Pin<&'a mut TcpStream>),
    Unix(Pin<&'a mut UnixStream>),
}

impl Socket {
    fn pinned(&mut self) -> SocketMut<'_> {
        match self {
            Socket::Tcp(s) => SocketMut::Tcp(Pin::new(s)),
            Socket::Unix(s) => SocketMut::Unix(Pin::new(s)),
        }
    }
}

macro_rules! socket_fns {
    ($($f:ident($($a:ident: $t:ty),*) -> $r:ty;)+) => {
        impl SocketMut<'_> {
            $(fn $f(self, cx: &mut Context<'_>, $($a: $t),*) -> $r {
                match self {
                    SocketMut::Tcp(s) => s.$f(cx, $($a),*),
                    SocketMut::Unix(s) => s.$f(cx, $($a),*),
                }
            })+
        }
    };
}

socket_fns! {
    poll_write(b: &[u8]) -> Poll<io::Result<usize>>;
    poll_write_vectored(b: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>>;
    poll_flush() -> Poll<io::Result<()>>;
    poll_shutdown() -> Poll<io::Result<()>>;
}

forward_write!(Raw, this => this.socket.pinned());

enum IoMut<'a> {
    Plain(Pin<&'a mut Raw>),
    Tls(Pin<&'a mut tokio_rustls::TlsStream<Raw>>),
}

impl Io {
    fn pinned(&mut self) -> IoMut<'_> {
        match self {
            Io::Plain(r) => IoMut::Plain(Pin::new(r)),
            Io::Tls(t) | Io::TlsUnread(_, t) => IoMut::Tls(Pin::new(t.as_mut())),
        }
    }
}

macro_rules! io_fns {
    ($($f:ident($($a:ident: $t:ty),*) -> $r:ty;)+) => {
        impl IoMut<'_> {
            $(fn $f(self, cx: &mut Context<'_>, $($a: $t),*) -> $r {
                match self {
                    IoMut::Plain(s) => s.$f(cx, $($a),*),
                    IoMut::Tls(s) => s.$f(cx, $($a),*),
                }
            })+
        }
    };
}

io_fns! {
    poll_read(b: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
    poll_write(b: &[u8]) -> Poll<io::Result<usize>>;
    poll_write_vectored(b: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>>;
    poll_flush() -> Poll<io::Result<()>>;
    poll_shutdown() -> Poll<io::Result<()>>;
}

forward_write!(Io, this => this.pinned());

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Io::TlsUnread(bytes, _) = &mut *self
            && !bytes.is_empty()
        {
            let n = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..n]);
            bytes.advance(n);
            return Poll::Ready(Ok(()));
        }
        self.pinned().poll_read(cx, buf)
    }
}
