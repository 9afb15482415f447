//! Runs one guest under one of the three systems and collects the figures it prints. The main type is [`Rig`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::{
    Accel, Artifacts, Bochs, Console, DiskBus, Emulator, Host, Launch, Machine, Model, NicModel, Pc, SCRATCH_DISK,
    TINY_INITRD,
};
use serde_json::Value;

use super::Figures;
use super::kvm_host::{self, KvmHost};
use super::server::Server;
use crate::guest::{self, Guests, Linux, TINY_MODULES};
use crate::image::{self, Guest};
use crate::{artifacts, paths, steps};

/// For a guest to have measured everything, under the slowest system on a loaded machine.
const LIMIT: Duration = Duration::from_secs(900);
/// The disk that is measured: one partition of this size, written through to a file.
const DISK_MIB: u64 = 130;
/// Memory of the guest under every system, and of the host around it.
const GUEST_MIB: u32 = 512;
const HOST_MIB: u32 = 2048;
/// What guests write again and again to have their writes tracked: two sizes, from which cost per look and per page follow.
const TRACKED_MIB: [u32; 2] = [1, 2];
/// Memory of the guest in Bochs, whose machines have 1 GiB.
const BOCHS_GUEST_MIB: u32 = 256;

/// What a guest runs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Pollux in the emulator.
    Pollux,
    /// The emulator itself.
    Bare,
    /// Linux KVM and QEMU in the emulator.
    Kvm,
}

impl System {
    /// All three, in the order in which they take turns.
    pub const ALL: [Self; 3] = [Self::Pollux, Self::Bare, Self::Kvm];

    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pollux => "pollux",
            Self::Bare => "bare",
            Self::Kvm => "kvm",
        }
    }
}

/// A guest of KVM's.
struct Nested<'a> {
    guest: &'a str,
    kernel: &'a Path,
    vcpus: u32,
}

/// The Linux that is KVM's host, and the device of it that is measured.
struct NestedHost<'a> {
    kernel: &'a Path,
    system: kvm_host::System<'a>,
    device: Box<dyn Fn(Launch) -> Launch + 'a>,
}

/// Everything that is measured with, built once.
pub struct Rig {
    pub(super) artifacts: Artifacts,
    pub(super) kvm_host: KvmHost,
    pub(super) guests: Guests,
    server: Server,
    disk: PathBuf,
    pub(super) folder: PathBuf,
}

impl Rig {
    /// Builds it all.
    pub fn build() -> Result<Self> {
        let folder = paths::target().join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let disk = folder.join("disk.img");
        make_disk(&disk)?;
        // Figures are compared within one emulator; the machine's own AMD-V would compare something else.
        let artifacts = artifacts::build(Accel::Tcg)?;
        Ok(Self {
            artifacts,
            kvm_host: KvmHost::build()?,
            guests: guest::guests()?,
            server: Server::start()?,
            disk,
            folder,
        })
    }

    /// Boots the small Linux guest, which measures `parts` (of boot, exits, disk, net, mix) on `vcpus` processors.
    pub fn linux(&self, system: System, parts: &str, vcpus: u32) -> Result<Figures> {
        let words = format!("console=ttyS0 quiet panic=-1 bench={parts} server={}", self.server.guest_address());
        let linux = &self.artifacts.linux;
        let name = format!("bench-{}-{}", system.name(), parts.replace(',', "-"));
        match system {
            System::Pollux => {
                let launch = self.pollux(&name, Accel::Tcg, &[])?;
                self.under_pollux(&launch, &format!("--kernel linux --initrd {TINY_INITRD} --vcpus {vcpus}"), &words)
            }
            System::Bare => {
                let launch = Launch::new(&name).memory_mib(GUEST_MIB).linux(linux, &self.artifacts.tiny_initrd, &words);
                self.alone(&launch.kept_disk(&self.disk).nic(""))
            }
            System::Kvm => {
                let nested = Nested { guest: "linux", kernel: linux, vcpus };
                self.under_kvm(&name, Accel::Tcg, &self.virtio_host(), &nested, &words)
            }
        }
    }

    /// Measures the network through a card of the host's, and under Linux with its own driver of that card.
    pub fn card(&self, system: System, model: NicModel) -> Result<Figures> {
        let device = |launch: Launch| launch.nic_model(model).nic("");
        self.device(system, &format!("{model:?}"), "net", "--nic", &device).map(|(figures, _)| figures)
    }

