//! Kernels that start by Multiboot 1, and the debug ports that such kernels use.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, PROMPT};

const LIMIT: Duration = Duration::from_secs(60);

/// Names of the boot modules with a bare guest as a Multiboot 1 kernel, and with one that has PVH's note alone.
pub const MODULES: [&str; 2] = ["multiboot-elf", "pvh"];

/// Makes them of the bare guests in the folder `made`; gives their files.
pub fn make(guests: &[(String, PathBuf)], made: &Path) -> Result<[PathBuf; 2]> {
    const MULTIBOOT_MAGIC: [u8; 4] = 0x1bad_b002u32.to_le_bytes();
    // The ELF file that the Linux kernel was made from.
    let elf = |name: &str| {
        let found = guests.iter().find(|(guest, _)| guest == name);
        found.map(|(_, path)| path.with_extension("")).with_context(|| format!("no test guest is called `{name}`"))
    };
    let mut pvh = fs::read(elf("memory_hash")?)?;
    let at = pvh.windows(4).position(|bytes| bytes == MULTIBOOT_MAGIC).context("the guest has no Multiboot header")?;
    pvh[at] ^= 1;
    let file = made.join("pvh-guest");
    fs::write(&file, pvh).with_context(|| format!("writing {}", file.display()))?;
    Ok([elf("multiboot")?, file])
}

/// A bare kernel that is no Multiboot image, but has PVH's note.
pub fn pvh(artifacts: &Artifacts) -> Result<()> {
    let [_, file] = make(&artifacts.guests, &artifacts.logs)?;
    let mut host = artifacts.boot(&artifacts.bare_with("pvh_guest", &[(file.as_path(), MODULES[1])])?)?;
    pvh_on(&mut host)?;
    host.power_off()
}

/// The same on a host that has it as a boot module.
pub fn pvh_on(host: &mut Host) -> Result<()> {
    host.ask("vm create bare --kernel pvh --initrd pvh --memory 128M --cmdline \"mib=8 rounds=2\" --start")?;
    let mut console = host.attach("bare")?;
    let (which, _) = console.expect_any(&["ok 1 - memory keeps", "not ok ", "Bail out!"], GUEST_BOOT_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("it did not get what PVH promises"));
    console.leave()?;
    host.wait_state("bare", "stopped", LIMIT)?;
    host.ask("vm delete bare").map(drop)
}

/// A bare kernel that says by addresses where it lies, with three modules, and one that is an ELF32 file: Pollux itself, to its prompt.
pub fn guest(artifacts: &Artifacts) -> Result<()> {
    let [bare, _] = make(&artifacts.guests, &artifacts.logs)?;
    let modules = [(bare.as_path(), MODULES[0]), (artifacts.kernel32.as_path(), "pollux")];
    let mut host = artifacts.boot(&artifacts.bare_with("multiboot_guest", &modules)?)?;
    guest_on(&mut host)?;
    host.ask("vm create inner --kernel pollux --cmdline \"\" --memory 256M --start")?;
    let mut console = host.attach("inner")?;
    console.expect("Pollux", GUEST_BOOT_LIMIT)?;
    console.expect(PROMPT, GUEST_BOOT_LIMIT)?;
    console.leave()?;
    host.power_off()
}

/// The first of these on a host that has it as a boot module.
pub fn guest_on(host: &mut Host) -> Result<()> {
    let name = MODULES[0];
    let image = format!("--kernel {name} --initrd {name} --memory 128M");
    let refusal = host.refusal(&format!("vm create x --kernel {name} --module 'nobody a=b'"))?;
    ensure!(refusal.contains("there is no boot module nobody"), "{refusal}");
    let many = format!("--module {name} --module \"{name} last=yes\" --cmdline \"debug=42 modules=3\"");
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
    ["bare", "plain"].iter().try_for_each(|vm| host.ask(&format!("vm delete {vm}")).map(drop))
}
