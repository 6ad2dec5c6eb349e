//! Where the chain begins and ends, and what stands outside it.
//!
//! Changes when something else says that.

use std::path::PathBuf;

use sqlx::{Connection as _, SqliteConnection};

use super::{State, hash_at};
use crate::store::chain::LedgerKey;
use crate::store::{Checkpoint, Fault, StoreError, Verified};

/// The last row there is; 0 when there is none.
pub(super) async fn last_row(reader: &mut SqliteConnection) -> Result<i64, StoreError> {
    let last: Option<i64> = sqlx::query_scalar(
        "select max(seq) from
            (select max(seq) as seq from calls union all select max(seq) from entries)",
    )
    .fetch_one(reader)
    .await?;
    Ok(last.unwrap_or_default())
}

/// What can be said of a ledger in which no row says where its chain begins and ends. A router that has made the
/// tables and not yet that row leaves nothing else in them; otherwise somebody removed it.
pub(super) async fn without_ends(
    reader: &mut SqliteConnection,
    key: &LedgerKey,
    checkpoints: &[Checkpoint],
    path: PathBuf,
) -> Result<Verified, StoreError> {
    let linked: bool = sqlx::query_scalar(
        "select exists (select 1 from entries)
             or exists (select 1 from calls where hash is not null)",
    )
    .fetch_one(&mut *reader)
    .await?;
    if !linked && !checkpoints.iter().any(|one| one.is_signed_by(key)) {
        return Err(StoreError::NoChain { path });
    }
    let head = last_row(&mut *reader).await?;
    let mut verified = Verified { head, ..Verified::default() };
    verified.found(head, Fault::Ends);
    Ok(verified)
}

/// Whether the chain ends where the ledger says.
pub(super) async fn ends(
    reader: &mut SqliteConnection,
    state: &State,
    base: i64,
    key: &LedgerKey,
    verified: &mut Verified,
) -> Result<(), StoreError> {
    // One sight of everything: a router may add rows between two statements.
    let mut sight = reader.begin().await?;
    // A tail that is gone was found row by row; it is one fault.
    let last = last_row(&mut sight).await?.max(base);
    if last < state.head {
        verified.cut_from(last.saturating_add(1), state.head);
    }
    if last >= state.head && state.head > base {
        let hash = hash_at(&mut sight, state.head).await?;
        if hash != Some(state.head_hash) {
            verified.found(state.head, Fault::Changed);
        }
    }
    // What stands outside the chain is no call of ours, unless it is from before there was one. Once rows were
    // removed from its beginning nothing is: the last step of that removed all before it.
    let now = State::read(&mut sight).await?;
    let pruned = [Some(state), now.as_ref()]
        .into_iter()
        .flatten()
        .any(|state| state.base_hash != key.genesis(&state.chain, state.base));
    let (before, beyond): (Option<i64>, Option<i64>) = sqlx::query_as(
        "with chain(base, bare) as
            (select base_seq, iif(?2, base_seq, 0) from ledger where id = 1),
         outside(seq) as
            (select seq from entries, chain where seq <= base
             union all select seq from calls, chain
                where seq <= bare or (seq <= base and hash is not null)
             union all select seq from attempts, chain where seq <= bare
             union all select seq from payloads, chain where seq <= bare),
         beyond(seq) as
            (select seq from attempts where seq > ?1
             union all select seq from payloads where seq > ?1)
         select (select min(seq) from outside), (select min(seq) from beyond)",
    )
    // What is left of a tail that was cut is found with it.
    .bind(last.max(state.head))
    .bind(pruned)
    .fetch_one(&mut *sight)
    .await?;
    for seq in [before, beyond].into_iter().flatten() {
        verified.found(seq, Fault::Changed);
    }
    if last > state.head {
        // Unless a router wrote them meanwhile.
        let end = now.filter(|now| now.is_marked_by(key));
        if end.is_none_or(|end| end.head < last) {
            verified.found(state.head.saturating_add(1), Fault::Changed);
        }
    }
    sight.rollback().await?;
    Ok(())
}
