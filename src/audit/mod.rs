//! The ledger: every call becomes a row, through one bounded queue and one writer.
//!
//! Changes when the product's promise about the ledger changes. The call path gives an
//! [`AuditEntry`] away and goes on; what is kept of it, and encoding, are the writer's.

mod begun;
mod checkpoints;
mod disk;
mod entry;
mod events;
mod export;
mod query;
mod retention;
mod slo;
mod summary;
mod writer;

pub use crate::config::{Durability, IntentMode};
pub use crate::redact::{Redactor, Secrets, Strictness};
pub use begun::CallBegun;
pub use entry::{AttemptEntry, Attempts, AuditEntry, ToolLabel};
pub use events::{EventRecord, EventRecordPage, Following, Told};
pub use export::{Encoder, ExportFormat};
pub use query::{
    AttemptRecord, AuditQuery, CallRecord, CallRecordDetail, CallRecordPage, CallStats,
    CallStatsRow, Payloads,
};
pub use retention::Retention;
pub use slo::{Promise, Standings};
pub use writer::{AuditSettings, AuditSlot, AuditUnavailable, AuditWriter, NotRecorded};
