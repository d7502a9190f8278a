//! The database's file on a [`Disk`](crate::store::disk::Disk), and what its errors mean.
//!
//! # Locks
//!
//! [`Rank::Store`], to look whether writes pass.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    base::lock::{Rank, Ranked},
    store::{StoreError, disk::DiskFile},
};

/// A file that redb reads and writes.
#[derive(Clone, Debug)]
pub(super) struct Backend(Arc<Valve>);

/// What is written to a file waits here until it is certain that the file is ours to change: redb
/// writes to it when it opens it, and again when it lets go of it.
struct Valve {
    file: Arc<dyn DiskFile>,
    mode: Ranked<Mode>,
}

enum Mode {
    /// Writes wait.
    Held(Vec<Change>),
    /// Writes pass.
    Open,
    /// Writes go nowhere.
    Shut,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
    Sync,
}

impl Backend {
    /// Nothing is written to `file` before [`Backend::release`].
    pub(super) fn held(file: Arc<dyn DiskFile>) -> Self {
        let mode = Ranked::new(Rank::Store, Mode::Held(Vec::new()));
        Self(Arc::new(Valve { file, mode }))
    }

    /// Writes what waits; from now on writes pass.
    pub(super) fn release(&self) -> io::Result<()> {
        let waiting = self.0.mode.with(|mode| match mode {
            Mode::Held(waiting) => {
                let waiting = std::mem::take(waiting);
                *mode = Mode::Open;
                waiting
            }
            Mode::Open | Mode::Shut => Vec::new(),
        });
        waiting.into_iter().try_for_each(|change| self.0.make(change))
    }

    /// From now on the file stays as it is.
    pub(super) fn shut(&self) {
        self.0.mode.with(|mode| *mode = Mode::Shut);
    }

    fn pass(&self, change: Change) -> io::Result<()> {
        let change = self.0.mode.with(|mode| match mode {
            Mode::Held(waiting) => {
                waiting.push(change);
                None
            }
            Mode::Open => Some(change),
            Mode::Shut => None,
        });
        change.map_or(Ok(()), |change| self.0.make(change))
    }

    fn is_open(&self) -> bool {
        self.0.mode.with(|mode| matches!(mode, Mode::Open))
    }
}

impl Valve {
    fn make(&self, change: Change) -> io::Result<()> {
        match change {
            Change::Write(at, bytes) => self.file.write_at(at, &bytes),
            Change::Len(len) => self.file.set_len(len),
            Change::Sync => self.file.sync(),
        }
    }

    /// Bytes of the file as redb believes it to be.
    fn len_held(&self) -> Option<u64> {
        self.mode.with(|mode| match mode {
            Mode::Held(waiting) => waiting.iter().rev().find_map(|change| match change {
                Change::Len(len) => Some(*len),
                Change::Write(..) | Change::Sync => None,
            }),
            Mode::Open | Mode::Shut => None,
        })
    }

    /// Reads what the file would say if all that waits had been written.
    fn read_held(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let in_file = self.file.len()?.saturating_sub(offset);
        let in_file = usize::try_from(in_file).unwrap_or(usize::MAX).min(out.len());
        if in_file < out.len() && self.len_held().is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_at(offset, &mut out[..in_file])?;
        out[in_file..].fill(0);
        self.mode.with(|mode| {
            if let Mode::Held(waiting) = mode {
                waiting.iter().for_each(|change| change.show(offset, out));
            }
        });
        Ok(())
    }
}

impl Change {
    /// Does to `out`, which lies at `offset`, what this does to the file.
    fn show(&self, offset: u64, out: &mut [u8]) {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        match self {
            Change::Write(at, bytes) => {
                let to = index(at.saturating_sub(offset)).min(out.len());
                let from = index(offset.saturating_sub(*at)).min(bytes.len());
                let len = (out.len() - to).min(bytes.len() - from);
                out[to..to + len].copy_from_slice(&bytes[from..from + len]);
            }
            Change::Len(len) => {
                let keep = index(len.saturating_sub(offset)).min(out.len());
                out[keep..].fill(0);
            }
            Change::Sync => {}
        }
    }
}

impl fmt::Debug for Valve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Valve").field(&self.file).finish()
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len_held().map_or_else(|| self.0.file.len(), Ok)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.is_open() {
            self.0.file.read_at(offset, out)
        } else {
            self.0.read_held(offset, out)
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pass(Change::Len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.pass(Change::Sync)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.is_open() {
            self.0.file.write_at(offset, bytes)
        } else {
            self.pass(Change::Write(offset, bytes.to_vec()))
        }
    }
}

/// What an error of redb means to the relay.
pub(super) fn failed<E: Into<redb::Error>>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |error| {
        let error = error.into();
        if let redb::Error::Io(source) = error {
            return io_failed(what)(source);
        }
        if let redb::Error::PreviousIo = error {
            let source = io::Error::other("an earlier access to the disk failed");
            return StoreError::Io { what, source };
        }
        StoreError::Damaged { what, why: error.to_string() }
    }
}

/// What an error of a file means to the relay.
pub(super) fn io_failed(what: &'static str) -> impl Fn(io::Error) -> StoreError {
    use io::ErrorKind::{InvalidData, QuotaExceeded, StorageFull, UnexpectedEof};
    move |source| {
        let kind = source.kind();
        if kind == StorageFull || kind == QuotaExceeded {
            StoreError::Full { what, source }
        } else if kind == InvalidData || kind == UnexpectedEof {
            StoreError::Damaged { what, why: source.to_string() }
        } else {
            StoreError::Io { what, source }
        }
    }
}

/// What an error of opening a file means: most often the directory cannot be used.
pub(super) fn open_failed(
    place: String,
    what: &'static str,
) -> impl FnOnce(io::Error) -> StoreError {
    use io::ErrorKind::{
        IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
    };
    move |source| {
        let unusable =
            [IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem];
        if unusable.contains(&source.kind()) {
            StoreError::Directory { place, source }
        } else {
            io_failed(what)(source)
        }
    }
}

/// Runs `work` on a file that may be damaged. Redb checks much of what it reads but not all, and
/// panics where the rest makes no sense.
pub(super) fn guarded<R>(
    what: &'static str,
    work: impl FnOnce() -> Result<R, StoreError>,
) -> Result<R, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(StoreError::Damaged { what, why: "what the file says makes no sense".to_owned() })
    })
}
