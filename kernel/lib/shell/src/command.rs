//! What an operator can ask for.

use alloc::{boxed::Box, string::String, vec::Vec};

use config::{DiskSpec, Limits, Mac, Name, PeerSpec, Size, VmSpec};

/// A command and how its reply is to be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invocation {
    /// The command.
    pub command: Command,
    /// Whether the reply is to be JSON, for a program.
    pub json: bool,
}

/// A command, its values checked as far as that goes without knowing what exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// `help`: answered by [`help`](crate::help()).
    Help {
        /// The command or group that is asked about, one that exists; empty for all.
        topic: String,
    },
    /// `host`: what this machine is, has and can do.
    Host,
    /// `vm create`: defines a VM, and starts it where the definition says so.
    VmCreate(Box<VmSpec>),
    /// `vm list`.
    VmList,
    /// `vm show`.
    VmShow {
        /// Which VM.
        name: Name,
    },
    /// `vm start` and the other commands that change a VM's state.
    VmControl {
        /// Which VM.
        name: Name,
        /// What to do to it.
        action: VmAction,
    },
    /// `vm balloon`: how much of its memory a running VM keeps.
    VmBalloon {
        /// Which VM.
        name: Name,
        /// What it keeps.
        keeps: Size,
    },
    /// `vm set`: changes what a VM may use at most.
    VmSet {
        /// Which VM.
        name: Name,
        /// The limits that change, in place of those that it has.
        changes: LimitChanges,
    },
    /// `vm add`: gives a VM a disk or NIC, while it runs or not.
    VmAdd {
        /// Which VM.
        name: Name,
        /// What it gets.
        part: VmPart,
    },
    /// `vm remove`: takes one from it.
    VmRemove {
        /// Which VM.
        name: Name,
        /// What it loses.
        part: VmPart,
        /// Whether it is pulled out, whatever the guest does with it.
        force: bool,
    },
    /// `vm save`: stops a VM and writes all of it to a virtual disk.
    VmSave {
        /// Which VM.
        name: Name,
        /// The name of the partition.
        to: String,
    },
    /// `vm restore`: lets a VM go on that was saved.
    VmRestore {
        /// Which VM.
        name: Name,
        /// The name of the partition.
        from: String,
    },
    /// `vm console`: shows a VM's console and types into it, until the operator leaves.
    VmConsole {
        /// Which VM.
        name: Name,
    },
    /// `vm migrate`: moves a running VM to another host.
    VmMigrate {
        /// Which VM.
        name: Name,
        /// The peer that it moves to.
        to: Name,
        /// How.
        options: MigrateOptions,
    },
    /// `migrate status`: moves under way, and those that ended last.
    MigrateStatus,
    /// `migrate cancel`: the VM stays where it is.
    MigrateCancel {
        /// Which VM.
        name: Name,
    },
    /// `peer list`: the hosts that this one trusts.
    PeerList,
    /// `peer add`.
    PeerAdd(PeerSpec),
    /// `peer remove`.
    PeerRemove {
        /// Which host.
        name: Name,
    },
    /// `cpu profile`.
    CpuProfile(CpuProfileCommand),
    /// `disk list`.
    DiskList,
    /// `disk show`.
    DiskShow {
        /// The name of its partition.
        name: String,
    },
    /// `vm measure`: how fast a VM writes its memory.
    VmMeasure {
        /// The VM's name.
        name: String,
    },
    /// `disk measure`: how fast a disk of the host reads.
    DiskMeasure {
        /// The name of the host's disk.
        name: String,
    },
    /// `net list`.
    NetList,
    /// `log`: the host's last messages.
    Log {
        /// At most how many, at least 1.
        lines: usize,
    },
    /// `trace`: the last trace entries.
    Trace {
        /// Of this CPU only.
        cpu: Option<u32>,
        /// At most how many of each CPU, at least 1.
        lines: usize,
        /// Of this VM only.
        vm: Option<Name>,
    },
    /// `stat`: exits by reason, steal time and I/O.
    Stat {
        /// Of this VM only.
        name: Option<Name>,
    },
    /// `modules`: what travelled on the boot image.
    Modules,
    /// `poweroff`: asks every guest to shut down, then powers the host off.
    PowerOff,
    /// `reboot`: the same, and restarts the host.
    Reboot,
}

/// What can be done with CPU profiles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CpuProfileCommand {
    /// `cpu profile list`.
    List,
    /// `cpu profile show`: what its guests see.
    Show {
        /// Which profile.
        name: Name,
    },
    /// `cpu profile derive`: keeps what this host's processor and others have in common.
    Derive {
        /// What it is called.
        name: Name,
        /// The other hosts: peers, each once.
        hosts: Vec<Name>,
        /// Features that it does not have, by name; at least one where there is no other host.
        without: Vec<String>,
    },
    /// `cpu profile remove`.
    Remove {
        /// Which profile.
        name: Name,
    },
}

/// What happens to a VM that changes its memory too fast to be moved in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MigrateStrategy {
    /// It stays.
    #[default]
    Cancel,
    /// It is stopped for as long as the rest takes.
    Stop,
    /// It goes on at the other host, and the rest of its memory follows.
    Postcopy,
}

/// How a VM is moved; what is not given has its usual value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MigrateOptions {
    /// For how many milliseconds it may stand still.
    pub downtime_ms: Option<u64>,
    /// After how many seconds the strategy applies.
    pub timeout_s: Option<u64>,
    /// What then happens.
    pub strategy: MigrateStrategy,
    /// At most so many MiB a second.
    pub bandwidth_mib_s: Option<u64>,
}

/// Limits that change: to what, where it is said; to none, where that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitChanges {
    /// The new limits.
    pub to: Limits,
    /// Which are taken away: CPU, requests a second, disks' rate, NICs' rates.
    pub lifted: [bool; 5],
}

impl LimitChanges {
    /// The limits after the change.
    pub fn apply(&self, before: &Limits) -> Limits {
        fn change<T>(to: Option<T>, lifted: bool, before: Option<T>) -> Option<T> {
            if lifted { None } else { to.or(before) }
        }
        let [cpu, iops, disk, net, receive] = self.lifted;
        Limits {
            cpu_percent: change(self.to.cpu_percent, cpu, before.cpu_percent),
            iops: change(self.to.iops, iops, before.iops),
            disk_rate: change(self.to.disk_rate, disk, before.disk_rate),
            net_rate: change(self.to.net_rate, net, before.net_rate),
            receive_rate: change(self.to.receive_rate, receive, before.receive_rate),
        }
    }
}

/// A disk, CD or NIC of a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmPart {
    /// The disk or CD on a partition.
    Disk(DiskSpec),
    /// The NIC with this address; where none is given, one whose address the host chooses, or the only one.
    Nic(Option<Mac>),
}

/// What can be done to a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmAction {
    /// Powers it on.
    Start,
    /// Asks it to shut down, as its power button does.
    Stop,
    /// Powers it off.
    Kill,
    /// Resets it.
    Reset,
    /// Stops its vCPUs where they are.
    Pause,
    /// Lets them go on.
    Resume,
    /// Forgets a VM that does not run. Its disks stay.
    Delete,
    /// Erases what its UEFI firmware keeps, while it does not run.
    EraseVariables,
}
