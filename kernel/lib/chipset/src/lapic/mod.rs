//! The local APIC of one vCPU: accepts messages, ranks them, runs the timer, sends IPIs; xAPIC and x2APIC.
//!
//! The type is [`Lapic`]; `registers` is its MMIO and MSR face, `timer` its clock. What a processor can change by itself is
//! in an [`ApicPage`]. Source: Intel SDM volume 3A
//! (revision 083), chapter 11; section numbers stand beside the rules.

mod address;
mod registers;
mod saved;
#[cfg(test)]
mod tests;
mod timer;

pub use address::Address;
pub use registers::GeneralProtection;
pub use saved::Saved;
pub use timer::TIMER_HZ;

use crate::{Clock, DeliveryMode, Effect, Message};
use addr::Gpa;
use alloc::sync::Arc;
use alloc::vec::Vec;
use timer::{Mode, Timer};
use vcpu::ApicPage;

/// The vectors that are never legal for an interrupt are those below this.
const FIRST_LEGAL_VECTOR: u8 = 16;

/// Bits of IA32_APIC_BASE (section 11.4.4, 11.12.1).
mod base {
    pub const DEFAULT: u64 = 0xfee0_0000;
    pub const BOOT_CPU: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Bits of an LVT entry (section 11.5.1) and which entry is which.
mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const ENTRIES: usize = 6;
    pub const DELIVERY_STATUS: u32 = 1 << 12;
    pub const REMOTE_IRR: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;
    pub const EXT_INT: u32 = 7 << 8;
    pub const NMI: u32 = 4 << 8;
}

/// Bits of the error status register (section 11.5.3).
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// The software-enable bit of the spurious-interrupt vector register.
const SVR_ENABLE: u32 = 1 << 8;
/// The spurious-interrupt vector register after reset: disabled, vector 0xFF.
const SVR_RESET: u32 = 0xff;

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// Nothing: the local APIC is disabled, the vector is illegal, or the message is an SMI (there is no SMM).
    Ignored,
    /// A vector is pending now, if it was not before.
    Pending,
    /// An NMI is latched: [`Lapic::pending`] reports it until [`Lapic::acknowledge_nmi`].
    Nmi,
    /// INIT: the machine resets the vCPU, calls [`Lapic::init`] and waits for a start-up message.
    Init,
    /// Start-up with this page number. A vCPU that does not wait for one ignores it.
    Startup(u8),
    /// An external interrupt is latched: [`Lapic::pending`] reports it until [`Lapic::acknowledge_ext_int`].
    ExtInt,
}

/// What a vCPU should take next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// This vector: [`Lapic::acknowledge`] as it is taken.
    Vector(u8),
    /// The vector that [`Chipset::acknowledge_pic`](crate::Chipset::acknowledge_pic) gives; then
    /// [`Lapic::acknowledge_ext_int`].
    ExtInt,
    /// An NMI: [`Lapic::acknowledge_nmi`] as it is taken.
    Nmi,
}

/// A local APIC.
#[derive(Debug)]
pub struct Lapic {
    /// TPR, IRR, ISR and TMR.
    page: Arc<ApicPage>,
    id: u32,
    is_boot_cpu: bool,
    base: u64,
    svr: u32,
    /// The xAPIC register; in x2APIC mode it follows from the ID.
    ldr: u32,
    dfr: u32,
    /// The error status that software sees, and the errors since it last asked.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; lvt::ENTRIES],
    timer: Timer,
    lint0: bool,
    nmi: bool,
    ext_int: bool,
}

impl Lapic {
    /// A local APIC after power-up: xAPIC mode, software-disabled. `id` is its x2APIC ID; `tsc_khz` is the frequency of
    /// the guest's TSC in kilohertz.
    pub fn new(id: u32, is_boot_cpu: bool, tsc_khz: u64) -> Self {
        let mut lapic = Self {
            id,
            is_boot_cpu,
            base: 0,
            page: ApicPage::new(),
            svr: 0,
            ldr: 0,
            dfr: 0,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [0; lvt::ENTRIES],
            timer: Timer::new(tsc_khz),
            lint0: false,
            nmi: false,
            ext_int: false,
        };
        lapic.reset();
        lapic
    }

    /// The ID that it was made with.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Power-up or RESET# (section 11.4.7.1). The level at LINT0 is the PIC's and stays.
    pub fn reset(&mut self) {
        let boot_cpu = if self.is_boot_cpu { base::BOOT_CPU } else { 0 };
        self.base = base::DEFAULT | base::ENABLE | boot_cpu;
        self.init();
    }

