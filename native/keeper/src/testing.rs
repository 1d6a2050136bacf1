//! What the unit tests share.
use std::path::{Path, PathBuf};

/// A directory of its own that disappears with the value.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        let name: String = crate::sys::random_bytes::<8>().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        let path = std::env::temp_dir().join(format!("keeper-{name}"));
        std::fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