    /// Measures a disk behind a controller of the host's, and under Linux with its own driver of that controller. What
    /// Pollux reads without a guest is compared with what programs read by Linux's driver.
    pub fn controller(&self, system: System, bus: DiskBus) -> Result<Figures> {
        let device = |launch: Launch| {
            let machine = if bus == DiskBus::Ata { Machine::Pc } else { Machine::Q35 };
            launch.machine(machine).disk_bus(bus).kept_disk(&self.disk)
        };
        let options = format!("--disk {SCRATCH_DISK}");
        let (mut figures, host) = self.device(system, &format!("{bus:?}"), "disk", &options, &device)?;
        let own = match host {
            Some(mut host) => own_reads(&host.ask("disk measure disk0")?)?,
            None if system == System::Bare => figures.clone(),
            None => Figures::new(),
        };
        let own = own.into_iter().filter(|(name, _)| name.starts_with("disk_random"));
        figures.extend(own.map(|(name, value)| (format!("host_{name}"), value)));
        Ok(figures)
    }

    /// Measures `part` in a guest with `options` of a host with a device; without Pollux, by the same Linux, on the same
    /// machine; and in the same guest of KVM's. Gives Pollux too, which still runs.
    fn device(
        &self,
        system: System,
        name: &str,
        part: &str,
        options: &str,
        device: &dyn Fn(Launch) -> Launch,
    ) -> Result<(Figures, Option<Host>)> {
        let words = format!("console=ttyS0 quiet panic=-1 bench={part} server={}", self.server.guest_address());
        let name = format!("bench-{}-{name}", system.name());
        let Linux { kernel, initrd, modules } = guest::with_drivers()?;
        match system {
            System::Pollux => {
                let modules = [(kernel, e2e::LINUX.to_owned()), (initrd, TINY_INITRD.to_owned())];
                let launch = Launch::new(&name).memory_mib(HOST_MIB);
                let launch = launch.multiboot(&self.artifacts.kernel32, "", &modules)?;
                let mut host = self.artifacts.boot(&device(launch))?;
                host.ask(&format!(
                    "vm create b --kernel linux --initrd {TINY_INITRD} --cmdline \"{words}\" --memory {GUEST_MIB}M {options} --start"
                ))?;
                let mut console = host.attach("b")?;
                let figures = collect(console.emulator())?;
                console.leave()?;
                Ok((figures, Some(host)))
            }
            System::Bare => {
                let launch = Launch::new(&name).memory_mib(GUEST_MIB).linux(&kernel, &initrd, &words);
                Ok((self.alone(&device(launch))?, None))
            }
            System::Kvm => {
                let names = guest::driver_host_modules();
                let system =
                    kvm_host::System { modules: &modules, names: &names, guest_initrd: &initrd, init: kvm_host::INIT };
                let host = NestedHost { kernel: &kernel, system, device: Box::new(device) };
                let nested = Nested { guest: "linux", kernel: &kernel, vcpus: 1 };
                Ok((self.under_kvm(&name, Accel::Tcg, &host, &nested, &words)?, None))
            }
        }
    }

    /// Boots a bare guest on `vcpus` processors. With `counting`, virtual time counts instructions.
    pub fn bare_guest(&self, system: System, name: &str, counting: bool, vcpus: u32) -> Result<Figures> {
        let accel = if counting { Accel::Counting } else { Accel::Tcg };
        let log = format!("bench-{}-{name}{}", system.name(), if counting { "-counted" } else { "" });
        let elf = self.artifacts.guest(name)?.with_extension("");
        match system {
            System::Pollux => {
                let launch = self.pollux(&log, accel, &[(self.artifacts.guest(name)?, name)])?;
                self.under_pollux(&launch, &format!("--kernel {name} --vcpus {vcpus}"), "")
            }
            System::Bare => self.alone(&Launch::new(&log).accel(accel).memory_mib(GUEST_MIB).argument("-kernel", elf)),
            System::Kvm => {
                let nested = Nested { guest: name, kernel: &elf, vcpus };
                self.under_kvm(&log, accel, &self.virtio_host(), &nested, "")
            }
        }
    }

