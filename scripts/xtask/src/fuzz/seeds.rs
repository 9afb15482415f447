//! The inputs that fuzzing starts with: `tests/fuzz/seeds/TARGET.hex`, one a line, and the files in the folder of that
//! name. Every input that once failed belongs there, and [`keep`] adds what later runs found.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{paths, steps};

/// Longer inputs are not kept: they say little that a short one does not.
const KEPT_BYTES_MAX: usize = 1024;

fn list(target: &str) -> PathBuf {
    paths::root().join("tests/fuzz/seeds").join(format!("{target}.hex"))
}

fn lines(target: &str) -> Vec<String> {
    let text = fs::read_to_string(list(target)).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Writes a target's seeds as libFuzzer wants them, a file each, into a folder of `folder`, and gives that.
pub fn unpack(target: &str, folder: &Path) -> Result<PathBuf> {
    let unpacked = folder.join("seeds").join(target);
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).with_context(|| format!("emptying {}", unpacked.display()))?;
    }
    fs::create_dir_all(&unpacked).with_context(|| format!("creating {}", unpacked.display()))?;
    for (number, line) in lines(target).iter().enumerate() {
        let input = bytes(line).with_context(|| format!("line {} of {}", number + 1, list(target).display()))?;
        fs::write(unpacked.join(number.to_string()), input).context("writing a seed")?;
    }
    let files = list(target).with_extension("");
    for file in if files.exists() { fs::read_dir(files)?.collect() } else { Vec::new() } {
        let file = file.context("reading seeds")?;
        fs::copy(file.path(), unpacked.join(file.file_name())).context("copying a seed")?;
    }
    Ok(unpacked)
}

/// Adds to a target's seeds what of `corpus` reaches code that they do not.
pub fn keep(target: &str, program: &Path, corpus: &Path) -> Result<()> {
    let folder = paths::target().join("fuzz");
    let seeds = unpack(target, &folder)?;
    let before = files(&seeds)?;
    // Code that is reached, and not how often.
    let mut merge = Command::new(program);
    merge.args(["-merge=1", "-use_counters=0", &format!("-max_len={KEPT_BYTES_MAX}"), "-timeout=10"]);
    steps::logged(&format!("reducing what {target} found"), "fuzz-keep", merge.arg(&seeds).arg(corpus))?;
    let found = files(&seeds)?.difference(&before).map(|input| hexadecimal(input)).collect::<BTreeSet<String>>();
    let mut kept = lines(target);
    kept.extend(found);
    kept.sort_by_key(|line| (line.len(), line.clone()));
    let path = list(target);
    fs::write(&path, kept.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))
}

fn files(folder: &Path) -> Result<BTreeSet<Vec<u8>>> {
    let paths = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    paths.map(|entry| Ok(fs::read(entry?.path())?)).collect()
}

/// The bytes that two digits each stand for.
pub fn bytes(hexadecimal: &str) -> Result<Vec<u8>> {
    let digits = hexadecimal.trim().as_bytes();
    ensure!(digits.len().is_multiple_of(2), "an odd number of digits");
    let pair = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.chunks(2).map(pair).collect()
}

/// Two digits for each byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_as_they_are_written() {
        assert_eq!(hexadecimal(&[0, 0x9d, 0xff]), "009dff");
        assert_eq!(bytes("009dff\n").unwrap(), [0, 0x9d, 0xff]);
        for wrong in ["0", "0g", "00é"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
