//! What the relay says where it is not a WebSocket: as server-sent events (WHATWG HTML, section
//! 9.2), or as lines of JSON.
//!
//! The objects are the same everywhere and are encoded once; here they get another frame around
//! them. A line break in a payload can only be white space between tokens, so a space takes its
//! place, and a message is one line.

use crate::wire::{
    frame, json,
    marks::{self, Mark},
    position::Epoch,
};

/// How messages are framed on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    WebSocket,
    /// `text/event-stream`
    Sse,
    /// `application/x-ndjson`
    Ndjson,
}

/// Where a client that has come this far resumes: the `id` of a server-sent event.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// Where it was before.
    Same,
    /// After an event of one topic, or a version of a state.
    At(Epoch, u64),
    /// After an event of one of many topics: where it is in the others, and in this one.
    Among(&'a [u8], &'a Mark, u64),
    /// Where it is in many topics.
    Everywhere(&'a [u8]),
}

impl Place<'_> {
    fn push(self, out: &mut Vec<u8>) {
        match self {
            Place::Same => return,
            Place::At(epoch, number) => {
                out.extend_from_slice(b"id: ");
                out.extend_from_slice(&epoch.digits());
                out.push(b':');
                json::push_number(out, number);
            }
            Place::Among(others, mark, seq) => {
                out.extend_from_slice(b"id: ");
                out.extend_from_slice(others);
                marks::push(out, mark, seq);
            }
            Place::Everywhere(all) => {
                out.extend_from_slice(b"id: ");
                out.extend_from_slice(all);
            }
        }
        out.push(b'\n');
    }
}

impl Dialect {
    /// The media type of a stream.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Dialect::WebSocket => "application/json",
            Dialect::Sse => "text/event-stream",
            Dialect::Ndjson => "application/x-ndjson",
        }
    }

    /// Appends the message `text`, a JSON object that begins with its `type`.
    pub fn push(self, out: &mut Vec<u8>, place: Place<'_>, text: &[u8]) {
        match self {
            Dialect::WebSocket => frame::push_text(out, text),
            Dialect::Ndjson => {
                push_line(out, text);
                out.push(b'\n');
            }
            Dialect::Sse => {
                place.push(out);
                let kind = kind(text);
                // What a stream is about comes to whoever listens to nothing in particular.
                if !matches!(kind, b"event" | b"state") {
                    out.extend_from_slice(b"event: ");
                    // In a browser `error` is what becomes of the connection.
                    out.extend_from_slice(if kind == b"error" { b"problem" } else { kind });
                    out.push(b'\n');
                }
                out.extend_from_slice(b"data: ");
                push_line(out, text);
                out.extend_from_slice(b"\n\n");
            }
        }
    }

    /// Appends the text frames `frames`, each at the place that `place` says for it.
    pub fn translate<'a>(
        self,
        out: &mut Vec<u8>,
        frames: &[u8],
        mut place: impl FnMut(&[u8]) -> Place<'a>,
    ) {
        for text in frame::payloads(frames) {
            self.push(out, place(text), text);
        }
    }

    /// How many messages at the start of `bytes` have at least begun within `taken` bytes, and
    /// where the last of them ends.
    #[must_use]
    pub fn whole(self, bytes: &[u8], taken: usize) -> (u64, usize) {
        let (mut count, mut end) = (0, 0);
        while end < taken {
            end += self.length(&bytes[end..]);
            count += 1;
        }
        (count, end)
    }

    /// The text of the last message of `bytes`.
    #[must_use]
    pub fn last_text(self, bytes: &[u8]) -> Option<&[u8]> {
        let mut last = None;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (own, behind) = rest.split_at(self.length(rest));
            (last, rest) = (Some(own), behind);
        }
        let own = last?;
        Some(match self {
            Dialect::WebSocket => frame::payload(own),
            Dialect::Ndjson => own.strip_suffix(b"\n")?,
            Dialect::Sse => {
                let begin = memchr::memmem::find(own, DATA)?;
                own[begin + DATA.len()..].strip_suffix(b"\n\n")?
            }
        })
    }

    /// How many bytes the message at the start of `bytes` takes.
    fn length(self, bytes: &[u8]) -> usize {
        let end = |mark: &[u8]| {
            memchr::memmem::find(bytes, mark).map_or(bytes.len(), |at| at + mark.len())
        };
        match self {
            Dialect::WebSocket => frame::length(bytes),
            Dialect::Ndjson => end(b"\n"),
            Dialect::Sse => end(b"\n\n"),
        }
    }
}

/// What comes before the text of every server-sent event but those that have no other field.
const DATA: &[u8] = b"data: ";

/// Has a browser wait for this long before it comes back.
pub fn retry(out: &mut Vec<u8>, ms: u64) {
    out.extend_from_slice(b"retry: ");
    json::push_number(out, ms);
    out.extend_from_slice(b"\n\n");
}

