//! Who is meant: from an interrupt message to the vCPUs that it concerns, found by the sender, without a lock.
//!
//! [`Addresses`] has a word for each vCPU, which that vCPU's thread keeps as its local APIC is; [`VcpuSet`] is the answer.
//! A message goes where it was addressed when it was sent, as on a bus.

use alloc::boxed::Box;
use chipset::{Address, DeliveryMode, Lapic, Message, Target};
use core::sync::atomic::{AtomicU32, Ordering};

/// How many vCPUs a machine has at most.
pub const VCPUS_MAX: usize = 64;

/// Some of a machine's vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuSet(u64);

impl VcpuSet {
    /// Just this one.
    pub const fn one(vcpu: usize) -> Self {
        Self(1 << vcpu)
    }

    /// Those whose bits are set.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The one at this place when they are counted, from 0 on.
    fn nth(self, place: u32) -> Self {
        let without_lower = (0..place).fold(self.0, |bits, _| bits & bits.wrapping_sub(1));
        Self(without_lower & without_lower.wrapping_neg())
    }
}

impl Iterator for VcpuSet {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let next = (self.0 != 0).then(|| self.0.trailing_zeros() as usize);
        self.0 &= self.0.wrapping_sub(1);
        next
    }
}

/// How every vCPU of a machine is addressed.
pub struct Addresses(Box<[AtomicU32]>);

impl Addresses {
    /// Of so many vCPUs after reset. A vCPU's number is the ID of its local APIC.
    pub fn new(vcpus: usize) -> Self {
        let after_reset = |id| AtomicU32::new(Lapic::new(id as u32, id == 0, 1).address().bits());
        Self((0..vcpus).map(after_reset).collect())
    }

    /// Notes how a vCPU is addressed from now on.
    pub fn set(&self, vcpu: usize, address: Address) {
        self.0[vcpu].store(address.bits(), Ordering::Release);
    }

    /// Whom a message concerns.
    pub fn of(&self, message: &Message) -> VcpuSet {
        let hears = |vcpu: usize| {
            let bits = self.0[vcpu].load(Ordering::Acquire);
            Address::from_bits(vcpu as u32, bits).hears(message)
        };
        let all = match message.target {
            // IDs are below 256 and unique: the visible one is the ID itself.
            Target::Only(id) | Target::Physical(id) => match usize::try_from(id) {
                Ok(vcpu) if vcpu < self.0.len() => VcpuSet::one(vcpu),
                _ => VcpuSet::default(),
            },
            Target::Logical(_) | Target::AllBut(_) | Target::All => VcpuSet(u64::MAX >> (64 - self.0.len())),
        };
        let set = all.filter(|&vcpu| hears(vcpu)).fold(VcpuSet::default(), |set, vcpu| VcpuSet(set.0 | 1 << vcpu));
        match message.mode {
            // The model decides who has the lowest priority (SDM volume 3, 11.6.2.4): by the vector, which spreads
            // vectors over processors and keeps each at one, where its handler's data is cached.
            DeliveryMode::LowestPriority if set.0 != 0 => set.nth(u32::from(message.vector) % set.0.count_ones()),
            _ => set,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn message(target: Target, mode: DeliveryMode, vector: u8) -> Message {
        Message { vector, mode, target, level_triggered: false }
    }

    /// `count` vCPUs in x2APIC mode, enabled but the last.
    fn x2apic(count: usize) -> Addresses {
        let addresses = Addresses::new(count);
        for vcpu in 0..count {
            let mut lapic = Lapic::new(vcpu as u32, vcpu == 0, 1);
            let mut write = |index, value| {
                lapic.write_msr(index, value, chipset::Clock::default(), &mut Vec::new()).unwrap();
            };
            write(0x1b, 0xfee0_0c00);
            write(0x80f, if vcpu + 1 < count { 0x1ff } else { 0xff });
            addresses.set(vcpu, lapic.address());
        }
        addresses
    }

    fn fixed(addresses: &Addresses, target: Target) -> Vec<usize> {
        addresses.of(&message(target, DeliveryMode::Fixed, 0x40)).collect()
    }

    #[test]
    fn only_those_that_are_meant_and_listen() {
        let addresses = x2apic(64);
        assert_eq!(fixed(&addresses, Target::Physical(17)), [17]);
        assert_eq!(fixed(&addresses, Target::Logical(1 << 16 | 0x8005)), [16, 18, 31]);
        assert_eq!(fixed(&addresses, Target::AllBut(3)).len(), 62, "the last is software-disabled");
        assert_eq!(addresses.of(&message(Target::Physical(63), DeliveryMode::Init, 0)), VcpuSet::one(63));
        for nobody in [Target::Physical(64), Target::Physical(u32::MAX), Target::Only(99), Target::Logical(5 << 16 | 1)]
        {
            assert_eq!(fixed(&addresses, nobody), [], "{nobody:?}");
        }
    }

    #[test]
    fn after_reset_they_wait_for_init() {
        let addresses = Addresses::new(3);
        assert_eq!(fixed(&addresses, Target::All), []);
        let init = message(Target::AllBut(0), DeliveryMode::Init, 0);
        assert_eq!(addresses.of(&init).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn the_lowest_priority_is_one_processor_s() {
        let addresses = x2apic(5);
        let mut chosen = [0; 5];
        for vector in 0x20..=0x5f {
            let set: Vec<usize> = addresses.of(&message(Target::All, DeliveryMode::LowestPriority, vector)).collect();
            assert_eq!(set.len(), 1);
            chosen[set[0]] += 1;
        }
        assert_eq!(chosen, [16, 16, 16, 16, 0], "spread over those that take vectors");
    }
}
