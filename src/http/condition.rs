//! Versions of a state in HTTP: entity tags, the conditions that name them, and dates.
//!
//! A tag is `"EPOCH:VERSION"`. A version alone, `"VERSION"`, is understood as one of this epoch.
//! `W/` in front changes nothing: a proxy that compresses adds it, and equal versions are equal.

use crate::{
    http::{
        field::Field,
        head::{Head, members},
        shown,
        target::number,
    },
    wire::{request::Refusal, state::StatePosition},
};

/// What must be true of a key before it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// It has no value: `If-None-Match: *`.
    Absent,
    /// It has a value: `If-Match: *`.
    Present,
    /// It has this version, in this epoch if one is given: `If-Match`.
    Version { epoch: Option<u64>, version: u64 },
}

impl Condition {
    /// What `head` asks for.
    ///
    /// # Errors
    ///
    /// A field is not in one of its forms, or both are there.
    pub fn of(head: &Head) -> Result<Condition, Refusal> {
        match (head.field(Field::IfMatch), head.field(Field::IfNoneMatch)) {
            (None, None) => Ok(Condition::None),
            (Some(_), Some(_)) => Err(Refusal::field(
                Field::IfNoneMatch.name(),
                "If-None-Match is there beside If-Match; a change takes one of them",
            )),
            (None, Some("*")) => Ok(Condition::Absent),
            (None, Some(text)) => Err(Refusal::field(
                Field::IfNoneMatch.name(),
                format!("If-None-Match is {}; a change takes * there", shown(text)),
            )),
            (Some("*"), None) => Ok(Condition::Present),
            (Some(text), None) => {
                let (epoch, version) = tag(text).ok_or_else(|| {
                    let rule = "it is one \"EPOCH:VERSION\", \"VERSION\" or *";
                    let message = format!("If-Match is {}; {rule}", shown(text));
                    Refusal::field(Field::IfMatch.name(), message)
                })?;
                Ok(Condition::Version { epoch, version })
            }
        }
    }
}

/// Whether the caller has what is `at` already, so that it need not be sent.
#[must_use]
pub fn is_known(head: &Head, at: &StatePosition) -> bool {
    let here = |member: &str| {
        member == "*"
            || tag(member).is_some_and(|(epoch, version)| {
                version == at.version && epoch.is_none_or(|epoch| epoch == at.epoch.number())
            })
    };
    head.field(Field::IfNoneMatch).is_some_and(|list| members(list).any(here))
}

/// The tag of what is `at`.
#[must_use]
pub fn etag(at: &StatePosition) -> String {
    format!("\"{}:{}\"", at.epoch, at.version)
}

/// The epoch, if there is one, and the version in a tag.
fn tag(text: &str) -> Option<(Option<u64>, u64)> {
    let text = text.strip_prefix("W/").unwrap_or(text);
    let text = text.strip_prefix('"')?.strip_suffix('"')?;
    let Some((epoch, version)) = text.split_once(':') else {
        return Some((None, number(text)?));
    };
    let epoch: crate::wire::position::Epoch = epoch.parse().ok()?;
    Some((Some(epoch.number()), number(version)?))
}

/// A time as `Last-Modified` has it (RFC 9110, 5.6.7): the second in which it lies, in GMT.
#[must_use]
pub fn http_date(unix_ms: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = unix_ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar repeats every 400 years; counting from March puts the leap day last, and month
    // lengths then follow a line.
    let from_march = days + 719_468;
    let (era, day_of_era) = (from_march / 146_097, from_march % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    let name = |names: &[&'static str], at: u64| {
        usize::try_from(at).ok().and_then(|at| names.get(at).copied()).unwrap_or_default()
    };
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        name(&DAYS, days % 7),
        name(&MONTHS, month),
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::head::{Parsed, parse},
        wire::position::Epoch,
    };

    fn head(lines: &str) -> Head {
        let text = format!("PUT / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        match parse(text.as_bytes()).unwrap() {
            Parsed::Done { head, .. } => head,
            Parsed::Partial => panic!("not whole: {text}"),
        }
    }

    #[test]
    fn every_form_of_a_condition_is_understood() {
        let epoch = Some(7);
        for (lines, condition) in [
            ("", Condition::None),
            ("If-None-Match: *\r\n", Condition::Absent),
            ("If-Match: *\r\n", Condition::Present),
            ("If-Match: \"4\"\r\n", Condition::Version { epoch: None, version: 4 }),
            ("If-Match: \"0000000000000007:4\"\r\n", Condition::Version { epoch, version: 4 }),
            ("If-Match: W/\"0000000000000007:4\"\r\n", Condition::Version { epoch, version: 4 }),
        ] {
            assert_eq!(Condition::of(&head(lines)), Ok(condition), "{lines}");
        }
    }

    #[test]
    fn a_wrong_condition_is_refused_with_the_field_and_the_value() {
        for (line, field) in [
            ("If-Match: 4", "If-Match"),
            ("If-Match: \"x\"", "If-Match"),
            ("If-Match: \"7:4\"", "If-Match"),
            ("If-Match: \"+4\"", "If-Match"),
            ("If-Match: \"\"", "If-Match"),
            ("If-Match: \"4\", \"5\"", "If-Match"),
            ("If-None-Match: \"4\"", "If-None-Match"),
            ("If-None-Match: *\r\nIf-Match: *", "If-None-Match"),
        ] {
            let refusal = Condition::of(&head(&format!("{line}\r\n"))).unwrap_err();
            assert_eq!(refusal.field, Some(field), "{line}: {refusal:?}");
            assert!(refusal.message.starts_with(field), "{refusal:?}");
        }
    }

    #[test]
    fn what_the_caller_has_is_known_by_its_version_and_epoch() {
        let at = StatePosition { epoch: Epoch::from_number(7), version: 4 };
        assert_eq!(etag(&at), "\"0000000000000007:4\"");
        let known = |list: &str| is_known(&head(&format!("If-None-Match: {list}\r\n")), &at);
        for list in ["*", "\"4\"", "\"3\", \"0000000000000007:4\"", "W/\"4\""] {
            assert!(known(list), "{list}");
        }
        for list in ["\"3\"", "\"5\"", "\"0000000000000008:4\"", "4", "\"x\""] {
            assert!(!known(list), "{list}");
        }
        assert!(!is_known(&head(""), &at));
    }

    #[test]
    fn dates_are_written_as_http_has_them() {
        for (unix_s, date) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_825_600, "Tue, 29 Feb 2000 12:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_767_225_599, "Wed, 31 Dec 2025 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(http_date(unix_s * 1_000 + 999), date);
        }
    }
}
