//! `cargo xtask demo`: shows without a person that the image does what the README says.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use e2e::Accel;

use crate::report::Report;
use crate::{artifacts, programs, setup};

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub struct Options {
    /// Which demonstration
    demonstration: Demonstration,
}

#[derive(Clone, Copy, ValueEnum)]
enum Demonstration {
    /// BIOS and UEFI, CD and USB stick; two guests that ping each other; one killed fifty times
    Boot,
    /// Two hosts: VMs move there and back, one under a client on a disk of both, and stay where something fails
    Migrate,
    /// A disk that boots by UEFI, two vCPUs by direct boot and a Multiboot kernel, side by side
    Guests,
    /// What other hardware has: its disks, network cards, IOMMUs, firmware, and Intel's VT-x
    Hardware,
}

/// What `Boot` shows, by the names of emulator tests.
const BOOT: &[&str] = &["bios_cd", "bios_usb", "uefi_usb", "bios_stick", "uefi_stick", "pings", "kill_loop"];
/// What `Migrate` shows.
const MIGRATE: &[&str] = &["migrate", "migrate_link_cut", "migrate_traffic", "migrate_faults"];
/// What `Guests` shows.
const GUESTS: &[&str] = &["guests_side_by_side", "uefi_guest"];
/// What `Hardware` shows.
const HARDWARE: &[&str] = &[
    "nvme",
    "ahci",
    "ata",
    "e1000",
    "e1000e",
    "igb",
    "iommu_vtd",
    "iommu_amdvi",
    "bios_stick",
    "uefi_stick",
    "bochs_vmx_hello",
    "bochs_vmx_linux",
    "bochs_svm_hello",
];

/// Runs the demonstration.
pub fn command(options: &Options) -> Result<()> {
    let names = match options.demonstration {
        Demonstration::Boot => BOOT,
        Demonstration::Migrate => MIGRATE,
        Demonstration::Guests => GUESTS,
        Demonstration::Hardware => HARDWARE,
    };
    setup::setup()?;
    let artifacts = artifacts::build(Accel::detect())?;
    let mut report = Report::default();
    let wanted = e2e::PROGRAMS.iter().filter(|program| names.contains(&program.name));
    programs::run(&mut report, wanted, &artifacts);
    ensure!(report.passed == names.len(), "the demonstration failed: {}", report.summary());
    println!("{}", report.summary());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_of_a_demonstration_exists_once() {
        for name in [BOOT, MIGRATE, GUESTS, HARDWARE].into_iter().flatten() {
            assert_eq!(e2e::PROGRAMS.iter().filter(|program| program.name == *name).count(), 1, "{name}");
        }
    }
}
