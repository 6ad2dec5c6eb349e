//! The real router from outside: started on a free port with a database in a temporary folder and
//! real upstreams, observed as clients, operators and later readers of the ledger observe it.
//!
//! One binary, one file per behaviour. What is faked lies outside the process and is faked on the
//! wire.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    clippy::large_futures,
    missing_docs,
    unreachable_pub,
    reason = "in a test a panic is the report, and helpers are not shipped"
)]
#![allow(clippy::needless_pass_by_value, reason = "helpers take what `json!` makes")]

mod abuse;
mod batches;
mod breakers;
mod cancel;
mod children;
mod cli;
mod damaged;
mod dialects;
mod eras;
mod errors;
mod fidelity;
mod front_door;
mod health;
mod hostile;
mod hostile_lists;
mod input;
mod isolated;
mod isolation;
mod ledger;
mod ledger_events;
mod ledger_export;
mod ledger_faults;
mod ledger_index;
mod ledger_reading;
mod ledger_scale;
mod ledger_upkeep;
mod listening;
mod lists;
mod logs;
mod metrics;
mod mixup;
mod on_record;
mod overrides;
mod recording;
mod redaction_corpus;
mod registry;
mod reloads;
mod replay;
mod resilience;
mod restart;
mod resume;
mod retries;
mod sessions;
mod shutdown;
mod slo;
mod snapshots;
mod stdio;
mod streams;
mod support;
mod tidy;
mod traces;
mod views;
