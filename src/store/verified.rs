//! [`Verified`]: what a verification of the ledger found.
//!
//! Changes when something else can be found.

use serde::Serialize;

/// Faults that are listed; more are counted.
const LISTED: usize = 100;

/// What is wrong with the ledger at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The row is not what was written, or not in its place.
    Changed,
    /// The row is missing.
    Missing,
    /// Rows from this one on are missing at the end.
    Truncated,
    /// What was kept of the call's arguments and result is not what was written, or was removed
    /// without a word in the ledger.
    Payload,
    /// The chain begins after rows that were removed without a word in it.
    Beginning,
    /// A checkpoint says something else than the row.
    Checkpoint,
    /// What says where the chain begins and ends, and with which key it is written, is missing or was changed.
    Ends,
    /// A table or a column is missing, or the file says that it is of an older version than it is.
    Tables,
}

impl Fault {
    /// The exit code of `audit verify`: 10 changed, 11 a gap, 12 a tail that was cut.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Changed | Self::Payload | Self::Checkpoint | Self::Ends | Self::Tables => 10,
            Self::Missing | Self::Beginning => 11,
            Self::Truncated => 12,
        }
    }

    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Changed => "the row was changed, added or moved",
            Self::Missing => "the row is missing",
            Self::Truncated => "the rows from here to the end are missing",
            Self::Payload => "the payload was changed, or removed without a record of it",
            Self::Beginning => "the rows before were removed without a record of it",
            Self::Checkpoint => "the row is not the one that was signed",
            Self::Ends => {
                "where the chain begins and ends is not on record any more, or was changed"
            }
            Self::Tables => {
                "a table of the ledger, or the version of the file, is missing or was changed"
            }
        }
    }
}

/// A fault and the row at which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The first row concerned.
    pub seq: i64,
    /// What is wrong.
    pub fault: Fault,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verified {
    /// Identity of the chain, hexadecimal.
    pub chain: String,
    /// The last row before the chain: from before there was one, or removed by retention.
    pub base: i64,
    /// The last row.
    pub head: i64,
    /// Its hash, hexadecimal.
    pub head_hash: String,
    /// Rows verified: calls and entries.
    pub rows: u64,
    /// Calls from before there was a chain, which nothing protects.
    pub unchained: u64,
    /// Payloads that were removed, with a record of it.
    pub erased: u64,
    /// Signed checkpoints that were compared.
    pub checkpoints: u64,
    /// What is wrong, by row; at most a hundred.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub faults: u64,
}

impl Verified {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.faults == 0
    }

    /// 0, or the code of the gravest fault.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.findings.iter().map(|finding| finding.fault.exit_code()).min().unwrap_or(0)
    }

    /// The rows from `seq` to `head` are missing at the end: one fault, not one for each.
    pub(super) fn cut_from(&mut self, seq: i64, head: i64) {
        let cut = head.saturating_sub(seq).saturating_add(1);
        self.faults = self.faults.saturating_sub(u64::try_from(cut).unwrap_or(0));
        self.findings.retain(|finding| finding.seq < seq || finding.fault != Fault::Missing);
        self.found(seq, Fault::Truncated);
    }

    /// So many rows from `seq` on are missing.
    pub(super) fn missing(&mut self, seq: i64, count: i64) {
        let listed = count.min(i64::try_from(LISTED).unwrap_or(i64::MAX));
        (0..listed).for_each(|row| self.found(seq.saturating_add(row), Fault::Missing));
        self.faults = self.faults.saturating_add(u64::try_from(count - listed).unwrap_or(0));
    }

    /// A row stands where it does not belong, and is missing where it does.
    pub(super) fn moved(&mut self, seq: i64) {
        let gap = Finding { seq, fault: Fault::Missing };
        if let Some(at) = self.findings.iter().position(|known| *known == gap) {
            self.findings.remove(at);
            self.faults = self.faults.saturating_sub(1);
        }
        self.found(seq, Fault::Changed);
    }

    pub(super) fn found(&mut self, seq: i64, fault: Fault) {
        self.faults = self.faults.saturating_add(1);
        let at = self.findings.partition_point(|known| known.seq <= seq);
        self.findings.insert(at, Finding { seq, fault });
        self.findings.truncate(LISTED);
    }
}
