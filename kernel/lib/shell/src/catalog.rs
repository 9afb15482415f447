//! Every command, once.
//!
//! [`CATALOG`] says what each is called, takes and does; `parse`, `complete` and `help` all read it, so that they
//! cannot differ. A new command is an entry here and a function that builds its [`Command`].

use alloc::{boxed::Box, format, string::String, vec::Vec};

use config::{DiskSpec, Limits, Name, NicSpec, PeerSpec, Size, VmSpec};

use crate::{
    Command, CpuProfileCommand, LimitChanges, MigrateOptions, MigrateStrategy, ParseError, VmAction, VmPart,
    parse::{Arguments, number},
};

/// One command.
pub(crate) struct Spec {
    /// Its words: its groups' and its own.
    pub(crate) words: &'static [&'static str],
    /// Whether the group's words alone mean this command.
    pub(crate) default: bool,
    /// What it takes besides options.
    pub(crate) operand: Option<Operand>,
    /// The options it takes besides [`JSON`].
    pub(crate) options: &'static [OptionSpec],
    /// What it does, in one short line.
    pub(crate) summary: &'static str,
    /// What else there is to know.
    pub(crate) details: &'static str,
    /// Lines to try.
    pub(crate) examples: &'static [&'static str],
    /// Makes the command out of what was given.
    pub(crate) build: fn(&Arguments<'_>) -> Result<Command, ParseError>,
}

/// What a command takes besides options.
pub(crate) struct Operand {
    /// What to call it: "NAME".
    pub(crate) title: &'static str,
    /// What it is.
    pub(crate) value: Value,
    /// Whether it must be given.
    pub(crate) required: bool,
    /// How many words it can have.
    pub(crate) words_max: usize,
}

/// An option of a command.
pub(crate) struct OptionSpec {
    /// Its name with its dashes.
    pub(crate) name: &'static str,
    /// What to call its value and what that is, where it takes one.
    pub(crate) value: Option<(&'static str, Value)>,
    /// How often it can be given.
    pub(crate) occurs: Occurs,
    /// What it does, in one short line.
    pub(crate) summary: &'static str,
}

/// How often an option can be given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occurs {
    /// At most once.
    Once,
    /// Once, and it must be.
    Always,
    /// As often as one likes.
    Often,
}

/// What an operand or an option's value is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// A command or group.
    Topic,
    /// A VM that exists.
    Vm,
    /// A virtual disk that exists.
    Disk,
    /// A disk of the host that exists.
    HostDisk,
    /// A boot module that exists.
    Module,
    /// Something that nobody can guess.
    Free,
    /// `mac=` and an address, which can be left out.
    Nic,
}

/// The option that every command takes.
pub(crate) const JSON: OptionSpec = flag("--json", "answer with one JSON object on one line");

/// The most hosts that a CPU profile is derived of, besides this one.
const CPU_PROFILE_HOSTS_MAX: usize = 16;

/// How many lines `log` and `trace` show when nobody says.
const LINES_DEFAULT: usize = 40;
/// The most lines that can be asked for.
const LINES_MAX: u64 = 100_000;

