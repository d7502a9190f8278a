//! What the store keeps, as bytes: whatever they are, reading them does not panic; what is read is
//! what was written; and one flipped bit is never read as something else.

#![no_main]

use landline::{
    name::Name,
    store::{
        Batch, Key, NewTopic, Run,
        fuzzing::{Kind, Place, again, journal_record, journal_sealed, replay, sealed},
    },
    wire::position::Epoch,
};
use landline_fuzz::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    match script.below(8) {
        0 => whole_journal(script),
        1 => strange_journal(script),
        kind => records(kind, script),
    }
});

const KINDS: [Kind; 6] =
    [Kind::Topic, Kind::Chunk, Kind::Key, Kind::Consumer, Kind::State, Kind::Numbers];
const NAMES: [&str; 6] = ["a", "home/lamp", "", "a//b", "\u{fc}", "$sys/a"];

fn records(kind: usize, mut script: Script<'_>) {
    let kind = KINDS[kind % KINDS.len()];
    let at = Place {
        topic: script.number(4),
        seq: script.pick(&[0, 1, 7, u64::MAX - 1, u64::MAX]),
        name: script.pick(&NAMES),
    };
    let flip = script.below(256) * 7 + script.below(7);
    let body = script.rest();
    // Numbers may be followed by others that this version does not know.
    let is_open = matches!(kind, Kind::Consumer | Kind::Numbers);
    let is_same =
        |found: &[u8], read: &[u8]| found == read || (is_open && found.len() < read.len());
    // Now and then a body has the right checksum by itself: libFuzzer sees comparisons.
    if let Some(found) = again(kind, at, body) {
        assert!(is_same(&found, body), "{kind:?} under {at:?}: {body:?}");
    }
    let record = sealed(kind, at, body);
    let Some(found) = again(kind, at, &record) else { return };
    assert!(is_same(&found, &record), "{kind:?}: {record:?}");
    let mut flipped = record.clone();
    let bit = flip % (flipped.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    assert_eq!(again(kind, at, &flipped), None, "{kind:?} with bit {bit} flipped");
    if !matches!(kind, Kind::State | Kind::Numbers) {
        let other = Place { topic: at.topic ^ 1, ..at };
        assert_eq!(again(kind, other, &record), None, "{kind:?} under another topic");
    }
    if matches!(kind, Kind::Chunk | Kind::Key) {
        let other = Place { seq: at.seq ^ 2, ..at };
        assert_eq!(again(kind, other, &record), None, "{kind:?} under another sequence");
    }
    if matches!(kind, Kind::Consumer | Kind::State | Kind::Numbers) {
        let other = Place { name: "b", ..at };
        assert!(at.name.len() != 1 || again(kind, other, &record).is_none(), "under another name");
    }
}

const GENERATION: u64 = 7;

fn topic(id: u64) -> NewTopic {
    let name = Name::parse(&format!("topic/{id}")).expect("a name");
    NewTopic { id, name, epoch: Epoch::from_number(id + 100), tail: 0 }
}

/// Records that go on from each other, of which one is damaged, cut off, or of another generation.
fn whole_journal(mut script: Script<'_>) {
    let mut tails = [Some(0), Some(0), None, None];
    let (mut journal, mut records) = (Vec::new(), Vec::new());
    for _ in 0..script.below(5) {
        let batch = batch(&mut script, &mut tails);
        journal.extend(journal_record(GENERATION, &batch).expect("it is small"));
        records.push((batch, journal.len()));
    }
    let (at, bit) = (script.below(256) * 16 + script.below(16), script.below(8));
    let intact = match script.below(4) {
        0 if at < journal.len() => {
            journal[at] ^= 1 << bit;
            at
        }
        1 if at < journal.len() => {
            journal.truncate(at);
            at
        }
        2 => {
            let other = batch(&mut script, &mut tails);
            let end = journal.len();
            journal.extend(journal_record(GENERATION - 1, &other).expect("it is small"));
            end
        }
        3 => {
            let end = journal.len();
            journal.extend_from_slice(script.rest());
            end
        }
        _ => journal.len(),
    };
    let (found, _) = replay(GENERATION, &[topic(0), topic(1)], journal).expect("the disk works");
    let whole = records.iter().take_while(|(_, end)| *end <= intact);
    let mut expected = Batch::default();
    for (batch, _) in whole {
        expected.topics.extend(batch.topics.iter().cloned());
        expected.runs.extend(batch.runs.iter().cloned());
    }
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
}

fn batch(script: &mut Script<'_>, tails: &mut [Option<u64>; 4]) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..script.below(4) {
        let id = script.below(4);
        if tails[id].is_none() {
            batch.topics.push(topic(id as u64));
        }
        let (first, count) = (tails[id].unwrap_or(0) + 1, 1 + script.number(3));
        tails[id] = Some(first + count - 1);
        let key = |seq| Key { seq, time_ms: 5, text: format!("key {seq}").into() };
        batch.runs.push(Run {
            topic: id as u64,
            first,
            count,
            first_ms: script.number(256),
            last_ms: 300,
            frames: vec![b'x'; script.below(64)],
            keys: (0..script.number(3)).map(|offset| key(first + offset)).collect(),
        });
    }
    batch
}

/// Payloads that no relay wrote, with checksums that are right: nothing is taken that does not go
/// on from what is there.
fn strange_journal(mut script: Script<'_>) {
    let first = batch(&mut script, &mut [Some(0), Some(0), None, None]);
    let mut journal = journal_record(GENERATION, &first).expect("it is small");
    journal.extend(journal_sealed(GENERATION, script.rest()));
    let (found, _) = replay(GENERATION, &[topic(0), topic(1)], journal).expect("the disk works");
    let mut tails = std::collections::BTreeMap::from([(0, 0), (1, 0)]);
    for topic in &found.topics {
        assert_eq!(tails.insert(topic.id, 0), None, "a topic that was there");
    }
    for Run { topic, first, count, .. } in &found.runs {
        let tail = tails.get_mut(topic).expect("a topic that is there");
        assert!(*first == *tail + 1 && 1 <= *count, "after {tail} came {first}+{count}");
        *tail = first.checked_add(count - 1).expect("a sequence that exists");
    }
}
