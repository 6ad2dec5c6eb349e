//! [`Checkpoint`]: what the ledger was at a moment, signed, to be kept where the ledger is not.
//!
//! Changes when a checkpoint says something else. Without one, a ledger whose end was cut together
//! with the mark of its end, or that was replaced by an older copy, verifies.

use std::path::Path;
use std::{fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::chain::LedgerKey;

/// The end of a chain at a moment. A line of JSON in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Identity of the chain, hexadecimal.
    pub chain: String,
    /// The last row.
    pub seq: i64,
    /// Its hash, hexadecimal.
    pub hash: String,
    /// When, RFC 3339.
    pub at: String,
    /// Ed25519 over the fields above, base64.
    pub signature: String,
    /// The public key, base64.
    pub key: String,
}

impl Checkpoint {
    /// The file in each folder in which checkpoints are kept; what was in it before it became too
    /// large is in [`Self::OLD_FILE`].
    pub const FILE: &str = "checkpoints.jsonl";
    /// The file before that.
    pub const OLD_FILE: &str = "checkpoints.old.jsonl";

    /// Reads the checkpoints in `folder`, oldest first; lines that are none are left out.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn read_all(folder: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for file in [Self::OLD_FILE, Self::FILE] {
            match fs::read_to_string(folder.join(file)) {
                Ok(text) => {
                    found.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    pub(super) fn sign(
        key: &LedgerKey,
        chain: String,
        seq: i64,
        hash: String,
        at: String,
    ) -> Option<Self> {
        let (signature, public) = key.sign(text(&chain, seq, &hash, &at).as_bytes())?;
        let (signature, key) = (STANDARD.encode(signature), STANDARD.encode(public));
        Some(Self { chain, seq, hash, at, signature, key })
    }

    /// Whether the holder of `key` signed it; whose key stands in it does not matter.
    pub(super) fn is_signed_by(&self, key: &LedgerKey) -> bool {
        let text = text(&self.chain, self.seq, &self.hash, &self.at);
        STANDARD
            .decode(&self.signature)
            .is_ok_and(|signature| key.has_signed(text.as_bytes(), &signature))
    }
}

fn text(chain: &str, seq: i64, hash: &str, at: &str) -> String {
    format!("switchyard checkpoint v1\n{chain}\n{seq}\n{hash}\n{at}\n")
}
