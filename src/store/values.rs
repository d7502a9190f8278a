//! The shared state in the database: a row for each key, and one for where the state is.

use redb::{ReadableDatabase, ReadableTable, TableError};

use crate::{
    store::{
        StateBatch, StoreError, StoredState,
        backend::{failed, guarded},
        record,
        tables::{self, STATE},
    },
    wire::position::Epoch,
};

const WRITE: &str = "write to the store";
const LOAD: &str = "read the state from the store";

/// Where the numbers of the state are.
const HEAD: &str = "state";

/// Writes `state` as a part of `txn`.
pub(super) fn put(txn: &redb::WriteTransaction, state: &StateBatch) -> Result<(), StoreError> {
    let StateBatch { epoch, horizon, upto, is_whole, changes, forgotten } = state;
    if *is_whole {
        txn.delete_table(STATE).map_err(failed(WRITE))?;
    }
    let mut table = txn.open_table(STATE).map_err(failed(WRITE))?;
    for key in forgotten {
        drop(table.remove(key.as_str()).map_err(failed(WRITE))?);
    }
    for change in changes {
        let value = record::encode_state(change);
        table.insert(change.key.as_str(), value.as_slice()).map_err(failed(WRITE))?;
    }
    drop(table);
    tables::put_numbers(txn, HEAD, &[epoch.number(), *horizon, *upto])
}

/// Reads all of it. What is damaged is left out, and told.
pub(super) fn load(
    db: &redb::Database,
    warnings: &mut Vec<String>,
) -> Result<Option<StoredState>, StoreError> {
    guarded(LOAD, || {
        let txn = db.begin_read().map_err(failed(LOAD))?;
        let head = tables::numbers(&txn, HEAD)?;
        let (mut entries, mut damaged) = (Vec::new(), 0_u64);
        match txn.open_table(STATE) {
            Ok(table) => {
                for entry in table.iter().map_err(failed(LOAD))? {
                    let (key, value) = entry.map_err(failed(LOAD))?;
                    match record::decode_state(key.value(), value.value()) {
                        Some(entry) => entries.push(entry),
                        None => damaged += 1,
                    }
                }
            }
            Err(TableError::TableDoesNotExist(_)) if head.is_none() => return Ok(None),
            Err(error) => return Err(failed(LOAD)(error)),
        }
        if 0 < damaged {
            warnings.push(format!("{damaged} keys of the shared state are damaged and lost"));
        }
        let known = head.flatten();
        if known.is_none() {
            warnings.push("what is known of the shared state as a whole is damaged".to_owned());
        }
        let newest = entries.iter().map(|entry| entry.version).max().unwrap_or(0);
        let [epoch, horizon, upto] = known.unwrap_or([Epoch::random().number(), 0, newest]);
        let is_damaged = 0 < damaged || known.is_none();
        let epoch = Epoch::from_number(epoch);
        Ok(Some(StoredState { epoch, horizon, upto: upto.max(newest), entries, is_damaged }))
    })
}