    /// INIT (sections 11.4.7.3 and 11.12.5.1): as reset, but the mode and the page's address stay.
    pub fn init(&mut self) {
        self.page.set_task_priority(0);
        self.page.replace([0; 4], [0; 4], [0; 4]);
        self.svr = SVR_RESET;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.esr = 0;
        self.errors = 0;
        self.icr = 0;
        self.lvt = [lvt::MASKED; lvt::ENTRIES];
        self.timer.reset();
        self.nmi = false;
        self.ext_int = false;
    }

    /// Puts the local APIC of a boot CPU into virtual wire mode, as firmware leaves it for the operating system
    /// (MultiProcessor Specification 1.4, section 3.6.2.2): the PIC's interrupts pass through LINT0.
    pub fn enter_virtual_wire_mode(&mut self) {
        self.svr = SVR_RESET | SVR_ENABLE;
        self.lvt[lvt::LINT0] = lvt::EXT_INT;
        self.lvt[lvt::LINT1] = lvt::NMI;
    }

    /// How it is addressed now. It changes with the base, spurious-vector, logical-destination and destination-format
    /// registers, and with INIT.
    pub fn address(&self) -> Address {
        let address = Address::new(self.id, self.is_enabled(), self.is_x2apic(), self.is_software_enabled());
        if self.is_x2apic() { address } else { address.with_logical(self.ldr, self.dfr) }
    }

