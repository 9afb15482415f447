//! What a virtual machine is made of: a table `[[vm]]`, or a `vm create` at the shell.

use alloc::{format, string::String, vec::Vec};
use core::fmt;

use crate::{Error, Invalid, Limits, Mac, Name, Size, section::Section};

/// The least memory of a VM: below this Linux does not get to its own messages.
pub const MEMORY_MIN: Size = Size::from_mib(16);
/// The most memory of a VM.
pub const MEMORY_MAX: Size = Size::from_mib(4 << 20);
/// Memory comes in pages of this size.
const MEMORY_STEP: Size = Size::from_mib(2);
/// The most vCPUs of a VM.
pub const VCPUS_MAX: u16 = 64;
/// What a VM's vCPUs weigh where several want one CPU: the least, the most, and without a word.
pub const WEIGHT_MIN: u16 = 10;
/// The most that they weigh.
pub const WEIGHT_MAX: u16 = 1000;
/// What they weigh when nothing is said.
pub const WEIGHT_DEFAULT: u16 = 100;
/// The highest number of a CPU.
pub const CPU_MAX: u16 = 63;
/// The most disks of a VM.
pub const DISKS_MAX: usize = 8;
/// The most modules of a kernel, besides its initial RAM disk.
pub const MODULES_MAX: usize = 32;
/// The most bytes that its modules' texts have together: they travel in one message.
const MODULE_TEXTS_BYTES_MAX: usize = 16 << 10;
/// The most NICs of a VM.
pub const NICS_MAX: usize = 8;
/// The longest command line that Linux on x86 takes, in bytes without its final zero (COMMAND_LINE_SIZE).
const COMMAND_LINE_BYTES_MAX: usize = 2047;

/// What a virtual machine is made of, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSpec {
    /// Its name, unique on its host.
    pub name: Name,
    /// The boot module with its kernel; without one its firmware boots its first disk.
    pub kernel: Option<String>,
    /// The boot module with its initial RAM disk.
    pub initrd: Option<String>,
    /// A Multiboot or PVH kernel's modules, at most [`MODULES_MAX`]: each a boot module's name, and what is given to it.
    pub modules: Vec<ModuleSpec>,
    /// The kernel's command line.
    pub command_line: String,
    /// Its memory: [`MEMORY_MIN`] to [`MEMORY_MAX`], a multiple of 2 MiB.
    pub memory: Size,
    /// How much of that is kept for it, whether its guest has it now or not; a multiple of 2 MiB.
    pub reserved: Size,
    /// How many vCPUs it has, 1 to [`VCPUS_MAX`].
    pub vcpus: u16,
    /// The weight of its vCPUs, [`WEIGHT_MIN`] to [`WEIGHT_MAX`]: time on a CPU that several want is shared by it.
    pub weight: u16,
    /// What it may use at most.
    pub limits: Limits,
    /// The CPUs of the host on which its vCPUs run, one after the other; without any the host chooses.
    pub pin: Vec<u16>,
    /// Its disks, at most [`DISKS_MAX`], each once. One of them at most is a CD.
    pub disks: Vec<DiskSpec>,
    /// Its NICs, at most [`NICS_MAX`].
    pub nics: Vec<NicSpec>,
    /// The CPU profile that it sees; without one, what its host has.
    pub cpu_profile: Option<Name>,
    /// Whether it has a debug exit: a port by which the guest ends it with a code.
    pub debug_exit: bool,
    /// Whether it has a debug console: a port whose bytes go to its console.
    pub debug_console: bool,
    /// Whether it starts as soon as it exists.
    pub start: bool,
}

/// A module of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleSpec(String);

/// A disk of a virtual machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskSpec {
    /// The partition of a datastore, by name.
    pub name: String,
    /// It is a CD: the VM cannot write it, and others may have it too.
    pub is_cdrom: bool,
}

/// A NIC of a virtual machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NicSpec {
    /// Its address; without one the host chooses.
    pub mac: Option<Mac>,
}

pub(crate) const KEYS: &[&str] = &[
    "name",
    "kernel",
    "initrd",
    "modules",
    "command_line",
    "memory",
    "reserved",
    "vcpus",
    "weight",
    "cpu_limit",
    "iops",
    "disk_rate",
    "net_rate",
    "receive_rate",
    "pin",
    "disks",
    "cdrom",
    "nics",
    "debug_exit",
    "debug_console",
    "autostart",
];

