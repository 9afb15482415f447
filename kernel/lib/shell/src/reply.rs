//! What the host answers.
//!
//! [`Reply`] is what every command is answered with; [`render()`](crate::render()) shows it. As JSON each is one object
//! with one key, the reply's kind, whose value has the fields below under their own names: sizes in bytes and times in
//! nanoseconds, so that no program has to take text apart.

use alloc::{format, string::String, vec::Vec};

use config::{Mac, Name, nearest};
use serde::Serialize;

use crate::{CpuProfileInfo, Help, MoveInfo, ParseError, PeerInfo};

/// An answer to a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `help`.
    Help(Help),
    /// To `host`.
    Host(HostReport),
    /// To `vm list`.
    Vms(Vec<VmSummary>),
    /// To `vm show`.
    Vm(VmDetail),
    /// To `disk list`, and with one element to `disk show`.
    Disks(Vec<DiskInfo>),
    /// To `vm measure`.
    Writes(Writes),
    /// To `disk measure`.
    Measured(Measured),
    /// To `net list`.
    Ports(Vec<PortInfo>),
    /// To `log`, oldest first.
    Log(Vec<LogLine>),
    /// To `trace`, oldest first.
    Trace(Vec<TraceLine>),
    /// To `stat`.
    Stat(Vec<VmStat>),
    /// To `modules`.
    Modules(Vec<ModuleInfo>),
    /// To `migrate status`, those under way first.
    Moves(Vec<MoveInfo>),
    /// To `peer list`.
    Peers(Vec<PeerInfo>),
    /// To `cpu profile list`.
    CpuProfiles(Vec<CpuProfileInfo>),
    /// To `cpu profile show`.
    CpuProfile(CpuProfileInfo),
    /// To a command that does something and succeeded.
    Done(DoneReply),
    /// To a command that could not be parsed or carried out.
    Error(ErrorReply),
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DoneReply {
    /// One line: "web is running".
    pub message: String,
}

/// Why a command was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ErrorReply {
    /// What is wrong, in one line without a full stop.
    pub message: String,
    /// What to do about it, likewise.
    pub remedy: Option<String>,
}

/// What this machine is, has and can do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct HostReport {
    /// The host's name.
    pub name: String,
    /// Pollux's version.
    pub version: String,
    /// The processor's brand string.
    pub cpu_model: String,
    /// How many CPUs were started.
    pub cpus: u32,
    /// What each of them did not do.
    pub idle: Vec<Idle>,
    /// The rate of the time stamp counter.
    pub tsc_hz: u64,
    /// What runs the guests.
    #[serde(flatten)]
    pub backend: Backend,
    /// The processor's features that matter.
    pub features: Vec<Feature>,
    /// What the processor leaks by speculation, and what is done about it.
    pub speculation: Speculation,
    /// What went wrong in the hardware since the kernel started.
    pub errors: HardwareErrors,
    /// The memory and who has it.
    pub memory: Memory,
    /// What keeps devices from memory that they were not given.
    pub dma: Dma,
    /// The disks of the host.
    pub disks: Vec<Device>,
    /// The NICs of the host.
    pub nics: Vec<Device>,
    /// The management address with its prefix length, once there is one.
    pub management_address: Option<String>,
    /// The public key by which other hosts know this one.
    pub key: String,
    /// Since the kernel started.
    pub uptime_ns: u64,
}

/// When a CPU had nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Idle {
    /// How often it slept.
    pub sleeps: u64,
    /// How long, in all.
    pub idle_ns: u64,
}

/// Errors that processors and memory reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct HardwareErrors {
    /// Put right by the hardware.
    pub corrected: u64,
    /// Not put right, in what nothing has used.
    pub deferred: u64,
    /// Not put right, and met by a guest; also those from before the start.
    pub uncorrected: u64,
    /// How often a processor was found to have been too hot.
    pub thermal: u64,
    /// Non-maskable interrupts, of which Pollux sends none while it runs.
    pub nmis: u64,
}

/// What the processor leaks by speculation, and what is done about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Speculation {
    /// The microcode's revision.
    pub microcode: u32,
    /// Whether two threads share a core.
    pub threads: bool,
    /// IA32_SPEC_CTRL of the CPU that answers, where there is one.
    pub control: Option<u64>,
    /// Each weakness that is known, by the name under which Linux lists it.
    pub weaknesses: Vec<Weakness>,
}