pub(crate) const CATALOG: &[Spec] = &[
    Spec {
        operand: Some(Operand { title: "COMMAND", value: Value::Topic, required: false, words_max: 3 }),
        examples: &["help", "help vm", "help vm create"],
        ..plain(&["help"], "list the commands, or explain one", |arguments| {
            Ok(Command::Help { topic: arguments.topic()? })
        })
    },
    Spec {
        details: "Shows the processor's features, the memory and who has it, every disk and NIC and whether it can be \
                  used, and why guests cannot run where they cannot.",
        examples: &["host", "host --json"],
        ..plain(&["host"], "show what this machine is, has and can do", |_| Ok(Command::Host))
    },
    Spec {
        operand: Some(Operand { title: "NAME", value: Value::Free, required: true, words_max: 1 }),
        options: &[
            option("--kernel", "MODULE", Value::Module, "its kernel: a bzImage or Multiboot 1 image"),
            option("--initrd", "MODULE", Value::Module, "its initial RAM disk"),
            OptionSpec {
                occurs: Occurs::Often,
                ..option("--module", "MODULE", Value::Module, "a Multiboot or PVH module, or in quotes with its text")
            },
            option("--cmdline", "TEXT", Value::Free, "its kernel's command line, in quotes"),
            option("--memory", "SIZE", Value::Free, "its memory, 256M when not given"),
            option("--reserved", "SIZE", Value::Free, "how much of that is always kept for it; else none"),
            option("--vcpus", "N", Value::Free, "how many vCPUs it has, 1 when not given"),
            option("--weight", "N", Value::Free, "its share of busy CPUs, 100 when not given"),
            CPU_LIMIT,
            IOPS,
            DISK_RATE,
            NET_RATE,
            RECEIVE_RATE,
            option("--pin", "CPU,...", Value::Free, "CPUs for its vCPUs, one after the other"),
            OptionSpec {
                occurs: Occurs::Often,
                ..option("--disk", "DISK", Value::Disk, "a disk of its own; once for each")
            },
            option("--cdrom", "DISK", Value::Disk, "a disk with an ISO image, which it only reads"),
            OptionSpec {
                occurs: Occurs::Often,
                ..option("--nic", "[mac=ADDRESS]", Value::Nic, "a NIC; once for each; mac= can be left out")
            },
            option("--cpu-profile", "NAME", Value::Free, "show it this CPU profile and not the host's own"),
            flag("--debug-exit", "a write to port 0xf4 ends it, with a code"),
            flag("--debug-console", "bytes to port 0xe9 go to its console"),
            flag("--start", "start it at once"),
        ],
        details: "Without a kernel it boots its first disk by UEFI, as an installed machine does, or else its CD, which \
                  other VMs may have in theirs too. What its firmware keeps is kept on the partition DISK-vars (2 MiB) beside the first disk, DISK, where there is one; else it \
                  lasts as long as the VM is known. A VM is forgotten when the host restarts, unless the \
                  configuration file has it. `modules` shows what there is to boot and `disk` which disks are free.",
        examples: &[
            "vm create web --kernel vmlinuz --initrd initrd.img --cmdline \"root=/dev/vda1 console=ttyS0\" \
             --disk web-root --nic --start",
            "vm create t --kernel mykernel --module fs --module \"driver irq=5\" --debug-exit --start",
            "vm create new --disk new --cdrom debian-iso --memory 2G --nic --start",
            "vm create db --disk db --memory 2G --vcpus 2 --nic mac=02:00:00:00:00:07",
        ],
        ..plain(&["vm", "create"], "define a VM", create)
    },
    Spec {
        examples: &["vm list", "vm list --json"],
        ..plain(&["vm", "list"], "list the VMs", |_| Ok(Command::VmList))
    },
    Spec {
        examples: &["vm show web"],
        ..on_vm(&["vm", "show"], "show what a VM is made of and does", |arguments| {
            Ok(Command::VmShow { name: arguments.name()? })
        })
    },
    Spec {
        examples: &["vm start web"],
        ..on_vm(&["vm", "start"], "power a VM on", |arguments| control(arguments, VmAction::Start))
    },
    Spec {
        details: "Presses the VM's power button. A guest that does not react goes on running: `vm kill` ends it.",
        examples: &["vm stop web"],
        ..on_vm(&["vm", "stop"], "ask a VM to shut down", |arguments| control(arguments, VmAction::Stop))
    },
    Spec {
        details: "What the guest has not flushed to its disks is lost, as when a machine's plug is pulled.",
        examples: &["vm kill web"],
        ..on_vm(&["vm", "kill"], "power a VM off at once", |arguments| control(arguments, VmAction::Kill))
    },
    Spec {
        examples: &["vm reset web"],
        ..on_vm(&["vm", "reset"], "reset a VM", |arguments| control(arguments, VmAction::Reset))
    },
    Spec {
        examples: &["vm pause web"],
        ..on_vm(&["vm", "pause"], "stop a VM where it is", |arguments| control(arguments, VmAction::Pause))
    },
    Spec {
        examples: &["vm resume web"],
        ..on_vm(&["vm", "resume"], "let a paused VM go on", |arguments| control(arguments, VmAction::Resume))
    },
    Spec {
        details: "Tracks its writes for a second, as a migration does, with ten looks at what was written. The VM goes on \
                  somewhat slower meanwhile.",
        examples: &["vm measure web"],
        ..on_vm(&["vm", "measure"], "measure how fast a VM writes its memory", |arguments| {
            Ok(Command::VmMeasure { name: arguments.operand()?.into() })
        })
    },
    Spec {
        operand: Some(Operand { title: "NAME SIZE", value: Value::Vm, required: true, words_max: 2 }),
        details: "The guest gives up the rest of its memory, which goes back to the host in pieces of 2 MiB, and takes none \
                  of it again unless it would run out. Its full size gives it all of it back. The guest must have a \
                  balloon driver, as every Linux has. Memory that a guest reports as free goes back by itself.",
        examples: &["vm balloon web 512M", "vm balloon web 1G"],
        ..plain(&["vm", "balloon"], "say how much of its memory a running VM keeps", |arguments| {
            let [name, keeps] = arguments.operands("NAME SIZE")?;
            Ok(Command::VmBalloon { name: name.parse()?, keeps: keeps.parse()? })
        })
    },
    Spec {
        options: &[CPU_LIMIT, IOPS, DISK_RATE, NET_RATE, RECEIVE_RATE],
        details: "The limits of a VM as a whole: time on CPUs in percent of one, requests a second and bytes a second of its \
                  disks, bytes a second that its NICs send and receive (what comes beyond that is lost). What is not named \
                  stays; `none` takes a limit away. A VM that runs has them at once, and keeps them when it starts \
                  again.",
        examples: &["vm set web --cpu-limit 150", "vm set web --iops 500 --disk-rate 20M --net-rate none"],
        ..on_vm(&["vm", "set"], "limit what a VM uses", |arguments| {
            let changes = limits(arguments)?;
            if changes == LimitChanges::default() {
                return Err(ParseError::new(
                    "no limit is named",
                    "give --cpu-limit, --iops, --disk-rate, --net-rate or --receive-rate",
                ));
            }
            Ok(Command::VmSet { name: arguments.name()?, changes })
        })
    },
    Spec {
        options: &[PART_DISK, PART_CDROM, PART_NIC],
        details: "A VM that runs gets it at once, as if it were plugged in; Linux and Windows find it by themselves. It \
                  stays the VM's over its restarts.",
        examples: &[
            "vm add web --disk scratch",
            "vm add web --cdrom debian-iso",
            "vm add web --nic mac=02:00:00:00:00:07",
        ],
        ..on_vm(&["vm", "add"], "give a VM a disk, CD or NIC", |arguments| {
            Ok(Command::VmAdd { name: arguments.name()?, part: part(arguments)? })
        })
    },
    Spec {
        options: &[PART_DISK, PART_CDROM, PART_NIC, flag("--force", "pull it out, whatever the guest does with it")],
        details: "The guest of a VM that runs is asked to let go of it, which it does when it has written what it must; \
                  a disk is free for another VM then. With --force the guest's requests fail, and what it had not \
                  written is lost. `vm show` lists what it has; the address of its only NIC can be left out.",
        examples: &["vm remove web --disk scratch", "vm remove web --nic mac=02:00:00:00:00:07 --force"],
        ..on_vm(&["vm", "remove"], "take a disk, CD or NIC from a VM", |arguments| {
            let force = arguments.has("--force");
            Ok(Command::VmRemove { name: arguments.name()?, part: part(arguments)?, force })
        })
    },
    Spec {
        details: "Writes its memory, its devices and its console's text to a virtual disk that no VM has, whose content is \
                  lost. The VM is then off, and `vm restore` lets it go on, also after the host restarted. Where saving \
                  fails the VM runs on.",
        options: &[OptionSpec {
            occurs: Occurs::Always,
            ..option("--to", "DISK", Value::Disk, "the virtual disk, larger than its memory in use")
        }],
        examples: &["vm save web --to slot1"],
        ..on_vm(&["vm", "save"], "stop a VM and write all of it to a disk", |arguments| {
            Ok(Command::VmSave { name: arguments.name()?, to: given(arguments, "--to") })
        })
    },
    Spec {
        details: "The VM must be defined as it was when it was saved, and its disks must not have changed since. It \
                  runs at once; its memory is read meanwhile, first what it waits for. If that fails it waits, and \
                  `vm resume` tries again. What was saved is used up as it goes on.",
        options: &[OptionSpec {
            occurs: Occurs::Always,
            ..option("--from", "DISK", Value::Disk, "the virtual disk that it was saved to")
        }],
        examples: &["vm restore web --from slot1"],
        ..on_vm(&["vm", "restore"], "let a saved VM go on", |arguments| {
            Ok(Command::VmRestore { name: arguments.name()?, from: given(arguments, "--from") })
        })
    },
    Spec {
        details: "Boot entries and everything else that its firmware and its system keep there are lost: the firmware \
                  begins with its own the next time, and finds the system by the disk's fallback path. Only for a VM that \
                  does not run. Nothing else erases variables, not even `vm delete`.",
        examples: &["vm erase-variables web"],
        ..on_vm(&["vm", "erase-variables"], "erase what a VM's UEFI firmware keeps", |arguments| {
            control(arguments, VmAction::EraseVariables)
        })
    },
    Spec {
        details: "Shows the last 64 KiB of the console first. Ctrl-] leaves, unless the configuration names another \
                  key; pressed twice it gives the guest one.",
        examples: &["vm console web"],
        ..on_vm(&["vm", "console"], "type into a VM's console", |arguments| {
            Ok(Command::VmConsole { name: arguments.name()? })
        })
    },
    Spec {
        details: "Only a VM that does not run can be deleted. Its disks stay as they are.",
        examples: &["vm delete web"],
        ..on_vm(&["vm", "delete"], "forget a VM", |arguments| control(arguments, VmAction::Delete))
    },
    Spec {
        operand: Some(Operand { title: "NAME to HOST", value: Value::Vm, required: true, words_max: 3 }),
        options: &[
            option("--downtime", "MS", Value::Free, "milliseconds it may stand still, 60 when not given"),
            option("--timeout", "S", Value::Free, "seconds until the strategy applies, 300 when not given"),
            option("--strategy", "WHAT", Value::Free, "then: `cancel`, when not given, `stop` the VM, or `postcopy`"),
            option("--bandwidth", "MIB", Value::Free, "at most so many MiB a second while it runs"),
        ],
        details: "The VM runs on while its memory is sent; it stands still for the last of it. It is on one host or the \
                  other, whatever happens on the way. Both hosts must see its disks. The peer must know this host, too. By \
                  post-copy it goes on there at once, also before the timeout where its memory changes too fast, and waits \
                  for each page that it needs first; if a host fails before the last has come, the VM is lost.",
        examples: &["vm migrate web to castor", "vm migrate web to castor --downtime 20 --timeout 60 --strategy stop"],
        ..plain(&["vm", "migrate"], "move a running VM to another host", migrate)
    },
    Spec {
        default: true,
        examples: &["migrate", "migrate status --json"],
        ..plain(&["migrate", "status"], "show VMs on their way and those moved lately", |_| Ok(Command::MigrateStatus))
    },
    Spec {
        details: "A VM that leaves stays here, and one that arrives stays there, as long as it was not given away.",
        examples: &["migrate cancel web"],
        operand: Some(Operand { title: "NAME", value: Value::Free, required: true, words_max: 1 }),
        ..plain(&["migrate", "cancel"], "let a VM stay where it is", |arguments| {
            Ok(Command::MigrateCancel { name: arguments.name()? })
        })
    },
    Spec {
        default: true,
        examples: &["peer", "peer list --json"],
        ..plain(&["peer", "list"], "list the hosts that this one trusts", |_| Ok(Command::PeerList))
    },
    Spec {
        operand: Some(Operand { title: "NAME ADDRESS KEY", value: Value::Free, required: true, words_max: 3 }),
        details: "Both hosts must add each other. `host` shows a host's key. What is added here is forgotten when the host \
                  restarts, unless the configuration has it too.",
        examples: &["peer add castor 192.168.7.21 8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"],
        ..plain(&["peer", "add"], "trust another host", |arguments| {
            let [name, address, key] = arguments.operands("NAME ADDRESS KEY")?;
            Ok(Command::PeerAdd(PeerSpec::new(name, address, key)?))
        })
    },
    Spec {
        operand: Some(Operand { title: "NAME", value: Value::Free, required: true, words_max: 1 }),
        examples: &["peer remove castor"],
        ..plain(&["peer", "remove"], "trust a host no more", |arguments| {
            Ok(Command::PeerRemove { name: arguments.name()? })
        })
    },
    Spec {
        default: true,
        details: "`this-host` is what guests see that are given no profile.",
        examples: &["cpu profile", "cpu profile list --json"],
        ..plain(&["cpu", "profile", "list"], "list the CPU profiles", |_| {
            Ok(Command::CpuProfile(CpuProfileCommand::List))
        })
    },
    Spec {
        operand: Some(Operand { title: "NAME", value: Value::Free, required: true, words_max: 1 }),
        examples: &["cpu profile show rack1", "cpu profile show this-host"],
        ..plain(&["cpu", "profile", "show"], "show what guests of a CPU profile see", |arguments| {
            Ok(Command::CpuProfile(CpuProfileCommand::Show { name: arguments.name()? }))
        })
    },
    Spec {
        operand: Some(Operand {
            title: "NAME HOST...",
            value: Value::Free,
            required: true,
            words_max: 1 + CPU_PROFILE_HOSTS_MAX,
        }),
        options: &[option("--without", "FEATURE,...", Value::Free, "leave these out; see `cpu profile show`")],
        details: "Asks peers what their processors have, and keeps what those and this one have in common. A VM that is \
                  created with --cpu-profile sees that and no more, so that it can move between all of them. It keeps \
                  what it sees for as long as it is known, wherever it goes. The name is forgotten when the host \
                  restarts. With --without no host need be named.",
        examples: &["cpu profile derive rack1 castor leda", "cpu profile derive modest --without AVX2,SMAP"],
        ..plain(&["cpu", "profile", "derive"], "find what hosts' processors have in common", derive)
    },
    Spec {
        operand: Some(Operand { title: "NAME", value: Value::Free, required: true, words_max: 1 }),
        details: "VMs that were created with it keep what they see.",
        examples: &["cpu profile remove rack1"],
        ..plain(&["cpu", "profile", "remove"], "forget a CPU profile", |arguments| {
            Ok(Command::CpuProfile(CpuProfileCommand::Remove { name: arguments.name()? }))
        })
    },
    Spec {
        default: true,
        details: "Each partition of a disk with a GPT is a virtual disk, by its partition's name.",
        examples: &["disk", "disk list --json"],
        ..plain(&["disk", "list"], "list the virtual disks", |_| Ok(Command::DiskList))
    },
    Spec {
        operand: Some(Operand { title: "DISK", value: Value::Disk, required: true, words_max: 1 }),
        examples: &["disk show web-root"],
        ..plain(&["disk", "show"], "show one virtual disk", |arguments| {
            Ok(Command::DiskShow { name: arguments.operand()?.into() })
        })
    },
    Spec {
        operand: Some(Operand { title: "NAME", value: Value::HostDisk, required: true, words_max: 1 }),
        details: "Reads all over the whole disk for some seconds and writes nothing. VMs go on, and what they do on it \
                  slows the figures as these reads slow them.",
        examples: &["disk measure disk0"],
        ..plain(&["disk", "measure"], "measure how fast a disk of the host reads", |arguments| {
            Ok(Command::DiskMeasure { name: arguments.operand()?.into() })
        })
    },
    Spec {
        default: true,
        examples: &["net", "net list --json"],
        ..plain(&["net", "list"], "list the switch's ports and their traffic", |_| Ok(Command::NetList))
    },
    Spec {
        options: &[option("--lines", "N", Value::Free, "at most so many, 40 when not given")],
        examples: &["log", "log --lines 200"],
        ..plain(&["log"], "show the host's last messages", |arguments| Ok(Command::Log { lines: lines(arguments)? }))
    },
    Spec {
        options: &[
            option("--cpu", "N", Value::Free, "of this CPU only"),
            option("--lines", "N", Value::Free, "at most so many of each CPU, 40 when not given"),
            option("--vm", "NAME", Value::Vm, "of this VM only"),
        ],
        examples: &["trace --cpu 0 --lines 100", "trace --vm web"],
        ..plain(&["trace"], "show what each CPU did last", trace)
    },
    Spec {
        operand: Some(Operand { title: "NAME", value: Value::Vm, required: false, words_max: 1 }),
        examples: &["stat", "stat web", "stat web --json"],
        ..plain(&["stat"], "show what VMs exit for, wait for and transfer", |arguments| {
            Ok(Command::Stat { name: arguments.optional_name()? })
        })
    },
    Spec {
        examples: &["modules"],
        ..plain(&["modules"], "list the kernels and RAM disks to boot", |_| Ok(Command::Modules))
    },
    Spec {
        details: "Asks every guest to shut down first.",
        examples: &["poweroff"],
        ..plain(&["poweroff"], "power the host off", |_| Ok(Command::PowerOff))
    },
    Spec {
        details: "Asks every guest to shut down first.",
        examples: &["reboot"],
        ..plain(&["reboot"], "restart the host", |_| Ok(Command::Reboot))
    },
];

