//! [`TempFolder`]: where a router of a command's own keeps its data, for as long as the command runs.
//!
//! Changes when such a folder is made or removed differently.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::CliError;

/// A folder that goes when this value does.
pub(crate) struct TempFolder(Option<PathBuf>);

impl TempFolder {
    /// A new folder of ours alone, where the system keeps temporary ones.
    pub(crate) fn create() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("switchyard-{}", Uuid::now_v7().simple()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| CliError::TempFolder { doing: "make", source })?;
        Ok(Self(Some(path)))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or_else(|| Path::new(""))
    }

    /// Removes it and says so if it could not.
    pub(crate) fn remove(mut self) -> Result<(), CliError> {
        let Some(path) = self.0.take() else { return Ok(()) };
        fs::remove_dir_all(path).map_err(|source| CliError::TempFolder { doing: "remove", source })
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_with_its_value_and_what_is_in_it() {
        let folder = TempFolder::create().unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("state.db"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
        let folder = TempFolder::create().unwrap();
        let path = folder.path().to_owned();
        folder.remove().unwrap();
        assert!(!path.exists());
    }
}
