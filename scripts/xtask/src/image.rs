//! `cargo xtask image`: what a real machine boots, by BIOS or UEFI. The main functions are [`build`], one hybrid image for
//! CD and USB stick by grub-mkrescue, and [`build_usb`], a stick with a partition table of its own; either carries the
//! kernel, the configuration and whatever boot modules it is given, and is the same to the byte when built again.

pub mod usb;

use std::env;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::guest::{self, Guests};
use crate::{artifacts, kernel, paths, setup, steps};

/// GRUB's modules that the image needs; their dependencies follow. Everything else would only make it larger. The partition
/// tables are all there because GRUB's UEFI start-up complains about each one that is not.
const GRUB_MODULES: &str = "multiboot2 normal configfile serial terminal regexp test echo fat iso9660 search search_fs_file \
                            reboot halt all_video part_acorn part_amiga part_apple part_bsd part_dfly part_dvh part_gpt \
                            part_msdos part_plan part_sun part_sunpc";

/// The configuration that the image carries unless another is given: the Debian guest, started at once.
const CONFIGURATION: &str = r#"# What Pollux does when it has started. `help` at the prompt explains the rest.
[[vm]]
name = "debian"
kernel = "linux"
initrd = "debian-initrd"
command_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"
memory = "512M"
disks = ["debian", "scratch"]
nics = 1
autostart = true
"#;

/// Options of `cargo xtask image`.
#[derive(Args)]
pub struct Options {
    /// Make the image of a USB stick (GPT, BIOS boot partition, EFI system partition) instead of a hybrid one
    #[arg(long)]
    usb: bool,
    /// Where to write the image [default: target/pollux.img, target/pollux-usb.img]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write the image to this USB stick as well, a whole block device such as /dev/sdX, and read it back: erases it
    #[arg(long, value_name = "DEVICE")]
    write: Option<PathBuf>,
    /// The configuration file to put on the image, instead of one that starts the demonstration guest
    #[arg(long)]
    config: Option<PathBuf>,
    /// A boot module to put on the image, NAME=FILE; may be repeated
    #[arg(long, value_name = "NAME=FILE")]
    module: Vec<String>,
}

/// What goes on an image.
pub struct Contents {
    /// The configuration file's text.
    pub configuration: String,
    /// Boot modules: name and file.
    pub modules: Vec<(String, PathBuf)>,
}

impl Contents {
    /// The demonstration: both guests, the Debian one started at once.
    pub fn demonstration(guests: &Guests, ovmf: &(PathBuf, PathBuf)) -> Self {
        let module = |name: &str, path: &Path| (name.to_owned(), path.to_path_buf());
        let modules = vec![
            module(e2e::LINUX, &guests.linux),
            module(e2e::DEBIAN_INITRD, &guests.debian_initrd),
            module(e2e::TINY_INITRD, &guests.tiny_initrd),
            module(e2e::OVMF_CODE, &ovmf.0),
            module(e2e::OVMF_VARIABLES, &ovmf.1),
        ];
        Self { configuration: CONFIGURATION.to_owned(), modules }
    }

    /// For tests in emulators that load nothing themselves: a blank configuration, the small guest and the bare ones.
    pub fn tests(guests: &Guests, bare_guests: &[(String, PathBuf)]) -> Result<Self> {
        let mut modules = bare_guests.to_vec();
        let kernels = e2e::make_multiboot_kernels(bare_guests, &paths::target())?;
        modules.extend(e2e::MULTIBOOT_KERNELS.map(str::to_owned).into_iter().zip(kernels));
        modules.push((e2e::LINUX.to_owned(), guests.linux.clone()));
        modules.push((e2e::TINY_INITRD.to_owned(), guests.tiny_initrd.clone()));
        Ok(Self { configuration: e2e::blank_configuration(), modules })
    }
}

