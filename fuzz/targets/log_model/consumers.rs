//! The consumers of a topic beside a naive list, and a store that is told what changes.

use std::collections::BTreeMap;

use landline::{
    name::UserName,
    store::{ConsumerChange, ConsumerState},
    topic::consumers::Consumers,
};
use landline_fuzz::Script;

const OPERATIONS_MAX: usize = 300;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A consumer as it should be.
#[derive(Clone, Copy, Debug)]
struct Known {
    seq: u64,
    used_ms: u64,
    /// The connection that holds it, and its fence.
    holder: Option<(u64, u64)>,
}

pub fn run(mut script: Script<'_>) {
    let mut consumers = Consumers::default();
    let mut model: BTreeMap<UserName, Known> = BTreeMap::new();
    let mut store: BTreeMap<UserName, ConsumerState> = BTreeMap::new();
    let mut on_the_way: Vec<ConsumerChange> = Vec::new();
    let (mut tail, mut now_ms, mut fences) = (0, 0, vec![0]);
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = script.next() else { break };
        now_ms += script.number(4);
        tail += script.number(3);
        let name = UserName::parse(script.pick(&NAMES)).expect("a name");
        let fence = script.pick(&fences);
        let held =
            model.get_mut(&name).filter(|known| known.holder.is_some_and(|(_, it)| it == fence));
        match operation % 8 {
            0 | 1 => {
                let (connection, seq) = (script.number(8), script.number(256) % (tail + 1));
                let claim = consumers.claim(&name, (connection, 0), (seq, tail), now_ms);
                assert!(fences.iter().all(|fence| *fence < claim.fence), "a fence came twice");
                fences.push(claim.fence);
                let before = model.get(&name).copied();
                assert_eq!(claim.is_new, before.is_none());
                assert_eq!(claim.seq, before.map_or(seq, |known| known.seq));
                let previous = claim.previous.map(|holder| (holder.connection, holder.fence));
                assert_eq!(previous, before.and_then(|known| known.holder));
                let holder = Some((connection, claim.fence));
                model.insert(name, Known { seq: claim.seq, used_ms: now_ms, holder });
            }
            2 | 3 => {
                let seq = script.number(256) % (tail + 1);
                let moved = consumers.acknowledge(&name, fence, (seq, tail), now_ms);
                let held = held.filter(|known| known.seq < seq);
                assert_eq!(moved, held.is_some(), "{name} at {seq}");
                if let Some(known) = held {
                    (known.seq, known.used_ms) = (seq, now_ms);
                }
            }
            4 => {
                let after = script.number(256) % (tail + 1);
                let deliveries = u32::from(script.next().unwrap_or_default());
                assert_eq!(consumers.redeliver(&name, fence, (after, deliveries)), held.is_some());
            }
            5 => {
                consumers.release(&name, fence, tail, now_ms);
                if let Some(known) = held {
                    (known.holder, known.used_ms) = (None, now_ms);
                }
            }
            6 => {
                let since_ms = now_ms.saturating_sub(script.number(16));
                let before = model.len();
                model.retain(|_, known| known.holder.is_some() || since_ms < known.used_ms);
                assert_eq!(consumers.expire(since_ms), (before - model.len()) as u64);
            }
            _ => {
                if script.chance(80) {
                    consumers.repeat(std::mem::take(&mut on_the_way));
                }
                arrive(&mut store, std::mem::take(&mut on_the_way));
                on_the_way = consumers.take_changes(9);
                assert!(!consumers.is_dirty());
            }
        }
        compare(&consumers, &model);
    }
    // Once everything has arrived, the store has what there is.
    arrive(&mut store, on_the_way);
    arrive(&mut store, consumers.take_changes(9));
    let listed = consumers.list().into_iter().map(|listed| (listed.name, listed.state));
    assert_eq!(store, listed.collect::<BTreeMap<_, _>>());
}

fn arrive(store: &mut BTreeMap<UserName, ConsumerState>, changes: Vec<ConsumerChange>) {
    for ConsumerChange { topic, name, state } in changes {
        assert_eq!(topic, 9);
        match state {
            Some(state) => store.insert(name, state),
            None => store.remove(&name),
        };
    }
}

fn compare(consumers: &Consumers, model: &BTreeMap<UserName, Known>) {
    assert_eq!((consumers.len(), consumers.is_empty()), (model.len(), model.is_empty()));
    let listed = consumers.list();
    assert_eq!(listed.len(), model.len());
    for (listed, (name, known)) in listed.iter().zip(model) {
        assert_eq!(&listed.name, name);
        assert!(consumers.contains(name));
        assert_eq!((listed.state.seq, listed.state.used_ms), (known.seq, known.used_ms));
        let holder = listed.holder.map(|holder| (holder.connection, holder.fence));
        assert_eq!(holder, known.holder, "who holds {name}");
    }
}
