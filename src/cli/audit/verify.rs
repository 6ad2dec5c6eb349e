//! `switchyard audit verify`: whether the ledger is what was written.
//!
//! Changes when a verification shows something else. Reads the files in the data folder itself: whoever
//! verifies a router does not take its word for it.

use std::io;
use std::path::{Path, PathBuf};

use super::super::{CliError, Context, Status, notice};
use crate::store::{Checkpoint, Store, Verified};

/// Arguments of `audit verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder with checkpoints.jsonl, beside the data folder and `audit.checkpoints`; several are
    /// compared
    #[arg(long, value_name = "FOLDER")]
    checkpoints: Vec<PathBuf>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let data_dir = context.data_dir()?;
    let mut folders = args.checkpoints;
    match context.load_config() {
        Ok(config) => folders.extend(config.audit.checkpoints),
        // There is still the ledger.
        Err(error) => notice(format!(
            "warning: without the configuration, which does not load, `audit.checkpoints` is not known: {error}"
        )),
    }
    folders.dedup();
    let mut checkpoints = read(&folders)?;
    checkpoints.extend(read(std::slice::from_ref(&data_dir)).unwrap_or_default());
    let verified = Store::verify_ledger(&data_dir, &checkpoints).await?;
    if context.globals.json {
        context.out.json(&serde_json::to_string(&verified).unwrap_or_default())?;
    } else {
        context.out.write(&text(&data_dir, &verified))?;
    }
    Ok(match verified.exit_code() {
        0 => Status::Done,
        code => Status::Code(code),
    })
}

fn read(folders: &[PathBuf]) -> Result<Vec<Checkpoint>, CliError> {
    let mut found = Vec::new();
    for folder in folders {
        if !folder.is_dir() {
            // Whoever named it expects checkpoints there; without them a cut would pass.
            let source = io::ErrorKind::NotADirectory.into();
            return Err(CliError::Checkpoints { folder: folder.clone(), source });
        }
        let read = Checkpoint::read_all(folder)
            .map_err(|source| CliError::Checkpoints { folder: folder.clone(), source })?;
        found.extend(read);
    }
    Ok(found)
}

fn text(folder: &Path, verified: &Verified) -> String {
    use std::fmt::Write as _;
    let Verified { chain, base, head, rows, unchained, erased, checkpoints, .. } = verified;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!("ledger in {}, chain {chain}", folder.display()));
    line(format_args!("rows {} to {head}: {rows} verified", base.saturating_add(1)));
    if *unchained > 0 {
        line(format_args!(
            "{unchained} calls are from before there was a chain; nothing protects them"
        ));
    }
    if *erased > 0 {
        line(format_args!("{erased} payloads were removed, as the ledger says"));
    }
    line(format_args!("{checkpoints} signed checkpoints compared"));
    if verified.is_good() {
        line(format_args!("good: nothing was changed, removed, added or moved"));
        return text;
    }
    for finding in &verified.findings {
        line(format_args!("row {}: {}", finding.seq, finding.fault.text()));
    }
    let more = verified.faults.saturating_sub(verified.findings.len() as u64);
    if more > 0 {
        line(format_args!("and {more} more"));
    }
    line(format_args!(
        "NOT good: {} faults, the first at row {}",
        verified.faults,
        verified.findings.first().map_or(0, |first| first.seq)
    ));
    text
}
