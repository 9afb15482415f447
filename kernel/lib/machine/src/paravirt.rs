//! What Linux knows of KVM and Pollux offers too: kvm-clock and the end of interrupt without an exit.
//!
//! Linux, Documentation/virt/kvm/x86/msr.rst. Guest memory that a guest registers here is looked up at each use: a
//! guest that registers none gets #GP, one that takes it away loses the service.

mod saved;

pub use saved::Saved;

use crate::Machine;
use crate::run::Thread;
use addr::Gpa;
use chipset::{Clock, GeneralProtection};
use core::sync::atomic::{Ordering, fence};
use guestmem::Outside;

const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const PV_EOI: u32 = 0x4b56_4d04;

/// The low bit of a registration.
const ENABLE: u64 = 1;

/// The size of the clock in guest memory.
const CLOCK_BYTES: u64 = 32;

/// The clock does not jump between vCPUs.
const TSC_STABLE: u8 = 1 << 0;
/// The guest stood still: its watchdogs must not take that for a hang.
const GUEST_STOPPED: u8 = 1 << 1;

/// What a vCPU's guest registered.
#[derive(Clone, Copy, Default, Debug)]
pub struct Registered {
    wall_clock: u64,
    system_time: u64,
    /// The version of the clock in guest memory, even while it is not being changed.
    system_time_version: u32,
    pv_eoi: u64,
    /// The flag in guest memory says that an interrupt may be ended there.
    eoi_offered: bool,
}

/// Reads one of KVM's registers.
pub fn read_msr(thread: &mut Thread, index: u32) -> Result<u64, GeneralProtection> {
    match index {
        SYSTEM_TIME => Ok(thread.registered.system_time),
        PV_EOI => Ok(thread.registered.pv_eoi),
        WALL_CLOCK => Ok(thread.registered.wall_clock),
        _ => Err(GeneralProtection),
    }
}

impl Machine {
    pub(crate) fn write_paravirt_msr(
        &self,
        thread: &mut Thread,
        index: u32,
        value: u64,
        clock: Clock,
    ) -> Result<(), GeneralProtection> {
        let at = Gpa::new(value & !ENABLE);
        match index {
            WALL_CLOCK => {
                self.write_wall_clock(Gpa::new(value)).map_err(|_| GeneralProtection)?;
                thread.registered.wall_clock = value;
            }
            SYSTEM_TIME => {
                if value & ENABLE != 0 {
                    self.memory.check(at, CLOCK_BYTES).map_err(|_| GeneralProtection)?;
                }
                thread.registered.system_time = value;
                self.update_clock(thread, clock);
            }
            PV_EOI => {
                let usable = at.is_aligned(4) && self.memory.check(at, 4).is_ok();
                if value & ENABLE != 0 && !usable {
                    return Err(GeneralProtection);
                }
                // No offer is out: those end with each exit.
                thread.registered.pv_eoi = value;
            }
            _ => return Err(GeneralProtection),
        }
        Ok(())
    }

    /// Writes the guest's clock, after it was registered or the TSC was set.
    pub(crate) fn update_clock(&self, thread: &mut Thread, clock: Clock) {
        self.change_clock(thread, clock, TSC_STABLE);
    }

    /// The same for a guest that stood still; says whether it has such a clock.
    pub(crate) fn update_clock_after_pause(&self, thread: &mut Thread, clock: Clock) -> bool {
        self.change_clock(thread, clock, TSC_STABLE | GUEST_STOPPED);
        thread.registered.system_time & ENABLE != 0
    }

    fn change_clock(&self, thread: &mut Thread, clock: Clock, flags: u8) {
        let Registered { system_time, system_time_version, .. } = &mut thread.registered;
        if *system_time & ENABLE == 0 {
            return;
        }
        *system_time_version = system_time_version.wrapping_add(2);
        let written = self.write_system_time(Gpa::new(*system_time & !ENABLE), *system_time_version, clock, flags);
        if written.is_err() {
            *system_time = 0;
        }
    }