/// Builds the image of the demonstration, or what the options say, and writes it where they say.
pub fn command(options: &Options) -> Result<()> {
    setup::setup()?;
    let mut contents = Contents::demonstration(&guest::guests()?, &artifacts::ovmf()?);
    if let Some(path) = &options.config {
        contents.configuration = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    }
    for module in &options.module {
        let (name, path) = module.split_once('=').with_context(|| format!("--module {module}: write NAME=FILE"))?;
        contents.modules.retain(|(present, _)| present != name);
        contents.modules.push((name.to_owned(), PathBuf::from(path)));
    }
    let (name, build): (_, Build) = if options.usb { ("pollux-usb.img", build_usb) } else { ("pollux.img", build) };
    let out = options.out.clone().unwrap_or_else(|| paths::target().join(name));
    build(&kernel::build()?.elf, &contents, &out)?;
    // The digest and the path, for who writes the image elsewhere and wants to verify it there.
    print!("{}", steps::output(Command::new("sha256sum").arg(&out))?);
    match &options.write {
        Some(device) => write_stick(&out, device),
        None => Ok(()),
    }
}

/// Makes an image of a kernel and what goes with it.
pub type Build = fn(&Path, &Contents, &Path) -> Result<()>;

/// Makes the hybrid image `out`.
pub fn build(kernel: &Path, contents: &Contents, out: &Path) -> Result<()> {
    let tree = paths::target().join("image-tree");
    lay_out(&tree, kernel, contents)?;
    make_hybrid(&tree, GRUB_MODULES, out)
}

/// A guest that GRUB boots itself.
pub enum Guest<'a> {
    /// A program with a Multiboot 1 header.
    Multiboot(&'a Path),
    /// Linux with an initial RAM disk.
    Linux { kernel: &'a Path, initrd: &'a Path },
}

/// Makes the image `out` that boots a guest without Pollux, with `words` on its command line: for emulators that load
/// nothing themselves.
pub fn build_bare(guest: &Guest<'_>, words: &str, out: &Path) -> Result<()> {
    let tree = paths::target().join("bare-tree");
    let boot = tree.join("boot");
    fs::create_dir_all(boot.join("grub")).with_context(|| format!("creating {}", boot.display()))?;
    let commands = match guest {
        Guest::Multiboot(program) => {
            copy(program, &boot.join("kernel"))?;
            format!("multiboot /boot/kernel {words}\n")
        }
        Guest::Linux { kernel, initrd } => {
            copy(kernel, &boot.join("kernel"))?;
            copy(initrd, &boot.join("initrd"))?;
            format!("linux /boot/kernel {words}\ninitrd /boot/initrd\n")
        }
    };
    fs::write(boot.join("grub/grub.cfg"), format!("{commands}boot\n")).context("writing GRUB's orders")?;
    make_hybrid(&tree, "multiboot linux normal configfile iso9660 part_msdos part_gpt search search_fs_file", out)
}

/// Makes the hybrid image `out` of the files in `tree`, with these modules of GRUB's.
fn make_hybrid(tree: &Path, modules: &str, out: &Path) -> Result<()> {
    let epoch = epoch();
    let mut command = Command::new("grub-mkrescue");
    command
        .env("SOURCE_DATE_EPOCH", &epoch)
        .args(["--fonts=", "--locales=", "--themes=", "--compress=xz", "--product-name=Pollux"])
        .arg(format!("--install-modules={modules}"))
        .arg("-o")
        .arg(out)
        .arg(tree)
        .args(["--", "-volid", "POLLUX", "-volume_date", "uuid", &volume_date(&epoch)?])
        .args(["-volume_date", "all_file_dates", &format!("={epoch}")]);
    steps::logged("building the image", "grub-mkrescue", &mut command)?;
    fix_esp_serial(out)
}

