//! The parts that every event passes: the log, the decoder of requests, the encoder of replies.

use divan::{
    Bencher, black_box,
    counter::{BytesCount, ItemsCount},
};
use landline::{
    config::Policy,
    name::Name,
    topic::{Copied, Draft, Log, dedupe::Window},
    wire::{
        codes::{Code, Durability, GapReason},
        position::{Epoch, From, Position, Recovery},
        reply::{self, Attachment, Cursor, Receipt},
        request::{self, Refusal},
    },
};

const EPOCH: Epoch = Epoch::from_number(7);
const WINDOW: Window = Window { uptime_ms: 1 << 30, length_ms: 120_000 };
const BATCH_EVENTS: u64 = 128;

fn main() {
    divan::main();
}

/// 128 bytes of JSON.
fn payload() -> String {
    format!("\"{}\"", "x".repeat(126))
}

fn draft(data: &str) -> Draft<'_> {
    Draft { user: None, name: None, data, key: None }
}

/// A log that is full: it keeps `events` and has already dropped as many. One event a millisecond.
fn full_log(events: u64) -> Log {
    let policy =
        Policy { max_events: events, max_bytes: u64::MAX, max_age: None, ..Policy::default() };
    let topic = Name::parse("home/kitchen/lamp").expect("the name is valid");
    let mut log = Log::new(&topic, EPOCH, policy);
    let data = payload();
    for now_ms in 1..=2 * events {
        log.append(&draft(&data), now_ms, WINDOW);
    }
    log
}

/// Numbers that are no pattern to a processor's cache: the low bits of a linear congruence.
struct Scatter(u64);

impl Scatter {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

mod append {
    use super::*;

    /// One event in, the oldest out.
    #[divan::bench(args = [100, 10_000, 100_000])]
    fn evicting(bencher: Bencher, events: u64) {
        let mut log = full_log(events);
        let data = payload();
        bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
            black_box(log.append(black_box(&draft(&data)), 1 << 40, WINDOW));
        });
    }

    /// The same under a fresh idempotency key each time.
    #[divan::bench]
    fn evicting_with_key(bencher: Bencher) {
        let mut log = full_log(10_000);
        let data = payload();
        let mut number = 0_u64;
        bencher
            .with_inputs(|| {
                number += 1;
                format!("order-{number}")
            })
            .bench_local_refs(|key| {
                let draft = Draft { key: Some(key), ..draft(&data) };
                black_box(log.append(&draft, 1 << 40, WINDOW));
            });
    }
}

mod read {
    use super::*;

    /// What a writer copies for its subscribers after a burst: the batch at the tail.
    #[divan::bench]
    fn copy_batch_of_128(bencher: Bencher) {
        let log = full_log(10_000);
        let cursor = log.tail() - BATCH_EVENTS;
        let mut out = Vec::new();
        log.copy_after(cursor, u64::MAX, usize::MAX, &mut out);
        let bytes = BytesCount::new(out.len());
        bencher.counter(bytes).bench_local(|| {
            out.clear();
            let copied = log.copy_after(black_box(cursor), u64::MAX, usize::MAX, &mut out);
            assert_eq!(copied, Copied::UpTo(cursor + BATCH_EVENTS));
        });
    }

    /// A client that comes back with a position, somewhere in the log, and its next event. Must
    /// not depend on the length of the log, but for the processor's caches.
    #[divan::bench(args = [100, 10_000, 100_000])]
    fn position(bencher: Bencher, events: u64) {
        let log = full_log(events);
        let mut scatter = Scatter(events);
        let mut out = Vec::new();
        bencher.bench_local(|| {
            let seq = log.first() + scatter.below(events - 1);
            let start = log.start(&From::After(Position { epoch: EPOCH, seq }));
            assert_eq!(start.recovery, Some(Recovery::COMPLETE));
            out.clear();
            black_box(log.copy_after(start.seq, start.seq + 1, usize::MAX, &mut out));
        });
    }

    /// A client that asks for everything since a time: one binary search.
    #[divan::bench(args = [100, 10_000, 100_000])]
    fn since(bencher: Bencher, events: u64) {
        let log = full_log(events);
        let mut scatter = Scatter(events);
        bencher.bench_local(|| {
            let time_ms = events + 1 + scatter.below(events);
            black_box(log.start(&From::Since(time_ms)))
        });
    }
}

mod decode {
    use super::*;

    fn decodes(bencher: Bencher, text: &str) {
        assert!(request::decode(text).request.is_ok(), "{text}");
        let bytes = BytesCount::new(text.len());
        bencher.counter(bytes).bench_local(|| drop(black_box(request::decode(black_box(text)))));
    }

    #[divan::bench]
    fn publish(bencher: Bencher) {
        let text =
            format!(r#"{{"type":"publish","topic":"home/kitchen/lamp","data":{}}}"#, payload());
        decodes(bencher, &text);
    }

    #[divan::bench]
    fn publish_with_everything(bencher: Bencher) {
        let text = format!(
            "{}{}}}",
            concat!(
                r#"{"type":"publish","id":7,"topic":"home/kitchen/lamp","#,
                r#""name":"switched","key":"order-1","data":"#,
            ),
            payload()
        );
        decodes(bencher, &text);
    }

    #[divan::bench]
    fn subscribe_from_position(bencher: Bencher) {
        let from = format!(r#"{{"epoch":"{EPOCH}","seq":1234}}"#);
        let text =
            format!(r#"{{"type":"subscribe","id":7,"topic":"home/kitchen/lamp","from":{from}}}"#);
        decodes(bencher, &text);
    }
}

mod encode {
    use super::*;

    fn encodes(bencher: Bencher, encode: impl Fn(&mut Vec<u8>)) {
        let mut out = Vec::new();
        bencher.bench_local(|| {
            out.clear();
            encode(&mut out);
            black_box(&out);
        });
    }

    #[divan::bench]
    fn published(bencher: Bencher) {
        let durability = Durability::Memory;
        let receipt = Receipt { epoch: EPOCH, seq: 123_456, durability, duplicate: false };
        encodes(bencher, |out| reply::published(out, black_box(7), &receipt));
    }

    #[divan::bench]
    fn subscribed(bencher: Bencher) {
        let at = Attachment {
            epoch: EPOCH,
            seq: 123_456,
            first: 23_457,
            tail: 123_456,
            recovery: Some(Recovery::COMPLETE),
            cursor: Cursor::New,
        };
        encodes(bencher, |out| reply::subscribed(out, Some(7), black_box("home/lamp"), &at));
    }

    #[divan::bench]
    fn gap(bencher: Bencher) {
        encodes(bencher, |out| reply::gap(out, "home/lamp", black_box(5), 90, GapReason::Slow));
    }

    #[divan::bench]
    fn error(bencher: Bencher) {
        let refusal = Refusal::new(Code::NotFound, "there is no topic home/lamp");
        encodes(bencher, |out| reply::error(out, Some(7), None, black_box(&refusal)));
    }
}
