//! Tells the crate which revision it is built from.
//!
//! Changes when the build needs to know something else. A build without git or without a checkout
//! is as good as any other.
#![expect(clippy::disallowed_methods, reason = "that rule is for the router, not for its build")]

use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "SWITCHYARD_REVISION";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    // Packagers who build from an archive say it themselves.
    let said = std::env::var(VARIABLE).ok().filter(|revision| !revision.is_empty());
    let revision = said.or_else(checked_out).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={VARIABLE}={revision}");
}

fn checked_out() -> Option<String> {
    // An archive that was unpacked inside of another project's checkout is not of that revision.
    if !Path::new(".git").exists() {
        return None;
    }
    // In a linked worktree `.git` is a file and HEAD elsewhere.
    if Path::new(".git/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/HEAD");
    }
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}
