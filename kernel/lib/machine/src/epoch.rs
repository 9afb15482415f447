//! Machine time: what the guest's clocks count, and how far it is from the host's.
//!
//! A machine that was never saved counts with its host. One that was restored goes on where it was saved, plus the time
//! that passed between, by the clocks on the wall of both hosts.

use crate::Moment;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Where machine time is. Changed before any vCPU runs only.
pub struct Epoch {
    /// How far machine time is ahead of the host's.
    ahead_ns: AtomicI64,
    /// UTC at machine time 0, as the guest was told.
    wall_unix_ns: AtomicU64,
    /// UTC at the host's moment 0.
    host_wall_unix_ns: u64,
}

impl Epoch {
    /// Machine time that is the host's.
    pub fn new(host_wall_unix_ns: u64) -> Self {
        Self { ahead_ns: AtomicI64::new(0), wall_unix_ns: AtomicU64::new(host_wall_unix_ns), host_wall_unix_ns }
    }

    /// Machine time at a moment.
    pub fn machine_ns(&self, now: Moment) -> u64 {
        now.ns.saturating_add_signed(self.ahead_ns.load(Ordering::Relaxed))
    }

    /// When the host's clock is at a machine time; 0 if that was before the host started.
    pub fn host_ns(&self, machine_ns: u64) -> u64 {
        machine_ns.saturating_add_signed(-self.ahead_ns.load(Ordering::Relaxed))
    }

    /// UTC at machine time 0, as the guest was told.
    pub fn wall_unix_ns(&self) -> u64 {
        self.wall_unix_ns.load(Ordering::Relaxed)
    }

    /// UTC at a moment.
    pub fn utc_ns(&self, now: Moment) -> u64 {
        self.host_wall_unix_ns.saturating_add(now.ns)
    }

    /// Has machine time be `machine_ns` at `now`; both are below 2^62.
    pub fn set(&self, machine_ns: u64, now: Moment, wall_unix_ns: u64) {
        self.ahead_ns.store(machine_ns.cast_signed() - now.ns.cast_signed(), Ordering::Relaxed);
        self.wall_unix_ns.store(wall_unix_ns, Ordering::Relaxed);
    }
}
