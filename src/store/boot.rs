//! Which start of the machine has written to the store: how a loss of power is told from a process
//! that was killed.
//!
//! What was only handed to the operating system survives the one and not the other. While a relay
//! runs, a file names the start of the machine that it runs on; a relay that ends in good order
//! removes it. One that is found with another name is what a loss of power left.

use std::{fs, io};

use crate::store::disk::Disk;

/// The file's name.
pub(super) const FILE: &str = "running";
const NEW: &str = "running.new";
/// Longer than any name of a start.
const BYTES_MAX: usize = 128;

/// The name of this start of the machine. Where the system has none, all starts are one.
fn this_boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let text = text.trim();
    if text.is_empty() { "unknown".to_owned() } else { text.to_owned() }
}

/// The start of the machine that is noted, if one is.
fn noted(disk: &dyn Disk) -> io::Result<Option<Vec<u8>>> {
    let Some(len) = disk.len(FILE)? else { return Ok(None) };
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(BYTES_MAX);
    let mut found = vec![0; len];
    disk.open(FILE)?.read_at(0, &mut found)?;
    Ok(Some(found))
}

/// Whether a relay ran here when the machine stopped.
pub(super) fn has_lost_power(disk: &dyn Disk) -> io::Result<bool> {
    Ok(noted(disk)?.is_some_and(|found| found != this_boot().as_bytes()))
}

/// Notes that a relay runs here, on this start of the machine.
pub(super) fn begin(disk: &dyn Disk) -> io::Result<()> {
    let name = this_boot();
    if noted(disk)?.is_some_and(|found| found == name.as_bytes()) {
        return Ok(());
    }
    let file = disk.open(NEW)?;
    file.set_len(0)?;
    file.write_at(0, name.as_bytes())?;
    file.sync()?;
    disk.rename(NEW, FILE)?;
    disk.sync()
}

/// Notes that it has ended in good order.
pub(super) fn end(disk: &dyn Disk) -> io::Result<()> {
    disk.remove(FILE)?;
    disk.sync()
}
