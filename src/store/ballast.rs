//! Room on the disk that is taken before it is needed: a full disk lets go of nothing else.
//!
//! The database copies what it changes, so even removing events takes room first.

use std::io;

use crate::{
    base::random,
    store::{StoreError, backend::io_failed, disk::Disk},
};

/// Name of the file.
pub(super) const FILE: &str = "ballast";
/// Enough for the pages that removing a batch of events copies, many times over.
const BYTES: u64 = 1024 * 1024;
const STEP_BYTES: usize = 64 * 1024;

/// Makes sure that the ballast is there, and is no hole in a file.
pub(super) fn take(disk: &dyn Disk) -> Result<(), StoreError> {
    if disk.len(FILE).ok().flatten() == Some(BYTES) {
        return Ok(());
    }
    write(disk).map_err(|error| {
        // Part of it is of no use, and the room is scarce.
        drop(disk.remove(FILE));
        io_failed("take the room that a full disk will need")(error)
    })
}

/// Gives the room back.
pub(super) fn release(disk: &dyn Disk) -> Result<(), StoreError> {
    disk.remove(FILE).map_err(io_failed("give back the reserved room"))
}

fn write(disk: &dyn Disk) -> io::Result<()> {
    let file = disk.open(FILE)?;
    // Not zeros: a file system may have a shorter way to say those.
    let mut piece = Vec::with_capacity(STEP_BYTES);
    let mut state = random::number() | 1;
    while piece.len() < STEP_BYTES {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        piece.extend_from_slice(&state.to_le_bytes());
    }
    for at in (0..BYTES).step_by(STEP_BYTES) {
        file.write_at(at, &piece)?;
    }
    file.sync()
}
