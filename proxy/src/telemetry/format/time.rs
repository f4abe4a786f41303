//! Times in log lines: the default ISO form with milliseconds, and strftime formats with Envoy's `%s`, `%f`, `%3f` and
//! absl's `%E3S`. All in UTC.

use std::time::Duration;

use time::OffsetDateTime;

use super::Wrote;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Writes a time since the epoch; without a format as `2026-01-02T03:04:05.678Z`.
pub(super) fn write_at(at: Duration, format: Option<&str>, out: &mut Vec<u8>) -> Wrote {
    strftime(at, format.unwrap_or("%Y-%m-%dT%H:%M:%E3SZ"), out);
    Wrote::Text
}

/// Appends the time since the epoch in a strftime format.
pub fn strftime(at: Duration, format: &str, out: &mut Vec<u8>) {
    // Seconds past the year 9999 clamp to the epoch: such a clock has no calendar form.
    let t = i64::try_from(at.as_secs())
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let nanos = at.subsec_nanos();
    let mut rest = format.bytes();
    while let Some(b) = rest.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let Some(spec) = rest.next() else {
            out.push(b'%');
            break;
        };
        match spec {
            b'E' => match (rest.next(), rest.as_slice_first()) {
                (Some(d), Some(b'S')) if d.is_ascii_digit() => {
                    rest.next();
                    digits(u64::from(t.second()), 2, out);
                    if d > b'0' {
                        out.push(b'.');
                        fraction(nanos, usize::from(d - b'0'), out);
                    }
                }
                (Some(d), Some(b'f')) if d.is_ascii_digit() => {
                    rest.next();
                    fraction(nanos, usize::from(d - b'0'), out);
                }
                (Some(b'z'), _) => out.extend_from_slice(b"+00:00"),
                (Some(other), _) => one(other, &t, at, out),
                (None, _) => out.extend_from_slice(b"%E"),
            },
            d @ b'1'..=b'9' if rest.as_slice_first() == Some(b'f') => {
                rest.next();
                fraction(nanos, usize::from(d - b'0'), out);
            }
            b'f' => fraction(nanos, 9, out),
            other => one(other, &t, at, out),
        }
    }
}

fn one(spec: u8, t: &OffsetDateTime, at: Duration, out: &mut Vec<u8>) {
    let month = MONTHS[usize::from(u8::from(t.month())) - 1];
    let day = DAYS[usize::from(t.weekday().number_days_from_monday())];
    let hour12 = match t.hour() % 12 {
        0 => 12,
        h => h,
    };
    let year = u64::try_from(t.year()).unwrap_or(0);
    match spec {
        b'Y' => digits(year, 4, out),
        b'C' => digits(year / 100, 2, out),
        b'y' => digits(year % 100, 2, out),
        b'm' => digits(u64::from(u8::from(t.month())), 2, out),
        b'd' => digits(u64::from(t.day()), 2, out),
        b'e' => {
            if t.day() < 10 {
                out.push(b' ');
            }
            digits(u64::from(t.day()), 1, out);
        }
        b'H' => digits(u64::from(t.hour()), 2, out),
        b'I' => digits(u64::from(hour12), 2, out),
        b'M' => digits(u64::from(t.minute()), 2, out),
        b'S' => digits(u64::from(t.second()), 2, out),
        b'j' => digits(u64::from(t.ordinal()), 3, out),
        b'u' => digits(u64::from(t.weekday().number_from_monday()), 1, out),
        b'w' => digits(u64::from(t.weekday().number_days_from_sunday()), 1, out),
        b'B' => out.extend_from_slice(month.as_bytes()),
        b'b' | b'h' => out.extend_from_slice(&month.as_bytes()[..3]),
        b'A' => out.extend_from_slice(day.as_bytes()),
        b'a' => out.extend_from_slice(&day.as_bytes()[..3]),
        b'p' => out.extend_from_slice(if t.hour() < 12 { b"AM" } else { b"PM" }),
        b's' => digits(at.as_secs(), 1, out),
        b'Z' => out.extend_from_slice(b"UTC"),
        b'z' => out.extend_from_slice(b"+0000"),
        b'T' => strftime(at, "%H:%M:%S", out),
        b'R' => strftime(at, "%H:%M", out),
        b'F' => strftime(at, "%Y-%m-%d", out),
        b'D' => strftime(at, "%m/%d/%y", out),
        b'c' => strftime(at, "%a %b %e %H:%M:%S %Y", out),
        b'n' => out.push(b'\n'),
        b't' => out.push(b'\t'),
        b'%' => out.push(b'%'),
        other => out.extend_from_slice(&[b'%', other]),
    }
}

fn digits(n: u64, width: usize, out: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(n);
    out.extend(std::iter::repeat_n(b'0', width.saturating_sub(text.len())));
    out.extend_from_slice(text.as_bytes());
}

/// The first `width` digits of the second's fraction.
fn fraction(nanos: u32, width: usize, out: &mut Vec<u8>) {
    let start = out.len();
    digits(u64::from(nanos), 9, out);
    out.truncate(start + width);
}

/// A look at the next byte.
trait Peek {
    fn as_slice_first(&self) -> Option<u8>;
}

impl Peek for std::str::Bytes<'_> {
    fn as_slice_first(&self) -> Option<u8> {
        self.clone().next()
    }
}
