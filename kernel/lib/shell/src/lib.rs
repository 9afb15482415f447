//! The operator's console, without a wire: bytes in, a typed command out, a typed reply in, text out.
//!
//! [`LineEditor`] turns the bytes of a terminal into lines and echoes them; [`parse()`] turns a line into an
//! [`Invocation`]; whoever carries it out (`kernel/src/host_console`) answers with a [`Reply`], which [`render()`] puts
//! into text for people or JSON for programs. [`ConsoleBuffer`] and [`Attach`] are the two halves of a guest's
//! console. What commands there are is said once, in the catalog that parsing, completion and help share.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod attach;
mod catalog;
mod command;
mod complete;
mod console;
mod editor;
mod help;
mod history;
mod keys;
mod moves;
mod parse;
mod profiles;
mod render;
mod reply;
mod row;
mod table;
mod units;
mod words;

pub use attach::{Attach, AttachAction};
pub use command::{
    Command, CpuProfileCommand, Invocation, LimitChanges, MigrateOptions, MigrateStrategy, VmAction, VmPart,
};
pub use complete::{NameKind, Names, NoNames};
pub use console::{ConsoleBuffer, Cursor};
pub use editor::{Input, LineEditor};
pub use help::{CommandHelp, Help, OptionHelp, help};
pub use moves::{MoveInfo, PeerInfo};
pub use parse::{ParseError, parse};
pub use profiles::CpuProfileInfo;
pub use render::{render, to_terminal};
pub use reply::{
    Backend, BalloonInfo, CardCounts, CardInfo, Device, DeviceStatus, DiskInfo, DiskIo, DiskState, Dma, DoneReply,
    ErrorReply, ExitStat, Feature, HardwareErrors, HostReport, Idle, LimitsInfo, LoadOrder, LogLine, Measured,
    MeasuredLoad, Memory, ModuleInfo, NicIo, NotedBy, PortInfo, PortLink, Reply, Speculation, TraceLine, VmDetail,
    VmStat, VmState, VmSummary, Weakness, WeaknessStatus, Writes,
};
pub use words::listed;