/// The `type` of a message of ours.
fn kind(text: &[u8]) -> &[u8] {
    let rest = text.strip_prefix(b"{\"type\":\"").unwrap_or_default();
    &rest[..memchr::memchr(b'"', rest).unwrap_or_default()]
}

fn push_line(out: &mut Vec<u8>, text: &[u8]) {
    let start = out.len();
    out.extend_from_slice(text);
    // Data with a break of lines is rare, and data that consists of them slow but right.
    let mut at = start;
    while let Some(ahead) = memchr::memchr2(b'\n', b'\r', &out[at..]) {
        at += ahead;
        out[at] = b' ';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &[u8] = b"{\"type\":\"event\",\"topic\":\"a\",\"seq\":7,\"data\":{\n\r\"b\": 1}}";
    const EPOCH: Epoch = Epoch::from_number(10);

    fn sse(place: Place<'_>, text: &[u8]) -> String {
        let mut out = Vec::new();
        Dialect::Sse.push(&mut out, place, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_event_is_one_line_with_its_position() {
        let data = r#"{"type":"event","topic":"a","seq":7,"data":{  "b": 1}}"#;
        let expected = format!("id: 000000000000000a:7\ndata: {data}\n\n");
        assert_eq!(sse(Place::At(EPOCH, 7), EVENT), expected);
    }

    #[test]
    fn what_is_not_the_stream_itself_has_a_name() {
        assert_eq!(
            sse(Place::Same, b"{\"type\":\"gap\"}"),
            "event: gap\ndata: {\"type\":\"gap\"}\n\n"
        );
        assert!(sse(Place::Same, b"{\"type\":\"error\"}").starts_with("event: problem\n"));
        let state = b"{\"type\":\"state\",\"version\":3}";
        assert_eq!(sse(Place::At(EPOCH, 3), state).lines().count(), 3);
    }

    #[test]
    fn frames_become_messages_each_at_its_own_place() {
        let mut frames = Vec::new();
        let texts = [&b"{\"type\":\"event\"}"[..], b"{\"type\":\"gap\"}"];
        texts.iter().for_each(|text| frame::push_text(&mut frames, text));
        let mut out = Vec::new();
        Dialect::Sse.translate(&mut out, &frames, |text| match text == texts[0] {
            true => Place::At(EPOCH, 3),
            false => Place::Everywhere(b"m"),
        });
        let expected = "id: 000000000000000a:3\ndata: {\"type\":\"event\"}\n\n\
                        id: m\nevent: gap\ndata: {\"type\":\"gap\"}\n\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_stream_says_what_it_is_and_how_long_to_wait() {
        let types = [Dialect::WebSocket, Dialect::Sse, Dialect::Ndjson].map(Dialect::media_type);
        assert_eq!(types, ["application/json", "text/event-stream", "application/x-ndjson"]);
        let mut out = Vec::new();
        retry(&mut out, 1_500);
        assert_eq!(out, b"retry: 1500\n\n");
    }

    #[test]
    fn among_many_topics_the_place_is_that_of_all_of_them() {
        let mark = Mark::of("a", EPOCH);
        let (mut others, mut all) = (Vec::new(), Vec::new());
        marks::begin(&mut others);
        marks::push(&mut others, &Mark::of("b", EPOCH), 4);
        all.extend_from_slice(&others);
        marks::push(&mut all, &mark, 7);
        let text = sse(Place::Among(&others, &mark, 7), EVENT);
        let id = format!("id: {}\n", String::from_utf8(all).unwrap());
        assert!(text.starts_with(&id), "{text}");
    }

    #[test]
    fn a_cut_message_counts_and_an_untouched_one_does_not() {
        for dialect in [Dialect::WebSocket, Dialect::Sse, Dialect::Ndjson] {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for _ in 0..3 {
                dialect.push(&mut bytes, Place::At(EPOCH, 7), EVENT);
                ends.push(bytes.len());
            }
            for taken in 0..=bytes.len() {
                let begun = ends.iter().filter(|end| **end < taken).count();
                assert_eq!(dialect.whole(&bytes, taken), (begun as u64, ends[begun]), "{taken}");
            }
        }
    }

    #[test]
    fn the_text_of_the_last_message_is_found() {
        for dialect in [Dialect::WebSocket, Dialect::Sse, Dialect::Ndjson] {
            let mut bytes = Vec::new();
            assert_eq!(dialect.last_text(&bytes), None);
            dialect.push(&mut bytes, Place::At(EPOCH, 7), EVENT);
            dialect.push(&mut bytes, Place::At(EPOCH, 8), b"{\"type\":\"state\"}");
            assert_eq!(dialect.last_text(&bytes), Some(&b"{\"type\":\"state\"}"[..]));
        }
    }
}
