//! A disk in memory that fails, fills up and loses power: for tests, here and in `tests/it`.
//!
//! What was written since a file's last sync is remembered, so that [`SimDisk::crashed`] can say
//! what a loss of power leaves: all of it gone, or any of its sectors there. Names are durable at
//! once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use crate::{
    base::sync::{Condvar, Mutex},
    store::{
        StoreError,
        disk::{Disk, DiskFile, DiskLock},
    },
};

const SECTOR: usize = 512;
const BLOCK: u64 = 4_096;

/// A step of the disk that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Read,
    Write,
    Sync,
}

/// Which step fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub step: Step,
    /// The how many-th such step from now on, from 1.
    pub nth: u64,
    pub error: io::ErrorKind,
    /// Whether every step after it fails too, as when the power is gone.
    pub forever: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, usize>,
    files: Vec<Content>,
    fault: Option<Fault>,
    is_dead: Option<io::ErrorKind>,
    capacity: Option<u64>,
    lies: bool,
    steps: [u64; 3],
    /// Syncs wait.
    is_held: bool,
    /// How many do.
    waiting: usize,
    released: Arc<Condvar>,
    lock: Arc<()>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    blocks: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug)]
struct SimFile(Arc<Mutex<State>>, usize);

impl SimDisk {
    /// Lets a step fail.
    pub fn fail(&self, fault: Option<Fault>) {
        let mut state = self.0.lock();
        state.fault = fault;
        state.is_dead = None;
        state.steps = [0; 3];
    }

    /// How many steps of this kind there were since the last [`SimDisk::fail`].
    #[must_use]
    pub fn count(&self, step: Step) -> u64 {
        self.0.lock().steps[step as usize]
    }

    /// Lets the disk have room for so many bytes, in blocks of 4 KiB that were written to.
    pub fn limit(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Bytes taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Lets a sync return without doing anything.
    pub fn lie(&self) {
        self.0.lock().lies = true;
    }

    /// Lets every sync of a file wait, until it is called with `false`.
    pub fn hold(&self, is_held: bool) {
        let released = {
            let mut state = self.0.lock();
            state.is_held = is_held;
            Arc::clone(&state.released)
        };
        released.notify_all();
    }

    /// How many syncs wait because of [`SimDisk::hold`].
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting
    }

    /// The names of the files.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// What a file says, as the operating system has it.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.lock();
        state.names.get(name).map(|file| state.files[*file].live.clone())
    }

    /// Replaces a file, durably.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.0.lock();
        let file = state.file(name);
        let blocks = (0..bytes.len() as u64).step_by(4_096).map(|at| at / BLOCK).collect();
        let durable = bytes.clone();
        state.files[file] = Content { live: bytes, durable, unsynced: Vec::new(), blocks };
    }

    /// Another disk with what is left when the process dies.
    #[must_use]
    pub fn killed(&self) -> SimDisk {
        self.image(|content| content.live.clone())
    }

    /// Another disk with what is left when the power fails: of what no sync has covered nothing, or
    /// what `seed` says.
    #[must_use]
    pub fn crashed(&self, seed: Option<u64>) -> SimDisk {
        let mut random = seed.map(|seed| seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1);
        self.image(|content| match &mut random {
            Some(random) => content.torn(random),
            None => content.durable.clone(),
        })
    }

    fn image(&self, mut left: impl FnMut(&Content) -> Vec<u8>) -> SimDisk {
        let image = SimDisk::default();
        let state = self.0.lock();
        for (name, file) in &state.names {
            image.put(name, left(&state.files[*file]));
        }
        image
    }
}

/// The next number of a sequence that looks random.
pub fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

impl State {
    fn file(&mut self, name: &str) -> usize {
        let next = self.files.len();
        let file = *self.names.entry(name.to_owned()).or_insert(next);
        if file == next {
            self.files.push(Content::default());
        }
        file
    }

    fn used(&self) -> u64 {
        let blocks = self.names.values().map(|file| self.files[*file].blocks.len() as u64);
        blocks.sum::<u64>() * BLOCK
    }