/// A command that takes nothing.
const fn plain(
    words: &'static [&'static str],
    summary: &'static str,
    build: fn(&Arguments<'_>) -> Result<Command, ParseError>,
) -> Spec {
    Spec { words, default: false, operand: None, options: &[], summary, details: "", examples: &[], build }
}

/// A command that takes the name of a VM.
const fn on_vm(
    words: &'static [&'static str],
    summary: &'static str,
    build: fn(&Arguments<'_>) -> Result<Command, ParseError>,
) -> Spec {
    let operand = Some(Operand { title: "NAME", value: Value::Vm, required: true, words_max: 1 });
    Spec { operand, ..plain(words, summary, build) }
}

/// An option with a value.
const fn option(name: &'static str, title: &'static str, value: Value, summary: &'static str) -> OptionSpec {
    OptionSpec { name, value: Some((title, value)), occurs: Occurs::Once, summary }
}

/// An option without one.
const fn flag(name: &'static str, summary: &'static str) -> OptionSpec {
    OptionSpec { name, value: None, occurs: Occurs::Once, summary }
}

fn create(arguments: &Arguments<'_>) -> Result<Command, ParseError> {
    let kernel = arguments.module("--kernel")?;
    let mut vm = VmSpec::new(arguments.name()?, kernel);
    vm.initrd = arguments.module("--initrd")?;
    vm.start = arguments.has("--start");
    vm.debug_exit = arguments.has("--debug-exit");
    vm.debug_console = arguments.has("--debug-console");
    for text in arguments.values("--module") {
        vm.add_module(text.unwrap_or_default().into())?;
    }
    if let Some(line) = arguments.value("--cmdline") {
        vm.set_command_line(line.into())?;
    }
    if let Some(size) = arguments.value("--memory") {
        vm.set_memory(size.parse::<Size>()?)?;
    }
    if let Some(size) = arguments.value("--reserved") {
        vm.set_reserved(size.parse::<Size>()?)?;
    }
    if let Some(vcpus) = arguments.value("--vcpus") {
        vm.set_vcpus(number(vcpus, 1, config::VCPUS_MAX.into(), "a number of vCPUs")?)?;
    }
    if let Some(weight) = arguments.value("--weight") {
        vm.set_weight(number(weight, config::WEIGHT_MIN.into(), config::WEIGHT_MAX.into(), "a weight")?)?;
    }
    for cpu in arguments.value("--pin").into_iter().flat_map(|pin| pin.split(',')) {
        vm.add_pin(number(cpu, 0, config::CPU_MAX.into(), "a CPU's number")?)?;
    }
    for disk in arguments.values("--disk") {
        vm.add_disk(DiskSpec::own(disk.unwrap_or_default().into()))?;
    }
    if let Some(disk) = arguments.value("--cdrom") {
        vm.add_disk(DiskSpec::cdrom(disk.into()))?;
    }
    for nic in arguments.values("--nic") {
        let mac = nic.and_then(|nic| nic.strip_prefix("mac=")).map(str::parse).transpose()?;
        vm.add_nic(NicSpec { mac })?;
    }
    vm.cpu_profile = arguments.value("--cpu-profile").map(str::parse).transpose()?;
    vm.limits = limits(arguments)?.to;
    vm.check_boot()?;
    Ok(Command::VmCreate(Box::new(vm)))
}