/// A weakness and how it stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Weakness {
    /// Its name.
    pub name: String,
    /// How it stands.
    #[serde(flatten)]
    pub status: WeaknessStatus,
}

/// How a weakness stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum WeaknessStatus {
    /// This processor has not got it.
    NotAffected,
    /// It is closed.
    Mitigated {
        /// How.
        by: String,
    },
    /// It is open.
    Exposed {
        /// Why.
        reason: String,
    },
}

/// What runs the guests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "backend", rename_all = "lowercase")]
pub enum Backend {
    /// AMD-V.
    Svm,
    /// Intel VT-x.
    Vmx,
    /// Nothing: no guest can run.
    None {
        /// Why: what the processor lacks, or that the firmware locked it.
        #[serde(rename = "backend_reason")]
        reason: String,
    },
}

/// A feature of the processor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Feature {
    /// Its name as the manual has it: "NRIP save".
    pub name: String,
    /// Whether the processor has it.
    pub present: bool,
}

/// The host's memory and who has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Memory {
    /// All that the firmware reported as usable.
    pub total_bytes: u64,
    /// In nobody's hands.
    pub free_bytes: u64,
    /// How much of that is kept for VMs.
    pub promised_bytes: u64,
    /// Pollux's own: image, heap, stacks, page tables.
    pub own_bytes: u64,
    /// The RAM of guests.
    pub guests_bytes: u64,
}

/// What keeps devices from memory that they were not given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Dma {
    /// Whether anything does.
    pub confined: bool,
    /// Whether they can raise no interrupts but their own.
    pub interrupts_confined: bool,
    /// Whose IOMMUs confine how many devices, or why none does.
    pub description: String,
    /// Accesses that were stopped.
    pub stopped: u64,
}

/// A disk or NIC of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Device {
    /// Its name: "disk0", or where it is on its bus.
    pub name: String,
    /// What it is: its driver and size or address, or its identification where it has no driver.
    pub description: String,
    /// Whether it can be used.
    #[serde(flatten)]
    pub status: DeviceStatus,
}

/// Whether a device of the host can be used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum DeviceStatus {
    /// It can.
    Ready,
    /// It could, but it is gone or stays broken.
    Failed,
    /// It cannot.
    NotSupported {
        /// Why: "no driver".
        reason: String,
    },
}

/// What a VM is doing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum VmState {
    /// It was defined and has not run.
    Created,
    /// It runs.
    Running,
    /// It stands still and can go on.
    Paused,
    /// It needs memory, and the host has none left.
    Waiting,
    /// It is on its way here from another host, where it runs.
    Arriving,
    /// It was given to another host, which has not said yet that it runs it.
    Given {
        /// To which.
        to: Name,
    },
    /// It runs on another host, to which its memory follows from here.
    Serving {
        /// On which.
        to: Name,
    },
    /// It is powered off.
    Stopped,
    /// It is on a disk, and can go on from there.
    Saved,
    /// It ended itself by its debug exit.
    Exited {
        /// What it wrote there.
        code: u32,
    },
    /// It ended by a fault.
    Crashed {
        /// Which.
        reason: String,
    },
}

/// A VM in a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VmSummary {
    /// Its name.
    pub name: Name,
    /// What it is doing.
    #[serde(flatten)]
    pub state: VmState,
    /// How many vCPUs it has.
    pub vcpus: u16,
    /// Its RAM.
    pub memory_bytes: u64,
    /// How much of the host's memory it has: less than its RAM where its guest gave some up.
    pub held_bytes: u64,
    /// Since it was started; 0 where it is not running.
    pub uptime_ns: u64,
}

