//! The guest's local APIC as far as the processor runs it: CR8 by the TPR shadow, and where it can deliver virtual
//! interrupts, those that wait in the page, and the registers of x2APIC that need no exit (chapter 30).
//!
//! [`Apic`] is one vCPU's. The page is the local APIC's own, so that nothing is copied: the processor has only to be told
//! which interrupt is the highest that waits and that runs, when somebody else changed them. Where virtual interrupts
//! are not delivered, `machine` injects them, and its wish for a window is the TPR threshold. Where posted interrupts are
//! processed, others' arrive without an exit; then each exit for an interrupt of the host's has acknowledged that.

use crate::enable::Features;
use crate::entry::Vmx;
use crate::msrs::{MsrMap, Way};
use crate::vmcs::{Field, secondary};
use alloc::sync::Arc;
use vcpu::{ApicPage, Posted};

/// All that x2APIC's registers are opened with: without one of them the bitmap would let the guest at the host's own.
const OPEN: Features = Features::VIRTUAL_INTERRUPTS.union(Features::X2APIC).union(Features::APIC_REGISTERS);

/// A vCPU's part of its local APIC.
pub(crate) struct Apic {
    page: Arc<ApicPage>,
    /// What others leave for it.
    posted: Arc<Posted>,
    /// The vector that tells the processor of it.
    notification: u8,
    /// The guest reaches the page by x2APIC's registers.
    is_open: bool,
    /// The VMCS may not say what is in the page.
    is_stale: bool,
}

impl Apic {
    pub fn new(notification: u8) -> Self {
        Self { page: ApicPage::new(), posted: Arc::default(), notification, is_open: false, is_stale: true }
    }

    /// The task-priority class, as the guest left it.
    pub fn tpr(&self) -> u8 {
        self.page.task_priority() >> 4
    }

    /// Sets it, and leaves what is below the class where that stays.
    pub fn set_tpr(&mut self, class: u8) {
        if class != self.tpr() {
            self.page.set_task_priority(class << 4);
        }
    }

    pub fn self_ipi(&self) -> u8 {
        self.page.self_ipi()
    }
}

impl Vmx {
    pub(crate) fn delivers_interrupts(&self) -> bool {
        self.features.contains(Features::VIRTUAL_INTERRUPTS)
    }

    /// Takes another page for the next entry.
    pub(crate) fn put_apic_page(&mut self, page: &Arc<ApicPage>) {
        (self.apic.page, self.apic.is_stale) = (page.clone(), true);
        if self.loaded {
            self.write_apic_page();
        }
    }

    /// Takes other interrupts that are posted, where the processor can.
    pub(crate) fn put_posted(&mut self, posted: &Arc<Posted>) -> bool {
        if !self.features.contains(Features::POSTED_INTERRUPTS) {
            return false;
        }
        if !Arc::ptr_eq(posted, &self.apic.posted) {
            self.apic.posted = posted.clone();
            if self.loaded {
                self.write_posted();
            }
        }
        true
    }

    /// Opens or closes x2APIC's registers, where they can be open.
    pub(crate) fn put_apic_open(&mut self, is_open: bool) {
        let is_open = is_open && self.features.contains(OPEN);
        if is_open != self.apic.is_open {
            self.apic.is_open = is_open;
            open_registers(&mut self.msrs, is_open);
            if self.loaded {
                self.write_apic_access();
            }
        }
    }

    /// Writes all of this into a VMCS that was made current.
    pub(crate) fn load_apic(&mut self) {
        self.write_apic_page();
        self.write_apic_access();
        if self.features.contains(Features::POSTED_INTERRUPTS) {
            self.write_posted();
        }
        self.apic.is_stale = true;
    }

    /// Tells the processor what waits and runs, where that changed while the host ran (30.2.1, 25.4.2, 25.6.8).
    pub(crate) fn write_virtual_interrupts(&mut self) {
        if !self.delivers_interrupts() || !(self.apic.page.take_change() | self.apic.is_stale) {
            return;
        }
        self.apic.is_stale = false;
        let page = &self.apic.page;
        let highest = |set: &vcpu::Vectors| u64::from(set.highest().unwrap_or(0));
        self.vmcs.write(Field::INTERRUPT_STATUS, highest(page.requested()) | highest(page.in_service()) << 8);
        for (index, word) in page.trigger_mode().words().into_iter().enumerate() {
            self.vmcs.write(Field::eoi_exits(index), word);
        }
    }

    fn write_apic_page(&mut self) {
        self.vmcs.write(Field::VIRTUAL_APIC, &raw const *self.apic.page as u64);
    }

    fn write_posted(&mut self) {
        self.vmcs.write(Field::NOTIFICATION_VECTOR, self.apic.notification.into());
        self.vmcs.write(Field::POSTED_INTERRUPTS, &raw const *self.apic.posted as u64);
    }

    fn write_apic_access(&mut self) {
        const ACCESS: u32 = secondary::X2APIC | secondary::APIC_REGISTERS;
        let access = if self.apic.is_open { ACCESS } else { 0 };
        self.vmcs.write(Field::SECONDARY_CONTROLS, (self.controls.secondary | access).into());
    }
}

/// Task priority, EOI and IPI to itself: the processor does all that writing them does (30.5).
const X2APIC_WRITTEN: [u32; 3] = [0x808, 0x80b, 0x83f];
/// Task priority and processor priority.
const X2APIC_READ: [u32; 2] = [0x808, 0x80a];
/// ISR, TMR and IRR.
const X2APIC_VECTORS: core::ops::Range<u32> = 0x810..0x828;

/// Lets the registers of x2APIC pass that are in the page, or has every access to them exit.
fn open_registers(map: &mut MsrMap, is_open: bool) {
    X2APIC_WRITTEN.into_iter().for_each(|msr| map.pass(msr, Way::Write, is_open));
    X2APIC_READ.into_iter().chain(X2APIC_VECTORS).for_each(|msr| map.pass(msr, Way::Read, is_open));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_page_has_is_open_and_only_when_it_is() {
        let mut map = MsrMap::boxed();
        for is_open in [false, true, false] {
            open_registers(&mut map, is_open);
            for msr in 0x800..0x900 {
                let (read, written) = (map.passes(msr, Way::Read), map.passes(msr, Way::Write));
                assert_eq!(read, is_open && matches!(msr, 0x808 | 0x80a | 0x810..0x828), "reads of {msr:#x}");
                assert_eq!(written, is_open && matches!(msr, 0x808 | 0x80b | 0x83f), "writes to {msr:#x}");
            }
        }
    }
}
