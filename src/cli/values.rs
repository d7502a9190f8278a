//! Values on the command line: durations, and where in a topic to start.

use std::time::Duration;

use crate::{base::clock::Clock, client::From, wire::position::Position};

/// Reads `500ms`, `25s` or `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "a duration is a number with a unit (ms, s, m, h, d), such as 10m or 1h30m";
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(FORM)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(FORM.to_owned()),
        };
        let number: u64 = number.parse().map_err(|_| FORM)?;
        total += Duration::from_millis(number.saturating_mul(unit_ms));
        rest = tail;
    }
    if text.is_empty() { Err(FORM.to_owned()) } else { Ok(total) }
}

/// What `--from` takes, for its help.
pub(super) const START_FORMS: &str =
    "live, start, last:N, since:10m, since:2026-01-02T03:04:05Z, or EPOCH:SEQ (after that event)";

/// Reads a start.
pub(super) fn start(text: &str) -> Result<From, String> {
    let wrong = || format!("the forms are: {START_FORMS}");
    match text.split_once(':') {
        None if text == "live" => Ok(From::Live),
        None if text == "start" => Ok(From::Start),
        Some(("last", count)) => count.parse().map(From::Last).map_err(|_| wrong()),
        Some(("since", time)) => since(time).map(From::Since).ok_or_else(wrong),
        Some((epoch, seq)) => match (epoch.parse(), seq.parse()) {
            (Ok(epoch), Ok(seq)) => Ok(From::After(Position { epoch, seq })),
            _ => Err(wrong()),
        },
        None => Err(wrong()),
    }
}

/// A moment as Unix milliseconds: a duration before now, or a date.
fn since(text: &str) -> Option<u64> {
    let ago = |ago: Duration| {
        let ago_ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Clock::default().unix_ms().saturating_sub(ago_ms)
    };
    duration(text).ok().map(ago).or_else(|| rfc3339(text))
}

/// Reads `2026-01-02T03:04Z`, with or without seconds and a fraction; `Z` or an offset.
fn rfc3339(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|b| wanted.contains(b));
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute) = (number(11..13)?, number(14..16)?);
    let marks = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":");
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    if !marks || !valid {
        return None;
    }
    let mut rest = text.get(16..)?;
    let mut ms = 0;
    if is(16, b":") {
        let second = number(17..19).filter(|second| *second <= 60)?;
        ms = second * 1_000;
        rest = text.get(19..)?;
        if let Some(fraction) = rest.strip_prefix('.') {
            let digits = fraction.find(|c: char| !c.is_ascii_digit())?;
            let three: String = format!("{}000", &fraction[..digits]).chars().take(3).collect();
            ms += three.parse::<i64>().ok()?;
            rest = &fraction[digits..];
        }
    }
    let offset = match rest.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), a, b, b':', c, d] => {
            let digit = |byte: &u8| char::from(*byte).to_digit(10).map(i64::from);
            let minutes = (digit(a)? * 10 + digit(b)?) * 60 + digit(c)? * 10 + digit(d)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    // Days since 1970-01-01, counted in years that begin in March.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let minutes = (days * 24 + hour) * 60 + minute - offset;
    u64::try_from(minutes * 60_000 + ms).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "10", "s", "10x", "-1s", "1.5s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_form_of_a_start_is_read() {
        assert_eq!(start("live"), Ok(From::Live));
        assert_eq!(start("start"), Ok(From::Start));
        assert_eq!(start("last:3"), Ok(From::Last(3)));
        assert_eq!(start("since:2026-01-02T03:04Z"), Ok(From::Since(1_767_323_040_000)));
        assert!(matches!(start("since:10m"), Ok(From::Since(1..))));
        let position = Position { epoch: "00000000000000ff".parse().unwrap(), seq: 7 };
        assert_eq!(start("00000000000000ff:7"), Ok(From::After(position)));
        for text in ["", "now", "last:", "last:x", "since:", "since:10", "ff:7", "7"] {
            assert!(start(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn dates_are_read_with_fraction_and_offset() {
        assert_eq!(rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(rfc3339("2000-02-29T12:00:00.5Z"), Some(951_825_600_500));
        assert_eq!(rfc3339("2026-01-02T05:04:05+02:00"), rfc3339("2026-01-02T03:04:05Z"));
        for text in ["2026-13-01T00:00Z", "2026-01-01", "2026-01-01T00:00", "x026-01-01T00:00Z"] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
