//! The image of a USB stick: a GPT with a BIOS boot partition, which holds GRUB's core, and an EFI system partition, which
//! holds everything else. The main function is [`write`]; [`super::lay_out`] makes the tree of files that it packs.
//!
//! Equal input gives equal bytes: every identity and time is fixed, and files are packed in the order of their names.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{paths, steps};

/// What GRUB's core holds, whatever the firmware; the rest of GRUB is not on the stick.
const MODULES: &[&str] = &[
    "all_video",
    "configfile",
    "echo",
    "fat",
    "multiboot2",
    "normal",
    "part_gpt",
    "reboot",
    "regexp",
    "serial",
    "terminal",
    "test",
];
/// The core for a BIOS reads its disks by the BIOS.
const BIOS_MODULES: &[&str] = &["biosdisk", "halt"];
/// GRUB for UEFI reads the disk that it was loaded from by the firmware.
const UEFI_MODULES: &[&str] = &["efi_gop", "halt"];
/// Where Debian's packages grub-pc-bin and grub-efi-amd64-bin put GRUB.
const GRUB_FOLDER: &str = "/usr/lib/grub";

const DISK_GUID: &str = "706f6c6c-7578-4000-8000-000000000100";
const BIOS_PARTITION_GUID: &str = "706f6c6c-7578-4000-8000-000000000101";
const ESP_GUID: &str = "706f6c6c-7578-4000-8000-000000000102";
const ESP_SERIAL: &str = "504f4c58";

const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;
/// GRUB's core goes right behind the partition table and ends before the first mebibyte.
const CORE_SECTOR: u64 = 34;
const ESP_SECTOR: u64 = MIB / SECTOR_BYTES;
/// Clusters that make a file system FAT32, with some to spare (Microsoft's FAT specification 1.03, 3.5: 65,525).
const CLUSTERS_MIN: u64 = 66_000;
/// Sectors of a cluster, at most.
const CLUSTER_SECTORS_MAX: u64 = 8;

/// Packs the files of `tree` into the image `out`; every time on it is `epoch`, in seconds since 1970.
pub fn write(tree: &Path, epoch: &str, out: &Path) -> Result<()> {
    let work = paths::target().join("usb-image");
    fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    let (core, uefi) = (work.join("core.img"), tree.join("EFI/BOOT/BOOTX64.EFI"));
    fs::create_dir_all(tree.join("EFI/BOOT")).context("creating the folder for UEFI")?;
    // The first without a disk: GRUB puts the one before it from which it was started.
    make_grub("i386-pc", "(,gpt2)/boot/grub", &[MODULES, BIOS_MODULES].concat(), &core)?;
    make_grub("x86_64-efi", "/boot/grub", &[MODULES, UEFI_MODULES].concat(), &uefi)?;

    let esp_sectors = esp_sectors(&files(tree)?)?;
    partition(out, esp_sectors)?;
    write_boot_code(out, &fs::read(&core).context("reading GRUB's core")?)?;
    fill_esp(out, tree, esp_sectors, epoch)
}

/// Makes GRUB for a platform, with these modules, that looks for its menu under `prefix`.
pub fn make_grub(platform: &str, prefix: &str, modules: &[&str], out: &Path) -> Result<()> {
    let mut command = Command::new("grub-mkimage");
    command.arg("-O").arg(platform).arg("-d").arg(Path::new(GRUB_FOLDER).join(platform));
    command.arg("-p").arg(prefix).arg("-o").arg(out).args(modules);
    steps::output(&mut command).with_context(|| format!("making GRUB for {platform}"))?;
    Ok(())
}

/// A file or folder of the tree: its path there, and its bytes if it is a file.
struct Entry {
    path: PathBuf,
    bytes: Option<u64>,
}

