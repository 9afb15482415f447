//! Builds the guests that travel on the image or on its datastore: a real Debian root file system with Debian's own
//! kernel, and a small one of busybox. The main function is [`guests`]; what it makes is kept in the cache under a hash of
//! the recipe, so it is built once.

pub mod uefi;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cpio::Archive;
use crate::{paths, setup, steps};

const RELEASE: &str = "bookworm";
/// What the root file system holds beside the minimum. Small on purpose; the kernel is the stock cloud kernel. D-Bus is
/// there because systemd-logind, which answers the power button, does not run without it.
const INCLUDED: &str = "linux-image-cloud-amd64,systemd-sysv,dbus,udev,iproute2,iputils-ping,login,passwd";
/// Size of the Debian guest's disk, and of the disk that tests may overwrite.
const DEBIAN_MIB: u64 = 1024;
const SCRATCH_MIB: u64 = 128;
const MIB: u64 = 1 << 20;
/// Fixed names and time, so that equal recipes make equal images as far as the tools let them.
const FILE_SYSTEM_UUID: &str = "706f6c6c-7578-4000-8000-000000000001";
const EPOCH: &str = "1790000000";

/// Runs before packages are unpacked: the initial RAM disk carries what a virtual machine needs and no more.
const PREPARE: &str = r#"mkdir -p "$1/etc/initramfs-tools/conf.d"
echo MODULES=list > "$1/etc/initramfs-tools/conf.d/pollux"
printf 'virtio_pci\nvirtio_blk\nvirtio_net\next4\n' > "$1/etc/initramfs-tools/modules""#;
/// Runs when everything is installed.
const FINISH: &str = r#"echo root:pollux | chroot "$1" chpasswd
echo debian > "$1/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' > "$1/etc/hosts"
echo 'LABEL=debian / ext4 defaults 0 1' > "$1/etc/fstab"
printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' > "$1/etc/systemd/network/20-wired.network"
chroot "$1" systemctl enable systemd-networkd serial-getty@ttyS0
chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer
rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/machine-id"; : > "$1/etc/machine-id""#;

/// Modules of the small guest, in the order in which they load.
pub const TINY_MODULES: [&str; 12] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "rng-core",
    "virtio-rng",
    "virtio_balloon",
];
/// Modules of the Linux host that `bench` compares with, beside those, in the order in which they load.
pub const KVM_MODULES: [&str; 11] =
    ["irqbypass", "kvm", "kvm-amd", "llc", "stp", "bridge", "tun", "tap", "vhost_iotlb", "vhost", "vhost_net"];
/// Modules of Debian's other kernel for a server's disks and network cards, in the order in which they load; the cloud
/// kernel has none.
const DRIVER_MODULES: [&str; 19] = [
    "crct10dif_common",
    "crc-t10dif",
    "crc64",
    "crc64-rocksoft",
    "t10-pi",
    "nvme-core",
    "nvme",
    "scsi_common",
    "scsi_mod",
    "sd_mod",
    "libata",
    "libahci",
    "ahci",
    "ata_piix",
    "dca",
    "i2c-algo-bit",
    "e1000",
    "e1000e",
    "igb",
];
/// Modules of it for KVM's host beside those: the cloud kernel has ext4 built in, and its KVM needs no crypto engine.
const DRIVER_HOST_MODULES: [&str; 6] = ["crc16", "crc32c_generic", "mbcache", "jbd2", "ext4", "ccp"];
/// The package with that kernel: what Debian's own `linux-image-amd64` stands for.
const DRIVER_KERNEL: &str = r#"set -eu
cd "$1"
package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/{print $2; exit}')
apt-get download "$package-unsigned"
dpkg-deb -x "$package"-unsigned_*.deb root
cp root/boot/vmlinuz-* linux
mkdir modules
shift
for name; do find root -name "$name.ko" -exec mv -t modules {} +; done
rm -r root "$package"-unsigned_*.deb"#;
const TINY_INIT: &str = include_str!("../../guest/init");
const TINY_DHCP: &str = include_str!("../../guest/dhcp");
/// Root's password is `pollux`, hashed in the way that costs an emulator least.
const TINY_PASSWD: &str = "root:$1$pollux$AfY4hYzDKgVM6Zzd5TWHy/:0:0:root:/:/bin/sh\n";
/// Static programs of the small guest: name and C source.
const TINY_PROGRAMS: [(&str, &str); 6] = [
    ("dirty", include_str!("../../guest/dirty.c")),
    ("exits", include_str!("../../guest/exits.c")),
    ("disk", include_str!("../../guest/disk.c")),
    ("net", include_str!("../../guest/net.c")),
    ("mix", include_str!("../../guest/mix.c")),
    ("serve", include_str!("../../guest/serve.c")),
];

