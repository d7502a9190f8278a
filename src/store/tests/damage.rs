//! Bits that flip on the disk: what is read is what was written, or said to be damaged.

use super::{events, first_batch, open, position, run, runs};
use crate::store::{
    Loaded, Missing, Page, Pages, Store, StoreError,
    sim::{SimDisk, random},
};

const FILE: &str = "landline.redb";
const TAILS: [u64; 3] = [400, 60, 1_200];

/// Three topics, in chunks of many sizes, closed in good order.
fn closed() -> (SimDisk, Loaded) {
    let disk = SimDisk::default();
    let (mut store, loaded) = open(&disk).unwrap();
    for (topic, tail) in (1..).zip(TAILS) {
        let mut batch = first_batch(topic, 1);
        let mut at = 1;
        while at < tail {
            let count = (1 + at % 29).min(tail - at);
            batch.runs.push(run(topic, at + 1, count));
            at += count;
        }
        batch.positions.push(position(topic, 1));
        store.commit(&batch).unwrap();
    }
    drop(store);
    (disk, loaded)
}

/// Reads a whole topic past everything that is missing; how much was there.
fn read_past_damage(pages: &dyn Pages, topic: u64, tail: u64) -> Result<u64, StoreError> {
    let (mut at, mut there) = (0, 0);
    while at < tail {
        let mut out = Vec::new();
        match pages.read(topic, at, tail, 20_000, &mut out)? {
            Page::UpTo(upto) if upto == at => break,
            Page::UpTo(upto) => {
                assert!(upto <= tail && out == events(topic, at + 1, upto), "topic {topic}, {at}");
                there += upto - at;
                at = upto;
            }
            Page::Missing { first, .. } => {
                assert!(at + 1 < first && out.is_empty(), "topic {topic}: {first} after {at}");
                at = first - 1;
            }
        }
    }
    Ok(there)
}

#[test]
fn a_flipped_bit_in_an_event_costs_its_chunk_and_no_more() {
    let (disk, _) = closed();
    let mut bytes = disk.bytes(FILE).unwrap();
    let chunk = events(3, 500, 501);
    let places: Vec<_> =
        (0..bytes.len() - chunk.len()).filter(|at| bytes[*at..].starts_with(&chunk)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 60] ^= 4;
    }
    disk.put(FILE, bytes);

    let (store, loaded) = open(&disk).unwrap();

    assert_eq!(loaded.warnings, [""; 0]);
    let pages = store.pages();
    let Page::UpTo(before) = pages.read(3, 0, 1_200, usize::MAX, &mut Vec::new()).unwrap() else {
        unreachable!("the first chunk is whole")
    };
    let found = pages.read(3, before, 1_200, usize::MAX, &mut Vec::new()).unwrap();
    let Page::Missing { first, why: Missing::Damaged } = found else { unreachable!("{found:?}") };
    assert!(before < 500 && 501 < first && first - before < 40, "{before} to {first}");
    assert_eq!(read_past_damage(&*pages, 3, 1_200).unwrap(), 1_200 - (first - 1 - before));
    for time_ms in super::time(1)..super::time(1_200) {
        assert!(pages.since(3, time_ms).is_ok());
    }
}

#[test]
fn no_flipped_bit_gets_an_altered_event_out_or_a_panic() {
    let (disk, old) = closed();
    let bytes = disk.bytes(FILE).unwrap();
    // Most of the file is unused: half of the flips hit where something stands.
    let used: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let pick = |state: &mut u64, len: usize| usize::try_from(random(state)).unwrap() % len;
    let (mut aside, mut harmless, mut partial) = (0, 0, 0);
    for seed in 1..=400_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut image = bytes.clone();
        for _ in 0..=random(&mut state) % 8 {
            let in_head = pick(&mut state, 400);
            let in_use = used[pick(&mut state, used.len())];
            let anywhere = pick(&mut state, bytes.len());
            let at = [in_head, in_use, in_use, anywhere][pick(&mut state, 4)];
            image[at] ^= 1 << (random(&mut state) % 8);
        }
        let disk = disk.killed();
        disk.put(FILE, image);
        let (mut store, loaded) = match open(&disk) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(matches!(error, StoreError::Format { .. }), "seed {seed}: {error:?}");
                continue;
            }
        };
        if loaded.seed != old.seed {
            assert!(!loaded.warnings.is_empty() && loaded.topics.is_empty(), "seed {seed}");
            aside += 1;
            continue;
        }
        let mut there = 0;
        for (topic, tail) in (1..).zip(TAILS) {
            let found = loaded.topics.iter().find(|found| found.id == topic);
            let is_known = found.is_some_and(|found| found.tail == tail);
            assert!(is_known, "seed {seed}: the tail of {topic} would be given out again");
            there += read_past_damage(&*store.pages(), topic, tail).unwrap_or(0);
            drop(store.pages().since(topic, super::time(tail / 2)));
        }
        if there == TAILS.iter().sum::<u64>() {
            harmless += 1
        } else {
            partial += 1
        }
        // What may not work, but must not panic.
        drop(store.commit(&runs([run(1, 401, 3)])));
        drop(store.close());
    }
    assert!(0 < aside && 0 < harmless && 0 < partial, "{aside} {harmless} {partial}");
}
