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

/// Builds the kernel in release mode. Stripped, it is the same to the byte wherever and whenever it is built from the same
/// sources, by the same compiler.
pub fn build() -> Result<Kernel> {
    let elf = paths::target().join(TARGET).join("release/kernel");
    build_in(&paths::root(), &mut cargo())?;
    let elf32 = elf.with_extension("elf32");
    steps::output(Command::new("objcopy").args(["-I", "elf64-x86-64", "-O", "elf32-i386"]).arg(&elf).arg(&elf32))?;
    Ok(Kernel { elf, elf32 })
}

/// Builds the kernel that does not encrypt what it sends to other hosts, for measuring, apart from the other: as an ELF32
/// file, which no image is made of.
pub fn build_plain() -> Result<PathBuf> {
    let target = paths::target().join("plain");
    let mut command = cargo();
    command.args(["build", "--release", "--package", "kernel", "--features", "plain", "--target", TARGET]);
    steps::logged("building the kernel without cipher", "kernel-plain", command.arg("--target-dir").arg(&target))?;
    let elf = target.join(TARGET).join("release/kernel");
    let elf32 = elf.with_extension("elf32");
    steps::output(Command::new("objcopy").args(["-I", "elf64-x86-64", "-O", "elf32-i386"]).arg(&elf).arg(&elf32))?;
    Ok(elf32)
}

/// Builds the kernel of the checkout `root` by `cargo`, which runs there.
pub fn build_in(root: &Path, cargo: &mut Command) -> Result<()> {
    let flags: Vec<String> = remaps(root)?.iter().map(|remap| format!("'--remap-path-prefix={remap}'")).collect();
    // Added to those of `.cargo/config.toml`.
    let config = format!("target.{TARGET}.rustflags=[{}]", flags.join(","));
    cargo.args(["build", "--release", "--package", "kernel", "--target", TARGET, "--config", &config]);
    steps::logged("building the kernel", "kernel", cargo)
}

/// What the compiler writes instead of this machine's paths, which panics name.
fn remaps(root: &Path) -> Result<Vec<String>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home =
        home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).context("where Cargo keeps crates")?;
    let sysroot = steps::output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root))?;
    let mut remaps =
        vec![format!("{}=/pollux", root.display()), format!("{}/lib/rustlib/src/rust=/rust", sysroot.trim())];
    // The registry's folder is named after where it was downloaded from.
    if let Ok(registries) = fs::read_dir(home.join("registry/src")) {
        let folders = registries.filter_map(|entry| Some(entry.ok()?.path()));
        remaps.extend(folders.map(|folder| format!("{}=/crates", folder.display())));
    }
    Ok(remaps)
}

/// The section whose code keeps SIMD registers and puts them back: `hw/gcm`.
const SIMD_SECTION: &str = ".simd";

/// Checks that no instruction of the kernel outside [`SIMD_SECTION`] touches a SIMD register: a guest's FPU state lives
/// there.
pub fn check_no_simd(kernel: &Path) -> Result<()> {
    let listing = steps::output(Command::new("objdump").args(["--disassemble", "--no-show-raw-insn"]).arg(kernel))?;
    ensure!(listing.lines().count() > 100, "the disassembly of {} is empty", kernel.display());
    let offender = simd_outside(&listing);
    ensure!(offender.is_none(), "the kernel uses a SIMD register: {}", offender.unwrap_or_default().trim());
    Ok(())
}

/// The first line of a disassembly that names a SIMD register where none may be named.
fn simd_outside(listing: &str) -> Option<&str> {
    let mut is_allowed = false;
    listing.lines().find(|line| {
        if let Some(section) = line.strip_prefix("Disassembly of section ") {
            is_allowed = section == format!("{SIMD_SECTION}:");
        }
        !is_allowed && ["%xmm", "%ymm", "%zmm"].iter().any(|register| line.contains(register))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simd_registers_are_found_outside_their_section() {
        let code = "  201000:\tmovups %xmm0,(%rsp)\n";
        let listing = format!("Disassembly of section .text:\n  200ff0:\tret\n\nDisassembly of section .simd:\n{code}");
        assert_eq!(simd_outside(&listing), None);
        assert!(simd_outside(&listing.replace(".simd", ".text.simd")).is_some());
        assert!(simd_outside(&format!("{listing}\nDisassembly of section .text.other:\n{code}")).is_some());
    }
}
