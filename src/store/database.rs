//! The store that is built in: a redb file, a journal and a ballast in one directory.
//!
//! # Threads
//!
//! Belongs to the one thread that writes. Readers come in through [`Gate`].

use std::sync::Arc;

use crate::{
    base::{clock::Clock, lock},
    store::{
        Batch, Committed, Keep, Loaded, Pages, Store, StoreError,
        backend::{guarded, io_failed},
        ballast, boot, commit,
        disk::{Disk, DiskLock},
        facts::{self, Facts},
        journal::{self, Journal},
        pages::Gate,
        tables::{self, File},
        values,
    },
};

/// What the store is told.
#[derive(Clone, Copy, Debug)]
pub struct StoreSettings {
    /// Memory for pages of the file.
    pub cache_bytes: usize,
    /// Whether the shared state is read. What is stored of it stays there in any case.
    pub reads_state: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { cache_bytes: 4 * 1024 * 1024, reads_state: true }
    }
}

/// The store that is built in.
///
/// Invariants:
///
/// 1. Writes happen only while `open` is there; any error takes it away.
/// 2. The file itself stays with `gate` after an error, so that reading goes on.
#[derive(Debug)]
pub struct Database {
    disk: Arc<dyn Disk>,
    settings: StoreSettings,
    gate: Arc<Gate>,
    open: Option<Open>,
    /// The disk was full when it last failed.
    is_full: bool,
    /// It is noted on disk that a relay runs.
    runs: bool,
    _lock: DiskLock,
}

/// What writing takes.
#[derive(Debug)]
struct Open {
    file: File,
    facts: Facts,
    journal: Journal,
}

impl Database {
    /// Opens the store in `disk`; creates it where there is none. A damaged one is moved aside, and
    /// an empty one takes its place.
    ///
    /// # Errors
    ///
    /// The directory is in use or cannot be used, the disk fails, or the file is of a newer format.
    /// Nothing is lost by that.
    ///
    /// # Blocking
    ///
    /// For the disk: the whole of a file that was not closed in good order is looked at.
    pub fn open(
        disk: Arc<dyn Disk>,
        settings: StoreSettings,
    ) -> Result<(Database, Loaded), StoreError> {
        lock::assert_none_held();
        let lock = disk.lock()?;
        let has_lost_power =
            boot::has_lost_power(&*disk).map_err(io_failed("see how the last run ended"))?;
        let mut warnings = Vec::new();
        let (open, mut loaded) = match start(&*disk, &settings) {
            Err(damage @ StoreError::Damaged { .. }) => {
                warnings.push(put_aside(&*disk, &damage)?);
                start(&*disk, &settings)?
            }
            started => started?,
        };
        warnings.append(&mut loaded.warnings);
        if let Err(error) = ballast::take(&*disk) {
            let StoreError::Full { .. } = error else { return Err(error) };
            warnings.push(format!("the disk is nearly full: {error}"));
        }
        let gate = Arc::new(Gate::new());
        gate.open(&open.file.db);
        let open = Some(open);
        let runs = false;
        let database = Database { disk, settings, gate, open, is_full: false, runs, _lock: lock };
        Ok((database, Loaded { warnings, has_lost_power, ..loaded }))
    }

    /// Notes on disk that a relay runs here, until [`Store::close`]; on a full disk, once there is
    /// room. To be called once new epochs are stored where they are needed.
    ///
    /// # Errors
    ///
    /// The disk cannot be written.
    ///
    /// # Blocking
    ///
    /// For the disk.
    pub fn begin_run(&mut self) -> Result<(), StoreError> {
        lock::assert_none_held();
        self.runs = true;
        match boot::begin(&*self.disk).map_err(io_failed(RUNS)) {
            // Nothing is written meanwhile that could be lost with the power.
            Err(StoreError::Full { .. }) => Ok(()),
            noted => noted,
        }
    }

