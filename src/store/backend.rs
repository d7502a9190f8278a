//! The database's file on a [`Disk`](crate::store::disk::Disk), and what its errors mean.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    base::sync::atomic::{AtomicBool, Ordering},
    store::{StoreError, disk::DiskFile},
};

/// A file that redb reads and writes.
#[derive(Debug)]
pub(super) struct Backend {
    file: Arc<dyn DiskFile>,
    frozen: Frozen,
}

/// Whether a file is to stay as it is: what is written to it goes nowhere. For a file that is not
/// ours to change, because redb writes once more when it lets go of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Frozen(Arc<AtomicBool>);

impl Frozen {
    pub(super) fn set(&self) {
        // Relaxed: set by the thread that drops the database next.
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        // Relaxed: as in `set`.
        self.0.load(Ordering::Relaxed)
    }
}

impl Backend {
    pub(super) fn new(file: Arc<dyn DiskFile>, frozen: Frozen) -> Self {
        Self { file, frozen }
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.frozen.is_set() { Ok(()) } else { self.file.set_len(len) }
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.frozen.is_set() { Ok(()) } else { self.file.sync() }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.frozen.is_set() { Ok(()) } else { self.file.write_at(offset, bytes) }
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