    /// The costs of VT-x in Bochs, whose time is the instructions that were executed: exits, and the boot of the small
    /// Linux guest.
    pub fn vmx(&self, system: System) -> Result<Figures> {
        let exits = self.artifacts.guest("exits")?.with_extension("");
        // It believes CPUID leaf 15h otherwise, which is that of the real processor.
        let khz = Bochs::INSTRUCTIONS_PER_SECOND / 1000;
        let words = format!("console=ttyS0 quiet panic=-1 tsc_early_khz={khz} bench=boot");
        let mut figures = match system {
            System::Pollux => self.vmx_pollux("exits", "--kernel exits")?,
            System::Bare => self.vmx_bare("exits", &Guest::Multiboot(&exits), "exits")?,
            System::Kvm => return Ok(Figures::new()),
        };
        let linux = Guest::Linux { kernel: &self.artifacts.linux, initrd: &self.artifacts.tiny_initrd };
        let mut boot = match system {
            System::Bare => self.vmx_bare("boot", &linux, &words)?,
            _ => self.vmx_pollux("boot", &format!("--kernel linux --initrd {TINY_INITRD} --cmdline \"{words}\""))?,
        };
        let seconds = boot.remove("boot_to_user_s").context("the guest did not say how long it took to boot")?;
        figures.insert("boot_to_user".into(), seconds * Bochs::INSTRUCTIONS_PER_SECOND as f64);
        if system == System::Pollux {
            figures.extend(self.vmx_tracking(Model::Intel, "log")?);
            figures.extend(self.vmx_tracking(Model::OldIntel, "bits")?);
        }
        Ok(figures)
    }

    /// What it costs to look what a guest wrote: a look that finds little, and each page more.
    fn vmx_tracking(&self, model: Model, how: &str) -> Result<Figures> {
        let mut host = self.artifacts.boot_bochs(&format!("bench-pollux-vmx-tracking-{how}"), model, 1)?;
        let mut look = |mib: u32| -> Result<(f64, f64)> {
            let writes = e2e::measure_writes(&mut host, mib)?;
            let number = |name: &str| writes[name].as_f64().with_context(|| format!("`vm measure` gives no {name}"));
            let instructions = number("look_ns")? * Bochs::INSTRUCTIONS_PER_SECOND as f64 / 1e9;
            Ok((number("pages")? / number("looks")?, instructions))
        };
        let (few, short) = look(TRACKED_MIB[0])?;
        let (many, long) = look(TRACKED_MIB[1])?;
        ensure!(many > few, "more memory was not more written: {few} and {many} pages");
        let page = (long - short) / (many - few);
        let figure = |name: &str, value: f64| (format!("tracking_{name}_by_{how}"), value);
        Ok(Figures::from([figure("look", short - page * few), figure("page", page)]))
    }

    fn vmx_pollux(&self, name: &str, options: &str) -> Result<Figures> {
        let mut host = self.artifacts.boot_bochs(&format!("bench-pollux-vmx-{name}"), Model::Intel, 1)?;
        host.ask(&format!("vm create b {options} --memory {BOCHS_GUEST_MIB}M --start"))?;
        collect(host.attach("b")?.emulator())
    }

    fn vmx_bare(&self, name: &str, guest: &Guest<'_>, words: &str) -> Result<Figures> {
        let name = format!("bench-bare-vmx-{name}");
        let image = self.folder.join(format!("{name}.img"));
        image::build_bare(guest, words, &image)?;
        let bochs = self.artifacts.bochs.as_ref().map_err(|why| anyhow!("{why}"))?;
        let pc = Pc::new(&name, Model::Intel, 1, &image);
        collect(Console::new(&mut bochs.start(&pc, &self.artifacts.logs)?).emulator())
    }

    /// Pollux's own memory without and with a VM, and how long it took from its first instruction to the prompt.
    pub fn memory(&self, system: System) -> Result<Figures> {
        let mut figures = Figures::new();
        if system != System::Pollux {
            return Ok(figures);
        }
        let mut host = self.artifacts.boot(&self.pollux("bench-pollux-memory", Accel::Tcg, &[])?)?;
        let report = host.ask("host")?;
        let own_mib =
            |report: &serde_json::Value| report["memory"]["own_bytes"].as_f64().map(|bytes| bytes / 1_048_576.0);
        let before = own_mib(&report).context("`host --json` does not give Pollux's own memory")?;
        let uptime_ns = report["uptime_ns"].as_f64().context("`host --json` does not give the uptime")?;
        figures.insert("start_to_prompt_ms".into(), uptime_ns / 1e6);
        figures.insert("own_MiB".into(), before);
        host.ask(&format!(
            "vm create t --kernel linux --initrd {TINY_INITRD} --cmdline \"console=ttyS0 quiet linger=yes\" --memory {GUEST_MIB}M --nic --start"
        ))?;
        let mut console = host.attach("t")?;
        console.expect("tick 1", LIMIT)?;
        console.leave()?;
        let after = own_mib(&host.ask("host")?).context("`host --json` does not give Pollux's own memory")?;
        figures.insert("one_vm_more_MiB".into(), after - before);
        Ok(figures)
    }

