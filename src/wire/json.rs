//! Small questions to JSON text that need no parser: how deep, which bytes, one line.

use crate::base::limits::JSON_DEPTH_MAX;

/// Whether arrays and objects in `text` nest at most [`JSON_DEPTH_MAX`] deep.
///
/// `text` need not be valid: the question bounds the work and the memory of whoever parses it.
#[must_use]
pub fn is_shallow(text: &str) -> bool {
    // A message with few brackets cannot nest deep; counting them is much cheaper than tracking
    // strings, and nearly every message ends here. Counting in bytes, chunk by chunk, is what the
    // compiler turns into vector instructions.
    let brackets = |chunk: &[u8]| {
        let opening = |byte: &u8| u8::from(matches!(byte, b'[' | b'{'));
        usize::from(chunk.iter().map(opening).sum::<u8>())
    };
    let brackets: usize = text.as_bytes().chunks(usize::from(u8::MAX)).map(brackets).sum();
    brackets <= JSON_DEPTH_MAX || depth(text) <= JSON_DEPTH_MAX
}

fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(inner) = bytes.next() {
                    match inner {
                        b'"' => break,
                        b'\\' => _ = bytes.next(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

/// Appends `text` as a JSON string, quotes included.
///
/// # Panics
///
/// Never: writing a string into memory cannot fail.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string can be written into memory");
}

/// Appends `number` in decimal digits.
pub fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// How many decimal digits `number` has.
#[must_use]
pub fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_only_brackets_outside_strings() {
        assert_eq!(depth(r#"{"a":[1,{"b":2}]}"#), 3);
        assert_eq!(depth(r#"["[[[[\"[[[", "{{"]"#), 1);
        assert_eq!(depth("]]]]["), 1);
        assert_eq!(depth(r#"["unfinished"#), 1);
    }

    #[test]
    fn the_limit_is_exact_and_many_shallow_brackets_pass() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(is_shallow(&nested(JSON_DEPTH_MAX)));
        assert!(!is_shallow(&nested(JSON_DEPTH_MAX + 1)));
        assert!(is_shallow(&"[]".repeat(1_000)));
    }

    #[test]
    fn a_string_is_quoted_and_escaped() {
        let mut out = b"[".to_vec();
        push_string(&mut out, "a\"\n");
        assert_eq!(out, br#"["a\"\n""#);
    }

    #[test]
    fn digits_are_counted_as_they_are_written() {
        for number in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(out.len(), digits(number));
        }
    }
}
