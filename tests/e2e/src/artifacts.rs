//! What the test programs run, built by `cargo xtask` beforehand. The main type is [`Artifacts`].

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{Accel, Bochs, Host, Launch, Medium, Model, Pc, Release, Skipped};

/// Name of the boot module with the guests' Linux kernel.
pub const LINUX: &str = "linux";
/// Name of the boot module with the Debian guest's initial RAM disk.
pub const DEBIAN_INITRD: &str = "debian-initrd";
/// Name of the boot module with the small guest's initial RAM disk.
pub const TINY_INITRD: &str = "tiny-initrd";
/// Name of the boot module with the firmware of guests that boot by UEFI: its code.
pub const OVMF_CODE: &str = "ovmf-code";
/// The same for what it keeps at first.
pub const OVMF_VARIABLES: &str = "ovmf-vars";
/// Name of the virtual disk with the Debian guest's root file system.
pub const DEBIAN_DISK: &str = "debian";
/// Name of a virtual disk that tests may overwrite.
pub const SCRATCH_DISK: &str = "scratch";
/// The Debian guest's root password.
pub const DEBIAN_PASSWORD: &str = "pollux";

/// The small guest's root password.
pub const TINY_PASSWORD: &str = "pollux";

/// What a blank configuration begins with.
const BLANK: &str = "# A test may write its configuration here.\n";
/// How long it is: a block of an ISO 9660 file system, which begins each file in a block of its own.
const BLANK_BYTES: usize = 2048;

/// The configuration of [`Artifacts::test_image`]: nothing, and room for that of [`Artifacts::configured`].
#[must_use]
pub fn blank_configuration() -> String {
    format!("{BLANK:\n<BLANK_BYTES$}")
}

/// Paths of everything that a test may boot.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// Pollux as a 32-bit ELF file, for QEMU's `-kernel`.
    pub kernel32: PathBuf,
    /// The hybrid boot image.
    pub image: PathBuf,
    /// The USB stick's image.
    pub usb_image: PathBuf,
    /// An image with a [`blank_configuration`], with the small guest and every bare test guest as boot modules: for emulators
    /// that load nothing themselves.
    pub test_image: PathBuf,
    /// A disk with a GPT whose partitions are the virtual disks.
    pub datastore: PathBuf,
    /// Such a disk: `uefi` is an installed Debian that boots by UEFI, `uefi-vars` is free for what its firmware keeps.
    pub uefi_datastore: PathBuf,
    /// Debian's stock cloud kernel.
    pub linux: PathBuf,
    /// The Debian guest's initial RAM disk.
    pub debian_initrd: PathBuf,
    /// The small guest: busybox and virtio modules.
    pub tiny_initrd: PathBuf,
    /// A folder of programs that run in the Debian guest: `files`, `pattern` and `serve`.
    pub debian_programs: PathBuf,
    /// Bare test guests by name, as Linux kernels.
    pub guests: Vec<(String, PathBuf)>,
    /// OVMF's code and variables.
    pub ovmf: (PathBuf, PathBuf),
    /// Bochs, or why it is not there.
    pub bochs: Result<Bochs, String>,
    /// What executes instructions.
    pub accel: Accel,
    /// Where logs go.
    pub logs: PathBuf,
}

impl Artifacts {
    /// The fast path: a machine that QEMU loads Pollux into, with the small guest and the datastore. Tests add to it.
    ///
    /// # Errors
    /// If a module's path is one that QEMU cannot load.
    pub fn fast(&self, name: &str) -> Result<Launch> {
        self.fast_with(name, &[])
    }

    /// As [`Artifacts::fast`], with more boot modules: file and name.
    ///
    /// # Errors
    /// As [`Artifacts::fast`].
    pub fn fast_with(&self, name: &str, modules: &[(&Path, &str)]) -> Result<Launch> {
        Ok(self.bare_with(name, modules)?.disk(&self.datastore).nic(""))
    }

    /// As [`Artifacts::fast_with`], on a machine without disk and network card.
    ///
    /// # Errors
    /// As [`Artifacts::fast`].
    pub fn bare_with(&self, name: &str, modules: &[(&Path, &str)]) -> Result<Launch> {
        let mut all = vec![(self.linux.clone(), LINUX.to_owned()), (self.tiny_initrd.clone(), TINY_INITRD.to_owned())];
        all.extend(modules.iter().map(|(path, name)| (path.to_path_buf(), (*name).to_owned())));
        Launch::new(name).accel(self.accel).multiboot(&self.kernel32, "", &all)
    }

