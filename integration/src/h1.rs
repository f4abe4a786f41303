//! Reads HTTP/1.1 messages for the scripted clients and upstreams. It keeps names, order and bytes as they came,
//! which is the point of comparing; it is deliberately no strict parser.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A stream and what was read from it beyond the last message.
#[derive(Debug)]
pub struct Reader<S> {
    pub stream: S,
    pub buf: Vec<u8>,
}

#[derive(Debug, Default, Clone)]
pub struct Head {
    pub first_line: String,
    /// `name: value` as received.
    pub headers: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Body {
    pub bytes: Vec<u8>,
    pub trailers: Vec<String>,
    /// The stream ended inside the body.
    pub cut: bool,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

impl Head {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|h| {
            let (n, v) = h.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }

    fn framing(&self) -> Option<Framing> {
        if self.header("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked")) {
            return Some(Framing::Chunked);
        }
        self.header("content-length").and_then(|v| v.parse().ok()).map(Framing::Length)
    }

    #[must_use]
    pub fn request_framing(&self) -> Framing {
        self.framing().unwrap_or(Framing::None)
    }

    /// RFC 9112, section 6.3.
    #[must_use]
    pub fn response_framing(&self, method: &str) -> Framing {
        let status = self.status();
        if method == "HEAD"
            || matches!(status, 100..=199 | 204 | 304)
            || (method == "CONNECT" && (200..300).contains(&status))
        {
            return Framing::None;
        }
        self.framing().unwrap_or(Framing::UntilClose)
    }

    #[must_use]
    pub fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buf: Vec::new() }
    }

    /// Reads more; false at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.buf).await? > 0)
    }

    /// The next head, or nothing if the stream ended before its first byte.
    ///
    /// # Errors
    /// A reset, or an end inside the head.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = find(&self.buf, b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&self.buf[..end]).into_owned();
                self.buf.drain(..end + 4);
                let mut lines = text.split("\r\n");
                let first_line = lines.next().unwrap_or_default().to_owned();
                return Ok(Some(Head { first_line, headers: lines.map(str::to_owned).collect() }));
            }
            if !self.fill().await? {
                if self.buf.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The body that follows a head.
    pub async fn body(&mut self, framing: Framing) -> Body {
        let mut body = Body::default();
        let result = match framing {
            Framing::None => Ok(()),
            Framing::Length(n) => self.exactly(n, &mut body.bytes).await,
            Framing::Chunked => self.chunks(&mut body).await,
            Framing::UntilClose => {
                while matches!(self.fill().await, Ok(true)) {}
                body.bytes.append(&mut self.buf);
                Ok(())
            }
        };
        body.cut = result.is_err();
        body
    }

    async fn exactly(&mut self, n: usize, into: &mut Vec<u8>) -> io::Result<()> {
        while self.buf.len() < n {
            match self.fill().await {
                Ok(true) => {}
                Ok(false) => {
                    into.append(&mut self.buf);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Err(e) => {
                    into.append(&mut self.buf);
                    return Err(e);
                }
            }
        }
        into.extend(self.buf.drain(..n));
        Ok(())
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.buf, b"\r\n") {
                let line = String::from_utf8_lossy(&self.buf[..end]).into_owned();
                self.buf.drain(..end + 2);
                return Ok(line);
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn chunks(&mut self, body: &mut Body) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(io::Error::other)?;
            if size == 0 {
                loop {
                    let line = self.line().await?;
                    if line.is_empty() {
                        return Ok(());
                    }
                    body.trailers.push(line);
                }
            }
            self.exactly(size, &mut body.bytes).await?;
            self.line().await?;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Bytes as an observation shows them: text if they are text, a summary if they are long.
#[must_use]
pub fn show(bytes: &[u8]) -> serde_json::Value {
    if bytes.len() > 4096 {
        let sum = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
        return serde_json::json!({"length": bytes.len(), "fnv": format!("{sum:016x}")});
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control() || matches!(c, '\r' | '\n' | '\t')) => text.into(),
        _ => format!("bytes:{}", bytes.escape_ascii()).into(),
    }
}

/// A body of `size` bytes that repeats the alphabet, so that lost or doubled bytes change the sum.
#[must_use]
pub fn filler(size: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunked_message_keeps_header_order_body_and_trailers() {
        let bytes: &[u8] =
            b"HTTP/1.1 200 OK\r\nB: 1\r\na: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: x\r\n\r\nrest";
        let mut r = Reader::new(bytes);
        let head = r.head().await.expect("whole head").expect("a head");
        assert_eq!(head.headers, ["B: 1", "a: 2", "Transfer-Encoding: chunked"]);
        let body = r.body(head.response_framing("GET")).await;
        assert_eq!((body.bytes.as_slice(), body.cut), (&b"abc"[..], false));
        assert_eq!(body.trailers, ["t: x"]);
        assert_eq!(r.buf, b"rest");
    }

    #[tokio::test]
    async fn body_shorter_than_its_length_is_cut() {
        let mut r = Reader::new(&b"abc"[..]);
        let body = r.body(Framing::Length(5)).await;
        assert!(body.cut);
        assert_eq!(body.bytes, b"abc");
    }
}
