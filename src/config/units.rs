//! Durations and sizes as people write them: a number with its unit, such as `1h30m` or `256KiB`.
//!
//! # Place
//!
//! Pure text in, value out, and back. What [`write_duration`] and [`write_size`] write, the parsers
//! read as the same value.

use std::time::Duration;

/// Units of time with their milliseconds, the longest first, as they follow each other.
const TIMES: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size with their bytes. The first that divides a size writes it.
const SIZES: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads `500ms`, `25s` or `1h30m`: longer units first, none twice.
///
/// # Errors
///
/// A clause that continues "the value is ...,".
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    if is_number(text) {
        return Err(no_duration_unit(text));
    }
    duration_parts(text).map(Duration::from_millis).ok_or_else(|| {
        "which is not a duration: that is a number and a unit (ms, s, m, h or d), \
         such as \"25s\" or \"1h30m\""
            .to_owned()
    })
}

/// Reads `256KiB`, `1MB` or `100B`.
///
/// # Errors
///
/// A clause that continues "the value is ...,".
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    if is_number(text) {
        return Err(no_size_unit(text));
    }
    let number_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
    let (number, unit) = text.split_at(number_end);
    let factor = SIZES.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| *bytes);
    let size = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    size.ok_or_else(|| {
        "which is not a size: that is a whole number and a unit (B, KiB, MiB, GiB, TiB, or KB, \
         MB, GB, TB for powers of 1000), such as \"256KiB\""
            .to_owned()
    })
}

/// What to say about a duration that is only a number.
pub(super) fn no_duration_unit(number: &str) -> String {
    format!("which has no unit: write \"{number}s\" if it means seconds, or use ms, m, h or d")
}

/// What to say about a size that is only a number.
pub(super) fn no_size_unit(number: &str) -> String {
    format!("which has no unit: write \"{number}B\" if it means bytes, or use KiB, MiB or GiB")
}

/// The shortest way to write `duration`; what is below a millisecond is left out.
pub(super) fn write_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, millis) in TIMES {
        if millis <= rest {
            text.push_str(&format!("{}{unit}", rest / millis));
            rest %= millis;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// `size` in the largest unit of which it is a whole multiple, powers of 1024 preferred.
pub(super) fn write_size(size: u64) -> String {
    let divides = |(_, bytes): &&(&str, u64)| bytes <= &size && size.is_multiple_of(*bytes);
    let (unit, bytes) = SIZES.iter().find(divides).unwrap_or(&("B", 1));
    format!("{}{unit}", size / bytes)
}

fn duration_parts(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut units = TIMES.iter();
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        // The iterator goes on from the last unit, so that units only get shorter.
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*millis)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || b"._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units_that_get_shorter() {
        for (text, millis) in [
            ("500ms", 500),
            ("25s", 25_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("1d1h1m1s1ms", 90_061_001),
            ("0s", 0),
            ("90s", 90_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "s", "1", "1.5h", "-1s", "1s1s", "1s1m", "1 s", "1S", "1w", "1hm", "1h30", "é"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("99999999999999999999d").is_err());
        assert!(parse_duration("18446744073709551615d").is_err());
    }

    #[test]
    fn sizes_know_powers_of_1024_and_of_1000() {
        for (text, bytes) in [
            ("0B", 0),
            ("100B", 100),
            ("256KiB", 262_144),
            ("64MiB", 67_108_864),
            ("1MB", 1_000_000),
            ("5kB", 5_000),
            ("5KB", 5_000),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1", "1.5MiB", "-1B", "1 KiB", "1kib", "1K", "1M", "1KiBB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size("99999999999TiB").is_err());
    }

    #[test]
    fn a_bare_number_is_told_which_unit_it_lacks() {
        assert!(parse_duration("25").unwrap_err().contains("no unit: write \"25s\""));
        assert!(parse_duration("2.5").unwrap_err().contains("no unit"));
        assert!(parse_size("4096").unwrap_err().contains("no unit: write \"4096B\""));
    }

    #[test]
    fn what_is_written_reads_as_the_same_value() {
        for (millis, text) in [
            (0, "0s"),
            (1, "1ms"),
            (54_000, "54s"),
            (120_000, "2m"),
            (90_000, "1m30s"),
            (86_400_000, "1d"),
            (90_061_001, "1d1h1m1s1ms"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(write_duration(duration), text);
            assert_eq!(parse_duration(text), Ok(duration));
        }
        for (size, text) in [
            (0, "0B"),
            (1, "1B"),
            (1_000, "1KB"),
            (1_024, "1KiB"),
            (1_536, "1536B"),
            (262_144, "256KiB"),
            (1_000_000, "1MB"),
            (1 << 30, "1GiB"),
        ] {
            assert_eq!(write_size(size), text);
            assert_eq!(parse_size(text), Ok(size));
        }
    }
}
