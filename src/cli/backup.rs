//! `switchyard backup` and `restore`: copies of the data folder.
//!
//! Changes when a backup is made of something else. Both work on the files themselves, with SQLite's own
//! means, so that a backup is to be had whatever state the router is in.

use std::path::PathBuf;

use super::{CliError, Context, Status};
use crate::store::{self, Store};

/// Arguments of `backup`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Copies both databases, the keys and the checkpoints of the ledger into a new folder, also while the router runs. The copy is checked and on disk when the command ends; one that is cut off leaves no folder of that name. It holds the keys: keep it as safe as the data folder.",
    after_help = "Examples:\n  switchyard backup /backups/switchyard-2026-11-28\n  switchyard --data-dir /backups/switchyard-2026-11-28 audit verify"
)]
pub(super) struct Backup {
    /// The folder to make
    folder: PathBuf,
}

/// Arguments of `restore`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Puts a backup in the place of what is in the data folder. What was there is kept in its folder `replaced`, until the next restore or until you delete it. A restore that is cut off changed nothing, or is finished by the next start.",
    after_help = "Examples:\n  switchyard restore /backups/switchyard-2026-11-28\n  switchyard --data-dir /var/lib/switchyard restore /backups/switchyard-2026-11-28\n\nExit codes: 0 done, 2 no backup there, or one without its key, 4 a router runs, 5 the backup is damaged."
)]
pub(super) struct Restore {
    /// The backup
    folder: PathBuf,
}

/// How much later than the router's calls a backup gets the processor.
const NICE: i32 = 10;

pub(super) async fn backup(context: &Context, args: Backup) -> Result<Status, CliError> {
    // Without it a backup is as good, and calls notice it more.
    let _ = rustix::process::nice(NICE);
    let made = Store::backup(&context.data_dir()?, &args.folder).await?;
    say(context, "backup in", &made)
}

pub(super) async fn restore(context: &Context, args: Restore) -> Result<Status, CliError> {
    let done = Store::restore(&context.data_dir()?, &args.folder).await?;
    say(context, "restored into", &done)
}

fn say(context: &Context, what: &str, done: &store::Backup) -> Result<Status, CliError> {
    if context.out.is_json() {
        context.out.json(&serde_json::to_string(done).unwrap_or_default())?;
    } else {
        #[expect(clippy::cast_precision_loss, reason = "shown to one digit")]
        let size = done.bytes as f64 / f64::from(1 << 20);
        let folder = done.folder.display().to_string();
        let folder = super::text::escape_line(&folder);
        context.out.line(format!("{what} {folder} ({size:.1} MiB)"))?;
    }
    Ok(Status::Done)
}
