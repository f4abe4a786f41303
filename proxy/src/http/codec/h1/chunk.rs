//! The chunk scanner: what stands between the chunks of a chunked body, apart from any connection.
//!
//! RFC 9112, section 7.1, as Balsa reads it: a size is hex digits that fit 64 bits, then perhaps blanks or an extension,
//! then CRLF; what stands between a chunk's data and the next LF is skipped. Sizes are never forwarded as they came unless
//! they are canonical (`Size::canonical`).

use memchr::memchr;

use super::super::Http1Error;

/// Longest size line, bytes, extensions included.
const MAX_SIZE_LINE: usize = 4096;

/// Where the scanner stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// So many bytes of data are to come.
    Data(u64),
    /// Behind the data, before its line end.
    DataEnd,
    /// Behind the last chunk's size line.
    Trailers,
}

/// What the scanner found at the start of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// So many bytes of framing: skip them and ask again.
    Skip(usize),
    /// So many bytes of data stand here (they are reckoned as taken).
    Data(usize),
    /// The last chunk's size line is behind us: trailers and the empty line stand here.
    Trailers,
    /// More bytes are needed.
    Incomplete,
}

/// A size line.
struct Size {
    value: u64,
    /// Bytes of the line with its end.
    line: usize,
    /// Only digits, no leading zero, CRLF: may be forwarded as it is.
    canonical: bool,
}

/// The state between calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanner(State);

fn size_line(bytes: &[u8]) -> Result<Option<Size>, Http1Error> {
    let mut value = 0u64;
    let mut digits = 0;
    for b in bytes {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            b'A'..=b'F' => b - b'A' + 10,
            _ => break,
        };
        if value >> 60 != 0 {
            return Err(Http1Error::Syntax);
        }
        value = value << 4 | u64::from(digit);
        digits += 1;
        if digits > MAX_SIZE_LINE {
            return Err(Http1Error::Syntax);
        }
    }
    let Some(next) = bytes.get(digits) else { return Ok(None) };
    if digits == 0 || !matches!(next, b'\r' | b' ' | b'\t' | b';') {
        return Err(Http1Error::Syntax);
    }
    // The line ends at the first CR, which LF must follow; a LF alone is an error, and so is a stray CR.
    let rest = &bytes[digits..];
    match memchr(b'\n', rest) {
        Some(lf) => {
            let cr = memchr(b'\r', &rest[..lf]);
            if digits + lf >= MAX_SIZE_LINE || cr.is_none() || cr != lf.checked_sub(1) {
                return Err(Http1Error::Syntax);
            }
            Ok(Some(Size { value, line: digits + lf + 1, canonical: lf == 1 && bytes[0] != b'0' }))
        }
        None => {
            let stray = memchr(b'\r', rest).is_some_and(|cr| cr + 1 != rest.len());
            if stray || bytes.len() > MAX_SIZE_LINE { Err(Http1Error::Syntax) } else { Ok(None) }
        }
    }
}

impl Scanner {
    /// Looks at the start of `bytes`.
    ///
    /// # Errors
    /// `Syntax` for a size line that Envoy refuses.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Chunk, Http1Error> {
        match self.0 {
            State::Trailers => Ok(Chunk::Trailers),
            State::Data(left) => {
                if bytes.is_empty() {
                    return Ok(Chunk::Incomplete);
                }
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - n as u64;
                self.0 = if left == 0 { State::DataEnd } else { State::Data(left) };
                Ok(Chunk::Data(n))
            }
            State::DataEnd => match memchr(b'\n', bytes) {
                Some(lf) => {
                    self.0 = State::Size;
                    Ok(Chunk::Skip(lf + 1))
                }
                // A CR may be half of the line end; anything else is skipped at once.
                None if bytes.is_empty() || bytes == b"\r" => Ok(Chunk::Incomplete),
                None => Ok(Chunk::Skip(bytes.len())),
            },
            State::Size => match size_line(bytes)? {
                None => Ok(Chunk::Incomplete),
                Some(size) => {
                    self.0 = if size.value == 0 { State::Trailers } else { State::Data(size.value) };
                    Ok(Chunk::Skip(size.line))
                }
            },
        }
    }

    /// Length of the longest start of `bytes` that may be forwarded still framed, and the data bytes in it: canonical
    /// sizes, CRLFs, data. Stops before the last chunk and before anything irregular, for which ask `next`.
    ///
    /// # Errors
    /// As for `next`.
    pub fn framed(&mut self, bytes: &[u8]) -> Result<(usize, u64), Http1Error> {
        let (mut at, mut data) = (0, 0);
        loop {
            let rest = &bytes[at..];
            match self.0 {
                State::Trailers => return Ok((at, data)),
                State::Data(left) => {
                    let n = left.min(rest.len() as u64);
                    at += n as usize;
                    data += n;
                    if n < left {
                        self.0 = State::Data(left - n);
                        return Ok((at, data));
                    }
                    self.0 = State::DataEnd;
                }
                State::DataEnd => {
                    if !rest.starts_with(b"\r\n") {
                        return Ok((at, data));
                    }
                    at += 2;
                    self.0 = State::Size;
                }
                State::Size => {
                    if rest.is_empty() {
                        return Ok((at, data));
                    }
                    // An error here shows at the next call, when what stands before it is gone.
                    match size_line(rest) {
                        Ok(Some(size)) if size.canonical => {
                            at += size.line;
                            self.0 = State::Data(size.value);
                        }
                        Err(e) if at == 0 => return Err(e),
                        _ => return Ok((at, data)),
                    }
                }
            }
        }
    }

    /// Whether the data of the current chunk is all taken and its line end is to come.
    pub fn at_data_end(&self) -> bool {
        self.0 == State::DataEnd
    }

    /// Data bytes of the current chunk still to come.
    pub fn data_left(&self) -> u64 {
        match self.0 {
            State::Data(left) => left,
            _ => 0,
        }
    }

    /// Skips the CRLF, the last chunk and the empty line, which the caller has seen.
    pub(super) fn finish(&mut self) {
        self.0 = State::Trailers;
    }
}
