//! Shows how an observation differs from the recorded one, line by line of their JSON.

use serde_json::Value;

/// Lines around a difference that are shown.
const CONTEXT: usize = 3;

/// Nothing if they are equal, else a readable difference: `-` is what Envoy did, `+` is what this proxy did.
#[must_use]
pub fn difference(expected: &Value, observed: &Value) -> Option<String> {
    if expected == observed {
        return None;
    }
    let pretty = |v: &Value| serde_json::to_string_pretty(v).unwrap_or_default();
    let (expected, observed) = (pretty(expected), pretty(observed));
    let old: Vec<_> = expected.lines().collect();
    let new: Vec<_> = observed.lines().collect();
    let lines = edits(&old, &new);
    let mut shown = vec![false; lines.len()];
    for (i, (mark, _)) in lines.iter().enumerate() {
        if *mark != ' ' {
            let last = (i + CONTEXT).min(lines.len() - 1);
            shown[i.saturating_sub(CONTEXT)..=last].fill(true);
        }
    }
    let mut out = String::new();
    let mut gap = false;
    for ((mark, line), shown) in lines.iter().zip(shown) {
        if shown {
            out.push_str(&format!("    {mark} {line}\n"));
            gap = false;
        } else if !gap {
            out.push_str("      ...\n");
            gap = true;
        }
    }
    Some(out)
}

/// The longest common subsequence, as marked lines.
fn edits<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let mut table = vec![vec![0_u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            table[i][j] =
                if old[i] == new[j] { table[i + 1][j + 1] + 1 } else { table[i + 1][j].max(table[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            out.push((' ', old[i]));
            i += 1;
            j += 1;
        } else if i < old.len() && (j == new.len() || table[i + 1][j] >= table[i][j + 1]) {
            out.push(('-', old[i]));
            i += 1;
        } else {
            out.push(('+', new[j]));
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_observations_have_no_difference() {
        assert_eq!(difference(&json!({"a": [1]}), &json!({"a": [1]})), None);
    }

    #[test]
    fn order_of_headers_is_a_difference() {
        let text = difference(&json!(["a: 1", "b: 2"]), &json!(["b: 2", "a: 1"])).expect("they differ");
        assert!(text.contains("    - ") && text.contains("    + "), "{text}");
    }
}
