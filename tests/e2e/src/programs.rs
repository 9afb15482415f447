//! The test programs: each boots what it needs, and its verdict depends on no timing. The main type is [`Program`].

mod balloon;
mod cdrom;
mod console;
mod deaths;
mod debian;
mod demo;
mod drivers;
mod guests;
mod host;
mod hotplug;
mod iommu;
mod limits;
mod migrate;
mod nics;
mod platform;
mod profiles;
mod reading;
mod saved;
mod smp;
mod tiny;
mod traffic;
mod uefi;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Artifacts, Emulator};

pub(crate) mod bochs;
pub(crate) mod multiboot;
pub(crate) mod smoke;

/// Of [`load_time`], where nobody asks for more.
const LOAD_SECONDS: u64 = 3;

/// A test that needs an emulator.
pub struct Program {
    /// Its name, as `cargo xtask test` lists it and takes it.
    pub name: &'static str,
    /// Whether the quick tests run it too.
    pub quick: bool,
    /// How many emulators it runs at once.
    pub emulators: usize,
    /// The test; an error is the verdict "failed" with its reason.
    pub run: fn(&Artifacts) -> Result<()>,
}

const fn quick(name: &'static str, run: fn(&Artifacts) -> Result<()>) -> Program {
    Program { name, quick: true, emulators: 1, run }
}

const fn full(name: &'static str, run: fn(&Artifacts) -> Result<()>) -> Program {
    Program { name, quick: false, emulators: 1, run }
}

const fn pair(name: &'static str, run: fn(&Artifacts) -> Result<()>) -> Program {
    Program { name, quick: false, emulators: 2, run }
}

/// Every test program: the quick ones first, and last those that leave no room for another.
pub static PROGRAMS: &[Program] = &[
    quick("prompt", host::prompt),
    quick("hello", guests::hello),
    quick("selftest", tiny::selftest),
    full("one_cpu", host::one_cpu),
    full("bare_host", host::bare_host),
    full("serial_lines", platform::serial_lines),
    full("screen", platform::screen),
    full("machine_check", platform::machine_check),
    full("mitigations", platform::mitigations),
    full("nested_kvm", host::nested_kvm),
    full("no_svm", host::no_svm),
    full("mistakes", host::mistakes),
    full("console", console::console),
    full("unread_console", console::unread),
    full("pause_resume", tiny::pause_resume),
    full("emulator_stops", tiny::emulator_stops),
    full("reset", tiny::reset),
    full("save_restore", saved::save_restore),
    full("restore_reading", reading::reading),
    full("other_vendor", saved::other_vendor),
    full("power_button", tiny::power_button),
    full("multiboot_guest", multiboot::guest),
    full("balloon", balloon::balloon),
    full("hotplug", hotplug::hotplug),
    full("limits", limits::limits),
    full("pvh_guest", multiboot::pvh),
    full("uefi_guest", uefi::guest),
    full("uefi_variables", uefi::variables),
    full("guests_side_by_side", uefi::side_by_side),
    full("malformed_kernel", tiny::malformed_kernel),
    full("remains", guests::remains),
    full("vectors", guests::vectors),
    full("bare_guests", guests::all),
    full("iommu_vtd", iommu::vtd),
    full("iommu_amdvi", iommu::amdvi),
    full("iommu_absent", iommu::absent),
    full("e1000", nics::e1000),
    full("e1000e", nics::e1000e),
    full("igb", nics::igb),
    full("e1000e_pulled", nics::e1000e_pulled),
    full("igb_pulled", nics::igb_pulled),
    full("virtio_net", nics::virtio),
    full("smp_bare", smp::bare),
    full("smp_guest", smp::guest),
    full("smp_orders", smp::orders),
    full("smp_crowded", smp::crowded),
    full("pings", demo::pings),
    full("kill_loop", demo::kill_loop),
    full("bios_cd", demo::bios_cd),
    full("bios_usb", demo::bios_usb),
    full("uefi_usb", demo::uefi_usb),
    full("bios_stick", demo::bios_stick),
    full("uefi_stick", demo::uefi_stick),
    full("bochs_vmx_hello", bochs::vmx_hello),
    full("bochs_svm_hello", bochs::svm_hello),
    full("bochs_vmx_guests", bochs::vmx_guests),
    full("bochs_svm_guests", bochs::svm_guests),
    full("bochs_vmx_smp", bochs::vmx_smp),
    full("bochs_vmx_saved", bochs::vmx_saved),
    full("bochs_vmx_uefi", bochs::vmx_uefi),
    full("bochs_vmx_writes", bochs::vmx_writes),
    full("bochs_vmx_speculation", bochs::vmx_speculation),
    full("bochs_vmx_amx", bochs::vmx_amx),
    full("bochs_vmx_linux", bochs::vmx_linux),
    full("bochs_vmx_two_guests", bochs::vmx_two_guests),
    full("bochs_svm_linux", bochs::svm_linux),
    full("bochs_ata", bochs::ata),
    full("virtio_blk", drivers::virtio),
    full("ahci", drivers::ahci),
    full("ata", drivers::ata),
    full("nvme", drivers::nvme),
    full("guest_alone", smoke::guest_alone),
    full("smoke", smoke::smoke),
    pair("migrate", migrate::there_and_back),
    pair("migrate_link_cut", migrate::link_cut),
    pair("migrate_deaths", deaths::before_the_commit),
    pair("migrate_commit", deaths::at_the_commit),
    pair("migrate_torn", deaths::in_two_halves),
    pair("migrate_disk_error", migrate::disk_error),
    pair("migrate_postcopy", migrate::postcopy),
    pair("bochs_vmx_link_cut", bochs::vmx_link_cut),
    pair("bochs_vmx_linux_moves", bochs::vmx_linux_moves),
    pair("uefi_moves", uefi::moves),
    pair("cpu_profile", profiles::baseline),
    pair("migrate_traffic", debian::under_traffic),
    pair("migrate_faults", traffic::faults),
];

/// How long a disk or card is kept under load whose data is checked, at least: seconds in `POLLUX_LOAD_SECONDS`.
fn load_time() -> Duration {
    let seconds = std::env::var("POLLUX_LOAD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(LOAD_SECONDS))
}

/// Takes the device `pulled` out of its slot, as firmware does for an operating system that has let it go (ACPI 6.5,
/// section 6.3.3; QEMU's `acpi_pci_hotplug` selects the slot's bus at CD0h and ejects at CC8h): for Pollux, a surprise.
fn pull(emulator: &mut Emulator) -> Result<()> {
    for command in ["device_del pulled", "o/w 0xcd0 0", "o/w 0xcc8 1"] {
        emulator.monitor(command)?;
    }
    let buses = emulator.monitor("info pci")?;
    ensure!(!buses.contains("\"pulled\""), "the device was not pulled: {buses}");
    Ok(())
}
