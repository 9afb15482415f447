//! Builds a QEMU command line piece by piece and starts it. The main type is [`Launch`]; [`crate::Emulator`] is what
//! [`Launch::spawn`] gives, and `cargo xtask run` starts the same command line on a person's terminal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Once;

use anyhow::{Context, Result, bail, ensure};

use crate::emulator::{Emulator, Kind, Line, resets_log};
use crate::{erratum, monitor};

/// What executes the host's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's own emulation, which includes AMD-V with nested paging.
    Tcg,
    /// The same with virtual time that counts instructions, one nanosecond each, so that a run repeats itself exactly.
    Counting,
    /// The machine's own AMD-V or VT-x, nested.
    Kvm,
}

impl Accel {
    /// KVM where this process may open `/dev/kvm` and the module nests AMD-V, else TCG. The device alone says nothing: it
    /// exists on machines whose CPU shows no virtualisation at all.
    #[must_use]
    pub fn detect() -> Self {
        if Self::nested_backend() == Ok("svm") { Self::Kvm } else { Self::Tcg }
    }

    /// What `host` calls the back end that Pollux has under this machine's own KVM, or why KVM cannot nest it.
    ///
    /// # Errors
    /// Where there is no KVM, or it hides virtualisation from its guests.
    pub fn nested_backend() -> Result<&'static str, String> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            return Err(format!("/dev/kvm: {error}"));
        }
        let nests = |module: &str| {
            let path = format!("/sys/module/{module}/parameters/nested");
            fs::read_to_string(path).is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        };
        let backends = [("kvm_amd", "svm"), ("kvm_intel", "vmx")];
        let found = backends.into_iter().find(|(module, _)| nests(module)).map(|(_, backend)| backend);
        found.ok_or_else(|| "this machine's KVM does not nest virtualisation".to_owned())
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Tcg => &["-accel", "tcg,thread=multi"],
            Self::Counting => &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"],
            Self::Kvm => &["-accel", "kvm"],
        }
    }

    fn cpu(self) -> &'static str {
        match self {
            Self::Tcg => "EPYC,+svm,+npt,+x2apic",
            // WRMSR is no I/O instruction to QEMU, so that an x2APIC's timer register ends it: "Bad icount read".
            Self::Counting => "EPYC,+svm,+npt",
            Self::Kvm => "host",
        }
    }
}

/// Where the image is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// An optical drive.
    Cd,
    /// A USB stick on an xHCI controller.
    Usb,
    /// A USB stick on an EHCI controller, as in servers of before 2013.
    UsbEhci,
}

/// The controller that a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// A virtio-blk function of its own.
    Virtio,
    /// An NVM Express controller of its own, with one namespace.
    Nvme,
    /// A port of the machine's AHCI controller.
    Ahci,
    /// A channel of the IDE controller of [`Machine::Pc`].
    Ata,
}

impl DiskBus {
    /// The value of `-device` for the disk on drive `id`, the machine's `number`th.
    fn device(self, id: &str, number: usize) -> String {
        match self {
            Self::Virtio => format!("virtio-blk-pci,drive={id}"),
            Self::Nvme => format!("nvme,drive={id},serial={id}"),
            Self::Ahci => format!("ide-hd,drive={id},serial={id}"),
            Self::Ata => format!("ide-hd,bus=ide.{},unit={},drive={id},serial={id}", number / 2, number % 2),
        }
    }
}

/// The board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// PCI Express and an AHCI controller, as of 2009.
    Q35,
    /// PCI and an IDE controller, as of 1996.
    Pc,
}

impl Machine {
    /// What QEMU calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
        }
    }
}

/// Where the serial line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    /// A PC's first port, alone.
    Com1,
    /// The second, alone.
    Com2,
    /// The second, beside a first at which nobody listens.
    Com2BesideCom1,
    /// A UART on PCI, alone.
    Pci,
}

impl Serial {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Com1 => &["-serial", "chardev:console"],
            Self::Com2 => &["-device", "isa-serial,index=1,chardev=console"],
            Self::Com2BesideCom1 => &["-serial", "null", "-serial", "chardev:console"],
            Self::Pci => &["-device", "pci-serial,chardev=console"],
        }
    }
}

/// What a network card is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicModel {
    /// virtio-net.
    Virtio,
    /// Intel 82540EM, which a hypervisor has to poll.
    E1000,
    /// Intel 82574L.
    E1000e,
    /// Intel 82576.
    Igb,
}

