//! Where a stream of many topics has come to, in one short text: the id of its events.
//!
//! A browser keeps the id of the last event and nothing else, so it must say where the stream is in
//! each of its topics. A topic is known by a digest of its name, its life by a part of its epoch:
//!
//! ```text
//!   m.k3JdZ0aQx8-1_bB.9dQmPz2hF00c2Yp7
//!     |      |     |
//!     |      |     sequence: 66
//!     |      36 bits of the epoch
//!     42 bits of a digest of the name
//! ```
//!
//! A topic that the text does not have stands at its beginning, so what comes to exist later needs
//! no place in it. Two names with one digest are told apart by their epochs.

use std::collections::HashMap;

use crate::{
    base::limits::STREAM_TOPICS_MAX,
    wire::position::{Epoch, Position},
};

/// What every text begins with.
const PREFIX: u8 = b'm';
/// Digits of a name's digest, and of an epoch: six bits each.
const NAME_DIGITS: usize = 7;
const EPOCH_DIGITS: usize = 6;
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A topic, and a life of it, as the text has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark([u8; NAME_DIGITS + EPOCH_DIGITS]);

impl Mark {
    #[must_use]
    pub fn of(name: &str, epoch: Epoch) -> Mark {
        let mut digits = [0; NAME_DIGITS + EPOCH_DIGITS];
        fill(&mut digits[..NAME_DIGITS], digest(name));
        fill(&mut digits[NAME_DIGITS..], epoch.number());
        Mark(digits)
    }
}

/// Begins a text that has no topic yet.
pub fn begin(out: &mut Vec<u8>) {
    out.push(PREFIX);
}

/// Appends a topic that stands at `seq`. At its beginning it needs no place.
pub fn push(out: &mut Vec<u8>, mark: &Mark, seq: u64) {
    if seq == 0 {
        return;
    }
    out.push(b'.');
    out.extend_from_slice(&mark.0);
    let count = (u64::BITS - seq.leading_zeros()).div_ceil(6) as usize;
    let start = out.len();
    out.resize(start + count, 0);
    fill(&mut out[start..], seq);
}

/// Positions in the topics of a stream, as a client has brought them back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    by_name: HashMap<[u8; NAME_DIGITS], Vec<([u8; EPOCH_DIGITS], u64)>>,
    len: usize,
}

impl Marks {
    /// Whether `text` is meant to be one.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.as_bytes().first() == Some(&PREFIX)
    }

    /// Reads a text that [`begin`] and [`push`] wrote. `None` if they did not.
    #[must_use]
    pub fn parse(text: &str) -> Option<Marks> {
        let mut parts = text.split('.');
        if parts.next()?.as_bytes() != [PREFIX] {
            return None;
        }
        let mut marks = Marks::default();
        for part in parts {
            let (name, rest) = part.as_bytes().split_first_chunk::<NAME_DIGITS>()?;
            let (epoch, seq) = rest.split_first_chunk::<EPOCH_DIGITS>()?;
            if number(name).and(number(epoch)).is_none() || STREAM_TOPICS_MAX <= marks.len {
                return None;
            }
            marks.by_name.entry(*name).or_default().push((*epoch, number(seq)?));
            marks.len += 1;
        }
        Some(marks)
    }

    /// How many topics it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The position in the topic `name`, which now lives in `epoch`. A position in another life of
    /// it has another epoch. `None` if it stood at its beginning.
    #[must_use]
    pub fn find(&self, name: &str, epoch: Epoch) -> Option<Position> {
        let mark = Mark::of(name, epoch);
        let (name, own) = mark.0.split_first_chunk::<NAME_DIGITS>()?;
        let lives = self.by_name.get(name)?;
        let same = lives.iter().find(|(known, _)| known[..] == *own);
        if let Some((_, seq)) = same {
            return Some(Position { epoch, seq: *seq });
        }
        let (other, seq) = lives.first()?;
        Some(Position { epoch: Epoch::from_number(number(other)?), seq: *seq })
    }
}

