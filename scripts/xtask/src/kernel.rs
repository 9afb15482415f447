//! Builds Pollux's own binaries: the kernel, the 32-bit ELF file that QEMU's `-kernel` takes, and the bare test guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{paths, steps};

const TARGET: &str = "x86_64-unknown-none";

/// The kernel as built, and the same as a 32-bit ELF file.
pub struct Kernel {
    /// ELF64 with Multiboot 1 and 2 headers: what GRUB loads.
    pub elf: PathBuf,
    /// The same code in an ELF32 file: what QEMU's Multiboot loader takes.
    pub elf32: PathBuf,
}

/// A `cargo` command in the checkout.
pub fn cargo() -> Command {
    // Set by the cargo that runs us, so the toolchain stays the same.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    command
}

/// Builds the kernel in release mode.
pub fn build() -> Result<Kernel> {
    let elf = paths::target().join(TARGET).join("release/kernel");
    steps::logged(
        "building the kernel",
        "kernel",
        cargo().args(["build", "--release", "--package", "kernel", "--target", TARGET]),
    )?;
    let elf32 = elf.with_extension("elf32");
    steps::output(Command::new("objcopy").args(["-I", "elf64-x86-64", "-O", "elf32-i386"]).arg(&elf).arg(&elf32))?;
    Ok(Kernel { elf, elf32 })
}

/// Checks that no instruction of the kernel touches a SIMD register: a guest's FPU state lives there.
pub fn check_no_simd(kernel: &Path) -> Result<()> {
    let listing = steps::output(Command::new("objdump").args(["--disassemble", "--no-show-raw-insn"]).arg(kernel))?;
    let offender = listing.lines().find(|line| ["%xmm", "%ymm", "%zmm"].iter().any(|register| line.contains(register)));
    ensure!(listing.lines().count() > 100, "the disassembly of {} is empty", kernel.display());
    ensure!(offender.is_none(), "the kernel uses a SIMD register: {}", offender.unwrap_or_default().trim());
    Ok(())
}

/// Builds the bare test guests as ELF files, which QEMU boots itself, and as the Linux kernels that Pollux boots: the same
/// with the ending `bzimage`. Gives each one's name and the latter.
pub fn build_guests() -> Result<Vec<(String, PathBuf)>> {
    steps::logged(
        "building the test guests",
        "guests",
        cargo().args(["build", "--release", "--package", "guests", "--bins", "--target", TARGET]),
    )?;
    let folder = paths::target().join(TARGET).join("release");
    let wrap = |name: String| {
        let elf = folder.join(&name);
        let image = elf.with_extension("bzimage");
        let bytes = fs::read(&elf).with_context(|| format!("reading {}", elf.display()))?;
        let bytes = guest_image::bz_image(&bytes).with_context(|| format!("wrapping {}", elf.display()))?;
        fs::write(&image, bytes).with_context(|| format!("writing {}", image.display()))?;
        Ok((name, image))
    };
    guest_names()?.into_iter().map(wrap).collect()
}

fn guest_names() -> Result<Vec<String>> {
    let metadata = steps::output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading cargo metadata")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(&metadata["packages"]);
    let targets =
        packages.iter().filter(|package| package["name"] == "guests").flat_map(|package| list(&package["targets"]));
    let bins = targets.filter(|target| target["kind"][0] == "bin");
    Ok(bins.filter_map(|target| target["name"].as_str().map(str::to_owned)).collect())
}