/// Static programs that tests put on the Debian guest's disk: name and C source.
const DEBIAN_PROGRAMS: [(&str, &str); 3] = [
    ("files", include_str!("../../guest/files.c")),
    ("pattern", include_str!("../../guest/pattern.c")),
    ("serve", include_str!("../../guest/serve.c")),
];

/// The guests' files.
pub struct Guests {
    /// Debian's stock cloud kernel.
    pub linux: PathBuf,
    /// The Debian guest's initial RAM disk.
    pub debian_initrd: PathBuf,
    /// The small guest.
    pub tiny_initrd: PathBuf,
    /// A folder of programs that run in the Debian guest.
    pub debian_programs: PathBuf,
    /// A disk with a GPT: partition `debian` is the Debian guest's root, `scratch` is free for tests.
    pub datastore: PathBuf,
    /// Such a disk whose partition `uefi` is an installed disk that boots by UEFI.
    pub uefi_datastore: PathBuf,
    /// Kernel modules by name, `NAME.ko`.
    pub modules: PathBuf,
}

/// The guests, from the cache or built now.
pub fn guests() -> Result<Guests> {
    let debian = cached("debian", &debian_recipe(), build_debian)?;
    let busybox = fs::read("/bin/busybox").context("reading /bin/busybox (package busybox-static)")?;
    let recipe = format!("{} {:016x} {}", debian.display(), hash(&busybox), tiny_recipe());
    let tiny = cached("tiny", &recipe, |folder| build_tiny(folder, &debian.join("modules"), &busybox))?;
    Ok(Guests {
        linux: debian.join("linux"),
        debian_initrd: debian.join("initrd"),
        tiny_initrd: tiny.join("initrd"),
        debian_programs: cached("programs", &sources_of(&DEBIAN_PROGRAMS), build_programs)?,
        uefi_datastore: uefi::datastore(&debian.join("datastore.img"))?,
        datastore: debian.join("datastore.img"),
        modules: debian.join("modules"),
    })
}

