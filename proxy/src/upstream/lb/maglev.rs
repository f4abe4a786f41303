//! Maglev hashing with Envoy's permutation (xxHash64 with seeds 0 and 1, hosts in the order of their keys), so that a key
//! lands on the host that Envoy would send it to. Follows Envoy's "Maglev" section and the paper's listing 1.

use xxhash_rust::xxh64::xxh64;

struct Entry {
    host: u32,
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    target: f64,
}

/// The table: host indices. `size` is prime, as the configuration has checked.
pub(super) fn build(keys: &[String], weights: &[f64], size: u64) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    if keys.is_empty() || size < 2 {
        return Vec::new();
    }
    let most = weights.iter().copied().fold(0.0, f64::max);
    let mut order: Vec<u32> = (0..u32::try_from(keys.len()).unwrap_or(FREE)).collect();
    order.sort_by_key(|i| &keys[*i as usize]);
    let entry = |host: u32| {
        let key = keys[host as usize].as_bytes();
        let (offset, skip) = (xxh64(key, 0) % size, xxh64(key, 1) % (size - 1) + 1);
        Entry { host, offset, skip, next: 0, weight: weights[host as usize], target: 0.0 }
    };
    let mut entries: Vec<Entry> = order.into_iter().map(entry).collect();
    let place = |e: &Entry| {
        let at = u128::from(e.offset) + u128::from(e.skip) * u128::from(e.next);
        // Below the table's size, which is at most 5,000,011.
        usize::try_from(at % u128::from(size)).unwrap_or(0)
    };
    let mut table = vec![FREE; usize::try_from(size).unwrap_or(0)];
    let (mut filled, mut iteration) = (0, 1u32);
    while filled < size {
        for e in &mut entries {
            // A host of the greatest weight is served in each iteration, one of a third of it in each third.
            if filled == size || f64::from(iteration) * e.weight < e.target {
                continue;
            }
            e.target += most;
            let mut at = place(e);
            while table[at] != FREE {
                e.next += 1;
                at = place(e);
            }
            table[at] = e.host;
            e.next += 1;
            filled += 1;
        }
        iteration += 1;
    }
    table
}

/// The host for a hash; a retry looks somewhere else.
pub(super) fn choose(table: &[u32], hash: u64, attempt: u32) -> Option<u32> {
    let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
    let at = hash.checked_rem(table.len() as u64)?;
    usize::try_from(at).ok().and_then(|i| table.get(i)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_share_the_table() {
        let keys: Vec<String> = (0..3).map(|i| format!("127.0.0.1:{i}")).collect();
        let table = build(&keys, &[0.2, 0.2, 0.6], 65537);
        let of = |i| table.iter().filter(|h| **h == i).count();
        assert!((13_000..13_200).contains(&of(0)), "{}", of(0));
        assert!((39_200..39_400).contains(&of(2)), "{}", of(2));
    }

    #[test]
    fn the_table_does_not_depend_on_the_order_of_hosts() {
        let (a, b) = (["x".to_owned(), "y".to_owned()], ["y".to_owned(), "x".to_owned()]);
        let (ta, tb) = (build(&a, &[0.5, 0.5], 11), build(&b, &[0.5, 0.5], 11));
        assert!(ta.iter().zip(&tb).all(|(i, j)| a[*i as usize] == b[*j as usize]));
    }
}
