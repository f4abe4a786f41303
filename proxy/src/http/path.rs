//! Path normalisation before routing: RFC 3986 dot segments and percent-encoding, merged slashes, escaped slashes.
//! (Envoy: `normalize_path`, `merge_slashes`, `path_with_escaped_slashes_action`.)

use crate::config::hcm::EscapedSlashes;

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// As it was.
    Same,
    /// Use this instead.
    Changed(Vec<u8>),
    /// Answer with a redirect to this.
    Redirect(Vec<u8>),
    /// Answer 400, details `path_normalization_failed`.
    Reject,
}

/// Applies the connection manager's options to `:path`.
pub fn normalize(full: &[u8], dots: bool, merge: bool, escaped: EscapedSlashes) -> Outcome {
    let end = full.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(full.len());
    let (path, rest) = full.split_at(end);
    let mut current = std::borrow::Cow::Borrowed(path);
    let mut redirect = false;
    if escaped != EscapedSlashes::Keep {
        let unescaped = unescape_slashes(path);
        if let Some(u) = unescaped {
            match escaped {
                EscapedSlashes::Reject => return Outcome::Reject,
                EscapedSlashes::UnescapeAndRedirect => redirect = true,
                EscapedSlashes::UnescapeAndForward | EscapedSlashes::Keep => {}
            }
            current = u.into();
        }
    }
    if dots {
        match canonical(&current) {
            Some(c) => current = c.into(),
            None => return Outcome::Reject,
        }
    }
    if merge && current.windows(2).any(|w| w == b"//") {
        let mut out = Vec::with_capacity(current.len());
        for b in current.iter() {
            if !(*b == b'/' && out.last() == Some(&b'/')) {
                out.push(*b);
            }
        }
        current = out.into();
    }
    if *current == *path {
        return Outcome::Same;
    }
    let whole = [&current, rest].concat();
    if redirect { Outcome::Redirect(whole) } else { Outcome::Changed(whole) }
}

/// `%2F`, `%5C` decoded to slashes; `None` if there are none.
fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut i = 0;
    let mut changed = false;
    while i < path.len() {
        match path.get(i..i + 3) {
            Some([b'%', b'2', b'f' | b'F']) => {
                out.push(b'/');
                i += 3;
                changed = true;
            }
            Some([b'%', b'5', b'c' | b'C']) => {
                out.push(b'\\');
                i += 3;
                changed = true;
            }
            _ => {
                out.push(path[i]);
                i += 1;
            }
        }
    }
    changed.then_some(out)
}

/// Canonical form as the URL parser that Envoy uses makes it: unreserved escapes decoded, backslashes to slashes, dot segments
/// removed. `None`: no absolute path, or a NUL escape.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    if path.first() != Some(&b'/') {
        return None;
    }
    if needs_nothing(path) {
        return Some(path.to_vec());
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut i = 0;
    while i < path.len() {
        let b = path[i];
        if b == b'%' {
            let hex = path.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
            if let Some(v) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
                if v == 0 {
                    return None;
                }
                if v.is_ascii_alphanumeric() || matches!(v, b'-' | b'.' | b'_' | b'~') {
                    decoded.push(v);
                } else {
                    decoded.extend_from_slice(&path[i..i + 3]);
                }
                i += 3;
                continue;
            }
        }
        decoded.push(if b == b'\\' { b'/' } else { b });
        i += 1;
    }
    let mut out: Vec<u8> = Vec::with_capacity(decoded.len());
    let mut segments = decoded[1..].split(|b| *b == b'/').peekable();
    while let Some(s) = segments.next() {
        let last = segments.peek().is_none();
        match s {
            b"." => {
                if last {
                    out.push(b'/');
                }
            }
            b".." => {
                let cut = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(cut);
                if last {
                    out.push(b'/');
                }
            }
            s => {
                out.push(b'/');
                out.extend_from_slice(s);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Some(out)
}

/// The common path has no escape, no backslash and no segment that begins with a dot.
fn needs_nothing(path: &[u8]) -> bool {
    !path.iter().any(|b| matches!(b, b'%' | b'\\')) && !path.windows(2).any(|w| w == b"/.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_as_configured() {
        let changed = |s: &str| Outcome::Changed(s.as_bytes().to_vec());
        let keep = EscapedSlashes::Keep;
        for (path, want) in [
            ("/a/b", Outcome::Same),
            ("/a/../b?x=/../y", changed("/b?x=/../y")),
            ("/a/./b/", changed("/a/b/")),
            ("/a/..", changed("/")),
            ("/..", changed("/")),
            ("/%61%2F", changed("/a%2F")),
            ("/a\\b", changed("/a/b")),
            ("/a%00b", Outcome::Reject),
        ] {
            assert_eq!(normalize(path.as_bytes(), true, false, keep), want, "{path}");
        }
        assert_eq!(normalize(b"//a///b", false, true, keep), changed("/a/b"));
        assert_eq!(normalize(b"/a%2fb", false, false, EscapedSlashes::Reject), Outcome::Reject);
        assert_eq!(normalize(b"/a%2fb", false, false, EscapedSlashes::UnescapeAndForward), changed("/a/b"));
        assert_eq!(
            normalize(b"/a%5Cb", false, false, EscapedSlashes::UnescapeAndRedirect),
            Outcome::Redirect(b"/a\\b".to_vec())
        );
    }
}