/// The folder `NAME-HASH` of the cache. If it is not there, `build` fills another one, which is then renamed, so that an
/// interrupted build leaves nothing that looks finished.
pub fn cached(name: &str, recipe: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let folder = cache.join(format!("{name}-{:016x}", hash(recipe.as_bytes())));
    if folder.exists() {
        return Ok(folder);
    }
    let partial = cache.join(format!("{name}.partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let built = build(&partial);
    if built.is_ok() && !folder.exists() {
        fs::rename(&partial, &folder).with_context(|| format!("naming {}", folder.display()))?;
    } else if let Err(error) = fs::remove_dir_all(&partial) {
        eprintln!("note: {} stays: {error}", partial.display());
    }
    built.map(|()| folder)
}

fn debian_recipe() -> String {
    [RELEASE, INCLUDED, PREPARE, FINISH, FILE_SYSTEM_UUID, EPOCH, &TINY_MODULES.join(" "), &KVM_MODULES.join(" ")]
        .join("\n")
        + &format!("{DEBIAN_MIB} {SCRATCH_MIB}")
}

fn tiny_recipe() -> String {
    [TINY_INIT, TINY_DHCP, TINY_PASSWD, &sources_of(&TINY_PROGRAMS)].join("\n")
}

fn sources_of(programs: &[(&str, &str)]) -> String {
    let sources: Vec<&str> = programs.iter().map(|(_, source)| *source).collect();
    sources.join("\n")
}

/// FNV-1a, 64 bits: names cache folders, nothing depends on its strength.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn build_debian(folder: &Path) -> Result<()> {
    let archive = folder.join("root.tar");
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .args(["--variant=minbase", &format!("--include={INCLUDED}"), "--aptopt=Acquire::Languages \"none\""])
        .args(["doc", "man", "locale", "info"].map(|part| format!("--dpkgopt=path-exclude=/usr/share/{part}/*")))
        .arg(format!("--setup-hook={PREPARE}"))
        .arg(format!("--customize-hook={FINISH}"))
        .arg(RELEASE)
        .arg(&archive);
    steps::logged("building the Debian guest (about a minute, once)", "mmdebstrap", &mut bootstrap)?;
    let root = folder.join("root");
    fs::create_dir(&root).with_context(|| format!("creating {}", root.display()))?;
    let file_system = folder.join("root.ext4");
    unpack_and_format(&archive, &root, &file_system)?;
    let names: Vec<&str> = TINY_MODULES.into_iter().chain(KVM_MODULES).collect();
    take_modules(&root, &folder.join("modules"), &names)?;
    make_datastore(&folder.join("datastore.img"), &file_system)?;
    for path in [archive, file_system] {
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    take_kernel(&root, folder)?;
    fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
}

/// Makes an ext4 file system of the archive, by way of a folder, mounting nothing. Someone who is not root does it under
/// fakeroot, which remembers owners and device files that are not really there.
fn unpack_and_format(archive: &Path, root: &Path, file_system: &Path) -> Result<()> {
    let script = r#"set -eu
tar -xf "$1" -C "$2"
mke2fs -q -t ext4 -L debian -U "$4" -E "hash_seed=$4" -d "$2" "$3" "$5""#;
    let mut command = if setup::is_root() { Command::new("sh") } else { Command::new("fakeroot") };
    if !setup::is_root() {
        command.arg("sh");
    }
    command.env("E2FSPROGS_FAKE_TIME", EPOCH).args(["-c", script, "sh"]).args([archive, root, file_system]);
    command.arg(FILE_SYSTEM_UUID).arg(format!("{DEBIAN_MIB}M"));
    steps::logged("making its file system", "mke2fs", &mut command)
}

fn take_kernel(root: &Path, folder: &Path) -> Result<()> {
    for (prefix, name) in [("vmlinuz-", "linux"), ("initrd.img-", "initrd")] {
        let source = find(&root.join("boot"), &|file| file.starts_with(prefix))?;
        let source = source.with_context(|| format!("the Debian guest has no /boot/{prefix}*"))?;
        fs::copy(&source, folder.join(name)).with_context(|| format!("copying {}", source.display()))?;
    }
    Ok(())
}

/// Copies modules by name out of `/lib/modules`; one that is not there is built into the kernel.
fn take_modules(root: &Path, folder: &Path, names: &[&str]) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    for name in names {
        let file = format!("{name}.ko");
        if let Some(source) = find(&root.join("usr/lib/modules"), &|found| found == file)? {
            fs::copy(&source, folder.join(&file)).with_context(|| format!("copying {}", source.display()))?;
        }
    }
    ensure!(folder.join("virtio_blk.ko").exists(), "the Debian kernel has no module virtio_blk");
    Ok(())
}

fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), wanted)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_str().is_some_and(wanted) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Partitions a disk and copies the file system into its first partition.
fn make_datastore(disk: &Path, file_system: &Path) -> Result<()> {
    let file = File::create(disk).with_context(|| format!("creating {}", disk.display()))?;
    // A mebibyte before the partitions and one behind them, for the two copies of the table.
    file.set_len((DEBIAN_MIB + SCRATCH_MIB + 2) * MIB).with_context(|| format!("sizing {}", disk.display()))?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--set-alignment=2048", &format!("--disk-guid={FILE_SYSTEM_UUID}")]);
    for (index, (name, size)) in [("debian", DEBIAN_MIB), ("scratch", SCRATCH_MIB)].into_iter().enumerate() {
        let number = index + 1;
        command.arg(format!("--new={number}:0:+{size}M")).arg(format!("--change-name={number}:{name}"));
        command.arg(format!("--partition-guid={number}:706f6c6c-7578-4000-8000-00000000001{number}"));
    }
    steps::output(command.arg(disk)).context("partitioning the datastore")?;
    copy_range(file_system, 0, u64::MAX, disk, MIB)
}

/// Copies up to `bytes` bytes of `source` from `start` on into `target` at byte `offset`, leaving holes where they are
/// zero.
fn copy_range(source: &Path, start: u64, bytes: u64, target: &Path, offset: u64) -> Result<()> {
    let mut input = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    input.seek(SeekFrom::Start(start))?;
    let mut input = input.take(bytes);
    let mut output =
        File::options().write(true).open(target).with_context(|| format!("opening {}", target.display()))?;
    let mut chunk = vec![0; 1 << 20];
    let mut position = offset;
    loop {
        let length = input.read(&mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        if chunk[..length].iter().any(|byte| *byte != 0) {
            output.seek(SeekFrom::Start(position))?;
            output.write_all(&chunk[..length]).with_context(|| format!("writing {}", target.display()))?;
        }
        position += length as u64;
    }
}

/// A Linux with the drivers of a server's devices beside virtio's.
pub struct Linux {
    /// Its kernel.
    pub kernel: PathBuf,
    /// The small guest by it.
    pub initrd: PathBuf,
    /// Its modules, `NAME.ko`.
    pub modules: PathBuf,
}

/// Modules of such a host of KVM's, without KVM itself, in the order in which they load.
pub fn driver_host_modules() -> Vec<&'static str> {
    [&TINY_MODULES[..], &DRIVER_MODULES[..], &DRIVER_HOST_MODULES[..]].concat()
}