impl NicModel {
    /// What QEMU calls it.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Igb => "igb",
        }
    }
}

/// An emulated machine that has not been switched on: machine type q35 unless chosen otherwise, serial line on standard input and output, no
/// display, no default devices, no reboot.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    machine: Machine,
    accel: Accel,
    cpu_model: Option<String>,
    serial: Serial,
    memory_mib: u32,
    cpus: u32,
    arguments: Vec<OsString>,
    disk_bus: DiskBus,
    nic_model: NicModel,
    drives: usize,
    nics: usize,
}

impl Launch {
    /// A machine with 2 CPUs and 2 GiB. `name` names its log files.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            machine: Machine::Q35,
            accel: Accel::Tcg,
            cpu_model: None,
            serial: Serial::Com1,
            memory_mib: 2048,
            cpus: 2,
            arguments: Vec::new(),
            disk_bus: DiskBus::Virtio,
            nic_model: NicModel::Virtio,
            drives: 0,
            nics: 0,
        }
    }

    /// Chooses the board.
    #[must_use]
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = machine;
        self
    }

    /// Chooses what executes instructions.
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// Replaces the CPU model, in QEMU's syntax (`EPYC,-svm`).
    #[must_use]
    pub fn cpu(mut self, model: &str) -> Self {
        self.cpu_model = Some(model.to_owned());
        self
    }

    /// Moves the serial line.
    #[must_use]
    pub fn serial(mut self, serial: Serial) -> Self {
        self.serial = serial;
        self
    }

    /// Sets the amount of memory.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Sets the number of CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The fast path: QEMU loads a Multiboot 1 kernel and its modules itself. A module is a file and its name; QEMU
    /// separates them by spaces and commas, so neither may contain one.
    ///
    /// # Errors
    /// If a path or a name contains a space or a comma.
    pub fn multiboot(mut self, kernel: &Path, command_line: &str, modules: &[(PathBuf, String)]) -> Result<Self> {
        let mut list = Vec::new();
        for (path, name) in modules {
            let entry = format!("{} {name}", path.display());
            ensure!(
                entry.matches(' ').count() == 1 && !entry.contains(','),
                "QEMU cannot load the module {} as \"{name}\": move it to a path without spaces and commas",
                path.display()
            );
            list.push(entry);
        }
        self = self.argument("-kernel", kernel).argument("-append", command_line);
        Ok(if list.is_empty() { self } else { self.argument("-initrd", list.join(",")) })
    }

    /// Boots a Linux kernel directly: the guest without a hypervisor, to compare with.
    #[must_use]
    pub fn linux(self, kernel: &Path, initrd: &Path, command_line: &str) -> Self {
        self.argument("-kernel", kernel).argument("-initrd", initrd).argument("-append", command_line)
    }

    /// Boots an image by the firmware, without writing to it.
    #[must_use]
    pub fn image(self, image: &Path, medium: Medium) -> Self {
        let drive = format!("if=none,id=boot,format=raw,readonly=on,file={}", escape(image));
        let device = match medium {
            Medium::Cd => "ide-cd,drive=boot,bootindex=0",
            Medium::Usb | Medium::UsbEhci => "usb-storage,drive=boot,bootindex=0",
        };
        let machine = match medium {
            Medium::Cd => self,
            Medium::Usb => self.argument("-device", "qemu-xhci"),
            Medium::UsbEhci => self.argument("-device", "usb-ehci"),
        };
        machine.argument("-drive", drive).argument("-device", device)
    }

    /// Replaces the BIOS by UEFI firmware: `code` is OVMF's read-only half, `variables` a copy of the other, discarded
    /// afterwards.
    #[must_use]
    pub fn uefi(self, code: &Path, variables: &Path) -> Self {
        self.argument("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={}", escape(code)))
            .argument("-drive", format!("if=pflash,unit=1,format=raw,snapshot=on,file={}", escape(variables)))
    }

    /// Chooses the controller of the disks added from here on; virtio-blk before.
    #[must_use]
    pub fn disk_bus(mut self, bus: DiskBus) -> Self {
        self.disk_bus = bus;
        self
    }

    /// Adds a disk whose writes are kept in a temporary file and forgotten.
    #[must_use]
    pub fn disk(self, image: &Path) -> Self {
        self.drive(image, "snapshot=on")
    }

    /// Adds a disk whose writes go to the image: for measuring, where a temporary file would be measured too.
    #[must_use]
    pub fn kept_disk(self, image: &Path) -> Self {
        self.drive(image, "snapshot=off")
    }

    /// As [`Launch::shared_disk`], but with a cache, of whose flushes after a write these fail: the first is 1.
    #[must_use]
    pub fn disk_failing_to_flush(mut self, image: &Path, failing: &[u32]) -> Self {
        let id = format!("disk{}", self.drives);
        self.drives += 1;
        let image = format!("file.image.driver=file,file.image.locking=off,file.image.filename={}", escape(image));
        let mut drive = format!("if=none,id={id},format=raw,werror=report,file.driver=blkdebug,{image}");
        // A state a flush.
        for state in 1..=failing.iter().copied().max().unwrap_or(0) {
            let rule = format!("file.set-state.{}", state - 1);
            drive += &format!(",{rule}.event=flush_to_disk,{rule}.state={state},{rule}.new_state={}", state + 1);
        }
        for (index, state) in failing.iter().enumerate() {
            let rule = format!("file.inject-error.{index}");
            drive += &format!(",{rule}.event=flush_to_disk,{rule}.state={state},{rule}.iotype=flush,{rule}.once=on");
        }
        self.argument("-drive", drive).argument("-device", format!("virtio-blk-pci,drive={id},share-rw=on"))
    }

    /// As [`Launch::kept_disk`], but so many reads of a sector fail, the first ones.
    #[must_use]
    pub fn failing_disk(mut self, image: &Path, sector: u64, times: u32) -> Self {
        let id = format!("disk{}", self.drives);
        let device = self.disk_bus.device(&id, self.drives);
        self.drives += 1;
        let mut drive = format!(
            "if=none,id={id},format=raw,rerror=report,file.driver=blkdebug,file.image.driver=file,file.image.filename={}",
            escape(image)
        );
        for index in 0..times {
            let rule = format!("file.inject-error.{index}");
            drive +=
                &format!(",{rule}.event=none,{rule}.iotype=read,{rule}.sector={sector},{rule}.once=on,{rule}.errno=5");
        }
        self.argument("-drive", drive).argument("-device", device)
    }

    /// Adds a virtio disk whose writes go to the image at once, and which other machines have too.
    #[must_use]
    pub fn shared_disk(mut self, image: &Path) -> Self {
        let id = format!("disk{}", self.drives);
        self.drives += 1;
        self.argument(
            "-drive",
            format!("if=none,id={id},format=raw,file.locking=off,cache=writethrough,file={}", escape(image)),
        )
        .argument("-device", format!("virtio-blk-pci,drive={id},share-rw=on"))
    }

    fn drive(mut self, image: &Path, option: &str) -> Self {
        let id = format!("disk{}", self.drives);
        let device = self.disk_bus.device(&id, self.drives);
        self.drives += 1;
        self.argument("-drive", format!("if=none,id={id},format=raw,{option},file={}", escape(image)))
            .argument("-device", device)
    }

    /// Chooses what the NICs added from here on are; virtio-net before.
    #[must_use]
    pub fn nic_model(mut self, model: NicModel) -> Self {
        self.nic_model = model;
        self
    }

    /// Adds a NIC on QEMU's user network, `net0`, `net1` and so on: gateway and DHCP server 10.0.2.2, DNS 10.0.2.3. `options` is appended
    /// (`hostfwd=tcp:127.0.0.1:0-:22`), or empty. It has no boot ROM, which would only delay the firmware.
    #[must_use]
    pub fn nic(mut self, options: &str) -> Self {
        let id = format!("net{}", self.nics);
        let mac = format!("52:54:00:50:4c:{:02x}", self.nics);
        let device = self.nic_model.device();
        self.nics += 1;
        let separator = if options.is_empty() { "" } else { "," };
        self.argument("-netdev", format!("user,id={id}{separator}{options}"))
            .argument("-device", format!("{device},netdev={id},mac={mac},romfile="))
    }

    /// Adds any other option with its value.
    #[must_use]
    pub fn argument(mut self, option: &str, value: impl Into<OsString>) -> Self {
        self.arguments.push(option.into());
        self.arguments.push(value.into());
        self
    }

    /// The name that its log files carry.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The command with the serial line on standard input and output. No key is QEMU's own, and Ctrl-C belongs to the guest.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = self.base();
        command.args(["-chardev", "stdio,id=console,signal=off"]).args(self.serial.arguments());
        command.args(["-monitor", "none"]);
        command
    }

    /// Runs the machine at a person's terminal, until it ends: as [`Launch::command`], but Ctrl-^ then x ends the emulator.
    /// QEMU's usual Ctrl-A stays free for the guest's shell, and Ctrl-] for leaving a guest's console.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn run_at_terminal(&self) -> Result<ExitStatus> {
        let mut command = self.base();
        command.args(["-chardev", "stdio,id=console,mux=on,signal=off"]).args(self.serial.arguments());
        command.args(["-mon", "chardev=console", "-echr", "0x1e"]);
        let mut emulator = command.spawn().context("starting the emulator")?;
        mend(emulator.id());
        emulator.wait().context("waiting for the emulator")
    }

    fn base(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", self.machine.name(), "-nodefaults", "-display", "none", "-no-reboot"]);
        command.args(self.accel.arguments());
        command.arg("-cpu").arg(self.cpu_model.as_deref().unwrap_or(self.accel.cpu()));
        command.arg("-m").arg(format!("{}M", self.memory_mib)).arg("-smp").arg(self.cpus.to_string());
        command.args(&self.arguments);
        command
    }

    /// Switches the machine on, its logs in `log_directory`: `NAME.log` what the serial line said, `NAME.qemu.log` what
    /// QEMU itself said.
    ///
    /// # Errors
    /// If QEMU cannot be started or a log cannot be created.
    pub fn spawn(&self, log_directory: &Path) -> Result<Emulator> {
        if self.name.is_empty() || self.name.contains('/') {
            bail!("\"{}\" cannot name a log file", self.name);
        }
        fs::create_dir_all(log_directory).with_context(|| format!("creating {}", log_directory.display()))?;
        let socket = monitor::socket(&self.name);
        let mut command = self.command();
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        let resets = resets_log(&log_directory.join(format!("{}.log", self.name)));
        command.args(["-d", "cpu_reset", "-D"]).arg(resets);
        let kind = Kind { name: "qemu", patience: 1 };
        let emulator = Emulator::start(command, kind, Line::Pipes, &self.name, log_directory)?;
        mend(emulator.process_id());
        Ok(emulator.with_monitor(socket))
    }
}