    /// Before an entry: lets the guest end the interrupt in service by clearing a flag, where that is all it takes.
    pub(crate) fn offer_eoi(&self, thread: &mut Thread) {
        let registered = &mut thread.registered;
        if registered.pv_eoi & ENABLE == 0 || registered.eoi_offered || !thread.lapic.can_pv_eoi() {
            return;
        }
        registered.eoi_offered = self.memory.store(Gpa::new(registered.pv_eoi & !ENABLE), 1, 1).is_ok();
    }

    /// After an exit: ends the interrupt if the guest did; else takes the offer back, for things may change now.
    pub(crate) fn collect_eoi(&self, thread: &mut Thread) {
        let registered = &mut thread.registered;
        if !registered.eoi_offered {
            return;
        }
        registered.eoi_offered = false;
        let at = Gpa::new(registered.pv_eoi & !ENABLE);
        match self.memory.load(at, 1) {
            Ok(flag) if flag & 1 != 0 => drop(self.memory.store(at, 1, 0)),
            _ => thread.lapic.end_of_interrupt(&mut thread.effects),
        }
    }

    /// struct pvclock_wall_clock: UTC at machine time 0.
    fn write_wall_clock(&self, at: Gpa) -> Result<(), Outside> {
        let mut bytes = [0; 12];
        bytes[0..4].copy_from_slice(&2u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&((self.epoch.wall_unix_ns() / 1_000_000_000) as u32).to_le_bytes());
        bytes[8..12].copy_from_slice(&((self.epoch.wall_unix_ns() % 1_000_000_000) as u32).to_le_bytes());
        self.memory.write(at, &bytes)
    }

    /// struct pvclock_vcpu_time_info: machine time as a function of the TSC, which runs at one rate for ever. Other vCPUs
    /// may be reading it: the version is odd meanwhile.
    fn write_system_time(&self, at: Gpa, version: u32, clock: Clock, flags: u8) -> Result<(), Outside> {
        let (multiplier, shift) = scale(self.profile.real_tsc_khz().into());
        let mut bytes = [0; CLOCK_BYTES as usize];
        bytes[8..16].copy_from_slice(&clock.tsc.to_le_bytes());
        bytes[16..24].copy_from_slice(&clock.ns.to_le_bytes());
        bytes[24..28].copy_from_slice(&multiplier.to_le_bytes());
        bytes[28] = shift as u8;
        bytes[29] = flags;
        self.memory.store(at, 4, u64::from(version | 1))?;
        fence(Ordering::Release);
        self.memory.write(at.wrapping_add(4), &bytes[4..])?;
        fence(Ordering::Release);
        self.memory.store(at, 4, u64::from(version))
    }
}

/// Multiplier and shift such that `(ticks << shift) * multiplier >> 32` is nanoseconds, the multiplier as large as fits.
fn scale(tsc_khz: u64) -> (u32, i8) {
    const NS_PER_MS: u64 = 1_000_000;
    let (mut numerator, mut denominator, mut shift) = (NS_PER_MS, tsc_khz.max(1), 0);
    while numerator >= denominator {
        denominator <<= 1;
        shift += 1;
    }
    while numerator << 1 < denominator {
        numerator <<= 1;
        shift -= 1;
    }
    (((u128::from(numerator) << 32) / u128::from(denominator)) as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn the_scale_turns_ticks_into_nanoseconds() {
        for khz in [100_000, 999_999, 1_000_000, 2_599_998, 5_000_000] {
            let (multiplier, shift) = scale(khz);
            let ticks = u128::from(khz) * 1000;
            let shifted = if shift >= 0 { ticks << shift } else { ticks >> -shift };
            let ns = (shifted * u128::from(multiplier)) >> 32;
            assert!(ns.abs_diff(1_000_000_000) < 10, "{khz} kHz gives {ns} ns a second");
            assert!(multiplier >= 1 << 31, "{khz} kHz wastes digits");
        }
    }
}
