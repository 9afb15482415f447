//! The tests that what people boot is the same to the byte when somebody else builds it: [`images`] and [`kernel`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Artifacts;

use crate::image::{self, Contents};
use crate::{artifacts, guest, kernel, paths, steps};

/// The coarsest time on an image: FAT counts two seconds.
const NEXT_TIME: Duration = Duration::from_secs(3);

/// Builds both images a second time, later, and compares.
pub fn images(artifacts: &Artifacts) -> Result<()> {
    let contents = Contents::demonstration(&guest::guests()?, &artifacts::ovmf()?);
    let elf = artifacts.kernel32.with_extension("");
    thread::sleep(NEXT_TIME);
    let builds: [(image::Build, &Path); 2] =
        [(image::build, &artifacts.image), (image::build_usb, &artifacts.usb_image)];
    for (build, first) in builds {
        let second = first.with_extension("again.img");
        build(&elf, &contents, &second)?;
        let same = equal(first, &second)?;
        ensure!(same, "{} and {} differ", first.display(), second.display());
        fs::remove_file(&second).with_context(|| format!("removing {}", second.display()))?;
    }
    Ok(())
}

/// Builds the kernel a second time, in a copy of the checkout at another path, and compares.
pub fn kernel(artifacts: &Artifacts) -> Result<()> {
    let elsewhere = paths::target().join("elsewhere");
    let _ = fs::remove_dir_all(&elsewhere);
    copy_tree(&paths::root(), &elsewhere.join("checkout"))?;
    let (root, target) = (elsewhere.join("checkout"), elsewhere.join("target"));
    kernel::build_in(&root, kernel::cargo().current_dir(&root).env("CARGO_TARGET_DIR", &target))?;
    let strip = |elf: &Path, name: &str| -> Result<PathBuf> {
        let stripped = elsewhere.join(name);
        steps::output(Command::new("strip").arg("-o").arg(&stripped).arg(elf))?;
        Ok(stripped)
    };
    let here = strip(&artifacts.kernel32.with_extension(""), "here")?;
    let there = strip(&target.join("x86_64-unknown-none/release/kernel"), "there")?;
    ensure!(equal(&here, &there)?, "{} and {} differ", here.display(), there.display());
    fs::remove_dir_all(&elsewhere).with_context(|| format!("removing {}", elsewhere.display()))
}

fn equal(one: &Path, other: &Path) -> Result<bool> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    Ok(read(one)? == read(other)?)
}

/// Copies a checkout without what was built in it and without its history.
fn copy_tree(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    for entry in fs::read_dir(source).with_context(|| format!("reading {}", source.display()))? {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.is_dir() {
            copy_tree(&entry, &target.join(name))?;
        } else {
            fs::copy(&entry, target.join(name)).with_context(|| format!("copying {}", entry.display()))?;
        }
    }
    Ok(())
}