/// Everything in the tree, each folder before what is in it, in the order of the names.
fn files(tree: &Path) -> Result<Vec<Entry>> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(tree.join(&folder)).context("reading the image's tree")? {
            let entry = entry?;
            let (path, metadata) = (folder.join(entry.file_name()), entry.metadata()?);
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.push(Entry { path, bytes: metadata.is_file().then_some(metadata.len()) });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// Sectors of a cluster in a FAT32 file system of so many sectors.
fn cluster_sectors(esp_sectors: u64) -> u64 {
    let fits = |sectors: &u64| esp_sectors / sectors >= CLUSTERS_MIN;
    let mut sizes = std::iter::successors(Some(CLUSTER_SECTORS_MAX), |sectors| Some(sectors / 2)).take(4);
    sizes.find(fits).unwrap_or(1)
}

/// How large the file system must be for these files, in sectors: whole mebibytes.
fn esp_sectors(files: &[Entry]) -> Result<u64> {
    let largest_cluster = CLUSTER_SECTORS_MAX * SECTOR_BYTES;
    let content: u64 = files.iter().map(|file| file.bytes.unwrap_or(0).next_multiple_of(largest_cluster)).sum();
    // Beside the files: the two allocation tables (four bytes of each a cluster), folders, and the root.
    let overhead = content / 32 + 2 * MIB;
    // The smallest FAT32 file system has its clusters, their tables and 32 reserved sectors.
    let smallest = CLUSTERS_MIN * (SECTOR_BYTES + 8) + MIB;
    let bytes = (content + overhead).max(smallest).next_multiple_of(MIB);
    ensure!(bytes < u64::from(u32::MAX), "the files on the image are larger than 4 GiB together");
    Ok(bytes / SECTOR_BYTES)
}

/// Makes an empty image with its two partitions.
fn partition(out: &Path, esp_sectors: u64) -> Result<()> {
    let mut image = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    // A mebibyte behind the partitions, for the second copy of the table.
    image.set_len((ESP_SECTOR + esp_sectors) * SECTOR_BYTES + MIB)?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--set-alignment=1"]).arg(format!("--disk-guid={DISK_GUID}"));
    let partitions = [
        (1, CORE_SECTOR, ESP_SECTOR - 1, "ef02", "BIOS boot", BIOS_PARTITION_GUID),
        (2, ESP_SECTOR, ESP_SECTOR + esp_sectors - 1, "ef00", "Pollux", ESP_GUID),
    ];
    for (number, first, last, kind, name, guid) in partitions {
        command.arg(format!("--new={number}:{first}:{last}")).arg(format!("--typecode={number}:{kind}"));
        command.arg(format!("--change-name={number}:{name}")).arg(format!("--partition-guid={number}:{guid}"));
    }
    steps::output(command.arg(out)).context("partitioning the image")?;
    // Some BIOSes start nothing from a disk on which no partition is active; UEFI does not look (2.10, section 5.2.3).
    image.seek(SeekFrom::Start(0x1be))?;
    image.write_all(&[0x80])?;
    Ok(())
}

/// Puts GRUB's first sector before the partition table and its core into the first partition, and tells each part where
/// the next is. The offsets are those of GRUB's `include/grub/i386/pc/boot.h`, version 2.06.
fn write_boot_code(out: &Path, core: &[u8]) -> Result<()> {
    const CODE_BYTES: usize = 440;
    const KERNEL_SECTOR: usize = 0x5c;
    const DRIVE_CHECK: usize = 0x66;
    const BLOCK_LIST: usize = 0x1f4;
    const KERNEL_SEGMENT: [u8; 2] = 0x820_u16.to_le_bytes();

    let path = Path::new(GRUB_FOLDER).join("i386-pc/boot.img");
    let mut boot = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(boot.len() == SECTOR_BYTES as usize, "{} is not one sector", path.display());
    boot[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&CORE_SECTOR.to_le_bytes());
    // Two no-operations: believe the BIOS about the drive, as one does of hard disks, which a stick is to a BIOS.
    boot[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);

    let mut core = core.to_vec();
    let room = (ESP_SECTOR - CORE_SECTOR) * SECTOR_BYTES;
    ensure!(core.len() as u64 <= room, "GRUB's core has {} bytes and does not fit into {room}", core.len());
    ensure!(core[BLOCK_LIST + 10..BLOCK_LIST + 12] == KERNEL_SEGMENT, "GRUB's core is not of the expected layout");
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(CORE_SECTOR + 1).to_le_bytes());

    let mut image = File::options().write(true).open(out).with_context(|| format!("opening {}", out.display()))?;
    image.write_all(&boot[..CODE_BYTES])?;
    image.seek(SeekFrom::Start(CORE_SECTOR * SECTOR_BYTES))?;
    image.write_all(&core).context("writing GRUB's core")
}

