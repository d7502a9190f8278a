//! What is written comes back, and what was changed does not.

use super::*;

fn text_frame(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frame::push_text(&mut out, text.as_bytes());
    out
}

#[test]
fn a_chunk_comes_back_and_no_flipped_bit_or_other_key_passes() {
    let frames = text_frame("one");
    let chunk =
        Chunk { first: 5, count: 1, bytes_before: 99, first_ms: 7, last_ms: 8, frames: &frames };
    let bytes = chunk.encode(3);
    assert_eq!(Chunk::decode(3, 5, &bytes), Some(chunk));
    assert_eq!(Chunk::decode(4, 5, &bytes), None);
    assert_eq!(Chunk::decode(3, 6, &bytes), None);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Chunk::decode(3, 5, &flipped), None, "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert_eq!(Chunk::decode(3, 5, &bytes[..len]), None, "cut to {len}");
    }
}

#[test]
fn a_topic_a_key_and_a_position_come_back() {
    let record = TopicRecord {
        name: Name::parse("a/\"b\"").unwrap(),
        epoch: Epoch::from_number(u64::MAX),
        first: 6,
        tail: 5,
        newest_ms: 77,
        bytes_ever: 1_234,
    };
    assert_eq!(TopicRecord::decode(9, &record.encode(9)), Some(record.clone()));
    assert_eq!(TopicRecord::decode(8, &record.encode(9)), None);
    let insane = TopicRecord { first: 7, ..record };
    assert_eq!(TopicRecord::decode(9, &insane.encode(9)), None);

    let key = Key { seq: 4, time_ms: 5, text: "k".into() };
    assert_eq!(decode_key(1, 4, &encode_key(1, &key)), Some(key.clone()));
    assert_eq!(decode_key(1, 5, &encode_key(1, &key)), None);

    let state = ConsumerState { seq: 1, deliveries: 2, used_ms: 3 };
    let found = decode_consumer(1, "c", &encode_consumer(1, "c", state)).unwrap();
    assert_eq!((found.topic, found.name.as_str(), found.state), (1, "c", Some(state)));
    assert!(decode_consumer(1, "d", &encode_consumer(1, "c", state)).is_none());

    assert_eq!(decode_numbers("k", &encode_numbers("k", &[1, 2])), Some([1, 2]));
    assert_eq!(decode_numbers::<2>("j", &encode_numbers("k", &[1, 2])), None);
}

#[test]
fn the_time_is_found_behind_any_name() {
    for name in ["a", "a\",\"seq\":1,\"time\":2", "\\", "\\\\\"", "\u{1f600}/\u{e9}"] {
        let mut text = b"{\"type\":\"event\",\"topic\":".to_vec();
        crate::wire::json::push_string(&mut text, name);
        text.extend_from_slice(b",\"seq\":12,\"time\":3456,\"data\":{\"time\":1}}");
        let frame = text_frame(std::str::from_utf8(&text).unwrap());
        assert_eq!(time_of(&frame), Some(3_456), "{name:?}");
    }
    for text in ["", "{\"type\":\"event\",\"topic\":\"a", "{\"type\":\"event\",\"topic\":\"a\\"] {
        assert_eq!(time_of(&text_frame(text)), None, "{text:?}");
    }
}

#[test]
fn a_key_of_the_state_comes_back_and_no_flipped_bit_or_other_key_passes() {
    let record = StateRecord {
        key: Name::parse("home/\"x\"").unwrap(),
        version: u64::MAX - 1,
        time_ms: 5,
        expires_unix_ms: Some(7),
        text: "{\"value\":\"\u{e9}\"}".as_bytes().to_vec(),
        value: Some(9..13),
    };
    let key = record.key.as_str();
    let bytes = encode_state(&record);
    assert_eq!(decode_state(key, &bytes), Some(record.clone()));
    assert_eq!(decode_state("home", &bytes), None);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_state(key, &flipped), None, "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert_eq!(decode_state(key, &bytes[..len]), None, "cut to {len}");
    }
    let gone = StateRecord { value: None, expires_unix_ms: None, ..record.clone() };
    assert_eq!(decode_state(key, &encode_state(&gone)), Some(gone.clone()));
    // Not what anybody would write: a value that is not all in the text, or half a letter.
    for value in [9..90, 9..9, 11..12] {
        let insane = StateRecord { value: Some(value.clone()), ..record.clone() };
        assert_eq!(decode_state(key, &encode_state(&insane)), None, "{value:?}");
    }
}
