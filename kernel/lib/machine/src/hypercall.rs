//! The hypercalls that Linux makes where several vCPUs share CPUs: interrupts for many at once, the end of another's halt,
//! and a CPU for somebody else.
//!
//! Linux, Documentation/virt/kvm/x86/hypercalls.rst. The number is in RAX, arguments are in RBX, RCX, RDX and RSI, the
//! result goes to RAX.

use crate::Host;
use crate::Machine;
use crate::exits::Next;
use crate::mail::Mail;
use crate::run::Thread;
use chipset::{DeliveryMode, Message, Target};
use vcpu::{Gpr, cr0, efer};

const KICK_CPU: u64 = 5;
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;

/// Results: not known, not allowed to a program, and an argument that means nothing.
const UNKNOWN: u64 = -1000i64 as u64;
const NOT_PERMITTED: u64 = -1i64 as u64;
const INVALID: u64 = -22i64 as u64;

impl Machine {
    /// Carries out the hypercall at which the vCPU stands, but for going on behind it; says what follows.
    pub(crate) fn hypercall(&self, thread: &mut Thread, host: &mut dyn Host) -> Next {
        let gprs = thread.vcpu.gprs();
        let [number, a0, a1, a2, a3] = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(|gpr| gprs[gpr as usize]);
        let paging = thread.vcpu.paging();
        let is_long = paging.efer & efer::LMA != 0 && paging.cr0 & cr0::PG != 0;
        let width = if is_long { 64 } else { 32 };
        let mask = u64::MAX >> (64 - width);
        let mut next = Next::Run;
        let result = match number & mask {
            KICK_CPU | SEND_IPI | SCHED_YIELD if paging.cpl != 0 => NOT_PERMITTED,
            KICK_CPU => self.vcpu_of(a1 & mask).map_or(INVALID, |vcpu| {
                self.post(vcpu, Mail::Unhalt, host);
                0
            }),
            SEND_IPI => {
                let set = u128::from(a0 & mask) | u128::from(a1 & mask) << width;
                self.send_to_set(set, a2 & mask, a3 & mask, host)
            }
            SCHED_YIELD => self.vcpu_of(a0 & mask).map_or(INVALID, |vcpu| {
                host.give_way(Some(vcpu));
                next = Next::Yield;
                0
            }),
            _ => UNKNOWN,
        };
        thread.vcpu.gprs_mut()[Gpr::Rax as usize] = result;
        next
    }

    /// An interrupt as the command register would send it, to the APIC IDs from `first` on whose bits are set; how many of
    /// them there are.
    fn send_to_set(&self, set: u128, first: u64, command: u64, host: &mut dyn Host) -> u64 {
        const SHORTHAND: u64 = 3 << 18;
        const LOGICAL: u64 = 1 << 11;
        let mode = match command >> 8 & 7 {
            0 => DeliveryMode::Fixed,
            4 => DeliveryMode::Nmi,
            _ => return INVALID,
        };
        if command & (SHORTHAND | LOGICAL) != 0 {
            return INVALID;
        }
        let ids = (0..u128::BITS).filter(|bit| set >> bit & 1 != 0);
        let vcpus = ids.filter_map(|bit| self.vcpu_of(first.checked_add(bit.into())?));
        vcpus.fold(0, |count, vcpu| {
            let target = Target::Only(vcpu as u32);
            self.send(&Message { vector: command as u8, mode, target, level_triggered: false }, host);
            count + 1
        })
    }

    /// The vCPU whose local APIC has this ID.
    fn vcpu_of(&self, apic_id: u64) -> Option<usize> {
        usize::try_from(apic_id).ok().filter(|&vcpu| vcpu < self.vcpus())
    }
}
