//! A VM's limits while it lives, and in the form in which they travel.

use super::Vm;
use crate::host::Host;
use config::{Invalid, Limits, Size};

impl Vm {
    /// What it may use at most.
    pub fn limits(&self) -> Limits {
        *self.limits.lock()
    }

    /// Changes that, for its present life too.
    pub fn set_limits(&self, host: &'static Host, limits: Limits) {
        *self.limits.lock() = limits;
        if let Some(running) = self.running() {
            running.limit(host, &limits);
        }
    }
}

/// Limits as they travel.
pub fn to_travel(limits: &Limits) -> state::Limits {
    state::Limits {
        cpu_percent: limits.cpu_percent.map(u64::from),
        iops: limits.iops.map(u64::from),
        disk_bytes_per_s: limits.disk_rate.map(Size::bytes),
        net_bytes_per_s: limits.net_rate.map(Size::bytes),
        receive_bytes_per_s: limits.receive_rate.map(Size::bytes),
    }
}

/// Limits that came from elsewhere, checked.
pub fn from_travel(limits: state::Limits) -> Result<Limits, Invalid> {
    let state::Limits { cpu_percent, iops, disk_bytes_per_s, net_bytes_per_s, receive_bytes_per_s } = limits;
    let rate = |bytes: Option<u64>| bytes.map(Size::from_bytes);
    Limits::checked(cpu_percent, iops, rate(disk_bytes_per_s), rate(net_bytes_per_s), rate(receive_bytes_per_s))
}
