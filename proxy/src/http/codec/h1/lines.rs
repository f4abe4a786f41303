//! Header lines, as Balsa reads them: CRLF or a bare LF ends a line, a folded line goes on, bare CRs vanish.

use memchr::{memchr, memchr2};

use super::super::Http1Error;

/// Where the head that begins at `buf[0]` ends: the index behind its empty line. `from` is where an earlier call, which
/// found none, may go on; it is updated.
pub(super) fn head_end(buf: &[u8], from: &mut usize) -> Option<usize> {
    let mut at = *from;
    while let Some(i) = memchr(b'\n', &buf[at..]) {
        let next = at + i + 1;
        match &buf[next..] {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            // The line behind is not there yet: look at this LF again when it is.
            [] | [b'\r'] => {
                *from = at + i;
                return None;
            }
            _ => at = next,
        }
    }
    *from = buf.len();
    None
}

/// Whether a byte may not stand anywhere in a head.
const fn is_control(b: u8) -> bool {
    (b < 0x20 && b != b'\t' && b != b'\r' && b != b'\n') || b == 0x7f
}

/// Refuses control characters, as Balsa does before it looks at a line.
pub(super) fn check_characters(head: &[u8]) -> Result<(), Http1Error> {
    // No early exit inside a block, so that it becomes vector code.
    for block in head.chunks(64) {
        if block.iter().fold(false, |bad, b| bad | is_control(*b)) {
            return Err(Http1Error::InvalidCharacters);
        }
    }
    Ok(())
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 128 {
        let b = i as u8;
        table[i] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        i += 1;
    }
    table
};

/// RFC 9110's `token`.
pub(super) fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| TOKEN[usize::from(*b)])
}

/// Splits off the first line, without its end.
pub(super) fn first_line(block: &[u8]) -> (&[u8], &[u8]) {
    match memchr(b'\n', block) {
        Some(i) => (block[..i].strip_suffix(b"\r").unwrap_or(&block[..i]), &block[i + 1..]),
        None => (block, &[]),
    }
}

fn trim(mut v: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = v {
        v = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = v {
        v = rest;
    }
    v
}

/// Calls `field(name, value)` for each field of a block of header lines, up to its empty line.
pub(super) fn fields(
    mut block: &[u8],
    scratch: &mut Vec<u8>,
    mut field: impl FnMut(&[u8], &[u8]) -> Result<(), Http1Error>,
) -> Result<(), Http1Error> {
    loop {
        match block {
            [] | [b'\n', ..] | [b'\r', b'\n', ..] => return Ok(()),
            _ => {}
        }
        let Some(colon) = memchr2(b':', b'\n', block) else { return Err(Http1Error::Syntax) };
        if block[colon] != b':' || !is_token(&block[..colon]) {
            return Err(Http1Error::Syntax);
        }
        let name = &block[..colon];
        let rest = &block[colon + 1..];
        let mut end = memchr(b'\n', rest).unwrap_or(rest.len());
        let mut odd = false;
        while let Some(b' ' | b'\t') = rest.get(end + 1) {
            odd = true;
            end = memchr(b'\n', &rest[end + 1..]).map_or(rest.len(), |i| end + 1 + i);
        }
        let value = trim(&rest[..end]);
        odd |= memchr(b'\r', value).is_some();
        if odd {
            scratch.clear();
            scratch.extend(value.iter().filter(|b| !matches!(b, b'\r' | b'\n')));
            field(name, scratch)?;
        } else {
            field(name, value)?;
        }
        block = rest.get(end + 1..).unwrap_or_default();
    }
}
