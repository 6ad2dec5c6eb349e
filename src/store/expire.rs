//! What leaves the ledger and its folder by age alone, while its calls stay.
//!
//! Changes when something else does.

use super::{Backend, Store, StoreError};
use crate::model::Timestamp;

impl Store {
    /// Removes arguments and results of calls from before `cutoff`, on record in the ledger; the calls stay.
    /// In steps, between which others write. Gives the number of calls that had some.
    ///
    /// # Errors
    /// What any statement can give; the steps that were done stay done.
    pub async fn expire_payloads(
        &self,
        cutoff: Timestamp,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.expire_payloads(cutoff, now).await,
        }
    }

    /// Removes from the data folder the copies that an upgrade made of the ledger, and what a restore
    /// replaced, where nothing in them was written since `cutoff`. Gives their names.
    ///
    /// # Errors
    /// [`StoreError::Files`].
    pub async fn remove_old_copies(&self, cutoff: Timestamp) -> Result<Vec<String>, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.remove_old_copies(cutoff).await,
        }
    }
}
