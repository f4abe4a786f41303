//! A request's or response's head: an ordered list of fields with known-header ids, as Envoy's header map is.
//!
//! Names and values are spans into one arena of bytes, so a message costs no allocation once the arena has grown. Names are
//! lower case. Pseudo-headers (`:method`, `:path`, `:authority`, `:scheme`, `:status`, `:protocol`) are fields like any
//! other and stand first, in the order in which they came or were set.

mod id;

pub use id::{HeaderId, HeaderName};

/// An ordered list of header fields.
#[derive(Clone, Debug, Default)]
pub struct Head {
    arena: Vec<u8>,
    fields: Vec<Field>,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    id: HeaderId,
    name: Span,
    value: Span,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(self, arena: &[u8]) -> &[u8] {
        &arena[self.start as usize..(self.start + self.len) as usize]
    }
}

impl Head {
    /// An empty head.
    pub fn new() -> Head {
        Head::default()
    }

    /// Forgets all fields, keeping the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.fields.clear();
    }

    /// Number of fields, pseudo-headers included.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes of all names and values, as Envoy's `byteSize` counts them.
    pub fn byte_size(&self) -> usize {
        self.fields.iter().map(|f| (f.name.len + f.value.len) as usize).sum()
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    fn push_name(&mut self, id: HeaderId, name: &[u8]) -> Span {
        let span = self.push_bytes(name);
        if id == HeaderId::Other {
            self.arena[span.start as usize..].make_ascii_lowercase();
        }
        span
    }

    /// Adds a field behind the others. `name` may have any case.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        let id = HeaderId::lookup(name);
        let name = match id.as_str() {
            // A known name needs no bytes of its own but keeps spans uniform; it is short.
            Some(known) => self.push_bytes(known.as_bytes()),
            None => self.push_name(id, name),
        };
        let value = self.push_bytes(value);
        self.fields.push(Field { id, name, value });
    }

    /// Adds a field by its known id.
    pub fn append_id(&mut self, id: HeaderId, value: &[u8]) {
        debug_assert!(id != HeaderId::Other);
        let name = self.push_bytes(id.as_str().unwrap_or_default().as_bytes());
        let value = self.push_bytes(value);
        self.fields.push(Field { id, name, value });
    }

    /// Adds a field by a prepared name.
    pub fn append_name(&mut self, name: &HeaderName, value: &[u8]) {
        let span = self.push_bytes(name.as_str().as_bytes());
        let value = self.push_bytes(value);
        self.fields.push(Field { id: name.id(), name: span, value });
    }

    /// The first value of a known header.
    pub fn get(&self, id: HeaderId) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.id == id).map(|f| f.value.of(&self.arena))
    }

    /// The first value of a known header as text, if it is UTF-8.
    pub fn get_str(&self, id: HeaderId) -> Option<&str> {
        self.get(id).and_then(|v| std::str::from_utf8(v).ok())
    }

    fn is(&self, f: &Field, name: &HeaderName) -> bool {
        f.id == name.id() && (f.id != HeaderId::Other || f.name.of(&self.arena) == name.as_str().as_bytes())
    }

    /// The first value of a header by prepared name.
    pub fn get_name(&self, name: &HeaderName) -> Option<&[u8]> {
        self.fields.iter().find(|f| self.is(f, name)).map(|f| f.value.of(&self.arena))
    }

    /// All values of a header, in order.
    pub fn all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(|f| self.is(f, name)).map(|f| f.value.of(&self.arena))
    }

    /// All values of a known header, in order.
    pub fn all_id(&self, id: HeaderId) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |f| f.id == id).map(|f| f.value.of(&self.arena))
    }

    /// All values joined with `,`, as Envoy's matchers see several of one name; borrowed when there is one.
    pub fn joined<'a>(&'a self, name: &HeaderName) -> Option<std::borrow::Cow<'a, [u8]>> {
        let mut found = self.fields.iter().filter(|f| self.is(f, name)).map(|f| f.value.of(&self.arena));
        let first = found.next()?;
        let Some(second) = found.next() else { return Some(first.into()) };
        let mut all = first.to_vec();
        for v in std::iter::once(second).chain(found) {
            all.push(b',');
            all.extend_from_slice(v);
        }
        Some(all.into())
    }

    /// Whether the header is there.
    pub fn contains(&self, id: HeaderId) -> bool {
        self.fields.iter().any(|f| f.id == id)
    }

    /// Sets a known header to one value: the first field is changed in place, others of the name go.
    pub fn set(&mut self, id: HeaderId, value: &[u8]) {
        let value_span = self.push_bytes(value);
        let mut seen = false;
        self.fields.retain_mut(|f| {
            if f.id != id {
                return true;
            }
            if seen {
                return false;
            }
            seen = true;
            f.value = value_span;
            true
        });
        if !seen {
            let name = self.push_bytes(id.as_str().unwrap_or_default().as_bytes());
            self.insert_field(Field { id, name, value: value_span });
        }
    }

    /// Sets a header by prepared name, as `set`.
    pub fn set_name(&mut self, name: &HeaderName, value: &[u8]) {
        if name.id() != HeaderId::Other {
            return self.set(name.id(), value);
        }
        let value_span = self.push_bytes(value);
        let arena = std::mem::take(&mut self.arena);
        let mut seen = false;
        self.fields.retain_mut(|f| {
            if f.id != HeaderId::Other || f.name.of(&arena) != name.as_str().as_bytes() {
                return true;
            }
            if seen {
                return false;
            }
            seen = true;
            f.value = value_span;
            true
        });
        self.arena = arena;
        if !seen {
            let span = self.push_bytes(name.as_str().as_bytes());
            self.fields.push(Field { id: HeaderId::Other, name: span, value: value_span });
        }
    }

    /// Pseudo-headers stand before all others.
    fn insert_field(&mut self, field: Field) {
        if field.id.is_pseudo() {
            let at = self.fields.iter().take_while(|f| f.id.is_pseudo()).count();
            self.fields.insert(at, field);
        } else {
            self.fields.push(field);
        }
    }

    /// Removes all fields of a known header; tells whether there was one.
    pub fn remove(&mut self, id: HeaderId) -> bool {
        let before = self.fields.len();
        self.fields.retain(|f| f.id != id);
        before != self.fields.len()
    }

    /// Removes all fields of a name.
    pub fn remove_name(&mut self, name: &HeaderName) -> bool {
        let before = self.fields.len();
        let (arena, id) = (&self.arena, name.id());
        self.fields.retain(|f| {
            f.id != id || (id == HeaderId::Other && f.name.of(arena) != name.as_str().as_bytes())
        });
        before != self.fields.len()
    }

    /// Keeps the fields for which `keep(id, name, value)` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(HeaderId, &[u8], &[u8]) -> bool) {
        let arena = &self.arena;
        self.fields.retain(|f| keep(f.id, f.name.of(arena), f.value.of(arena)));
    }

    /// All fields in order: id, lower-case name, value.
    pub fn iter(&self) -> impl Iterator<Item = (HeaderId, &[u8], &[u8])> {
        self.fields.iter().map(|f| (f.id, f.name.of(&self.arena), f.value.of(&self.arena)))
    }

    /// `:status` as a number; `None` if it is missing or not three digits.
    pub fn status(&self) -> Option<u16> {
        let v = self.get(HeaderId::Status)?;
        if v.len() != 3 {
            return None;
        }
        v.iter().try_fold(0u16, |n, b| b.is_ascii_digit().then(|| n * 10 + u16::from(b - b'0')))
    }

    /// Sets `:status`.
    pub fn set_status(&mut self, code: u16) {
        let digits =
            [b'0' + (code / 100 % 10) as u8, b'0' + (code / 10 % 10) as u8, b'0' + (code % 10) as u8];
        self.set(HeaderId::Status, &digits);
    }

    /// `:path` with its query.
    pub fn path(&self) -> &[u8] {
        self.get(HeaderId::Path).unwrap_or_default()
    }

    /// `:method`.
    pub fn method(&self) -> &[u8] {
        self.get(HeaderId::Method).unwrap_or_default()
    }

    /// `:authority`.
    pub fn authority(&self) -> &[u8] {
        self.get(HeaderId::Authority).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_are_found_in_any_case() {
        let mut h = Head::new();
        h.append_id(HeaderId::Method, b"GET");
        h.append(b"X-One", b"1");
        h.append(b"Content-Length", b"0");
        h.append(b"x-one", b"2");
        h.set(HeaderId::Path, b"/a");
        let names: Vec<_> = h.iter().map(|(_, n, _)| String::from_utf8_lossy(n).into_owned()).collect();
        assert_eq!(names, [":method", ":path", "x-one", "content-length", "x-one"]);
        assert_eq!(h.joined(&HeaderName::new("X-ONE")).unwrap().as_ref(), b"1,2");
        h.set_name(&HeaderName::new("x-one"), b"3");
        assert_eq!(h.len(), 4);
        assert!(h.remove(HeaderId::ContentLength));
        assert_eq!(h.status(), None);
        h.set_status(204);
        assert_eq!(h.status(), Some(204));
    }
}