    /// Runs a step that writes; the first that fails is the last until [`Store::recover`].
    fn step<R>(
        &mut self,
        work: impl FnOnce(&mut Open) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        lock::assert_none_held();
        let open = self.open.as_mut().ok_or(StoreError::Closed)?;
        let result = guarded("write to the store", || work(open));
        if let Err(error) = &result {
            if matches!(error, StoreError::Damaged { .. }) {
                suspect(&*self.disk);
            }
            self.is_full |= matches!(error, StoreError::Full { .. });
            self.open = None;
        }
        result
    }

    /// Opens what is there after an error. Leaves it open for reading if it cannot be written.
    fn reopen(&mut self, keeps: &[Keep]) -> Result<(Open, Loaded), StoreError> {
        if self.is_full {
            ballast::release(&*self.disk)?;
        }
        let mut file = File::open(&*self.disk, &self.settings)?;
        look_closer(&*self.disk, &mut file)?;
        let made = self.make_room(&mut file, keeps);
        // For reading it serves in any case, also after an error of writing.
        self.gate.open(&file.db);
        made?;
        let (open, replayed) = replay(&*self.disk, file, &self.settings)?;
        ballast::take(&*self.disk)?;
        if self.runs {
            boot::begin(&*self.disk).map_err(io_failed(RUNS))?;
        }
        guarded("write to the store", || commit::probe(&open.file.db, &open.facts))?;
        Ok((open, replayed))
    }

    /// Removes what `keeps` allow, all of it, and returns the room to the disk.
    fn make_room(&self, file: &mut File, keeps: &[Keep]) -> Result<(), StoreError> {
        let (mut facts, _) = facts::load(&file.db)?;
        file.release()?;
        let batch = Batch { keeps: keeps.to_vec(), ..Batch::default() };
        let journaled = commit::Journaled::default();
        let mut more = true;
        while more {
            let done = guarded("make room in the store", || {
                commit::commit(&file.db, &mut facts, &batch, &journaled)
            })?;
            more = done.more;
        }
        // Also if nothing was removed just now: free pages are no room to a disk, and redb may take
        // places in the file that the disk has not backed yet before it takes them.
        if self.is_full { file.compact().map(|_| ()) } else { Ok(()) }
    }
}

/// Opens the file and brings it up to date with the journal.
fn start(disk: &dyn Disk, settings: &StoreSettings) -> Result<(Open, Loaded), StoreError> {
    let mut file = File::open(disk, settings)?;
    match look_closer(disk, &mut file) {
        Ok(()) => replay(disk, file, settings),
        Err(error) => {
            file.abandon();
            Err(error)
        }
    }
}

const RUNS: &str = "note that a relay runs";

/// A file with this name says that writing found damage which reading had not.
const SUSPECT: &str = "suspect";

/// Notes that the store is to be looked at as a whole before it is written again, also by another
/// process.
fn suspect(disk: &dyn Disk) {
    let noted =
        disk.open(SUSPECT).and_then(|file| file.write_at(0, b"1")).and_then(|()| disk.sync());
    if let Err(error) = noted {
        log::warn!("cannot note that the store is damaged error=\"{error}\"");
    }
}

/// Looks at all of a store that is suspect.
fn look_closer(disk: &dyn Disk, file: &mut File) -> Result<(), StoreError> {
    const LOOK: &str = "look at a damaged store";
    if disk.len(SUSPECT).map_err(io_failed(LOOK))?.is_none() {
        return Ok(());
    }
    // A file that is not ours, or newer, is left alone.
    facts::load(&file.db)?;
    file.release()?;
    file.check()?;
    disk.remove(SUSPECT).map_err(io_failed(LOOK))
}

