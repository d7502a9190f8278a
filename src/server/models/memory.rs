//! A store that is a list in memory: durable as soon as a commit returns, and failing on demand.

use std::io;

use super::rig::TOPIC;
use crate::{
    base::sync::{Arc, Mutex},
    config::Policy,
    name::Name,
    store::{
        Batch, Committed, Keep, Loaded, Page, Pages, Run, Store, StoreError, StoredTopic, TopicId,
    },
    topic::{Draft, Log, dedupe::Window},
    wire::{frame, position::Epoch},
};

/// The disk of a model with one topic. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    /// Frames of the events from 1 on.
    frames: Vec<Vec<u8>>,
    topic: Option<StoredTopic>,
    /// Commits that still succeed; all do if there is no number.
    commits_left: Option<usize>,
}

impl Memory {
    /// A disk on which every commit after the first `commits` fails.
    pub(super) fn failing_after(commits: usize) -> Self {
        let memory = Self::default();
        memory.0.lock().commits_left = Some(commits);
        memory
    }

    /// A disk with the model's topic and some events.
    pub(super) fn with_events(count: u64) -> Self {
        let (name, epoch) = (Name::parse(TOPIC).unwrap(), Epoch::from_number(1));
        let mut log = Log::new(&name, epoch, Policy::default());
        let draft = Draft { user: None, name: None, data: "1", key: None };
        for _ in 0..count {
            log.append(&draft, 0, Window { uptime_ms: 0, length_ms: 0 });
        }
        let mut frames = Vec::new();
        log.copy_after(0, count, usize::MAX, &mut frames);
        let memory = Self::default();
        let mut disk = memory.0.lock();
        disk.topic = Some(new_topic(1, name, epoch));
        disk.add(&Run { topic: 1, first: 1, count, first_ms: 0, last_ms: 0, frames, keys: vec![] });
        drop(disk);
        memory
    }

    /// The newest event that is stored.
    pub(super) fn tail(&self) -> u64 {
        self.0.lock().frames.len() as u64
    }

    /// What a relay finds that starts with it.
    pub(super) fn loaded(&self) -> Loaded {
        let topics = self.0.lock().topic.clone().into_iter().collect();
        Loaded { seed: 1, topics, ..Loaded::default() }
    }
}

fn new_topic(id: TopicId, name: Name, epoch: Epoch) -> StoredTopic {
    StoredTopic { id, name, epoch, first: 1, tail: 0, newest_ms: 0, bytes: 0 }
}

impl Disk {
    fn add(&mut self, run: &Run) {
        let stored = self.frames.len() as u64;
        let mut rest = &run.frames[..];
        for seq in run.first..run.first + run.count {
            let (frame, others) = rest.split_at(frame::length(rest));
            rest = others;
            if stored < seq {
                assert_eq!(seq, self.frames.len() as u64 + 1, "a hole on disk");
                self.frames.push(frame.to_vec());
            }
        }
        if let Some(topic) = &mut self.topic {
            topic.tail = self.frames.len() as u64;
            topic.bytes = self.frames.iter().map(|frame| frame.len() as u64).sum();
        }
    }
}

impl Store for Memory {
    fn commit(&mut self, batch: &Batch) -> Result<Committed, StoreError> {
        let mut disk = self.0.lock();
        if !batch.is_idle()
            && let Some(left) = &mut disk.commits_left
        {
            if *left == 0 {
                let source = io::Error::from(io::ErrorKind::StorageFull);
                return Err(StoreError::Full { what: "commit", source });
            }
            *left -= 1;
        }
        for new in &batch.topics {
            disk.topic = Some(new_topic(new.id, new.name.clone(), new.epoch));
        }
        batch.runs.iter().for_each(|run| disk.add(run));
        Ok(Committed::default())
    }

    fn write(&mut self, _batch: &Batch) -> Result<(), StoreError> {
        unreachable!("the topics of a model are always synced")
    }

    fn written_bytes(&self) -> u64 {
        0
    }

    fn recover(&mut self, _keeps: &[Keep]) -> Result<Loaded, StoreError> {
        self.0.lock().commits_left = None;
        Ok(self.loaded())
    }

    fn pages(&self) -> Arc<dyn Pages> {
        Arc::new(self.clone())
    }

    fn file_bytes(&self) -> u64 {
        0
    }

    fn close(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Pages for Memory {
    /// One event at a time, so that a cursor takes several pages.
    fn read(
        &self,
        _topic: TopicId,
        after: u64,
        upto: u64,
        _bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<Page, StoreError> {
        let disk = self.0.lock();
        let next = usize::try_from(after).ok().and_then(|after| disk.frames.get(after));
        match next.filter(|_| after < upto) {
            Some(frame) => out.extend_from_slice(frame),
            None => return Ok(Page::UpTo(after)),
        }
        Ok(Page::UpTo(after + 1))
    }

    fn since(&self, _topic: TopicId, _time_ms: u64) -> Result<u64, StoreError> {
        Ok(1)
    }
}