    /// Pollux with the small Linux guest and these modules.
    pub(super) fn pollux(&self, name: &str, accel: Accel, modules: &[(&Path, &str)]) -> Result<Launch> {
        let mut all = vec![(self.artifacts.linux.clone(), e2e::LINUX.to_owned())];
        all.push((self.artifacts.tiny_initrd.clone(), TINY_INITRD.to_owned()));
        all.extend(modules.iter().map(|(path, name)| (path.to_path_buf(), (*name).to_owned())));
        let launch =
            Launch::new(name).accel(accel).memory_mib(HOST_MIB).multiboot(&self.artifacts.kernel32, "", &all)?;
        Ok(launch.kept_disk(&self.disk).nic(""))
    }

    fn under_pollux(&self, launch: &Launch, kernel: &str, words: &str) -> Result<Figures> {
        let mut host = self.artifacts.boot(launch)?;
        host.ask(&format!(
            "vm create b {kernel} --cmdline \"{words}\" --memory {GUEST_MIB}M --disk {SCRATCH_DISK} --nic --start"
        ))?;
        let mut console = host.attach("b")?;
        collect(console.emulator())
    }

    fn alone(&self, launch: &Launch) -> Result<Figures> {
        collect(Console::new(&mut launch.spawn(&self.artifacts.logs)?).emulator())
    }

    fn under_kvm(
        &self,
        name: &str,
        accel: Accel,
        host: &NestedHost<'_>,
        nested: &Nested<'_>,
        words: &str,
    ) -> Result<Figures> {
        let Nested { guest, kernel, vcpus } = *nested;
        let initrd = self.folder.join(format!("{name}.initrd"));
        self.kvm_host.initrd(&initrd, &host.system, guest, kernel, words)?;
        let host_words =
            format!("console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 guest={guest} vcpus={vcpus}");
        let launch = Launch::new(name).accel(accel).memory_mib(HOST_MIB);
        let launch = launch.linux(host.kernel, &initrd, &host_words).disk(&self.kvm_host.disk);
        let figures = self.alone(&(host.device)(launch));
        fs::remove_file(&initrd).with_context(|| format!("removing {}", initrd.display()))?;
        figures
    }

    /// The host of KVM's guests where all devices are virtio's.
    fn virtio_host(&self) -> NestedHost<'_> {
        let (modules, guest_initrd) = (&self.guests.modules, &self.guests.tiny_initrd);
        let system = kvm_host::System { modules, names: &TINY_MODULES, guest_initrd, init: kvm_host::INIT };
        NestedHost {
            kernel: &self.guests.linux,
            system,
            device: Box::new(|launch| launch.kept_disk(&self.disk).nic("")),
        }
    }
}

/// Waits for the guest's last line and reads the figures before it: `BENCH name value`.
fn collect(emulator: &mut Emulator) -> Result<Figures> {
    let ends = ["BENCH_DONE", "\ndone", "BENCH FAILED", "HOST_DONE", "Kernel panic"];
    let (which, _) = emulator.expect_any(&ends, LIMIT)?;
    ensure!(which < 2, emulator.failure("the guest did not measure everything"));
    let figures = parse(&emulator.transcript());
    ensure!(!figures.is_empty(), emulator.failure("the guest printed no figures"));
    Ok(figures)
}

/// What `disk measure` found, by the names that the guest's program gives.
fn own_reads(report: &Value) -> Result<Figures> {
    let loads = report["loads"].as_array().context("`disk measure --json` lists no loads")?;
    let figure = |load: &Value| {
        let name = match (load["order"].as_str()?, load["depth"].as_u64()?) {
            ("random", depth) => format!("disk_random_4k_qd{depth}_iops"),
            (order, depth) => format!("disk_{order}_qd{depth}_iops"),
        };
        Some((name, load["reads_per_second"].as_f64()?))
    };
    loads.iter().map(|load| figure(load).context("a load of `disk measure --json` lacks a value")).collect()
}

pub(super) fn parse(transcript: &str) -> Figures {
    let figure = |line: &str| {
        let mut words = line.trim().strip_prefix("BENCH ")?.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    transcript.lines().filter_map(figure).collect()
}

/// A disk with one partition, filled, so that every system reads what lies in the file.
fn make_disk(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    drop(file);
    let fill = format!("if=/dev/zero of={} bs=1M count={DISK_MIB}", path.display());
    steps::output(Command::new("dd").args(fill.split(' '))).context("filling the disk to measure")?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--new=1:2048:0", &format!("--change-name=1:{SCRATCH_DISK}")]).arg(path);
    steps::output(&mut command).context("partitioning the disk to measure").map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_among_other_lines() {
        let figures =
            parse("boot\r\nBENCH cpuid 45000.5\r\nBENCH FAILED: disk\r\n BENCH boot_to_user_s 2.4\r\ntick 1\r\n");
        assert_eq!(figures.len(), 2);
        assert_eq!(figures["cpuid"], 45000.5);
    }
}
