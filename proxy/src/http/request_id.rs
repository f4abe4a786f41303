//! `x-request-id`: a version 4 UUID whose fifteenth character tells the trace decision, as Envoy's `uuid` extension packs it.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::config::hcm::Hcm;
use crate::head::{Head, HeaderId};

/// Why a request is traced, as the id's character says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceReason {
    NotTraceable,
    Sampling,
    ServiceForced,
    ClientForced,
}

/// Index of the character.
const AT: usize = 14;

/// Sets or keeps the request's id as the options say.
pub fn set(hcm: &Hcm, head: &mut Head, edge: bool, rng: &mut SmallRng) {
    if !hcm.generate_request_id {
        return;
    }
    let fresh = if edge { !hcm.preserve_external_request_id } else { false };
    if fresh || !head.contains(HeaderId::XRequestId) {
        head.set(HeaderId::XRequestId, &generate(rng));
    }
}

/// A random UUID in text form.
pub fn generate(rng: &mut SmallRng) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = rng.random::<u128>().to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = [b'-'; 36];
    let mut o = 0;
    for (i, b) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            o += 1;
        }
        out[o] = HEX[usize::from(b >> 4)];
        out[o + 1] = HEX[usize::from(b & 15)];
        o += 2;
    }
    out
}

/// Reads the reason; an id that is no UUID says nothing.
pub fn trace_reason(head: &Head) -> TraceReason {
    match head.get(HeaderId::XRequestId) {
        Some(id) if id.len() == 36 => match id[AT] {
            b'9' => TraceReason::Sampling,
            b'a' => TraceReason::ServiceForced,
            b'b' => TraceReason::ClientForced,
            _ => TraceReason::NotTraceable,
        },
        _ => TraceReason::NotTraceable,
    }
}

/// Writes the reason into the id.
pub fn set_trace_reason(head: &mut Head, reason: TraceReason) {
    let Some(id) = head.get(HeaderId::XRequestId).filter(|id| id.len() == 36) else { return };
    let c = match reason {
        TraceReason::NotTraceable => b'4',
        TraceReason::Sampling => b'9',
        TraceReason::ServiceForced => b'a',
        TraceReason::ClientForced => b'b',
    };
    if id[AT] == c {
        return;
    }
    let mut new = [0; 36];
    new.copy_from_slice(id);
    new[AT] = c;
    head.set(HeaderId::XRequestId, &new);
}

/// The id's first 64 bits modulo `n`, for decisions that should agree along a request's way (Envoy's `toInteger`).
pub fn to_integer(head: &Head) -> Option<u64> {
    let id = head.get_str(HeaderId::XRequestId)?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}
