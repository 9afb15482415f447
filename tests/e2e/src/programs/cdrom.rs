//! A CD: a partition with an ISO image, which VMs boot from and mount, several at a time, and none of them writes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{Artifacts, Console, GUEST_BOOT_LIMIT, Host};

/// The partition's name.
pub const CD: &str = "iso";

/// A disk whose only partition holds Pollux's own ISO image.
pub fn make_disk(artifacts: &Artifacts, name: &str) -> Result<PathBuf> {
    const MIB: u64 = 1 << 20;
    fs::create_dir_all(&artifacts.logs)?;
    let path = artifacts.logs.join(format!("{name}_cd.img"));
    let image = fs::read(&artifacts.test_image).context("reading the ISO image")?;
    let mib = (image.len() as u64).div_ceil(MIB);
    let disk = File::create(&path)?;
    disk.set_len((mib + 2) * MIB)?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--set-alignment=2048", &format!("--new=1:0:+{mib}M"), &format!("--change-name=1:{CD}")]);
    let output = command.arg(&path).output().context("starting sgdisk")?;
    ensure!(output.status.success(), "sgdisk: {}", String::from_utf8_lossy(&output.stderr));
    disk.write_all_at(&image, MIB)?;
    Ok(path)
}

/// A guest that gets it while it runs uses it.
pub fn mount(console: &mut Console<'_>) -> Result<()> {
    console.run("until test -b /dev/vdb; do sleep 1; done; mount -t iso9660 -o ro /dev/vdb /mnt")?;
    Ok(())
}

/// The checksum of what is on the CD, mounted, and not in the guest's memory.
pub fn sum(console: &mut Console<'_>) -> Result<String> {
    let sum =
        console.run("echo 3 > /proc/sys/vm/drop_caches; find /mnt -type f | sort | xargs cat | md5sum | cut -c1-32")?;
    ensure!(sum.len() == 32, "no checksum: {sum}");
    Ok(sum)
}

/// A guest that has it reads its files, and cannot write it.
pub fn is_read(console: &mut Console<'_>) -> Result<()> {
    console.run("test $(cat /sys/block/vdb/ro) = 1")?;
    console.run("mount -t iso9660 -o ro /dev/vdb /mnt && test -s /mnt/boot/grub/grub.cfg && umount /mnt")?;
    let refused = console.run("! dd if=/dev/zero of=/dev/vdb count=1 conv=fsync 2>&1")?;
    ensure!(refused.contains("not permitted") || refused.contains("Read-only"), "it is written: {refused}");
    Ok(())
}

/// Another VM has it at the same time, with nothing else, and boots from it: Pollux, as far as it gets without AMD-V. Nobody
/// gets it to write.
pub fn is_shared(host: &mut Host) -> Result<()> {
    for command in ["vm create w --cdrom nowhere --start", "vm create w --disk iso --start"] {
        let refusal = host.refusal(command)?;
        let why = ["there is no disk nowhere", "disk iso is in use by d"][usize::from(command.contains("--disk"))];
        ensure!(refusal.contains(why), "`{command}`: {refusal}");
    }
    host.ask("vm create cd --cdrom iso --memory 512M --start")?;
    let disk = host.ask("disk show iso")?;
    ensure!(disk[0]["used_by"].as_array().is_some_and(|names| names.len() == 2), "two VMs have the CD: {disk}");
    let mut console = host.attach("cd")?;
    console.expect("loaded by GRUB", GUEST_BOOT_LIMIT).context("the CD did not boot")?;
    console.leave()?;
    host.ask("vm kill cd")?;
    let refusal = host.refusal("vm add cd --cdrom uefi")?;
    ensure!(refusal.contains("cd has CD iso already"), "{refusal}");
    host.ask("vm delete cd")?;
    Ok(())
}
