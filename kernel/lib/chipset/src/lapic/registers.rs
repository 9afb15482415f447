//! The registers of a local APIC as the guest reaches them: IA32_APIC_BASE, the x2APIC MSRs and the xAPIC page.
//!
//! Both faces share one numbering, the MSR's offset from 0x800 or the page offset divided by 16 (table 11-6). They
//! differ in what they refuse: x2APIC raises #GP, xAPIC drops bits and notes an illegal register address.

use super::{FIRST_LEGAL_VECTOR, Lapic, Mode, SVR_ENABLE, base, error, lvt};
use crate::message::BROADCAST_8;
use crate::{Clock, DeliveryMode, Effect, Message, Target};
use alloc::vec::Vec;

const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC_FIRST: u32 = 0x800;
const MSR_X2APIC_LAST: u32 = 0x8ff;

/// Register numbers.
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const RRD: u32 = 0x0c;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const ISR_LAST: u32 = 0x17;
    pub const TMR: u32 = 0x18;
    pub const TMR_LAST: u32 = 0x1f;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT: u32 = 0x32;
    pub const LVT_LAST: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Version 0x14 of an integrated APIC; six LVT entries; no suppression of EOI broadcasts.
const VERSION: u32 = (lvt::ENTRIES as u32 - 1) << 16 | 0x14;
/// What the spurious-interrupt vector register holds: vector, software enable, focus checking.
pub(super) const SVR_BITS: u32 = 0x3ff;
/// What each LVT entry holds; read-only bits included, which a write may carry.
pub(super) const LVT_BITS: [u32; lvt::ENTRIES] = [0x7_10ff, 0x1_17ff, 0x1_17ff, 0x1_f7ff, 0x1_f7ff, 0x1_10ff];
const LVT_READ_ONLY: u32 = lvt::DELIVERY_STATUS | lvt::REMOTE_IRR;
/// The timer mode that does not exist.
const LVT_TIMER_MODE_RESERVED: u32 = 3 << 17;
/// The bits of the interrupt command register that keep what is written; delivery status (bit 12) reads as idle.
pub(super) const ICR_BITS: u64 = 0xffff_ffff_000c_cfff;
const ICR_DELIVERY_STATUS: u64 = 1 << 12;

/// The access must end in #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