    /// Counts a step and says whether it fails.
    fn step(&mut self, step: Step) -> io::Result<()> {
        self.alive()?;
        self.steps[step as usize] += 1;
        let Some(fault) = self.fault else { return Ok(()) };
        if fault.step != step || self.steps[step as usize] != fault.nth {
            return Ok(());
        }
        self.is_dead = fault.forever.then_some(fault.error);
        Err(fault.error.into())
    }

    fn alive(&self) -> io::Result<()> {
        self.is_dead.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn write(&mut self, file: usize, at: usize, bytes: &[u8]) -> io::Result<()> {
        let last = (at + bytes.len()).saturating_sub(1) as u64 / BLOCK;
        let new: Vec<_> = (at as u64 / BLOCK..=last)
            .filter(|block| !self.files[file].blocks.contains(block))
            .collect();
        if let Some(capacity) = self.capacity
            && !new.is_empty()
            && capacity < self.used() + new.len() as u64 * BLOCK
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let content = &mut self.files[file];
        content.blocks.extend(new);
        overwrite(&mut content.live, at, bytes);
        content.unsynced.push(Change::Write(at, bytes.to_vec()));
        Ok(())
    }
}

impl Content {
    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write(at, bytes) => overwrite(&mut self.durable, at, &bytes),
                Change::Len(len) => self.durable.resize(len, 0),
            }
        }
    }

    /// Some of the unsynced sectors, and some of the changes of length.
    fn torn(&self, state: &mut u64) -> Vec<u8> {
        let mut image = self.durable.clone();
        let percent = random(state) % 101;
        for change in &self.unsynced {
            match change {
                Change::Len(len) if image.len() < *len || random(state).is_multiple_of(2) => {
                    image.resize(*len, 0);
                }
                Change::Len(_) => {}
                Change::Write(at, bytes) => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random(state) % 100 < percent {
                            overwrite(&mut image, at + index * SECTOR, sector);
                        }
                    }
                }
            }
        }
        image
    }
}

fn overwrite(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}

fn offset(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "(memory)".to_owned()
    }

    fn lock(&self) -> Result<DiskLock, StoreError> {
        let state = self.0.lock();
        match Arc::strong_count(&state.lock) {
            1 => Ok(DiskLock::new(Arc::clone(&state.lock))),
            _ => Err(StoreError::Locked { place: "(memory)".to_owned() }),
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.alive()?;
        let file = state.file(name);
        Ok(Arc::new(SimFile(Arc::clone(&self.0), file)))
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        let state = self.0.lock();
        state.alive()?;
        Ok(state.names.get(name).map(|file| state.files[*file].live.len() as u64))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.alive()?;
        state.names.remove(name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.alive()?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.lock().step(Step::Sync)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.0.lock();
        state.alive()?;
        Ok(state.files[self.1].live.len() as u64)
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step(Step::Read)?;
        let live = state.files[self.1].live.get(offset(at)..).unwrap_or_default();
        let bytes = live.get(..out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        state.alive()?;
        let fate = state.step(Step::Write);
        // A write that fails may have been done in part.
        let len = if fate.is_ok() { bytes.len() } else { bytes.len() / 2 };
        state.write(self.1, offset(at), &bytes[..len])?;
        fate
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step(Step::Write)?;
        let content = &mut state.files[self.1];
        content.live.resize(offset(len), 0);
        content.blocks.retain(|block| *block < len.div_ceil(BLOCK));
        content.unsynced.push(Change::Len(offset(len)));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        while state.is_held {
            let released = Arc::clone(&state.released);
            state.waiting += 1;
            released.wait(&mut state);
            state.waiting -= 1;
        }
        if let Err(error) = state.step(Step::Sync) {
            // As Linux does it: the pages count as written although they are not, the next sync
            // does not try again, and what is read still comes from memory.
            state.files[self.1].unsynced.retain(|change| matches!(change, Change::Len(_)));
            return Err(error);
        }
        if !state.lies {
            state.files[self.1].sync();
        }
        Ok(())
    }
}
