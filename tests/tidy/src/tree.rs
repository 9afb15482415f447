//! Reads the checkout: its Rust sources and its manifests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::arrows::{self, Package};
use crate::scan::Source;

/// Folders that hold our sources.
const FOLDERS: [&str; 4] = ["boot", "kernel", "scripts", "tests"];

/// The checkout.
#[must_use]
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Every Rust source of the checkout.
///
/// # Errors
/// If one cannot be read.
pub fn sources() -> Result<Vec<Source>> {
    let root = root();
    let mut sources = Vec::new();
    for folder in FOLDERS {
        collect(&root, &root.join(folder), &mut sources)?;
    }
    Ok(sources)
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(root, &path, sources)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path);
            sources.push(Source::new(&name.to_string_lossy(), &text));
        }
    }
    Ok(())
}

/// Every crate of the workspace that `manifest` belongs to.
///
/// # Errors
/// If cargo cannot read it.
pub fn packages(manifest: &Path) -> Result<Vec<Package>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path"]).arg(manifest);
    let output = command.output().context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    arrows::packages(&String::from_utf8_lossy(&output.stdout))
}