    /// A machine that boots the image, as a person's does.
    #[must_use]
    pub fn imaged(&self, name: &str, medium: Medium, uefi: bool) -> Launch {
        self.booted_from(name, &self.image, medium, uefi)
    }

    /// The same with the USB stick's image.
    #[must_use]
    pub fn from_stick(&self, name: &str, medium: Medium, uefi: bool) -> Launch {
        self.booted_from(name, &self.usb_image, medium, uefi)
    }

    fn booted_from(&self, name: &str, image: &Path, medium: Medium, uefi: bool) -> Launch {
        let launch = Launch::new(name).accel(self.accel).memory_mib(4096).image(image, medium);
        let launch = if uefi { launch.uefi(&self.ovmf.0, &self.ovmf.1) } else { launch };
        launch.disk(&self.datastore).nic("")
    }

    /// Switches on a machine of Bochs's with the test image and waits for its prompt.
    ///
    /// # Errors
    /// If the prompt does not come; [`Skipped`] where there is no Bochs, or none with a card.
    pub fn boot_bochs(&self, name: &str, model: Model, cpus: u32) -> Result<Host> {
        self.boot_bochs_with(name, model, cpus, None)
    }

    /// The same with a disk.
    ///
    /// # Errors
    /// As [`Artifacts::boot_bochs`].
    pub fn boot_bochs_with(&self, name: &str, model: Model, cpus: u32, disk: Option<&Path>) -> Result<Host> {
        let disk = disk.map(Path::to_path_buf);
        self.boot_pc(&Pc { disk, ..Pc::new(name, model, cpus, &self.test_image) })
    }

    /// The same with a disk that keeps what is written to it.
    ///
    /// # Errors
    /// As [`Artifacts::boot_bochs`].
    pub fn boot_bochs_keeping(&self, name: &str, model: Model, cpus: u32, disk: &Path) -> Result<Host> {
        let disk = Some(disk.to_path_buf());
        self.boot_pc(&Pc { disk, keeps_disk: true, ..Pc::new(name, model, cpus, &self.test_image) })
    }

    /// A copy of the test image with this configuration, removed by whoever asked for it.
    ///
    /// # Errors
    /// If the configuration is too long, or the copy cannot be made.
    pub fn configured(&self, name: &str, configuration: &str) -> Result<PathBuf> {
        ensure!(configuration.len() <= BLANK_BYTES, "the configuration of {name} is too long");
        let mut image = fs::read(&self.test_image).context("reading the test image")?;
        let mut blocks = image.chunks_mut(BLANK_BYTES);
        let block = blocks.find(|block| block.starts_with(BLANK.as_bytes())).context("the test image has no room")?;
        block.fill(b'\n');
        block[..configuration.len()].copy_from_slice(configuration.as_bytes());
        fs::create_dir_all(&self.logs)?;
        let path = self.logs.join(format!("{name}.img"));
        fs::write(&path, image).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Switches on a machine of Bochs's and waits for its prompt.
    ///
    /// # Errors
    /// As [`Artifacts::boot_bochs`].
    pub fn boot_pc(&self, pc: &Pc) -> Result<Host> {
        let bochs = self.bochs.as_ref().map_err(|why| Skipped(why.clone()))?;
        if pc.card.is_some() && bochs.release == Release::Two {
            return Err(Skipped("Bochs 2 loses frames: version 3 is mended".to_owned()).into());
        }
        Host::wait_for_prompt(bochs.start(pc, &self.logs)?)
    }

    /// The file of a bare test guest.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn guest(&self, name: &str) -> Result<&Path> {
        let found = self.guests.iter().find(|(guest, _)| guest == name);
        found.map(|(_, path)| path.as_path()).with_context(|| format!("no test guest is called `{name}`"))
    }

    /// Switches a machine on and waits for its prompt.
    ///
    /// # Errors
    /// If the prompt does not come.
    pub fn boot(&self, launch: &Launch) -> Result<Host> {
        Host::wait_for_prompt(launch.spawn(&self.logs)?)
    }
}