/// Takes a fault of QEMU's out of one that was started, or says that it is still there.
fn mend(process: u32) {
    static SAID: Once = Once::new();
    if let Err(why) = erratum::mend(process) {
        SAID.call_once(|| eprintln!("note: QEMU is not mended, {why}: a host may fall when its guests switch tasks"));
    }
}

/// QEMU's option parser ends a value at a comma; two commas stand for one.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(launch: &Launch) -> Vec<String> {
        launch.command().get_args().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn modules_are_listed_with_their_names() {
        let modules = [(PathBuf::from("/a/k"), "linux".to_owned()), (PathBuf::from("/a/i"), "initrd".to_owned())];
        let launch = Launch::new("t").multiboot(Path::new("/a/kernel"), "quiet", &modules).unwrap();
        assert!(arguments(&launch).contains(&"/a/k linux,/a/i initrd".to_owned()));
    }

    #[test]
    fn a_module_path_that_qemu_would_split_is_refused() {
        for path in ["/a b/k", "/a,b/k"] {
            let modules = [(PathBuf::from(path), "linux".to_owned())];
            assert!(Launch::new("t").multiboot(Path::new("/k"), "", &modules).is_err(), "{path}");
        }
    }

    #[test]
    fn commas_in_drive_paths_are_doubled_and_drives_are_numbered() {
        let launch = Launch::new("t").disk(Path::new("/a,b")).disk(Path::new("/c"));
        let arguments = arguments(&launch);
        assert!(arguments.contains(&"if=none,id=disk0,format=raw,snapshot=on,file=/a,,b".to_owned()));
        assert!(arguments.contains(&"virtio-blk-pci,drive=disk1".to_owned()));
    }

    #[test]
    fn each_disk_hangs_on_the_controller_chosen_before_it() {
        let launch = Launch::new("t").disk(Path::new("/a")).disk_bus(DiskBus::Nvme).disk(Path::new("/b"));
        let arguments = arguments(&launch.disk_bus(DiskBus::Ahci).disk(Path::new("/c")));
        for device in ["virtio-blk-pci,drive=disk0", "nvme,drive=disk1,serial=disk1", "ide-hd,drive=disk2,serial=disk2"]
        {
            assert!(arguments.contains(&device.to_owned()), "{device}");
        }
    }
}