/// Gives the FAT file system for UEFI on a hybrid image a fixed serial number: grub-mkrescue has it made at random.
fn fix_esp_serial(image: &Path) -> Result<()> {
    /// Of the volume's serial number in the boot sector of a FAT12 or FAT16 (Microsoft's FAT specification 1.03, 3.2).
    const SERIAL: u64 = 39;
    let mut xorriso = Command::new("xorriso");
    xorriso.arg("-indev").arg(image).args(["-find", "/efi.img", "-exec", "report_lba"]);
    let report = steps::output(&mut xorriso)?;
    // "File data lba:  0 ,       40 ,     1440 ,  2949120 , '/efi.img'"
    let line = report.lines().find(|line| line.starts_with("File data lba:")).context("the image has no /efi.img")?;
    let block: u64 = line.split(',').nth(1).unwrap_or_default().trim().parse().context("the place of /efi.img")?;
    let mut image = fs::File::options().write(true).open(image).context("opening the image")?;
    image.seek(SeekFrom::Start(block * 2048 + SERIAL))?;
    image.write_all(b"XLOP").context("writing the serial number")
}

/// Makes the USB stick's image `out`.
pub fn build_usb(kernel: &Path, contents: &Contents, out: &Path) -> Result<()> {
    let tree = paths::target().join("usb-tree");
    lay_out(&tree, kernel, contents)?;
    usb::write(&tree, &epoch(), out)
}

/// Puts every file into the new folder `tree`, where `boot/grub.cfg` looks for it.
fn lay_out(tree: &Path, kernel: &Path, contents: &Contents) -> Result<()> {
    steps::output(Command::new("grub-file").arg("--is-x86-multiboot2").arg(kernel))
        .with_context(|| format!("{} has no Multiboot 2 header in its first 32 KiB", kernel.display()))?;
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    let modules = tree.join("boot/modules");
    for folder in [&tree.join("boot/grub"), &modules] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    copy(&paths::root().join("boot/grub.cfg"), &tree.join("boot/grub/grub.cfg"))?;
    // Without line tables: they are for reading a panic's addresses, which the file in the target folder serves.
    steps::output(Command::new("strip").arg("-o").arg(tree.join("boot/pollux")).arg(kernel))?;
    fs::write(modules.join("pollux.toml"), &contents.configuration).context("writing the configuration")?;
    for (name, path) in &contents.modules {
        if name.is_empty() || name.contains(['/', ' ']) {
            bail!("\"{name}\" cannot name a boot module: leave out spaces and slashes");
        }
        copy(path, &modules.join(name))?;
    }
    Ok(())
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    fs::copy(source, target).with_context(|| format!("copying {} to {}", source.display(), target.display()))?;
    Ok(())
}

/// The time that every file on the image carries: given, or that of the last commit, in seconds since 1970.
fn epoch() -> String {
    env::var("SOURCE_DATE_EPOCH")
        .or_else(|_| steps::output(Command::new("git").current_dir(paths::root()).args(["log", "-1", "--format=%ct"])))
        .map_or_else(|_| "1790000000".to_owned(), |text| text.trim().to_owned())
}

/// The same time as xorriso wants an ISO 9660 volume's identity: YYYYMMDDhhmmsscc.
fn volume_date(epoch: &str) -> Result<String> {
    let date = steps::output(Command::new("date").args(["--utc", &format!("--date=@{epoch}"), "+%Y%m%d%H%M%S00"]))?;
    Ok(date.trim().to_owned())
}

fn write_stick(image: &Path, device: &Path) -> Result<()> {
    let name = device.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Ok(removable) = fs::read_to_string(Path::new("/sys/block").join(name).join("removable")) else {
        bail!("{} is not a whole block device: give one such as /dev/sdb", device.display());
    };
    if removable.trim() != "1" {
        bail!("{} is not removable: to write it nevertheless, use dd yourself", device.display());
    }
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    if mounts.lines().any(|line| line.starts_with(&device.display().to_string())) {
        bail!("{} is in use: unmount it first", device.display());
    }
    let mut command = Command::new("dd");
    command
        .arg(format!("if={}", image.display()))
        .arg(format!("of={}", device.display()))
        .args(["bs=4M", "conv=fsync"]);
    steps::logged(&format!("writing {}", device.display()), "dd", &mut command)?;
    // Or the kernel would answer from its own memory.
    steps::output(Command::new("blockdev").arg("--flushbufs").arg(device))?;
    usb::verify(image, device)?;
    eprintln!("{} holds the image; it was read back", device.display());
    Ok(())
}
