//! What QEMU's TCG needs where an interrupt waits: it alone has no decode assists, and is told by that.
//!
//! QEMU 10 keeps the vector that VMRUN injected as an exception still to be raised. Whatever stops its emulation before
//! another exception or exit (translated code that ran out of room, an operator's `stop`) delivers it again, even where
//! the guest holds interrupts, and a Linux that is just entering a handler does not survive that. So an interrupt is
//! injected as a virtual one (APM volume 2, 15.21.4): the guest takes it as soon, and QEMU forgets it properly.
//!
//! Of a virtual interrupt it makes a note in VMRUN that undoes one which another of its threads makes at that moment: an
//! interrupt of the host stays pending in the local APIC, and nobody looks there. Writing CR8 has it look.

use crate::Features;
use crate::entry::{Svm, event};
use crate::vmcb::{clean, virtual_interrupt};
use core::arch::asm;

const AT_ONCE: u64 = virtual_interrupt::REQUEST | virtual_interrupt::PRIORITY_HIGHEST | virtual_interrupt::IGNORE_TPR;

/// An interrupt on its way into the guest.
pub(crate) struct Virtual(Option<u64>);

impl Svm {
    /// Before an entry: makes the interrupt that is to be injected a virtual one. Says whether there is one, also one
    /// that only waits for a window.
    pub(crate) fn begin_virtual(&mut self) -> Option<Virtual> {
        if self.features.contains(Features::DECODE_ASSISTS) {
            return None;
        }
        if self.vmcb.control.virtual_interrupt & virtual_interrupt::REQUEST != 0 {
            return Some(Virtual(None));
        }
        let control = &mut self.vmcb.control;
        let interrupt = control.event_injection;
        if interrupt & (event::VALID | event::TYPE_MASK) != event::VALID | event::INTERRUPT {
            return None;
        }
        control.event_injection = 0;
        control.virtual_interrupt |= AT_ONCE | (interrupt & 0xff) << virtual_interrupt::VECTOR_SHIFT;
        self.changed(clean::TPR);
        Some(Virtual(Some(interrupt)))
    }

    /// After the exit: an interrupt that was not delivered, or not to its end, goes first at the next entry.
    pub(crate) fn end_virtual(&mut self, begun: Virtual) {
        if let Virtual(Some(interrupt)) = begun {
            let control = &mut self.vmcb.control;
            let is_left = control.virtual_interrupt & virtual_interrupt::REQUEST != 0;
            control.virtual_interrupt &= !(AT_ONCE | 0xff << virtual_interrupt::VECTOR_SHIFT);
            if is_left {
                self.interrupted = Some(interrupt);
            }
        }
        // SAFETY: the host holds back no interrupts by priority, so CR8 is 0 already.
        unsafe { asm!("mov cr8, {}", in(reg) 0_u64, options(nomem, nostack, preserves_flags)) };
    }
}