impl Lapic {
    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// A register that is reserved, write-only or not of the current mode, and any other MSR.
    pub fn read_msr(&mut self, index: u32, clock: Clock) -> Result<u64, GeneralProtection> {
        match index {
            MSR_APIC_BASE => Ok(self.base),
            MSR_TSC_DEADLINE => {
                self.advance(clock);
                Ok(self.timer.tsc_deadline())
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.is_x2apic() => match index - MSR_X2APIC_FIRST {
                register::EOI => Err(GeneralProtection),
                register::ICR => Ok(self.icr),
                number => self.read(number, clock).map(u64::from).ok_or(GeneralProtection),
            },
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR to the same registers.
    ///
    /// # Errors
    /// A register that is reserved, read-only or not of the current mode, a reserved bit, a mode change that section
    /// 11.12.5 forbids, and any other MSR.
    pub fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        clock: Clock,
        effects: &mut Vec<Effect>,
    ) -> Result<(), GeneralProtection> {
        match index {
            MSR_APIC_BASE => self.write_base(value),
            MSR_TSC_DEADLINE => {
                self.advance(clock);
                // In the other modes a write is ignored (section 11.5.4.1).
                if self.timer_mode() == Mode::TscDeadline {
                    self.timer.set_tsc_deadline(value);
                    self.advance(clock);
                }
                Ok(())
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.is_x2apic() => {
                self.write_x2apic(index - MSR_X2APIC_FIRST, value, clock, effects)
            }
            _ => Err(GeneralProtection),
        }
    }

    /// A read of `size` bytes at `offset` in the xAPIC page. Registers are 32 bits wide on 128-bit boundaries; what lies
    /// outside reads as zero.
    pub fn mmio_read(&mut self, offset: u16, size: u8, clock: Clock) -> u32 {
        let byte = u32::from(offset & 0xf);
        if byte + u32::from(size) > 4 || size == 0 {
            return 0;
        }
        let value = match self.read(u32::from(offset >> 4), clock) {
            Some(value) => value,
            None => {
                self.report(error::ILLEGAL_REGISTER);
                0
            }
        };
        value >> (8 * byte) & u32::MAX >> (32 - 8 * u32::from(size))
    }

    /// A write of `size` bytes at `offset` in the xAPIC page; only aligned 32-bit writes have an effect.
    pub fn mmio_write(&mut self, offset: u16, size: u8, value: u32, clock: Clock, effects: &mut Vec<Effect>) {
        if size != 4 || offset & 0xf != 0 {
            return;
        }
        match u32::from(offset >> 4) {
            register::LDR => self.ldr = value & 0xff00_0000,
            register::DFR => self.dfr = value | 0x0fff_ffff,
            register::ICR => {
                self.icr = (self.icr & !0xffff_ffff | u64::from(value)) & ICR_BITS;
                self.send(effects);
            }
            register::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            register::ID | register::VERSION | register::APR..=register::PPR | register::RRD => (),
            register::ISR..=register::IRR_LAST | register::CURRENT_COUNT => (),
            register::SELF_IPI => self.report(error::ILLEGAL_REGISTER),
            number => {
                if !self.write(number, value, clock, effects) {
                    self.report(error::ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// A register's value; `None` where the current mode has nothing to read. EOI reads as zero in the page.
    fn read(&mut self, number: u32, clock: Clock) -> Option<u32> {
        let x2apic = self.is_x2apic();
        Some(match number {
            register::ID if x2apic => self.id,
            register::ID => self.address().visible_id() << 24,
            register::VERSION => VERSION,
            register::TPR => u32::from(self.page.task_priority()),
            register::PPR => u32::from(self.processor_priority()),
            register::LDR if x2apic => self.address().x2apic_ldr(),
            register::LDR => self.ldr,
            register::SVR => self.svr,
            register::ISR..=register::ISR_LAST => self.page.in_service().register((number - register::ISR) as usize),
            register::TMR..=register::TMR_LAST => self.page.trigger_mode().register((number - register::TMR) as usize),
            register::IRR..=register::IRR_LAST => self.page.requested().register((number - register::IRR) as usize),
            register::ESR => self.esr,
            register::ICR => self.icr as u32,
            register::LVT..=register::LVT_LAST => self.lvt[(number - register::LVT) as usize],
            register::INITIAL_COUNT => self.timer.initial(),
            register::CURRENT_COUNT => {
                self.advance(clock);
                if self.timer_mode() == Mode::TscDeadline { 0 } else { self.timer.current(clock.ns) }
            }
            register::DIVIDE => self.timer.divide(),
            register::APR | register::EOI | register::RRD if !x2apic => 0,
            register::DFR if !x2apic => self.dfr,
            register::ICR_HIGH if !x2apic => (self.icr >> 32) as u32,
            _ => return None,
        })
    }

    /// Writes a register that both modes have; false where there is none to write. Reserved bits are dropped.
    fn write(&mut self, number: u32, value: u32, clock: Clock, effects: &mut Vec<Effect>) -> bool {
        match number {
            register::TPR => self.page.set_task_priority(value as u8),
            register::EOI => self.end_of_interrupt(effects),
            register::SVR => self.write_svr(value),
            register::ESR => {
                // A write latches what happened since the last one (section 11.5.3).
                self.esr = self.errors;
                self.errors = 0;
            }
            register::LVT..=register::LVT_LAST => self.write_lvt((number - register::LVT) as usize, value, clock),
            register::INITIAL_COUNT => {
                self.advance(clock);
                if self.timer_mode() != Mode::TscDeadline {
                    self.timer.set_initial(value, clock.ns);
                }
            }
            register::DIVIDE => {
                self.advance(clock);
                self.timer.set_divide(value, clock.ns);
            }
            _ => return false,
        }
        true
    }

    fn write_x2apic(
        &mut self,
        number: u32,
        value: u64,
        clock: Clock,
        effects: &mut Vec<Effect>,
    ) -> Result<(), GeneralProtection> {
        if number == register::ICR {
            if value & !(ICR_BITS | ICR_DELIVERY_STATUS) != 0 {
                return Err(GeneralProtection);
            }
            self.icr = value & ICR_BITS;
            self.send(effects);
            return Ok(());
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        let writable = x2apic_writable_bits(number).ok_or(GeneralProtection)?;
        let reserved_mode = number == register::LVT && value & LVT_TIMER_MODE_RESERVED == LVT_TIMER_MODE_RESERVED;
        if value & !writable != 0 || reserved_mode {
            return Err(GeneralProtection);
        }
        if number == register::SELF_IPI {
            self.send_self_ipi(value as u8, effects);
        } else {
            self.write(number, value, clock, effects);
        }
        Ok(())
    }

    /// IA32_APIC_BASE: checks the transition (figure 11-27); leaving the enabled states loses the state.
    fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        const MODE: u64 = base::ENABLE | base::X2APIC;
        if value & !(base::ADDRESS | MODE | base::BOOT_CPU) != 0 {
            return Err(GeneralProtection);
        }
        match (self.base & MODE, value & MODE) {
            (_, base::X2APIC) | (MODE, base::ENABLE) | (0, MODE) => return Err(GeneralProtection),
            (_, 0) => self.init(),
            _ => (),
        }
        self.base = value;
        Ok(())
    }

    /// The spurious-interrupt vector register. Software-disabling sets every mask (section 11.4.7.2).
    fn write_svr(&mut self, value: u32) {
        self.svr = value & SVR_BITS;
        if value & SVR_ENABLE == 0 {
            self.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
        }
    }

    fn write_lvt(&mut self, index: usize, value: u32, clock: Clock) {
        // What expired under the old entry is the old entry's.
        self.advance(clock);
        let old = self.lvt[index];
        let kept = old & LVT_READ_ONLY;
        let forced = if self.is_software_enabled() { 0 } else { lvt::MASKED };
        self.lvt[index] = value & LVT_BITS[index] & !LVT_READ_ONLY | kept | forced;
        match index {
            lvt::TIMER => {
                let is_deadline = |entry| Mode::from_lvt(entry) == Mode::TscDeadline;
                if is_deadline(old) != is_deadline(value) {
                    self.timer.disarm();
                }
            }
            lvt::LINT0 => {
                if value & lvt::LEVEL == 0 {
                    self.lvt[index] &= !lvt::REMOTE_IRR;
                }
                self.sense_lint0(false);
            }
            _ => (),
        }
    }

    /// Sends the interrupt command register (section 11.6.1). Trigger mode matters to INIT only.
    fn send(&mut self, effects: &mut Vec<Effect>) {
        let icr = self.icr;
        let target = self.command_target();
        let vector = icr as u8;
        let mode = match DeliveryMode::from_bits((icr >> 8) as u32) {
            None | Some(DeliveryMode::ExtInt) => return,
            Some(DeliveryMode::Fixed) => return self.send_fixed(vector, target, effects),
            Some(DeliveryMode::LowestPriority) if vector < FIRST_LEGAL_VECTOR => {
                return self.report(error::SEND_ILLEGAL_VECTOR);
            }
            // INIT level de-assert set arbitration IDs on old buses; no processor since the Pentium 4 acts on it.
            Some(DeliveryMode::Init) if icr & 3 << 14 == 1 << 15 => return,
            Some(mode) => mode,
        };
        effects.push(Effect::Interrupt(Message { vector, mode, target, level_triggered: false }));
    }

    /// A write to the self-IPI register (section 11.12.11).
    pub fn send_self_ipi(&mut self, vector: u8, effects: &mut Vec<Effect>) {
        self.send_fixed(vector, Target::Only(self.id), effects);
    }

    fn send_fixed(&mut self, vector: u8, target: Target, effects: &mut Vec<Effect>) {
        if vector < FIRST_LEGAL_VECTOR {
            return self.report(error::SEND_ILLEGAL_VECTOR);
        }
        let mode = DeliveryMode::Fixed;
        effects.push(Effect::Interrupt(Message { vector, mode, target, level_triggered: false }));
    }

    /// Whom the interrupt command register addresses: a shorthand, or its destination in the format of the mode.
    fn command_target(&self) -> Target {
        let logical = self.icr & 1 << 11 != 0;
        let destination = (self.icr >> 32) as u32;
        match (self.icr >> 18) & 3 {
            1 => Target::Only(self.id),
            2 => Target::All,
            3 => Target::AllBut(self.id),
            _ if self.is_x2apic() && destination == u32::MAX => Target::All,
            _ if self.is_x2apic() && logical => Target::Logical(destination),
            _ if self.is_x2apic() => Target::Physical(destination),
            _ if logical => Target::Logical(destination >> 24),
            _ if destination >> 24 == BROADCAST_8 => Target::All,
            _ => Target::Physical(destination >> 24),
        }
    }
}

/// The bits of a register that WRMSR may set; `None` where there is nothing to write.
fn x2apic_writable_bits(number: u32) -> Option<u32> {
    match number {
        register::TPR | register::SELF_IPI => Some(0xff),
        register::EOI | register::ESR => Some(0),
        register::SVR => Some(SVR_BITS),
        register::LVT..=register::LVT_LAST => LVT_BITS.get((number - register::LVT) as usize).copied(),
        register::INITIAL_COUNT => Some(u32::MAX),
        register::DIVIDE => Some(0b1011),
        _ => None,
    }
}
