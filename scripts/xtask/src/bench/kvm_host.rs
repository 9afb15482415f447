//! The Linux host that Pollux is compared with: this machine's QEMU with its libraries on a disk, kept in the cache, and
//! an initial RAM disk with KVM's modules and the guest. The main type is [`KvmHost`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::guest::{self, KVM_MODULES};
use crate::steps;

/// The first program of a host with one guest.
pub const INIT: &str = include_str!("../../../guest/kvm-host");
/// The first program of the two hosts between which a guest moves.
pub const MIGRATE_INIT: &str = include_str!("../../../guest/kvm-migrate");
/// Copies QEMU, the libraries it is linked with, those of its plug-ins, and its firmware; then makes a file system.
const FILL: &str = r#"set -eu
root=$1; image=$2
qemu=$(command -v qemu-system-x86_64)
mkdir -p "$root/bin" "$root/lib64" "$root/usr/share" "$root/proc" "$root/dev" "$root/tmp"
cp -L "$qemu" "$root/bin/qemu"
for file in "$qemu" /usr/lib/x86_64-linux-gnu/qemu/*.so; do
    [ -e "$file" ] || continue
    ldd "$file" | awk '$3 ~ /^\//{print $3}'
done | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
for share in qemu seabios; do [ ! -e "/usr/share/$share" ] || cp -rL "/usr/share/$share" "$root/usr/share/"; done
mke2fs -q -t ext4 -d "$root" "$image" 1G
rm -r "$root""#;

/// What boots the Linux host.
pub struct KvmHost {
    /// A disk with QEMU.
    pub disk: PathBuf,
    busybox: Vec<u8>,
}

/// The Linux that such a host is.
pub struct System<'a> {
    /// Its modules without KVM's, and the order in which they load.
    pub modules: &'a Path,
    pub names: &'a [&'a str],
    /// The small guest's initial RAM disk.
    pub guest_initrd: &'a Path,
    /// The first program.
    pub init: &'a str,
}

impl KvmHost {
    /// Takes the disk from the cache, or makes it.
    pub fn build() -> Result<Self> {
        let version = steps::output(Command::new("qemu-system-x86_64").arg("--version"))?;
        let folder = guest::cached("kvm-host", &format!("{version}{FILL}"), |folder| {
            let mut command = Command::new("sh");
            command.args(["-c", FILL, "sh"]).arg(folder.join("root")).arg(folder.join("disk.img"));
            steps::logged("building the Linux host to compare with (once)", "kvm-host", &mut command)
        })?;
        let busybox = fs::read("/bin/busybox").context("reading /bin/busybox (package busybox-static)")?;
        Ok(Self { disk: folder.join("disk.img"), busybox })
    }

    /// Writes an initial RAM disk that carries a guest: a kernel under the name `guest`, and its command line.
    pub fn initrd(&self, path: &Path, system: &System<'_>, guest: &str, kernel: &Path, words: &str) -> Result<()> {
        let mut archive = Archive::default();
        for folder in ["bin", "dev", "proc", "sys", "tmp", "mnt", "modules", "guest"] {
            archive.folder(folder);
        }
        guest::add_busybox(&mut archive, &self.busybox)?;
        guest::add_modules(&mut archive, system.modules, &[system.names, &KVM_MODULES[..]].concat())?;
        let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        archive.file(&format!("guest/{guest}"), &read(kernel)?);
        archive.file("guest/initrd", &read(system.guest_initrd)?);
        archive.file("guest/words", words.as_bytes());
        archive.file("init", system.init.as_bytes());
        fs::write(path, archive.finish()).with_context(|| format!("writing {}", path.display()))
    }
}
