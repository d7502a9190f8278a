//! One version of one key: its message, encoded once for everybody who watches it.

use std::{ops::Range, sync::Arc};

use crate::{
    name::Name,
    wire::{frame, json},
};

/// What a key had from one version on: a value, or that it was deleted.
///
/// Cloning shares the text.
#[derive(Clone, Debug)]
pub struct Entry {
    pub version: u64,
    /// When it was set, Unix milliseconds.
    pub time_ms: u64,
    pub expires: Option<Expiry>,
    /// The `state` message, as it is sent.
    frame: Arc<[u8]>,
    /// Where the value is in the frame; `None` if the key was deleted.
    value: Option<Range<usize>>,
}

/// When a key goes by itself: by the relay's clock, and by the calendar, which survives a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub uptime_ms: u64,
    pub unix_ms: u64,
}

/// The time, as the relay and as the calendar have it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    pub uptime_ms: u64,
    pub unix_ms: u64,
}

/// How every `state` message begins: the version follows.
const PREFIX: &[u8] = b"{\"type\":\"state\",\"version\":";

impl Entry {
    /// Encodes one. `value` is JSON text, or `None` for a deletion; `user` is a JSON string.
    #[must_use]
    pub fn new(
        (version, now): (u64, Now),
        key: &Name,
        value: Option<&str>,
        user: Option<&[u8]>,
        ttl_ms: Option<u64>,
    ) -> Entry {
        let room = key.as_str().len() + value.map_or(16, str::len) + user.map_or(0, <[u8]>::len);
        let mut text = Vec::with_capacity(room + 96);
        text.extend_from_slice(PREFIX);
        json::push_number(&mut text, version);
        text.extend_from_slice(b",\"key\":");
        json::push_string(&mut text, key.as_str());
        let range = if let Some(value) = value {
            text.extend_from_slice(b",\"value\":");
            let start = text.len();
            text.extend_from_slice(value.as_bytes());
            Some(start..text.len())
        } else {
            text.extend_from_slice(b",\"deleted\":true");
            None
        };
        text.extend_from_slice(b",\"time\":");
        json::push_number(&mut text, now.unix_ms);
        if let Some(user) = user {
            text.extend_from_slice(b",\"user\":");
            text.extend_from_slice(user);
        }
        let expires = ttl_ms.filter(|_| value.is_some()).map(|ttl_ms| Expiry {
            uptime_ms: now.uptime_ms.saturating_add(ttl_ms),
            unix_ms: now.unix_ms.saturating_add(ttl_ms),
        });
        if let Some(expires) = expires {
            text.extend_from_slice(b",\"expires\":");
            json::push_number(&mut text, expires.unix_ms);
        }
        text.push(b'}');
        Entry::from_text((version, now.unix_ms), &text, range, expires)
    }

    /// An entry whose message is `text`, in which the value is at `value`.
    #[must_use]
    pub fn from_text(
        (version, time_ms): (u64, u64),
        text: &[u8],
        value: Option<Range<usize>>,
        expires: Option<Expiry>,
    ) -> Entry {
        let mut bytes = Vec::with_capacity(text.len() + 10);
        frame::push_text(&mut bytes, text);
        let header = bytes.len() - text.len();
        let value = value.map(|range| range.start + header..range.end + header);
        Entry { version, time_ms, expires, frame: bytes.into(), value }
    }

    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.value.is_none()
    }

    /// The value as JSON text; `None` if the key was deleted.
    #[must_use]
    pub fn value(&self) -> Option<&str> {
        let bytes = &self.frame[self.value.clone()?];
        Some(std::str::from_utf8(bytes).expect("a value was text when it was set"))
    }

    /// The message as a WebSocket frame.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// The message as JSON text.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        frame::payload(&self.frame)
    }

    /// Where the value is in [`Entry::text`].
    #[must_use]
    pub fn value_in_text(&self) -> Option<Range<usize>> {
        let header = self.frame.len() - self.text().len();
        self.value.clone().map(|range| range.start - header..range.end - header)
    }
}

/// The version in the text of a message that an [`Entry`] encoded.
#[must_use]
pub fn version_in(text: &[u8]) -> Option<u64> {
    let text = text.strip_prefix(PREFIX)?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { uptime_ms: 5, unix_ms: 1_000 };

    #[test]
    fn a_message_is_encoded_as_the_protocol_says() {
        let key = Name::parse("home/\"x\"").unwrap();
        let entry = Entry::new((7, NOW), &key, Some("[1, 2]"), Some(b"\"anna\""), Some(20));
        let text = concat!(
            r#"{"type":"state","version":7,"key":"home/\"x\"","value":[1, 2],"#,
            r#""time":1000,"user":"anna","expires":1020}"#
        );
        assert_eq!(entry.text(), text.as_bytes());
        assert_eq!(entry.value(), Some("[1, 2]"));
        assert_eq!(&text[entry.value_in_text().unwrap()], "[1, 2]");
        assert_eq!(entry.expires, Some(Expiry { uptime_ms: 25, unix_ms: 1_020 }));
        assert_eq!(version_in(entry.text()), Some(7));
        let gone = Entry::new((8, NOW), &key, None, None, Some(20));
        assert!(gone.is_deleted() && gone.expires.is_none());
        let text = r#"{"type":"state","version":8,"key":"home/\"x\"","deleted":true,"time":1000}"#;
        assert_eq!(gone.text(), text.as_bytes());
    }

    #[test]
    fn a_large_message_has_its_value_where_it_is() {
        for size in [1, 100, 126, 4_000, 65_000, 70_000] {
            let value = format!("\"{}\"", "x".repeat(size));
            let key = Name::parse("k").unwrap();
            let entry = Entry::new((u64::MAX, NOW), &key, Some(&value), None, None);
            assert_eq!(entry.value(), Some(value.as_str()));
            assert_eq!(version_in(entry.text()), Some(u64::MAX));
            let range = entry.value_in_text();
            let again = Entry::from_text((entry.version, 1_000), entry.text(), range, None);
            assert_eq!(again.value(), Some(value.as_str()));
            assert_eq!(again.frame(), entry.frame());
        }
    }
}
