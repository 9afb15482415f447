//! Kernels that start by Multiboot 1, and the debug ports that such kernels use.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Artifacts, GUEST_BOOT_LIMIT, PROMPT};

const LIMIT: Duration = Duration::from_secs(60);

/// A bare kernel that is no Multiboot image, but has PVH's note.
pub fn pvh(artifacts: &Artifacts) -> Result<()> {
    const MULTIBOOT_MAGIC: [u8; 4] = 0x1bad_b002u32.to_le_bytes();
    let mut elf = fs::read(artifacts.guest("memory_hash")?.with_extension(""))?;
    let at = elf.windows(4).position(|bytes| bytes == MULTIBOOT_MAGIC).context("the guest has no Multiboot header")?;
    elf[at] ^= 1;
    let file = artifacts.logs.join("pvh-guest");
    fs::write(&file, elf).with_context(|| format!("writing {}", file.display()))?;
    let modules = [(file.as_path(), "pvh")];
    let mut host = artifacts.boot(&artifacts.bare_with("pvh_guest", &modules)?)?;
    host.ask("vm create bare --kernel pvh --initrd pvh --memory 128M --cmdline \"mib=8 rounds=2\" --start")?;
    let mut console = host.attach("bare")?;
    let (which, _) = console.expect_any(&["ok 1 - memory keeps", "not ok ", "Bail out!"], GUEST_BOOT_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("it did not get what PVH promises"));
    console.leave()?;
    host.wait_state("bare", "stopped", LIMIT)?;
    host.power_off()
}

/// A bare kernel that says by addresses where it lies, with three modules, and one that is an ELF32 file: Pollux itself, to its prompt.
pub fn guest(artifacts: &Artifacts) -> Result<()> {
    // The ELF file that the Linux kernel was made from.
    let bare = artifacts.guest("multiboot")?.with_extension("");
    let modules = [(bare.as_path(), "multiboot"), (artifacts.kernel32.as_path(), "pollux")];
    let mut host = artifacts.boot(&artifacts.bare_with("multiboot_guest", &modules)?)?;

    let image = "--kernel multiboot --initrd multiboot --memory 128M";
    let refusal = host.refusal("vm create x --kernel multiboot --module 'nobody a=b'")?;
    ensure!(refusal.contains("there is no boot module nobody"), "{refusal}");
    let many = "--module multiboot --module \"multiboot last=yes\" --cmdline \"debug=42 modules=3\"";
    host.ask(&format!("vm create bare {image} {many} --debug-exit --debug-console --start"))?;
    let mut console = host.attach("bare")?;
    let (which, _) = console.expect_any(&["# by the debug console", "not ok ", "Bail out!"], GUEST_BOOT_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("it did not get what Multiboot promises"));
    console.leave()?;
    host.wait_state("bare", "exited", LIMIT)?;
    let list = host.ask("vm list")?;
    let code = list.as_array().and_then(|list| list.first()).map(|vm| &vm["code"]).context("no VM is listed")?;
    ensure!(*code == 42, "it exited with {code}");

    // Unasked, the ports are not there.
    host.ask(&format!("vm create plain {image} --cmdline \"debug=42\" --start"))?;
    host.attach("plain")?.expect("not ok 6 - the debug console answers", GUEST_BOOT_LIMIT)?;
    host.emulator().send("\x1d")?;
    host.emulator().expect(PROMPT, LIMIT)?;
    host.wait_state("plain", "stopped", LIMIT)?;

    host.ask("vm create inner --kernel pollux --cmdline \"\" --memory 256M --start")?;
    let mut console = host.attach("inner")?;
    console.expect("Pollux", GUEST_BOOT_LIMIT)?;
    console.expect(PROMPT, GUEST_BOOT_LIMIT)?;
    console.leave()?;
    host.power_off()
}
