//! A directory and its files, as the store sees them, and the real one.
//!
//! # Place
//!
//! Everything that the store does to the disk goes through these two traits, so that a test can
//! let any step of it fail, or the power.

use std::{
    any::Any,
    fmt::Debug,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::Arc,
};

use crate::{base::lock, store::StoreError};

/// A directory that one store has for itself.
pub trait Disk: Send + Sync + Debug {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// Takes the directory for as long as the guard lives; creates it where it is missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if another has it, [`StoreError::Directory`] if it cannot be used.
    fn lock(&self) -> Result<DiskLock, StoreError>;

    /// Opens a file, which is created where it is missing.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Bytes of a file; `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn len(&self, name: &str) -> io::Result<Option<u64>>;

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames a file, over another where there is one.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Returns when the names in the directory are on disk.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn sync(&self) -> io::Result<()>;
}

/// An open file. Offsets and lengths are bytes.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait DiskFile: Send + Sync + Debug {
    /// # Errors
    ///
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    ///
    /// The operating system's; `UnexpectedEof` where the file ends before.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    ///
    /// The operating system's; a part may be written then.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file, or lengthens it with zeros.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when everything written is on disk.
    ///
    /// # Errors
    ///
    /// The operating system's. What was written since the last success may be lost.
    fn sync(&self) -> io::Result<()>;
}

/// Holds a directory; dropping it lets the next one have it.
pub struct DiskLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DiskLock {
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl Debug for DiskLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskLock")
    }
}

/// A directory of the file system.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

const LOCK: &str = "lock";
/// The events may be private: nobody but the relay's user reads the files.
const FILE_MODE: u32 = 0o600;

impl Directory {
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(self.path.join(name))
    }
}

impl Disk for Directory {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&self) -> Result<DiskLock, StoreError> {
        lock::assert_none_held();
        let unusable = |source| StoreError::Directory { place: self.place(), source };
        if !self.path.is_dir() {
            fs::create_dir_all(&self.path).map_err(unusable)?;
            // Its name must survive a loss of power too. One that may not be synced was there.
            for parent in self.path.ancestors().skip(1) {
                drop(File::open(parent).and_then(|parent| parent.sync_all()));
            }
        }
        let file = self.open_file(LOCK).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => Ok(DiskLock::new(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { place: self.place() }),
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        lock::assert_none_held();
        Ok(Arc::new(self.open_file(name)?))
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        lock::assert_none_held();
        match fs::metadata(self.path.join(name)) {
            Ok(data) => Ok(Some(data.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        lock::assert_none_held();
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        lock::assert_none_held();
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        lock::assert_none_held();
        File::open(&self.path)?.sync_all()
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        lock::assert_none_held();
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        lock::assert_none_held();
        self.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        lock::assert_none_held();
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        lock::assert_none_held();
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        lock::assert_none_held();
        self.sync_data()
    }
}
