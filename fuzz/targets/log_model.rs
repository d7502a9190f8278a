//! Logs, cursors and consumers beside a naive model that keeps everything.
//!
//! The first byte says which of them; then each byte is a choice.

#![no_main]

#[path = "log_model/consumers.rs"]
mod consumers;
#[path = "log_model/durable.rs"]
mod durable;
#[path = "log_model/memory.rs"]
mod memory;

use landline::{
    name::Name,
    topic::{Copied, Draft, Log, Start, dedupe::Window},
    wire::{
        frame,
        position::{Epoch, From, Mode, Position, Reason, Recovery},
    },
};
use landline_fuzz::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    match script.below(3) {
        0 => memory::run(script),
        1 => durable::run(script),
        _ => consumers::run(script),
    }
});

pub const EPOCH: Epoch = Epoch::from_number(7);
/// How long idempotency keys are remembered.
pub const WINDOW_MS: u64 = 100;
/// What an event, and a key, cost beside their bytes.
pub const SLOT_BYTES: u64 = 16;
pub const KEY_BYTES: u64 = 80;
const KEYS: [&str; 4] = ["a", "b", "cc", "d"];

pub fn name() -> Name {
    Name::parse("home/\"lamp\"").expect("a name")
}

pub fn window(uptime_ms: u64) -> Window {
    Window { uptime_ms, length_ms: WINDOW_MS }
}

/// An event as the model keeps it.
#[derive(Clone, Debug)]
pub struct Event {
    pub time_ms: u64,
    pub data: String,
    pub key: Option<&'static str>,
}

impl Event {
    /// The frame that is sent, written as the protocol has it.
    pub fn frame(&self, seq: u64) -> Vec<u8> {
        let Event { time_ms, data, .. } = self;
        let head = r#"{"type":"event","topic":"home/\"lamp\"","seq":"#;
        let text = format!("{head}{seq},\"time\":{time_ms},\"data\":{data}}}");
        let mut out = Vec::new();
        frame::push_text(&mut out, text.as_bytes());
        out
    }
}

/// All events ever, by their sequence less one.
pub type Events = Vec<Event>;

pub fn bytes(events: &Events, seqs: std::ops::RangeInclusive<u64>) -> u64 {
    seqs.map(|seq| events[seq as usize - 1].frame(seq).len() as u64 + SLOT_BYTES).sum()
}

/// The next event: small mostly, now and then of another size class or larger than a segment.
pub fn event(script: &mut Script<'_>, time_ms: u64) -> Event {
    let len = match script.below(32) {
        0 => 66_000,
        1 => 20_000,
        2..6 => 120,
        small => small,
    };
    let key = script.pick(&[None, None, None, Some(0), Some(1), Some(2), Some(3)]);
    let data = format!("\"{}\"", "x".repeat(len));
    Event { time_ms, data, key: key.map(|key: usize| KEYS[key]) }
}

pub fn draft(event: &Event) -> Draft<'_> {
    Draft { user: None, name: None, data: &event.data, key: event.key }
}

/// The keys that are remembered, oldest first: text, sequence, and since when.
pub type Keys = Vec<(&'static str, u64, u64)>;

/// The sequence that `key` stands for now.
pub fn known(keys: &mut Keys, key: Option<&'static str>, uptime_ms: u64) -> Option<u64> {
    let key = key?;
    forget(keys, uptime_ms);
    keys.iter().find(|(text, ..)| *text == key).map(|(_, seq, _)| *seq)
}

pub fn forget(keys: &mut Keys, uptime_ms: u64) {
    keys.retain(|(.., since_ms)| uptime_ms < since_ms + WINDOW_MS);
}

pub fn key_bytes(keys: &Keys) -> u64 {
    keys.iter().map(|(text, ..)| text.len() as u64 + KEY_BYTES).sum()
}

/// Where a reader starts: the rules of `docs/protocol.md`, "Where to start" and "Resuming".
pub fn check_start(log: &Log, events: &Events, script: &mut Script<'_>) -> u64 {
    let (first, tail) = (log.first(), log.tail());
    let seq = script.pick(&[0, 1, first - 1, first.saturating_sub(2), first, tail, tail + 1, 40]);
    let time_ms = script.number(256) * 4;
    let from = match script.below(6) {
        0 => From::Live,
        1 => From::Start,
        2 => From::Last(script.number(20)),
        3 => From::Since(time_ms),
        4 => From::After(Position { epoch: EPOCH, seq }),
        _ => From::After(Position { epoch: Epoch::from_number(8), seq }),
    };
    let plain = |seq| Start { seq, recovery: None };
    let reset = |reason| Start {
        seq: first - 1,
        recovery: Some(Recovery {
            mode: Mode::Reset,
            missing: (1 < first).then_some((1, first - 1)),
            reason: Some(reason),
        }),
    };
    let expected = match &from {
        From::Live => plain(tail),
        From::Start => plain(first - 1),
        From::Last(count) => plain(tail - (*count).min(tail + 1 - first)),
        // On disk it is looked for by others.
        From::Since(time_ms) if log.begins_on_disk(*time_ms) => log.start(&from),
        From::Since(time_ms) => {
            let is_old = |seq: &u64| events[*seq as usize - 1].time_ms < *time_ms;
            let newest_old = (first..=tail).filter(is_old).max();
            plain(newest_old.unwrap_or(first - 1))
        }
        From::After(position) if position.epoch != EPOCH => reset(Reason::EpochChanged),
        From::After(_) if tail < seq => reset(Reason::Ahead),
        From::After(_) if seq + 1 < first => Start {
            seq: first - 1,
            recovery: Some(Recovery {
                mode: Mode::Partial,
                missing: Some((seq + 1, first - 1)),
                reason: Some(Reason::Truncated),
            }),
        },
        _ => Start { seq, recovery: Some(Recovery::COMPLETE) },
    };
    let found = log.start(&from);
    assert_eq!(found, expected, "{from:?} of {first} to {tail}");
    assert!(first <= found.seq + 1 && found.seq <= tail, "{found:?} of {first} to {tail}");
    found.seq
}

/// Copies a batch behind `cursor` and compares what came; where the reader is then, and whether it
/// was told that events are gone.
pub fn read(log: &Log, events: &Events, cursor: u64, script: &mut Script<'_>) -> Copied {
    let upto = if script.chance(200) { u64::MAX } else { cursor + script.number(8) };
    let bytes_max = script.below(256) * script.pick(&[1, 1, 400]);
    let mut out = b"before".to_vec();
    let copied = log.copy_after(cursor, upto, bytes_max, &mut out);
    let out = &out[b"before".len()..];
    let Copied::UpTo(to) = copied else {
        assert!(out.is_empty());
        return copied;
    };
    assert!(cursor <= to && to <= log.tail().max(cursor) && to <= upto, "{cursor} to {to}");
    let frames = |to| (cursor + 1..=to).flat_map(|seq: u64| events[seq as usize - 1].frame(seq));
    assert!(frames(to).eq(out.iter().copied()), "events {} to {to} differ", cursor + 1);
    assert!(out.len() <= bytes_max || to == cursor + 1, "more than {bytes_max} bytes");
    let end = log.tail().min(upto);
    let has_room = || frames(to + 1).count() <= bytes_max;
    assert!(end <= to || (to != cursor && !has_room()), "{cursor} to {to} of {end}");
    copied
}
