//! Live migration as a protocol: what the source of a running VM and its target say and do, in which order.
//!
//! [`Source`] sends the guest's memory while it runs, again and again what changed meanwhile, stops it when the rest is
//! small, sends that and the machine's state, and gives the VM away at one commit point; [`Target`] is the other end.
//! Both are plain state machines: events and the time go in, [`source::Effect`] and [`target::Effect`] come out. The
//! bytes between them are in [`wire`]; `peer` carries them, encrypted, in order, or not at all. `state` bytes are opaque
//! here, and so is the offer: no device is known.
//!
//! The commit point: the source runs until the target has said that it is ready; the source's answer to that, *commit*,
//! is its last word, and from then on only the target may run. A source that does not hear of the outcome asks by saying
//! the same again; a target that is ready and hears nothing waits. Neither runs on a guess.
//!
//! Post-copy is the same with memory left behind: the source says which pages the target lacks, and sends them after the
//! commit, those first that the target wants now. From then on the guest is in two halves: its source keeps its memory,
//! and never runs it, until the target has said that it is complete; its target lets it stand while the link is down.
//! Only both together can go on, so that the death of either is the guest's.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod clock;
pub mod delta;
pub mod pace;
pub mod pages;
pub mod source;
pub mod survey;
pub mod talk;
pub mod target;
pub mod wire;

#[cfg(test)]
mod model;

pub use source::Source;
pub use target::Target;

/// What one migration is called, by both ends and for ever: random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Id(pub [u8; 16]);

/// What to do when the timeout passes and the rest is still too large.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Strategy {
    /// Give up: the VM stays where it is.
    #[default]
    Cancel,
    /// Stop the guest for as long as the rest takes.
    Stop,
    /// Hand it over without the rest, which follows it. This happens before the timeout where rounds bring little.
    Postcopy,
}

/// What the operator asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    /// For how long the guest may stand still.
    pub downtime_ns: u64,
    /// How long it may take until the guest is stopped.
    pub timeout_ns: u64,
    /// What happens then.
    pub strategy: Strategy,
    /// At most so many bytes a second.
    pub bandwidth_max: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        let (downtime_ns, timeout_ns) = (60_000_000, 300_000_000_000);
        Self { downtime_ns, timeout_ns, strategy: Strategy::Cancel, bandwidth_max: None }
    }
}