impl VmSpec {
    /// The least that makes a VM: 256 MiB, one vCPU, nothing else.
    pub fn new(name: Name, kernel: Option<String>) -> Self {
        Self {
            name,
            kernel,
            initrd: None,
            modules: Vec::new(),
            command_line: String::new(),
            memory: Size::from_mib(256),
            reserved: Size::default(),
            vcpus: 1,
            weight: WEIGHT_DEFAULT,
            limits: Limits::default(),
            pin: Vec::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            cpu_profile: None,
            debug_exit: false,
            debug_console: false,
            start: false,
        }
    }

    /// Sets the memory.
    ///
    /// # Errors
    /// When it is too little, too much or in parts of a page.
    pub fn set_memory(&mut self, memory: Size) -> Result<(), Invalid> {
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
            let remedy = format!("give {MEMORY_MIN} to {MEMORY_MAX}, such as 256M");
            return Err(Invalid::new(format!("a VM cannot have {memory} of memory"), remedy));
        }
        if !memory.bytes().is_multiple_of(MEMORY_STEP.bytes()) {
            let remedy = format!("give a multiple of {MEMORY_STEP}, such as 256M");
            return Err(Invalid::new(format!("a VM cannot have {memory} of memory"), remedy));
        }
        self.memory = memory;
        Ok(())
    }

    /// Sets how much of its memory is kept for it; the memory is set before.
    ///
    /// # Errors
    /// When it is more than that, or in parts of a page.
    pub fn set_reserved(&mut self, reserved: Size) -> Result<(), Invalid> {
        if reserved > self.memory || !reserved.bytes().is_multiple_of(MEMORY_STEP.bytes()) {
            let remedy = format!("give a multiple of {MEMORY_STEP} up to its memory");
            let message = format!("{reserved} cannot be reserved for a VM of {}", self.memory);
            return Err(Invalid::new(message, remedy));
        }
        self.reserved = reserved;
        Ok(())
    }

    /// Sets how many vCPUs there are.
    ///
    /// # Errors
    /// When there are none or too many.
    pub fn set_vcpus(&mut self, vcpus: u64) -> Result<(), Invalid> {
        match u16::try_from(vcpus) {
            Ok(vcpus @ 1..=VCPUS_MAX) => {
                self.vcpus = vcpus;
                Ok(())
            }
            _ => Err(Invalid::new(format!("a VM cannot have {vcpus} vCPUs"), format!("give 1 to {VCPUS_MAX}"))),
        }
    }

    /// Sets the weight of its vCPUs.
    ///
    /// # Errors
    /// When it is out of range.
    pub fn set_weight(&mut self, weight: u64) -> Result<(), Invalid> {
        match u16::try_from(weight) {
            Ok(weight @ WEIGHT_MIN..=WEIGHT_MAX) => {
                self.weight = weight;
                Ok(())
            }
            _ => {
                let remedy = format!("give {WEIGHT_MIN} to {WEIGHT_MAX}; {WEIGHT_DEFAULT} is usual");
                Err(Invalid::new(format!("a VM cannot have a weight of {weight}"), remedy))
            }
        }
    }

    /// Adds a CPU of the host on which vCPUs run.
    ///
    /// # Errors
    /// When no host has such a CPU, or there are more than vCPUs can be.
    pub fn add_pin(&mut self, cpu: u64) -> Result<(), Invalid> {
        match u16::try_from(cpu) {
            Ok(cpu @ 0..=CPU_MAX) if self.pin.len() < usize::from(VCPUS_MAX) => {
                self.pin.push(cpu);
                Ok(())
            }
            Ok(0..=CPU_MAX) => Err(Invalid::new("a VM is pinned to too many CPUs", "give each vCPU one at most")),
            _ => Err(Invalid::new(format!("there is no CPU {cpu}"), format!("give numbers from 0 to {CPU_MAX}"))),
        }
    }

    /// Sets the kernel's command line.
    ///
    /// # Errors
    /// When it is longer than Linux takes or contains a zero byte, where Linux would end it.
    pub fn set_command_line(&mut self, command_line: String) -> Result<(), Invalid> {
        check_text(&command_line, "the kernel's command line")?;
        self.command_line = command_line;
        Ok(())
    }

    /// Adds a module: a boot module's name, and behind a blank what is given to it.
    ///
    /// # Errors
    /// When there are enough, it names nothing, or its text is none for a kernel.
    pub fn add_module(&mut self, text: String) -> Result<(), Invalid> {
        check_text(&text, "a module's text")?;
        if self.modules.len() == MODULES_MAX {
            let message = format!("a VM cannot have more than {MODULES_MAX} modules");
            return Err(Invalid::new(message, "leave some out"));
        }
        let bytes: usize = self.modules.iter().map(|module| module.0.len()).sum();
        if bytes + text.len() > MODULE_TEXTS_BYTES_MAX {
            let message = format!("the modules' texts have more than {MODULE_TEXTS_BYTES_MAX} bytes together");
            return Err(Invalid::new(message, "say less to them"));
        }
        let module = ModuleSpec(text);
        if module.name().is_empty() {
            return Err(Invalid::new("a module names nothing", "give a boot module's name, and what is given to it"));
        }
        self.modules.push(module);
        Ok(())
    }

    /// Checks that there is something to boot, and nothing that could not take effect.
    ///
    /// # Errors
    /// Without kernel and disk, or with what only goes with a kernel.
    pub fn check_boot(&self) -> Result<(), Invalid> {
        if self.kernel.is_some() {
            return Ok(());
        }
        if self.disks.is_empty() {
            return Err(Invalid::new(
                "the VM has nothing to boot",
                "give it a kernel, or a disk or CD that it boots by UEFI",
            ));
        }
        if self.initrd.is_some() || !self.modules.is_empty() || !self.command_line.is_empty() {
            let message = "an initial RAM disk, modules and a command line go with a kernel";
            return Err(Invalid::new(message, "give the kernel too, or leave them out: the disk has its own"));
        }
        Ok(())
    }

    /// Adds a disk.
    ///
    /// # Errors
    /// When there are enough, the VM has this one already, or it is another CD.
    pub fn add_disk(&mut self, disk: DiskSpec) -> Result<(), Invalid> {
        if self.disks.len() == DISKS_MAX {
            let message = format!("a VM cannot have more than {DISKS_MAX} disks");
            return Err(Invalid::new(message, "leave some out"));
        }
        let name = &disk.name;
        if name.is_empty() || self.disks.iter().any(|other| other.name == *name) {
            let message =
                if name.is_empty() { "a disk has no name".into() } else { format!("disk `{name}` is given twice") };
            return Err(Invalid::new(message, "give each disk once, by its partition's name"));
        }
        if disk.is_cdrom && self.disks.iter().any(|other| other.is_cdrom) {
            return Err(Invalid::new("a VM cannot have two CDs", "leave one out"));
        }
        self.disks.push(disk);
        Ok(())
    }

    /// Adds a NIC.
    ///
    /// # Errors
    /// When there are enough, or another NIC of the VM has this address.
    pub fn add_nic(&mut self, nic: NicSpec) -> Result<(), Invalid> {
        if self.nics.len() == NICS_MAX {
            let message = format!("a VM cannot have more than {NICS_MAX} NICs");
            return Err(Invalid::new(message, "leave some out"));
        }
        if let Some(mac) = nic.mac.filter(|_| self.nics.contains(&nic)) {
            let remedy = "give each NIC an address of its own, or none to have one chosen";
            return Err(Invalid::new(format!("MAC address {mac} is given twice"), remedy));
        }
        self.nics.push(nic);
        Ok(())
    }

    pub(crate) fn parse(section: &Section<'_>) -> Result<Self, Error> {
        let name = section.required("name", section.parsed("name")?, "\"web\"")?;
        let kernel = module(section, "kernel")?;
        let mut vm = Self::new(name, kernel);
        vm.initrd = module(section, "initrd")?;
        vm.start = section.truth("autostart")?.unwrap_or(false);
        vm.debug_exit = section.truth("debug_exit")?.unwrap_or(false);
        vm.debug_console = section.truth("debug_console")?.unwrap_or(false);
        let at = |key: &'static str| move |cause| section.error_at(key, cause);
        if let Some(memory) = section.parsed("memory")? {
            vm.set_memory(memory).map_err(at("memory"))?;
        }
        if let Some(reserved) = section.parsed("reserved")? {
            vm.set_reserved(reserved).map_err(at("reserved"))?;
        }
        if let Some(vcpus) = section.integer("vcpus")? {
            vm.set_vcpus(vcpus).map_err(at("vcpus"))?;
        }
        if let Some(weight) = section.integer("weight")? {
            vm.set_weight(weight).map_err(at("weight"))?;
        }
        vm.parse_limits(section)?;
        for cpu in section.integers("pin")? {
            vm.add_pin(cpu).map_err(at("pin"))?;
        }
        if let Some(line) = section.text("command_line")? {
            vm.set_command_line(line.into()).map_err(at("command_line"))?;
        }
        for text in section.texts("modules")? {
            vm.add_module(text).map_err(at("modules"))?;
        }
        for disk in section.texts("disks")? {
            vm.add_disk(DiskSpec::own(disk)).map_err(at("disks"))?;
        }
        if let Some(disk) = section.text("cdrom")? {
            vm.add_disk(DiskSpec::cdrom(disk.into())).map_err(at("cdrom"))?;
        }
        vm.parse_nics(section)?;
        vm.check_boot().map_err(|cause| section.error(cause))?;
        Ok(vm)
    }

    fn parse_limits(&mut self, section: &Section<'_>) -> Result<(), Error> {
        let at = |key: &'static str| move |cause| section.error_at(key, cause);
        let percent = section.integer("cpu_limit")?.map(Limits::cpu_percent);
        let iops = section.integer("iops")?.map(Limits::iops);
        let rate = |key: &'static str| section.parsed(key)?.map(Limits::rate).transpose().map_err(at(key));
        self.limits = Limits {
            cpu_percent: percent.transpose().map_err(at("cpu_limit"))?,
            iops: iops.transpose().map_err(at("iops"))?,
            disk_rate: rate("disk_rate")?,
            net_rate: rate("net_rate")?,
            receive_rate: rate("receive_rate")?,
        };
        Ok(())
    }

    /// Either how many there are, or a table for each.
    fn parse_nics(&mut self, section: &Section<'_>) -> Result<(), Error> {
        if section.is_integer("nics") {
            for _ in 0..section.integer("nics")?.unwrap_or(0) {
                self.add_nic(NicSpec::default()).map_err(|cause| section.error_at("nics", cause))?;
            }
            return Ok(());
        }
        for table in section.tables("nics", &["mac"])? {
            let mac = table.parsed("mac")?;
            self.add_nic(NicSpec { mac }).map_err(|cause| table.error(cause))?;
        }
        Ok(())
    }
}

