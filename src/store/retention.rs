//! What retention removes in one commit: whole chunks, oldest first, a bounded number of them.

use redb::{ReadableTable, Table};

use crate::{
    config::Policy,
    metrics::labels::Evicted,
    store::{
        Keep, StoreError, TopicId,
        backend::failed,
        facts::{Oldest, Topic},
        record::Chunk,
    },
};

/// Chunks that one commit removes from one topic at most.
const CHUNKS_MAX: usize = 64;

const TRIM: &str = "remove old events from the store";

/// Moves the first event of `topic` to where the bound in events puts it. This alone touches no
/// chunk: events may be gone that still lie in one.
pub(super) fn trim_count(topic: &mut Topic, policy: &Policy) -> Option<Evicted> {
    let record = &mut topic.record;
    // The newest event always stays.
    let first = (record.tail + 1).saturating_sub(policy.max_events.max(1));
    (record.first < first).then(|| {
        record.first = first;
        Evicted::Count
    })
}

/// Why the oldest chunk of `topic` should go; `None` if it stays.
pub(super) fn excess(topic: &Topic, keep: &Keep) -> Option<Evicted> {
    let oldest = topic.oldest?;
    let Policy { max_bytes, max_age, .. } = keep.policy;
    if oldest.last < topic.record.first {
        return Some(Evicted::Count);
    }
    if max_bytes < topic.bytes() && oldest.last < topic.record.tail {
        return Some(Evicted::Bytes);
    }
    let age_ms = u64::try_from(max_age?.as_millis()).unwrap_or(u64::MAX);
    (oldest.last_ms.saturating_add(age_ms) < keep.now_ms).then_some(Evicted::Age)
}

/// Whether `keep` removes anything of `topic`.
pub(super) fn has_work(topic: &Topic, keep: &Keep) -> bool {
    let first = (topic.record.tail + 1).saturating_sub(keep.policy.max_events.max(1));
    topic.record.first < first || excess(topic, keep).is_some()
}

/// Removes chunks as long as there is a reason, and moves the first event along.
pub(super) fn trim(
    events: &mut Table<'_, (TopicId, u64), &'static [u8]>,
    id: TopicId,
    topic: &mut Topic,
    keep: &Keep,
) -> Result<(Option<Evicted>, bool), StoreError> {
    let mut reason = None;
    for _ in 0..CHUNKS_MAX {
        let (Some(oldest), Some(why)) = (topic.oldest, excess(topic, keep)) else {
            return Ok((reason, false));
        };
        events.remove((id, oldest.first)).map_err(failed(TRIM))?;
        if topic.record.first <= oldest.last {
            topic.record.first = oldest.last + 1;
            reason = Some(why);
        }
        topic.oldest = next(events, id, oldest)?;
    }
    Ok((reason, excess(topic, keep).is_some()))
}

/// The chunk behind one that was removed.
fn next(
    events: &Table<'_, (TopicId, u64), &'static [u8]>,
    id: TopicId,
    before: Oldest,
) -> Result<Option<Oldest>, StoreError> {
    let mut rest = events.range((id, before.first + 1)..=(id, u64::MAX)).map_err(failed(TRIM))?;
    let Some(entry) = rest.next() else { return Ok(None) };
    let (key, value) = entry.map_err(failed(TRIM))?;
    let (_, first) = key.value();
    let chunk = Chunk::decode(id, first, value.value());
    // A damaged one goes when the one before it would have gone.
    let damaged = Oldest { first, last: first, ..before };
    Ok(Some(chunk.map_or(damaged, |chunk| Oldest::of(&chunk))))
}