fn replay(
    disk: &dyn Disk,
    file: File,
    settings: &StoreSettings,
) -> Result<(Open, Loaded), StoreError> {
    let applied = apply(disk, &file).and_then(|(facts, journal, mut loaded)| {
        if settings.reads_state {
            loaded.state = values::load(&file.db, &mut loaded.warnings)?;
        }
        Ok((facts, journal, loaded))
    });
    match applied {
        Ok((facts, journal, loaded)) => Ok((Open { file, facts, journal }, loaded)),
        Err(error) => {
            // Nothing more is written to what may be damaged.
            file.abandon();
            Err(error)
        }
    }
}

fn apply(disk: &dyn Disk, file: &File) -> Result<(Facts, Journal, Loaded), StoreError> {
    let (mut facts, mut loaded) = facts::load(&file.db)?;
    file.release()?;
    let mut journal = Journal::open(disk)?;
    if journal.bytes() == 0 {
        return Ok((facts, journal, loaded));
    }
    let replay = journal.replay(&facts)?;
    if !replay.batch.is_empty() {
        guarded("apply the journal", || {
            commit::commit(&file.db, &mut facts, &replay.batch, &journal.facts())
        })?;
        let warnings = loaded.warnings;
        (facts, loaded) = facts::load(&file.db)?;
        loaded.warnings = warnings;
    }
    if 0 < replay.ignored {
        loaded.warnings.push(format!(
            "{} bytes of the journal in {} are damaged and ignored",
            replay.ignored,
            disk.place()
        ));
    }
    journal.empty()?;
    Ok((facts, journal, loaded))
}

fn put_aside(disk: &dyn Disk, damage: &StoreError) -> Result<String, StoreError> {
    let unix_s = Clock::default().unix_ms() / 1_000;
    disk.remove(SUSPECT).map_err(io_failed("move a damaged store out of the way"))?;
    let aside = tables::put_aside(disk, journal::FILE, unix_s)
        .map_err(io_failed("move a damaged store out of the way"))?;
    let place = disk.place();
    Ok(format!(
        "the store {place}/{} is damaged ({damage}) and was moved to {place}/{aside}; the relay \
         begins with an empty one, and every topic with a new epoch",
        tables::FILE
    ))
}

impl Store for Database {
    fn commit(&mut self, batch: &Batch) -> Result<Committed, StoreError> {
        self.step(|Open { file, facts, journal }| {
            let journaled = journal.facts();
            // A look for what is too old must not wake a disk that sleeps.
            if !journaled.is_used && !commit::has_work(facts, batch) {
                return Ok(Committed::default());
            }
            let done = commit::commit(&file.db, facts, batch, &journaled)?;
            journal.empty()?;
            Ok(done)
        })
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.step(|Open { facts, journal, .. }| journal.write(facts, batch))
    }

    fn written_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.journal.bytes())
    }

    fn recover(&mut self, keeps: &[Keep]) -> Result<Loaded, StoreError> {
        lock::assert_none_held();
        self.open = None;
        let rewritten = tables::rewrite(&*self.disk);
        self.gate.close();
        match rewritten.and_then(|()| self.reopen(keeps)) {
            Ok((open, loaded)) => {
                self.open = Some(open);
                self.is_full = false;
                Ok(loaded)
            }
            Err(error) => {
                self.is_full |= matches!(error, StoreError::Full { .. });
                Err(error)
            }
        }
    }

    fn pages(&self) -> Arc<dyn Pages> {
        Arc::<Gate>::clone(&self.gate)
    }

    fn file_bytes(&self) -> u64 {
        lock::assert_none_held();
        let files = [tables::FILE, journal::FILE, ballast::FILE];
        files.iter().filter_map(|name| self.disk.len(name).ok().flatten()).sum()
    }

    fn close(&mut self) -> Result<(), StoreError> {
        lock::assert_none_held();
        self.open = None;
        self.gate.close();
        if std::mem::take(&mut self.runs) {
            boot::end(&*self.disk).map_err(io_failed("note that the relay has ended"))?;
        }
        Ok(())
    }
}

impl Drop for Database {
    /// Readers find it closed, however it ends.
    fn drop(&mut self) {
        self.open = None;
        self.gate.close();
    }
}