/// Makes the file system of an EFI system partition, which begins at [`ESP_SECTOR`], and copies the files of `tree` into
/// it.
pub fn fill_esp(out: &Path, tree: &Path, esp_sectors: u64, epoch: &str) -> Result<()> {
    let place = format!("{}@@{}", out.display(), ESP_SECTOR * SECTOR_BYTES);
    let mtools = |program: &str| {
        let mut command = Command::new(program);
        command.env("SOURCE_DATE_EPOCH", epoch).env("TZ", "UTC").env("LC_ALL", "C.UTF-8").args(["-i", &place]);
        command
    };
    let clusters = cluster_sectors(esp_sectors).to_string();
    let mut format = mtools("mformat");
    format.args(["-F", "-c", &clusters, "-T", &esp_sectors.to_string(), "-H", &ESP_SECTOR.to_string()]);
    format.args(["-h", "255", "-s", "63", "-N", ESP_SERIAL, "-v", "POLLUX", "::"]);
    steps::output(&mut format).context("making the EFI system partition")?;
    for Entry { path, bytes } in &files(tree)? {
        let target = format!("::/{}", path.display());
        let mut command = match bytes {
            None => mtools("mmd"),
            Some(_) => {
                let mut copy = mtools("mcopy");
                copy.arg(tree.join(path));
                copy
            }
        };
        steps::output(command.arg(&target)).with_context(|| format!("putting {} on the image", path.display()))?;
    }
    Ok(())
}

/// Checks that the first bytes of a stick are the image.
pub fn verify(image: &Path, device: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
    let (mut image, mut stick) = (open(image)?, open(device)?);
    let (mut expected, mut found) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let mut position = 0;
    loop {
        let length = image.read(&mut expected)?;
        if length == 0 {
            return Ok(());
        }
        stick.read_exact(&mut found[..length]).with_context(|| format!("reading back at byte {position}"))?;
        ensure!(
            expected[..length] == found[..length],
            "the stick differs from the image in the MiB at byte {position}"
        );
        position += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files_of(bytes: u64) -> Vec<Entry> {
        vec![Entry { path: "folder".into(), bytes: None }, Entry { path: "folder/file".into(), bytes: Some(bytes) }]
    }

    #[test]
    fn every_size_is_fat32_and_has_room() {
        for bytes in [0, 1, 5 * MIB, 33 * MIB, 65 * MIB, 200 * MIB, 270 * MIB, 2048 * MIB] {
            let sectors = esp_sectors(&files_of(bytes)).unwrap();
            let cluster = cluster_sectors(sectors);
            // As the firmware counts: what the reserved sectors and both tables leave.
            let clusters = (sectors - 32 - 2 * (sectors / cluster + 2).div_ceil(128)) / cluster;
            assert!(clusters >= 65_525, "{bytes} bytes: {clusters} clusters");
            assert!(clusters * cluster * SECTOR_BYTES >= bytes.next_multiple_of(4096) + 64 * 1024, "{bytes} bytes");
        }
        assert!(esp_sectors(&files_of(5 << 30)).is_err());
    }

    #[test]
    fn files_come_in_order_behind_their_folders() {
        let folder = std::env::temp_dir().join(format!("pollux-usb-files-{}", std::process::id()));
        for name in ["b/z", "b/a", "a"] {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let names: Vec<String> = files(&folder).unwrap().iter().map(|file| file.path.display().to_string()).collect();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(names, ["a", "b", "b/a", "b/z"]);
    }

    #[test]
    fn a_stick_that_differs_is_found() {
        let folder = std::env::temp_dir().join(format!("pollux-usb-verify-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (image, stick) = (folder.join("image"), folder.join("stick"));
        fs::write(&image, [7; 3000]).unwrap();
        let mut bytes = [7; 4000];
        fs::write(&stick, bytes).unwrap();
        verify(&image, &stick).unwrap();
        bytes[2999] = 8;
        fs::write(&stick, bytes).unwrap();
        assert!(verify(&image, &stick).is_err());
        fs::write(&stick, [7; 2999]).unwrap();
        assert!(verify(&image, &stick).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