    /// Takes a message that addresses this local APIC.
    pub fn accept(&mut self, message: &Message) -> Accepted {
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept_vector(message.vector, message.level_triggered)
            }
            DeliveryMode::Smi => Accepted::Ignored,
            DeliveryMode::Nmi => {
                self.nmi = true;
                Accepted::Nmi
            }
            DeliveryMode::Init => Accepted::Init,
            DeliveryMode::Startup => Accepted::Startup(message.vector),
            DeliveryMode::ExtInt if self.is_software_enabled() => {
                self.ext_int = true;
                Accepted::ExtInt
            }
            DeliveryMode::ExtInt => Accepted::Ignored,
        }
    }

    /// Sets the level at LINT0, where the boot CPU has the PIC's output.
    pub fn set_lint0(&mut self, asserted: bool) {
        let rising = asserted && !self.lint0;
        self.lint0 = asserted;
        self.sense_lint0(rising);
    }

    /// The page of what a processor can change by itself, for [`share_apic`](vcpu::Vcpu::share_apic).
    pub fn page(&self) -> &Arc<ApicPage> {
        &self.page
    }

    /// Whether the guest reaches the page by x2APIC's registers: in that mode, and while interrupts are accepted.
    pub fn is_open(&self) -> bool {
        self.is_x2apic() && self.is_software_enabled()
    }

    /// What the vCPU should take next, were it ready for everything.
    pub fn pending(&self) -> Option<Pending> {
        if self.nmi { Some(Pending::Nmi) } else { self.pending_interrupt() }
    }

    /// What it should take next while it cannot take an NMI.
    pub fn pending_interrupt(&self) -> Option<Pending> {
        if self.pending_ext_int() {
            return Some(Pending::ExtInt);
        }
        let vector = self.page.requested().highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(Pending::Vector(vector))
    }

    /// Whether an external interrupt waits: it passes by the priorities, and no processor delivers it by itself.
    pub fn pending_ext_int(&self) -> bool {
        self.ext_int || self.lint0 && self.passes_lint0()
    }

    /// The priority class of the interrupt that waits for nothing but a lower task priority.
    pub fn held_by_tpr(&self) -> Option<u8> {
        // Asked before each entry, and few guests ever raise it.
        if self.tpr() == 0 {
            return None;
        }
        let class = self.page.requested().highest()? >> 4;
        let in_service = self.page.in_service().highest().unwrap_or(0) >> 4;
        (class > in_service && class <= self.tpr()).then_some(class)
    }

    /// Whether an NMI waits.
    pub fn nmi_pending(&self) -> bool {
        self.nmi
    }

    /// The vCPU takes `vector`, which was pending: it moves from IRR to ISR.
    pub fn acknowledge(&mut self, vector: u8) {
        self.page.begin(vector);
    }

    /// The vCPU takes the NMI.
    pub fn acknowledge_nmi(&mut self) {
        self.nmi = false;
    }

    /// The vCPU takes the external interrupt. What LINT0 passes on goes away with the PIC's output instead.
    pub fn acknowledge_ext_int(&mut self) {
        self.ext_int = false;
    }

    /// The end of the interrupt in service with the highest priority, as by a write to the EOI register (section 11.8.5).
    pub fn end_of_interrupt(&mut self, effects: &mut Vec<Effect>) {
        if let Some(vector) = self.page.end()
            && self.page.trigger_mode().contains(vector)
        {
            self.tell_end(vector, effects);
        }
    }

    /// What follows from the end of a level-triggered interrupt, which the page no longer has in service.
    pub fn tell_end(&mut self, vector: u8, effects: &mut Vec<Effect>) {
        effects.push(Effect::LevelEoi(vector));
        let lint0 = &mut self.lvt[lvt::LINT0];
        if *lint0 & lvt::REMOTE_IRR != 0 && *lint0 as u8 == vector {
            *lint0 &= !lvt::REMOTE_IRR;
            self.sense_lint0(false);
        }
    }

    /// Whether the guest may end its interrupt by clearing a bit in memory instead of an access that exits: one interrupt
    /// is in service, it is edge-triggered, and none waits that its end would let through. Ask again before each entry.
    pub fn can_pv_eoi(&self) -> bool {
        let in_service = self.page.in_service();
        // Asked before each entry: mostly there is none.
        in_service.highest().is_some_and(|vector| {
            in_service.len() == 1 && self.page.requested().is_empty() && !self.page.trigger_mode().contains(vector)
        })
    }

    /// The processor-priority register (section 11.8.3.1).
    pub fn processor_priority(&self) -> u8 {
        let (task, in_service) = (self.page.task_priority(), self.page.in_service().highest().unwrap_or(0) & 0xf0);
        if task & 0xf0 >= in_service { task } else { in_service }
    }

    /// The task-priority class, as CR8 shows it.
    pub fn tpr(&self) -> u8 {
        self.page.task_priority() >> 4
    }

    /// Sets the task-priority class, as a write to CR8 does.
    pub fn set_tpr(&mut self, class: u8) {
        self.page.set_task_priority(class << 4);
    }

    /// Brings the timer up to `clock`; what it caused is then [`pending`](Self::pending).
    pub fn advance(&mut self, clock: Clock) {
        if self.timer.advance(self.timer_mode(), clock) {
            self.deliver_local(lvt::TIMER);
        }
    }

    /// When the timer interrupts next, in machine time; `None` if it does not, or into a masked entry.
    pub fn deadline_ns(&self, clock: Clock) -> Option<u64> {
        if self.lvt[lvt::TIMER] & lvt::MASKED != 0 {
            return None;
        }
        self.timer.deadline_ns(self.timer_mode(), clock)
    }

    /// The address of the register page, in xAPIC mode; `None` in x2APIC mode and while disabled.
    pub fn mmio_base(&self) -> Option<Gpa> {
        (self.is_enabled() && !self.is_x2apic()).then(|| Gpa::new(self.base & base::ADDRESS))
    }

    /// Whether IA32_APIC_BASE enables it.
    pub fn is_enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    fn is_x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.svr & SVR_ENABLE != 0
    }

    fn accept_vector(&mut self, vector: u8, level_triggered: bool) -> Accepted {
        if !self.is_software_enabled() {
            return Accepted::Ignored;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.report(error::RECEIVE_ILLEGAL_VECTOR);
            return Accepted::Ignored;
        }
        self.page.request(vector, level_triggered);
        Accepted::Pending
    }

    fn timer_mode(&self) -> Mode {
        Mode::from_lvt(self.lvt[lvt::TIMER])
    }

    /// Raises a local interrupt with fixed delivery (timer, error) by its LVT entry.
    fn deliver_local(&mut self, entry: usize) {
        let entry = self.lvt[entry];
        if entry & lvt::MASKED == 0 {
            self.accept_vector(entry as u8, false);
        }
    }

    /// Notes an error and raises the error interrupt, once for each kind until software asks (section 11.5.3).
    fn report(&mut self, error: u32) {
        if self.errors & error == 0 {
            // Marked first: an error entry with an illegal vector is an error itself and would recurse.
            self.errors |= error;
            self.deliver_local(lvt::ERROR);
        }
    }

    /// Whether the level at LINT0 reaches the processor as INTR: through the LVT, or around a disabled local APIC.
    fn passes_lint0(&self) -> bool {
        !self.is_enabled() || self.lvt[lvt::LINT0] & (lvt::MASKED | lvt::EXT_INT) == lvt::EXT_INT
    }

    /// Acts on LINT0 in the modes that turn its level or rising edge into an event.
    fn sense_lint0(&mut self, rising: bool) {
        let entry = self.lvt[lvt::LINT0];
        if entry & lvt::MASKED != 0 || !self.lint0 {
            return;
        }
        match DeliveryMode::from_bits(entry >> 8) {
            Some(DeliveryMode::Nmi) if rising => self.nmi = true,
            Some(DeliveryMode::Fixed) if entry & lvt::LEVEL == 0 && rising => {
                self.accept_vector(entry as u8, false);
            }
            Some(DeliveryMode::Fixed) if entry & (lvt::LEVEL | lvt::REMOTE_IRR) == lvt::LEVEL => {
                let accepted = self.accept_vector(entry as u8, true);
                if accepted == Accepted::Pending {
                    self.lvt[lvt::LINT0] |= lvt::REMOTE_IRR;
                }
            }
            _ => (),
        }
    }
}