const CPU_LIMIT: OptionSpec = option("--cpu-limit", "PERCENT", Value::Free, "at most so much of one CPU; 200 are two");
const IOPS: OptionSpec = option("--iops", "N", Value::Free, "at most so many disk requests a second");
const DISK_RATE: OptionSpec = option("--disk-rate", "SIZE", Value::Free, "at most so many bytes a second of its disks");
const NET_RATE: OptionSpec = option("--net-rate", "SIZE", Value::Free, "at most so many bytes a second that it sends");
const RECEIVE_RATE: OptionSpec =
    option("--receive-rate", "SIZE", Value::Free, "at most so many bytes a second that it receives");

/// The limits that are named.
fn limits(arguments: &Arguments<'_>) -> Result<LimitChanges, ParseError> {
    let lifted = |option: &OptionSpec| arguments.value(option.name) == Some("none");
    let value = |option: &OptionSpec| arguments.value(option.name).filter(|text| *text != "none");
    let (cpu, iops) = (value(&CPU_LIMIT), value(&IOPS));
    let cpu = cpu.map(|text| number(text, 1, config::CPU_PERCENT_MAX, "a percentage")).transpose()?;
    let iops = iops.map(|text| number(text, 1, config::IOPS_MAX, "a number of requests")).transpose()?;
    let rate = |option| value(option).map(str::parse::<Size>).transpose();
    let to = Limits::checked(cpu, iops, rate(&DISK_RATE)?, rate(&NET_RATE)?, rate(&RECEIVE_RATE)?)?;
    Ok(LimitChanges { to, lifted: [&CPU_LIMIT, &IOPS, &DISK_RATE, &NET_RATE, &RECEIVE_RATE].map(lifted) })
}

