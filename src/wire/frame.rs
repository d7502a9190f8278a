//! WebSocket frames as a server writes them (RFC 6455, section 5.2): unmasked, never fragmented.

use crate::wire::codes::CloseCode;

const FINAL: u8 = 0x80;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;

/// Most payload bytes of a control frame (RFC 6455, section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Appends the header of a text frame with `len` bytes of payload.
pub fn push_text_header(out: &mut Vec<u8>, len: usize) {
    out.push(FINAL | TEXT);
    if len < 126 {
        #[expect(clippy::cast_possible_truncation, reason = "checked in the line above")]
        out.push(len as u8);
    } else if let Ok(len) = u16::try_from(len) {
        out.push(126);
        out.extend_from_slice(&len.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
}

/// Appends a text frame.
pub fn push_text(out: &mut Vec<u8>, payload: &[u8]) {
    push_text_header(out, payload.len());
    out.extend_from_slice(payload);
}

/// Appends an empty ping.
pub fn push_ping(out: &mut Vec<u8>) {
    out.extend_from_slice(&[FINAL | PING, 0]);
}

/// Appends a close frame. `reason` is cut to what a control frame holds.
pub fn push_close(out: &mut Vec<u8>, code: CloseCode, reason: &str) {
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 125")]
    out.extend_from_slice(&[FINAL | CLOSE, (2 + end) as u8]);
    out.extend_from_slice(&code.number().to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..end]);
}

/// How many bytes the frame at the start of `bytes` takes, header included.
///
/// # Panics
///
/// If `bytes` does not start with the whole header of an unmasked frame: it is only asked about
/// frames that this module wrote.
#[must_use]
pub fn length(bytes: &[u8]) -> usize {
    let expect = "a frame written here has a whole header";
    match bytes[1] {
        126 => 4 + usize::from(u16::from_be_bytes(bytes[2..4].try_into().expect(expect))),
        127 => {
            let len = u64::from_be_bytes(bytes[2..10].try_into().expect(expect));
            10 + usize::try_from(len).expect("a frame in memory has a length that fits")
        }
        len => 2 + usize::from(len),
    }
}

/// Bytes of `frames` without the first `count` of them.
#[must_use]
pub fn tail_bytes(frames: &[u8], count: u64) -> u64 {
    let skipped = (0..count).fold(0, |at, _| at + length(&frames[at..]));
    (frames.len() - skipped) as u64
}

/// The payloads of consecutive frames.
pub fn payloads(mut frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = (!frames.is_empty()).then(|| length(frames))?;
        let (frame, rest) = frames.split_at(len);
        frames = rest;
        Some(payload(frame))
    })
}

/// The payload of the text frame that `bytes` is.
///
/// # Panics
///
/// As [`length`].
#[must_use]
pub fn payload(bytes: &[u8]) -> &[u8] {
    let header = match bytes[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    &bytes[header..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_any_size_class_can_be_measured_and_opened() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let mut out = Vec::new();
            push_text(&mut out, &vec![b'x'; len]);
            out.push(0xff);
            assert_eq!(out[0], 0x81, "a whole text message");
            assert_eq!(length(&out), out.len() - 1, "payload of {len}");
            assert_eq!(payload(&out[..out.len() - 1]).len(), len);
        }
    }

    #[test]
    fn frames_in_a_row_are_told_apart() {
        let texts = [vec![b'a'; 3], vec![], vec![b'b'; 200], vec![b'c'; 70_000]];
        let (mut out, mut ends) = (Vec::new(), vec![0]);
        for text in &texts {
            push_text(&mut out, text);
            ends.push(out.len());
        }
        assert_eq!(payloads(&out).collect::<Vec<_>>(), texts);
        for (count, end) in (0..).zip(ends) {
            assert_eq!(tail_bytes(&out, count), (out.len() - end) as u64, "without {count}");
        }
    }

    #[test]
    fn control_frames_are_those_of_the_rfc() {
        let mut out = Vec::new();
        push_ping(&mut out);
        assert_eq!(out, [0x89, 0]);

        out.clear();
        push_close(&mut out, CloseCode::GoingAway, "later");
        assert_eq!(out, *b"\x88\x07\x03\xe9later");
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        push_close(&mut out, CloseCode::TooBig, &"u".repeat(200));
        assert_eq!(out.len(), 2 + CONTROL_BYTES_MAX);

        out.clear();
        push_close(&mut out, CloseCode::TooBig, &"ü".repeat(100));
        assert_eq!(out.len(), 1 + CONTROL_BYTES_MAX);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }
}