/// A VM in full.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VmDetail {
    /// What a list says.
    #[serde(flatten)]
    pub summary: VmSummary,
    /// Its balloon, where it runs.
    pub balloon: Option<BalloonInfo>,
    /// The boot module with its kernel; without one it boots by UEFI.
    pub kernel: Option<String>,
    /// The boot module with its initial RAM disk.
    pub initrd: Option<String>,
    /// Its kernel's modules besides that, with their texts.
    pub modules: Vec<String>,
    /// The kernel's command line.
    pub command_line: String,
    /// How much of its memory is kept for it.
    pub reserved_bytes: u64,
    /// What it may use at most.
    pub limits: LimitsInfo,
    /// Its disks, by name.
    pub disks: Vec<String>,
    /// Its CD, by name.
    pub cdrom: Option<String>,
    /// The addresses of its NICs.
    pub nics: Vec<Mac>,
    /// The CPU that each of its vCPUs runs on now; none where it does not run.
    pub cpus: Vec<u16>,
    /// The CPU profile that it was created with; without one it sees what the host had that it was started on.
    pub cpu_profile: Option<Name>,
    /// Where its UEFI variables are kept, in words; none without such, and before it ran.
    pub variables: Option<String>,
    /// How often its vCPUs left the guest.
    pub exits: u64,
    /// The time that its vCPUs had on a CPU, summed.
    pub cpu_time_ns: u64,
}

/// What a VM may use at most; nothing says: as much as there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct LimitsInfo {
    /// Time on CPUs, in percent of one.
    pub cpu_percent: Option<u16>,
    /// Requests a second to its disks.
    pub iops: Option<u32>,
    /// Bytes a second to and from its disks.
    pub disk_bytes_per_s: Option<u64>,
    /// Bytes a second that its NICs send.
    pub net_bytes_per_s: Option<u64>,
    /// Bytes a second that they receive.
    pub receive_bytes_per_s: Option<u64>,
}

/// What a guest does without, and what it says of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct BalloonInfo {
    /// Whether the guest drives its balloon.
    pub driver: bool,
    /// What it is to keep.
    pub target_bytes: u64,
    /// What it says it keeps.
    pub keeps_bytes: u64,
    /// Of that, what it had not used for anything when it was last asked.
    pub unused_bytes: Option<u64>,
    /// What a new program of its could get.
    pub available_bytes: Option<u64>,
}

/// A virtual disk: a partition of a datastore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DiskInfo {
    /// The partition's name, by which VMs ask for it.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The host's disk that it is on.
    pub disk: String,
    /// Its number there, from 1.
    pub partition: u32,
    /// The VM that has it, or those that read it.
    pub used_by: Vec<Name>,
    /// Whether it can only be read.
    pub read_only: bool,
    /// What the host's disk is doing.
    pub state: DiskState,
}

/// What a disk of the host is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// It works.
    Ready,
    /// It did not answer, and is being reset.
    Recovering,
    /// It is gone or stays broken.
    Failed,
}

/// How fast a VM writes its memory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Writes {
    /// Its name.
    pub vm: String,
    /// How often it was looked what was written.
    pub looks: u64,
    /// From the first look to the last.
    pub time_ns: u64,
    /// Pages of 4 KiB that all looks together found; one that several found counts as often.
    pub pages: u64,
    /// How many different ones they are.
    pub distinct_pages: u64,
    /// How long a look took.
    pub look_ns: u64,
    /// How a look finds them.
    pub noted_by: NotedBy,
}

/// How it is known which pages a guest wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotedBy {
    /// The processor marks what was written.
    #[default]
    DirtyBits,
    /// It logs that besides, so that a look need not search.
    Log,
    /// Pages are protected, and the first write to each exits.
    Faults,
}

/// How fast a disk of the host reads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Measured {
    /// Its name.
    pub disk: String,
    /// What and where it is: "virtio-blk at 00:04.0".
    pub device: String,
    /// Each load that it was put under.
    pub loads: Vec<MeasuredLoad>,
}

/// Reads of one kind, and how fast they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct MeasuredLoad {
    /// Where they were.
    pub order: LoadOrder,
    /// Bytes in one read.
    pub read_bytes: u32,
    /// How many were under way at once.
    pub depth: u32,
    /// How many there were.
    pub reads: u64,
    /// How long they took together.
    pub time_ns: u64,
    /// Bytes read in a second.
    pub bytes_per_second: u64,
    /// Reads in a second.
    pub reads_per_second: u64,
}

/// Where the reads of a load are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadOrder {
    /// One behind the other.
    Sequential,
    /// All over the disk.
    Random,
}

