//! When the end of the ledger is signed.

use super::*;
use crate::store::Checkpoint;

async fn signed(folder: &Path, what: &str, fits: impl Fn(&Checkpoint) -> bool) {
    let looking = async {
        while !Checkpoint::read_all(folder).unwrap().iter().any(&fits) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), looking).await.expect(what);
}

/// Neither a minute nor the end is waited for.
#[tokio::test]
async fn the_end_is_signed_at_the_beginning_and_after_a_thousand_rows() {
    let ledger = Ledger::start(Durability::Batched).await;
    signed(ledger.folder.path(), "at the beginning", |one| one.seq == 1).await;
    for _ in 0..1_500 {
        ledger.writer.admit().await.unwrap().record(entry("{}"));
    }
    ledger.writer.flush().await;
    signed(ledger.folder.path(), "after a thousand rows", |one| one.seq > 1_000).await;
    let all = Checkpoint::read_all(ledger.folder.path()).unwrap();
    assert!(all.len() <= 3, "at most one a second: {all:?}");
    ledger.end().await;
}
