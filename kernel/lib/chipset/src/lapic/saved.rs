//! The saved form of a local APIC.

use super::registers::{ICR_BITS, LVT_BITS, SVR_BITS};
use super::timer::Timer;
use super::{FIRST_LEGAL_VECTOR, Lapic, base, lvt};
use minicbor::{Decode, Encode};
use state::Invalid;

/// The registers, the latched lines, and the timer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    base: u64,
    #[n(1)]
    tpr: u8,
    #[n(2)]
    svr: u32,
    #[n(3)]
    ldr: u32,
    #[n(4)]
    dfr: u32,
    #[n(5)]
    irr: [u64; 4],
    #[n(6)]
    isr: [u64; 4],
    #[n(7)]
    tmr: [u64; 4],
    #[n(8)]
    esr: u32,
    #[n(9)]
    errors: u32,
    #[n(10)]
    icr: u64,
    #[n(11)]
    lvt: [u32; lvt::ENTRIES],
    #[n(12)]
    lint0: bool,
    #[n(13)]
    nmi: bool,
    #[n(14)]
    ext_int: bool,
    #[n(15)]
    timer_initial: u32,
    #[n(16)]
    timer_divide: u32,
    /// In machine time.
    #[n(17)]
    timer_end_ns: Option<u64>,
    #[n(18)]
    tsc_deadline: u64,
}

impl Lapic {
    /// What restores it.
    pub fn save(&self) -> Saved {
        Saved {
            base: self.base,
            tpr: self.page.task_priority(),
            svr: self.svr,
            ldr: self.ldr,
            dfr: self.dfr,
            irr: self.page.requested().words(),
            isr: self.page.in_service().words(),
            tmr: self.page.trigger_mode().words(),
            esr: self.esr,
            errors: self.errors,
            icr: self.icr,
            lvt: self.lvt,
            lint0: self.lint0,
            nmi: self.nmi,
            ext_int: self.ext_int,
            timer_initial: self.timer.initial(),
            timer_divide: self.timer.divide(),
            timer_end_ns: self.timer.end_ns(),
            tsc_deadline: self.timer.tsc_deadline(),
        }
    }

    /// A local APIC that goes on where the saved one was; the other arguments are those of [`Lapic::new`].
    ///
    /// # Errors
    /// Where no local APIC can have been there.
    pub fn restore(id: u32, is_boot_cpu: bool, tsc_khz: u64, saved: &Saved) -> Result<Self, Invalid> {
        saved.check()?;
        let mut lapic = Self::new(id, is_boot_cpu, tsc_khz);
        lapic.base = saved.base;
        lapic.page.set_task_priority(saved.tpr);
        lapic.page.replace(saved.irr, saved.isr, saved.tmr);
        lapic.svr = saved.svr;
        lapic.ldr = saved.ldr;
        lapic.dfr = saved.dfr;
        lapic.esr = saved.esr;
        lapic.errors = saved.errors;
        lapic.icr = saved.icr;
        lapic.lvt = saved.lvt;
        lapic.lint0 = saved.lint0;
        lapic.nmi = saved.nmi;
        lapic.ext_int = saved.ext_int;
        let Saved { timer_initial, timer_divide, timer_end_ns, tsc_deadline, .. } = *saved;
        lapic.timer = Timer::restore(tsc_khz, timer_initial, timer_divide, timer_end_ns, tsc_deadline);
        Ok(lapic)
    }
}

impl Saved {
    fn check(&self) -> Result<(), Invalid> {
        const MODE: u64 = base::ENABLE | base::X2APIC;
        let mode = self.base & !(base::ADDRESS | MODE | base::BOOT_CPU) == 0 && self.base & MODE != base::X2APIC;
        Invalid::unless(mode, "its mode")?;
        let legal = |vectors: &[u64; 4]| vectors[0] & ((1 << FIRST_LEGAL_VECTOR) - 1) == 0;
        Invalid::unless(legal(&self.irr) && legal(&self.isr), "its pending vectors")?;
        let entries = self.lvt.iter().zip(LVT_BITS).all(|(entry, bits)| entry & !(bits | lvt::MASKED) == 0);
        let registers = self.svr & !SVR_BITS == 0
            && self.ldr & 0x00ff_ffff == 0
            && (self.dfr | 0xf000_0000) == u32::MAX
            && (self.esr | self.errors) & !0xff == 0
            && self.icr & !ICR_BITS == 0
            && self.timer_divide & !0b1011 == 0;
        Invalid::unless(entries && registers, "its registers")
    }
}