/// A port of the switch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PortInfo {
    /// Who is at it: "uplink", "host", "web/0".
    pub name: String,
    /// The address of what is at it.
    pub mac: Option<Mac>,
    /// Frames that came from it.
    pub frames_in: u64,
    /// Frames that went to it.
    pub frames_out: u64,
    /// Bytes that came from it.
    pub bytes_in: u64,
    /// Bytes that went to it.
    pub bytes_out: u64,
    /// Frames that it could not take.
    pub drops: u64,
    /// Whether it has a carrier.
    pub link: PortLink,
    /// At which speed, where that is known.
    pub speed_mbps: Option<u32>,
    /// The card behind it, for an uplink.
    pub card: Option<CardInfo>,
}

/// Whether a port has a carrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortLink {
    /// It has.
    Up,
    /// It has not.
    Down,
    /// The card was given up.
    Failed,
}

/// A network card of the host's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CardInfo {
    /// What kind it is.
    pub name: String,
    /// What it counted, where it counts.
    pub counters: Option<CardCounts>,
}

/// What a card itself counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct CardCounts {
    /// Good frames from outside.
    pub received: u64,
    /// Good frames to outside.
    pub transmitted: u64,
    /// Frames from outside for which it had no room.
    pub missed: u64,
    /// Frames with a wrong check sequence.
    pub crc_errors: u64,
    /// Frames damaged in another way.
    pub other_errors: u64,
}

/// A message of the host's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LogLine {
    /// When, since the kernel started.
    pub time_ns: u64,
    /// How grave: "error", "warn", "info", "debug".
    pub level: String,
    /// What it says, with its origin.
    pub message: String,
}

/// A trace entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TraceLine {
    /// When, since the kernel started.
    pub time_ns: u64,
    /// The CPU that it happened on.
    pub cpu: u32,
    /// The VM that it concerns.
    pub vm: Option<Name>,
    /// What happened, in one line.
    pub event: String,
}

/// The counters of a VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VmStat {
    /// Which VM.
    pub name: Name,
    /// Its exits by reason, in any order.
    pub exits: Vec<ExitStat>,
    /// The time that its vCPUs had on a CPU, summed.
    pub cpu_time_ns: u64,
    /// The time that they were ready to run and had no CPU, summed.
    pub steal_ns: u64,
    /// What its disks did.
    pub disks: Vec<DiskIo>,
    /// What its NICs did.
    pub nics: Vec<NicIo>,
}

/// The exits of a VM for one reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ExitStat {
    /// The reason's name.
    pub reason: String,
    /// How many there were.
    pub count: u64,
    /// The time from each exit to the entry after it, summed.
    pub time_ns: u64,
}

/// What a disk of a VM did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DiskIo {
    /// Its name.
    pub name: String,
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// What a NIC of a VM did, seen from the guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NicIo {
    /// Its address.
    pub mac: Mac,
    /// Frames received.
    pub frames_in: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Frames for it that were dropped for want of a buffer.
    pub drops: u64,
}

/// A boot module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ModuleInfo {
    /// Its name, by which `--kernel` and `--initrd` ask for it.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

impl Reply {
    /// Something was done, said in one line without a full stop.
    pub fn done(message: impl Into<String>) -> Self {
        Self::Done(DoneReply { message: message.into() })
    }

    /// Something could not be done: why, and what to do about it.
    pub fn error(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Error(ErrorReply { message: message.into(), remedy: Some(remedy.into()) })
    }

    /// The VM, disk or module that a command named does not exist. `kind` says which of these; `existing` are the
    /// names that there are, and `list` is the command that shows them.
    pub fn no_such<'a>(kind: &str, name: &str, existing: impl IntoIterator<Item = &'a str>, list: &str) -> Self {
        let remedy = match nearest(name, existing) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`{list}` shows what there is"),
        };
        Self::error(format!("there is no {kind} `{name}`"), remedy)
    }
}

impl From<ParseError> for Reply {
    fn from(error: ParseError) -> Self {
        Self::error(error.message, error.remedy)
    }
}

impl VmState {
    /// The state in one word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Arriving => "arriving",
            Self::Given { .. } => "given",
            Self::Serving { .. } => "serving",
            Self::Stopped => "stopped",
            Self::Exited { .. } => "exited",
            Self::Saved => "saved",
            Self::Crashed { .. } => "crashed",
        }
    }
}
