//! Where things are: the checkout, Cargo's target folder, the cache of guests, the logs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout.
pub fn root() -> PathBuf {
    // scripts/xtask is two levels below it.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Logs of build steps.
pub fn logs() -> PathBuf {
    target().join("xtask-logs")
}

/// Logs of emulated machines.
pub fn e2e_logs() -> PathBuf {
    target().join("e2e-logs")
}

/// What is kept between runs and between checkouts: `$XDG_CACHE_HOME/pollux`, or `~/.cache/pollux`.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    let cache = base.join("pollux");
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    Ok(cache)
}