const PART_DISK: OptionSpec = option("--disk", "DISK", Value::Disk, "the disk, by its partition's name");
const PART_CDROM: OptionSpec = option("--cdrom", "DISK", Value::Disk, "the CD, by its partition's name");
const PART_NIC: OptionSpec = option("--nic", "[mac=ADDRESS]", Value::Nic, "the NIC; mac= can be left out");

/// The one disk, CD or NIC that a command is about.
fn part(arguments: &Arguments<'_>) -> Result<VmPart, ParseError> {
    let named = [("--disk", arguments.value("--disk")), ("--cdrom", arguments.value("--cdrom"))];
    if let Some((option, _)) = named.iter().find(|(_, name)| *name == Some("")) {
        return Err(ParseError::new(format!("{option} names nothing"), "`disk` lists the disks"));
    }
    match (named[0].1, named[1].1, arguments.has("--nic")) {
        (Some(disk), None, false) => Ok(VmPart::Disk(DiskSpec::own(disk.into()))),
        (None, Some(disk), false) => Ok(VmPart::Disk(DiskSpec::cdrom(disk.into()))),
        (None, None, true) => {
            let mac = arguments.value("--nic").and_then(|nic| nic.strip_prefix("mac="));
            Ok(VmPart::Nic(mac.map(str::parse).transpose()?))
        }
        (None, None, false) => {
            Err(ParseError::new("no disk, CD or NIC is named", "give --disk DISK, --cdrom DISK or --nic"))
        }
        _ => Err(ParseError::new("several things are named", "one at a time")),
    }
}

