//! `switchyard audit verify`: whether the ledger is what was written.
//!
//! Changes when a verification shows something else. Reads the files in the data folder itself: whoever
//! verifies a router does not take its word for it.

use std::fs::File;
use std::io::{self, BufReader};
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
    /// Verify this file, made by `audit export --format chain`, instead of the ledger; - for standard input
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// With --export: the key of its ledger, instead of the one in the data folder
    #[arg(long, value_name = "FILE", requires = "export")]
    ledger_key: Option<PathBuf>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    if let Some(export) = &args.export {
        return verify_export(context, export, &args);
    }
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
    say(context, &format!("ledger in {}", data_dir.display()), &verified)
}

/// Where an export is verified there may be no data folder; where there is one, its checkpoints count.
fn verify_export(context: &Context, export: &Path, args: &Args) -> Result<Status, CliError> {
    let mut checkpoints = read(&args.checkpoints)?;
    let key = match &args.ledger_key {
        Some(key) => key.clone(),
        None => {
            let data_dir = context.data_dir()?;
            checkpoints.extend(read(std::slice::from_ref(&data_dir)).unwrap_or_default());
            data_dir.join("ledger.key")
        }
    };
    let verified = if export == Path::new("-") {
        Store::verify_export(&mut io::stdin().lock(), &key, &checkpoints)?
    } else {
        let unreadable = |source| CliError::Unreadable { path: export.to_owned(), source };
        let file = File::open(export).map_err(unreadable)?;
        Store::verify_export(&mut BufReader::new(file), &key, &checkpoints)?
    };
    say(context, &format!("export {}", export.display()), &verified)
}

fn say(context: &Context, of: &str, verified: &Verified) -> Result<Status, CliError> {
    if context.globals.json {
        context.out.json(&serde_json::to_string(verified).unwrap_or_default())?;
    } else {
        context.out.write(&text(of, verified))?;
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

fn text(of: &str, verified: &Verified) -> String {
    use std::fmt::Write as _;
    let Verified { chain, base, head, rows, unchained, erased, checkpoints, .. } = verified;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!("{of}, chain {chain}"));
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