/// That Linux, from the cache or fetched now.
pub fn with_drivers() -> Result<Linux> {
    let busybox = fs::read("/bin/busybox").context("reading /bin/busybox (package busybox-static)")?;
    let names = [&TINY_MODULES[..], &DRIVER_MODULES[..]].concat();
    let kept = [&driver_host_modules()[..], &KVM_MODULES[..]].concat();
    let kernel = cached("driver-kernel", &format!("{DRIVER_KERNEL} {kept:?}"), |folder| {
        let mut download = Command::new("sh");
        download.args(["-c", DRIVER_KERNEL, "sh"]).arg(folder).args(&kept);
        steps::logged("fetching a kernel with drivers of a server's devices (once)", "driver-kernel", &mut download)
    })?;
    let recipe = format!("{} {:016x} {}", kernel.display(), hash(&busybox), tiny_recipe());
    let modules = kernel.join("modules");
    let folder = cached("drivers", &recipe, |folder| build_tiny_with(folder, &modules, &names, &busybox))?;
    Ok(Linux { kernel: kernel.join("linux"), initrd: folder.join("initrd"), modules })
}

fn build_tiny(folder: &Path, modules: &Path, busybox: &[u8]) -> Result<()> {
    build_tiny_with(folder, modules, &TINY_MODULES, busybox)
}

fn build_tiny_with(folder: &Path, modules: &Path, names: &[&str], busybox: &[u8]) -> Result<()> {
    let mut archive = Archive::default();
    for path in ["bin", "dev", "etc", "proc", "sys", "tmp", "modules"] {
        archive.folder(path);
    }
    add_busybox(&mut archive, busybox)?;
    add_modules(&mut archive, modules, names)?;
    for (name, source) in TINY_PROGRAMS {
        archive.file(&format!("bin/{name}"), &compile(folder, name, source)?);
    }
    archive.file("bin/dhcp", TINY_DHCP.as_bytes());
    archive.file("etc/passwd", TINY_PASSWD.as_bytes());
    archive.file("init", TINY_INIT.as_bytes());
    // Not compressed: unpacking would take longer than loading it does.
    fs::write(folder.join("initrd"), archive.finish()).context("writing the small guest")
}

fn build_programs(folder: &Path) -> Result<()> {
    for (name, source) in DEBIAN_PROGRAMS {
        let program = compile(folder, name, source)?;
        fs::write(folder.join(name), program).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

/// Adds busybox and a link for each of its commands.
pub fn add_busybox(archive: &mut Archive, busybox: &[u8]) -> Result<()> {
    archive.file("bin/busybox", busybox);
    let list = steps::output(Command::new("/bin/busybox").arg("--list"))?;
    if list.is_empty() {
        bail!("/bin/busybox lists no commands");
    }
    for command in list.lines().filter(|command| *command != "busybox") {
        archive.link(&format!("bin/{command}"), "busybox");
    }
    Ok(())
}

/// Adds kernel modules by name and the order in which they load. One that is not there is built into the kernel.
pub fn add_modules(archive: &mut Archive, folder: &Path, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for name in names {
        let path = folder.join(format!("{name}.ko"));
        if path.exists() {
            let module = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            archive.file(&format!("modules/{name}.ko"), &module);
            order += &format!("{name}\n");
        }
    }
    archive.file("modules/order", order.as_bytes());
    Ok(())
}

/// Compiles a static program and gives its bytes.
fn compile(folder: &Path, name: &str, source: &str) -> Result<Vec<u8>> {
    let (text, program) = (folder.join(format!("{name}.c")), folder.join(name));
    fs::write(&text, source).with_context(|| format!("writing {}", text.display()))?;
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(&text);
    steps::output(&mut compiler).with_context(|| format!("compiling {name}.c"))?;
    let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    fs::remove_file(&text)?;
    fs::remove_file(&program)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