fn control(arguments: &Arguments<'_>, action: VmAction) -> Result<Command, ParseError> {
    Ok(Command::VmControl { name: arguments.name()?, action })
}

fn derive(arguments: &Arguments<'_>) -> Result<Command, ParseError> {
    let (name, hosts) = (arguments.name()?, arguments.more_operands());
    let without = arguments.value("--without").into_iter().flat_map(|names| names.split(','));
    let without: Vec<String> = without.map(|name| name.trim().into()).collect();
    if hosts.is_empty() && without.is_empty() {
        return Err(ParseError::new(
            "a profile of which hosts?",
            "name at least one peer besides this host, or --without",
        ));
    }
    let hosts = hosts.iter().map(|host| host.parse()).collect::<Result<Vec<Name>, _>>()?;
    if let Some(twice) = hosts.iter().enumerate().find(|(at, host)| hosts[..*at].contains(host)) {
        return Err(ParseError::new(format!("{} is given twice", twice.1), "give each peer once"));
    }
    Ok(Command::CpuProfile(CpuProfileCommand::Derive { name, hosts, without }))
}

/// The value of an option that must be given.
fn given(arguments: &Arguments<'_>, option: &str) -> String {
    arguments.value(option).unwrap_or_default().into()
}

fn migrate(arguments: &Arguments<'_>) -> Result<Command, ParseError> {
    let [name, to, host] = arguments.operands("NAME to HOST")?;
    if to != "to" {
        return Err(ParseError::new(format!("`{to}` stands where `to` should"), "write `vm migrate NAME to HOST`"));
    }
    let value = |option: &str, max: u64, what: &str| match arguments.value(option) {
        Some(text) => number(text, 1, max, what).map(Some),
        None => Ok(None),
    };
    let strategy = match arguments.value("--strategy") {
        None | Some("cancel") => MigrateStrategy::Cancel,
        Some("stop") => MigrateStrategy::Stop,
        Some("postcopy") => MigrateStrategy::Postcopy,
        Some(other) => {
            return Err(ParseError::new(format!("`{other}` is no strategy"), "give cancel, stop or postcopy"));
        }
    };
    let options = MigrateOptions {
        downtime_ms: value("--downtime", 600_000, "a number of milliseconds")?,
        timeout_s: value("--timeout", 1_000_000, "a number of seconds")?,
        strategy,
        bandwidth_mib_s: value("--bandwidth", 1 << 20, "a number of MiB a second")?,
    };
    Ok(Command::VmMigrate { name: name.parse::<Name>()?, to: host.parse()?, options })
}