/// FNV-1a with 64 bits, by Fowler, Noll and Vo: short texts, and no one to keep out. Whoever makes
/// two names with one digest still has two epochs.
fn digest(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Writes the low bits of `number`, six to a digit, the highest first.
fn fill(digits: &mut [u8], number: u64) {
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest & 63) as usize];
        rest >>= 6;
    }
}

/// The number that `digits` are. `None` if they are none, or too many.
fn number(digits: &[u8]) -> Option<u64> {
    let mut number: u64 = 0;
    for digit in digits {
        let value = DIGITS.iter().position(|known| known == digit)?;
        number = number.checked_mul(64)?.checked_add(value as u64)?;
    }
    (!digits.is_empty()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch::from_number(0x0123_4567_89ab_cdef);
    const OTHER: Epoch = Epoch::from_number(0x0123_4567_0000_0001);

    fn text(places: &[(&str, Epoch, u64)]) -> String {
        let mut out = Vec::new();
        begin(&mut out);
        for (name, epoch, seq) in places {
            push(&mut out, &Mark::of(name, *epoch), *seq);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn positions_survive_their_text() {
        let seqs = [1, 63, 64, 4_095, 4_096, 1 << 40, u64::MAX];
        let names: Vec<String> = seqs.iter().map(|seq| format!("home/{seq}")).collect();
        let places: Vec<_> =
            names.iter().zip(seqs).map(|(name, seq)| (&**name, EPOCH, seq)).collect();
        let marks = Marks::parse(&text(&places)).unwrap();
        assert_eq!(marks.len(), seqs.len());
        for (name, epoch, seq) in places {
            assert_eq!(marks.find(name, epoch), Some(Position { epoch, seq }), "{name}");
        }
        assert_eq!(marks.find("home/other", EPOCH), None);
    }

    #[test]
    fn a_topic_at_its_beginning_takes_no_place() {
        assert_eq!(text(&[]), "m");
        assert_eq!(text(&[("a", EPOCH, 0)]), "m");
        assert!(Marks::parse("m").unwrap().is_empty());
        assert!(!Marks::parse(&text(&[("a", EPOCH, 1)])).unwrap().is_empty());
    }

    #[test]
    fn a_text_of_many_topics_is_known_by_its_first_letter() {
        assert!(Marks::is_one(&text(&[("a", EPOCH, 5)])) && Marks::is_one("m?"));
        assert!(!Marks::is_one("") && !Marks::is_one(&format!("{EPOCH}:5")));
    }

    #[test]
    fn another_life_of_a_topic_has_another_epoch() {
        let marks = Marks::parse(&text(&[("a", EPOCH, 5)])).unwrap();
        let found = marks.find("a", OTHER).unwrap();
        assert_eq!(found.seq, 5);
        assert_ne!(found.epoch, OTHER);
    }

    #[test]
    fn names_with_one_digest_are_told_apart_by_their_epochs() {
        // The same name twice stands for two that collide.
        let marks = Marks::parse(&text(&[("a", EPOCH, 5), ("a", OTHER, 9)])).unwrap();
        assert_eq!(marks.find("a", EPOCH), Some(Position { epoch: EPOCH, seq: 5 }));
        assert_eq!(marks.find("a", OTHER), Some(Position { epoch: OTHER, seq: 9 }));
    }

    #[test]
    fn what_was_not_written_here_is_not_read() {
        let good = text(&[("a", EPOCH, 5)]);
        for bad in [
            String::new(),
            "x".to_owned(),
            "m.".to_owned(),
            "m.short".to_owned(),
            format!("{good}."),
            format!("{good}!"),
            format!("{}ü", &good[..good.len() - 1]),
            good[..good.len() - 1].to_owned(),
            format!("{good}AAAAAAAAAAAA"),
        ] {
            assert_eq!(Marks::parse(&bad), None, "{bad:?}");
        }
        let many = "m".to_owned() + &good[1..].repeat(STREAM_TOPICS_MAX);
        assert_eq!(Marks::parse(&many).unwrap().len(), STREAM_TOPICS_MAX);
        assert_eq!(Marks::parse(&(many + &good[1..])), None);
    }
}