impl ModuleSpec {
    /// The boot module's name: the first word.
    pub fn name(&self) -> &str {
        self.0.split_ascii_whitespace().next().unwrap_or_default()
    }

    /// What the kernel is told with it: all of the text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl DiskSpec {
    /// One that the VM has for itself.
    pub fn own(name: String) -> Self {
        Self { name, is_cdrom: false }
    }

    /// One that it only reads.
    pub fn cdrom(name: String) -> Self {
        Self { name, is_cdrom: true }
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", if self.is_cdrom { "CD" } else { "disk" }, self.name)
    }
}

/// Checks that a kernel can be given a text, which it calls so.
fn check_text(text: &str, what: &str) -> Result<(), Invalid> {
    if text.len() > COMMAND_LINE_BYTES_MAX {
        return Err(Invalid::new(format!("{what} is too long"), format!("keep it to {COMMAND_LINE_BYTES_MAX} bytes")));
    }
    if text.contains('\0') {
        return Err(Invalid::new(format!("{what} contains a zero byte"), "leave it out"));
    }
    Ok(())
}

/// The name of a boot module under a key.
fn module(section: &Section<'_>, key: &str) -> Result<Option<String>, Error> {
    match section.text(key)? {
        Some("") => {
            let cause =
                Invalid::new(format!("`{key}` names nothing"), "give a boot module's name, such as \"vmlinuz\"");
            Err(section.error_at(key, cause))
        }
        text => Ok(text.map(String::from)),
    }
}
