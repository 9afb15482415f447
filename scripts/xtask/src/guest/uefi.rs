//! The image of an installed disk that boots by UEFI: GPT, EFI system partition with GRUB, and the Debian guest's file
//! system, to which GRUB's menu is added. The main function is [`datastore`]; nothing is mounted and nothing downloaded.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{EPOCH, MIB, cached, copy_range};
use crate::image::usb;
use crate::steps;

/// Where the Debian guest's file system begins on its datastore, and its size there; and what it is cut to.
const SOURCE_MIB: u64 = 1;
const ROOT_MIB: u64 = 448;
/// The EFI system partition begins behind the partition table and its own mebibyte.
const ESP_MIB: u64 = 34;
/// A mebibyte before the partitions, and one behind them.
const DISK_MIB: u64 = ESP_MIB + ROOT_MIB + 2;
/// The virtual disks: the installed one, and one for what its firmware keeps.
const VARIABLES_MIB: u64 = 2;

const DISK_GUID: &str = "706f6c6c-7578-4000-8000-000000000200";
/// Where GRUB on the EFI system partition finds its menu: on the disk that it was started from.
const GRUB_PREFIX: &str = "(,gpt2)/boot/grub";
const GRUB_MODULES: [&str; 10] =
    ["part_gpt", "fat", "ext2", "normal", "configfile", "linux", "echo", "test", "halt", "reboot"];
const GRUB_MENU: &str = r#"set timeout=1
menuentry "Debian GNU/Linux" {
    linux /vmlinuz root=LABEL=debian ro console=ttyS0 net.ifnames=0 quiet
    initrd /initrd.img
}
"#;

/// A datastore with the installed disk as partition `uefi`, and `uefi-vars`; made of the Debian guest's datastore.
pub fn datastore(debian: &Path) -> Result<PathBuf> {
    let recipe = format!("{} {GRUB_MENU} {GRUB_MODULES:?} {ROOT_MIB} {ESP_MIB} {VARIABLES_MIB}", debian.display());
    let folder = cached("uefi", &recipe, |folder| {
        let (root, disk) = (folder.join("root.ext4"), folder.join("disk.img"));
        cut_root(debian, &root, folder)?;
        make_disk(&disk, &root, folder)?;
        make_datastore(&disk, &folder.join("datastore.img"))?;
        for path in [root, disk] {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    })?;
    Ok(folder.join("datastore.img"))
}

/// Takes the file system off the datastore, makes it smaller, and puts GRUB's menu on it.
fn cut_root(debian: &Path, root: &Path, folder: &Path) -> Result<()> {
    create(root, super::DEBIAN_MIB)?;
    copy_range(debian, SOURCE_MIB * MIB, super::DEBIAN_MIB * MIB, root, 0)?;
    let menu = folder.join("grub.cfg");
    fs::write(&menu, GRUB_MENU).context("writing GRUB's menu")?;
    let tool = |program: &str| {
        let mut command = Command::new(program);
        command.env("E2FSPROGS_FAKE_TIME", EPOCH);
        command
    };
    // It exits with 1 where it mended something.
    steps::output(Command::new("sh").args(["-c", "e2fsck -fy \"$1\" || [ $? = 1 ]", "sh"]).arg(root))?;
    steps::output(tool("resize2fs").arg(root).arg(format!("{ROOT_MIB}M"))).context("making the file system smaller")?;
    File::options().write(true).open(root)?.set_len(ROOT_MIB * MIB)?;
    let script = folder.join("debugfs");
    fs::write(&script, format!("mkdir /boot/grub\ncd /boot/grub\nwrite {} grub.cfg\n", menu.display()))?;
    steps::output(tool("debugfs").arg("-w").arg("-f").arg(&script).arg(root)).context("adding GRUB's menu")?;
    for path in [menu, script] {
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Makes the disk: table, GRUB for UEFI, file system.
fn make_disk(disk: &Path, root: &Path, folder: &Path) -> Result<()> {
    create(disk, DISK_MIB)?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--set-alignment=2048", &format!("--disk-guid={DISK_GUID}")]);
    for (number, size, kind, name) in [(1, ESP_MIB, "ef00", "EFI"), (2, ROOT_MIB, "8304", "root")] {
        command.arg(format!("--new={number}:0:+{size}M")).arg(format!("--typecode={number}:{kind}"));
        command.arg(format!("--change-name={number}:{name}"));
        command.arg(format!("--partition-guid={number}:706f6c6c-7578-4000-8000-00000000020{number}"));
    }
    steps::output(command.arg(disk)).context("partitioning the guest's disk")?;
    let tree = folder.join("esp");
    fs::create_dir_all(tree.join("EFI/BOOT"))?;
    usb::make_grub("x86_64-efi", GRUB_PREFIX, &GRUB_MODULES, &tree.join("EFI/BOOT/BOOTX64.EFI"))?;
    usb::fill_esp(disk, &tree, ESP_MIB * MIB / 512, EPOCH)?;
    fs::remove_dir_all(&tree).context("removing the system partition's tree")?;
    copy_range(root, 0, ROOT_MIB * MIB, disk, (1 + ESP_MIB) * MIB)
}

/// Puts the disk into a partition of a datastore.
fn make_datastore(disk: &Path, datastore: &Path) -> Result<()> {
    create(datastore, DISK_MIB + VARIABLES_MIB + 2)?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--set-alignment=2048"]);
    for (number, size, name) in [(1, DISK_MIB, "uefi"), (2, VARIABLES_MIB, "uefi-vars")] {
        command.arg(format!("--new={number}:0:+{size}M")).arg(format!("--change-name={number}:{name}"));
    }
    steps::output(command.arg(datastore)).context("partitioning the datastore")?;
    copy_range(disk, 0, DISK_MIB * MIB, datastore, MIB)
}

fn create(path: &Path, size_mib: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(size_mib * MIB).with_context(|| format!("sizing {}", path.display()))
}
