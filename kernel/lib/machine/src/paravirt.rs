//! What Linux knows of KVM and Pollux offers too: kvm-clock, the end of interrupt without an exit, and the time that a
//! vCPU had no CPU, with the flushes that others leave for it meanwhile.
//!
//! Linux, Documentation/virt/kvm/x86/msr.rst. Guest memory that a guest registers here is looked up at each use: a
//! guest that registers none gets #GP, one that takes it away loses the service.

mod saved;

pub use saved::Saved;

use crate::Machine;
use crate::run::Thread;
use addr::{Gpa, GpaRange};
use chipset::{Clock, GeneralProtection};
use core::sync::atomic::{Ordering, fence};
use guestmem::Outside;

const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const STEAL_TIME: u32 = 0x4b56_4d03;
const PV_EOI: u32 = 0x4b56_4d04;

/// The low bit of a registration.
const ENABLE: u64 = 1;

/// The size of the clock in guest memory.
const CLOCK_BYTES: u64 = 32;

/// The size of the flag of PV EOI.
const EOI_BYTES: u64 = 4;

/// The alignment and size of struct kvm_steal_time, and where in it the version and the state are.
const STEAL_BYTES: u64 = 64;
const STEAL_VERSION: u64 = 8;
const STEAL_STATE: u64 = 16;
/// In the state: the vCPU is not on a CPU; it is to forget its translations before it runs.
const PREEMPTED: u64 = 1 << 0;
const FLUSH_TLB: u64 = 1 << 1;

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
    steal_time: u64,
    /// The version of the stolen time in guest memory, even while it is not being changed.
    steal_version: u32,
    /// How much it was told, on whichever host; and what this host counted at that moment.
    steal_told_ns: u64,
    steal_counted_ns: u64,
    pv_eoi: u64,
    /// The flag in guest memory says that an interrupt may be ended there.
    eoi_offered: bool,
}

impl Registered {
    /// Calls `each` with the guest memory that is written without the guest asking at that moment.
    pub(crate) fn each_range(&self, each: &mut dyn FnMut(GpaRange)) {
        let registered = [(self.system_time, CLOCK_BYTES), (self.steal_time, STEAL_BYTES), (self.pv_eoi, EOI_BYTES)];
        let enabled = registered.into_iter().filter(|(value, _)| value & ENABLE != 0);
        enabled.filter_map(|(value, bytes)| GpaRange::new(Gpa::new(value & !ENABLE), bytes)).for_each(each);
    }
}

/// Reads one of KVM's registers.
pub fn read_msr(thread: &mut Thread, index: u32) -> Result<u64, GeneralProtection> {
    match index {
        SYSTEM_TIME => Ok(thread.registered.system_time),
        STEAL_TIME => Ok(thread.registered.steal_time),
        PV_EOI => Ok(thread.registered.pv_eoi),
        WALL_CLOCK => Ok(thread.registered.wall_clock),
        _ => Err(GeneralProtection),
    }
}

impl Machine {
    /// Whether the memory that a write to one of the registers names is here.
    pub(crate) fn registers_what_is_here(&self, index: u32, value: u64) -> bool {
        let bytes = match index {
            WALL_CLOCK | SYSTEM_TIME => CLOCK_BYTES,
            STEAL_TIME => STEAL_BYTES,
            PV_EOI => EOI_BYTES,
            _ => return true,
        };
        self.memory.is_here(Gpa::new(value & !ENABLE), bytes)
    }

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
            STEAL_TIME => {
                let reserved = value & (STEAL_BYTES - 1) & !ENABLE;
                if value & ENABLE != 0 && (reserved != 0 || self.memory.check(at, STEAL_BYTES).is_err()) {
                    return Err(GeneralProtection);
                }
                thread.registered.steal_time = value;
            }
            PV_EOI => {
                let usable = at.is_aligned(4) && self.memory.check(at, EOI_BYTES).is_ok();
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
        let Registered { pv_eoi, eoi_offered, .. } = thread.registered;
        if pv_eoi & ENABLE == 0 || eoi_offered || !thread.can_pv_eoi() {
            return;
        }
        let registered = &mut thread.registered;
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

    /// The vCPU got a CPU: tells its guest how long it had none in all, and forgets translations if another vCPU left
    /// that for it. That is found by the exchange which ends the offer, so that nothing is left unseen afterwards.
    pub(crate) fn tell_steal_time(&self, thread: &mut Thread, steal_ns: u64) {
        let registered = &mut thread.registered;
        let more_ns = steal_ns.saturating_sub(registered.steal_counted_ns);
        registered.steal_counted_ns = steal_ns;
        if registered.steal_time & ENABLE == 0 {
            return;
        }
        registered.steal_told_ns = registered.steal_told_ns.wrapping_add(more_ns);
        registered.steal_version = registered.steal_version.wrapping_add(2);
        let at = Gpa::new(registered.steal_time & !ENABLE);
        let written = self.write_steal_time(at, registered.steal_version, registered.steal_told_ns);
        match written.and_then(|()| self.take_state(at)) {
            Ok(state) if state & FLUSH_TLB != 0 => thread.vcpu.invalidate(),
            Ok(_) => {}
            Err(_) => thread.registered.steal_time = 0,
        }
    }

    /// The vCPU lets go of its CPU: from here on others need not interrupt it for a flush.
    pub(crate) fn tell_preempted(&self, thread: &mut Thread) {
        let at = thread.registered.steal_time;
        if at & ENABLE != 0
            && self.memory.store(Gpa::new(at & !ENABLE).wrapping_add(STEAL_STATE), 1, PREEMPTED).is_err()
        {
            thread.registered.steal_time = 0;
        }
    }

    /// struct kvm_steal_time; its reader is on this vCPU or another.
    fn write_steal_time(&self, at: Gpa, version: u32, steal_ns: u64) -> Result<(), Outside> {
        self.memory.store(at.wrapping_add(STEAL_VERSION), 4, u64::from(version | 1))?;
        fence(Ordering::Release);
        self.memory.store(at, 8, steal_ns)?;
        fence(Ordering::Release);
        self.memory.store(at.wrapping_add(STEAL_VERSION), 4, u64::from(version))
    }

    /// Exchanges the state for "on a CPU". A guest that changes it all the time gets its flush.
    fn take_state(&self, at: Gpa) -> Result<u64, Outside> {
        const TRIES: u32 = 8;
        let at = at.wrapping_add(STEAL_STATE);
        for _ in 0..TRIES {
            let state = self.memory.load(at, 1)?;
            if state == 0 || self.memory.compare_exchange(at, 1, state, 0)? {
                return Ok(state);
            }
        }
        self.memory.store(at, 1, 0)?;
        Ok(FLUSH_TLB)
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