fn trace(arguments: &Arguments<'_>) -> Result<Command, ParseError> {
    let cpu = match arguments.value("--cpu") {
        Some(text) => u32::try_from(number(text, 0, u32::MAX.into(), "a CPU's number")?).ok(),
        None => None,
    };
    let vm = arguments.value("--vm").map(str::parse).transpose()?;
    Ok(Command::Trace { cpu, lines: lines(arguments)?, vm })
}

fn lines(arguments: &Arguments<'_>) -> Result<usize, ParseError> {
    match arguments.value("--lines") {
        Some(text) => Ok(number(text, 1, LINES_MAX, "a number of lines")? as usize),
        None => Ok(LINES_DEFAULT),
    }
}

impl Spec {
    /// The command as it is typed, without what it takes.
    pub(crate) fn title(&self) -> String {
        self.words.join(" ")
    }

    /// The option of that name, [`JSON`] among them.
    pub(crate) fn option(&self, name: &str) -> Option<&'static OptionSpec> {
        self.all_options().find(|option| option.name == name)
    }

    /// The options, [`JSON`] last.
    pub(crate) fn all_options(&self) -> impl Iterator<Item = &'static OptionSpec> + use<> {
        self.options.iter().chain(core::iter::once(&JSON))
    }
}

/// The first words of all commands, each once, in the catalog's order.
pub(crate) fn first_words() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    CATALOG.iter().map(|spec| spec.words[0]).filter(move |&word| core::mem::replace(&mut last, word) != word)
}

/// The words that can follow a group's, each once; none where the words are no group.
pub(crate) fn next_words<'w>(group: &'w [&'w str]) -> impl Iterator<Item = &'static str> + use<'w> {
    let mut last = "";
    let in_group = CATALOG.iter().filter(move |spec| spec.words.starts_with(group));
    let next = in_group.filter_map(move |spec| spec.words.get(group.len()).copied());
    next.filter(move |&word| core::mem::replace(&mut last, word) != word)
}
