//! The saved form of a vCPU's registers and of what its thread keeps.

use crate::cpuid::CpuProfile;
use crate::{msr, paravirt};
use minicbor::{Decode, Encode};
use state::Invalid;
use vcpu::{Blocking, Event, Exception, Segment, Table, VcpuState, Xfd};

/// A vCPU, but its local APIC and its extended state.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    pub registers: Registers,
    /// The guest's TSC.
    #[n(1)]
    pub tsc: u64,
    /// 0 runs, 1 stands at a HLT, 2 waits for a start-up message.
    #[n(2)]
    pub activity: u8,
    #[n(3)]
    pub unhalted: bool,
    #[n(4)]
    pub kept: msr::Saved,
    #[n(5)]
    pub registered: paravirt::Saved,
}

/// [`VcpuState`], saved.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Registers {
    #[n(0)]
    gprs: [u64; 16],
    #[n(1)]
    rip: u64,
    #[n(2)]
    rflags: u64,
    #[n(3)]
    segments: [SavedSegment; 6],
    #[n(4)]
    ldtr: SavedSegment,
    #[n(5)]
    tr: SavedSegment,
    /// Base and limit.
    #[n(6)]
    gdtr: (u64, u16),
    #[n(7)]
    idtr: (u64, u16),
    #[n(8)]
    cr0: u64,
    #[n(9)]
    cr2: u64,
    #[n(10)]
    cr3: u64,
    #[n(11)]
    cr4: u64,
    #[n(12)]
    efer: u64,
    #[n(13)]
    dr: [u64; 4],
    #[n(14)]
    dr6: u64,
    #[n(15)]
    dr7: u64,
    #[n(16)]
    xcr0: u64,
    #[n(17)]
    pat: u64,
    #[n(18)]
    star: u64,
    #[n(19)]
    lstar: u64,
    #[n(20)]
    cstar: u64,
    #[n(21)]
    sfmask: u64,
    #[n(22)]
    kernel_gs_base: u64,
    #[n(23)]
    sysenter_cs: u64,
    #[n(24)]
    sysenter_esp: u64,
    #[n(25)]
    sysenter_eip: u64,
    #[n(26)]
    tsc_aux: u64,
    #[n(27)]
    blocked_by_sti: bool,
    #[n(28)]
    blocked_by_mov_ss: bool,
    #[n(29)]
    nmi_blocked: bool,
    #[n(30)]
    pending_debug: u64,
    #[n(31)]
    waiting: Option<SavedEvent>,
    /// Absent where it is zero.
    #[n(32)]
    spec_ctrl: Option<u64>,
    /// IA32_XFD and IA32_XFD_ERR: absent where both are zero.
    #[n(33)]
    xfd: Option<(u64, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
struct SavedSegment {
    #[n(0)]
    selector: u16,
    #[n(1)]
    attributes: u16,
    #[n(2)]
    limit: u32,
    #[n(3)]
    base: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
struct SavedEvent {
    /// 0 is an external interrupt, 2 an NMI, 3 an exception, as processors number them.
    #[n(0)]
    kind: u8,
    #[n(1)]
    vector: u8,
    #[n(2)]
    error_code: Option<u32>,
}

impl Saved {
    /// The registers to give to a vCPU whose guest sees `profile`.
    ///
    /// # Errors
    /// Where no vCPU can have had them, or the guest was not offered what they use.
    pub fn state(&self, profile: &CpuProfile) -> Result<VcpuState, Invalid> {
        let state = self.registers.state()?;
        state.check(profile.linear_address_bits()).map_err(Invalid)?;
        let offered = profile.allows_xcr0(state.xcr0) || state.xcr0 == 1;
        let offered = offered && state.cr4 & !profile.cr4_bits() == 0;
        let offered = offered && state.efer & !profile.efer_bits() == 0;
        let offered = offered && state.spec_ctrl & !profile.speculation().control == 0;
        let offered = offered && (state.xfd.disabled | state.xfd.error) & !profile.xfd_bits() == 0;
        Invalid::unless(offered, "its guest was not offered such a mode")?;
        Ok(state)
    }

    /// The TSC after so many nanoseconds more.
    pub fn tsc_after(&self, elapsed_ns: u64, tsc_khz: u32) -> u64 {
        let ticks = u128::from(elapsed_ns) * u128::from(tsc_khz) / 1_000_000;
        self.tsc.wrapping_add(ticks as u64)
    }
}

impl Registers {
    /// Of a vCPU.
    pub fn new(state: &VcpuState) -> Self {
        let table = |table: Table| (table.base, table.limit);
        Self {
            gprs: state.gprs,
            rip: state.rip,
            rflags: state.rflags,
            segments: state.segments.map(SavedSegment::new),
            ldtr: SavedSegment::new(state.ldtr),
            tr: SavedSegment::new(state.tr),
            gdtr: table(state.gdtr),
            idtr: table(state.idtr),
            cr0: state.cr0,
            cr2: state.cr2,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            dr: state.dr,
            dr6: state.dr6,
            dr7: state.dr7,
            xcr0: state.xcr0,
            pat: state.pat,
            star: state.star,
            lstar: state.lstar,
            cstar: state.cstar,
            sfmask: state.sfmask,
            kernel_gs_base: state.kernel_gs_base,
            sysenter_cs: state.sysenter_cs,
            sysenter_esp: state.sysenter_esp,
            sysenter_eip: state.sysenter_eip,
            tsc_aux: state.tsc_aux,
            blocked_by_sti: state.blocking.sti,
            blocked_by_mov_ss: state.blocking.mov_ss,
            nmi_blocked: state.blocking.nmi,
            pending_debug: state.blocking.debug,
            waiting: state.waiting.map(SavedEvent::new),
            spec_ctrl: (state.spec_ctrl != 0).then_some(state.spec_ctrl),
            xfd: (state.xfd != Xfd::default()).then_some(state.xfd.into()),
        }
    }

    fn state(&self) -> Result<VcpuState, Invalid> {
        let table = |(base, limit)| Table { base, limit };
        Ok(VcpuState {
            gprs: self.gprs,
            rip: self.rip,
            rflags: self.rflags,
            segments: self.segments.map(SavedSegment::segment),
            ldtr: self.ldtr.segment(),
            tr: self.tr.segment(),
            gdtr: table(self.gdtr),
            idtr: table(self.idtr),
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            xcr0: self.xcr0,
            pat: self.pat,
            star: self.star,
            lstar: self.lstar,
            cstar: self.cstar,
            sfmask: self.sfmask,
            kernel_gs_base: self.kernel_gs_base,
            sysenter_cs: self.sysenter_cs,
            sysenter_esp: self.sysenter_esp,
            sysenter_eip: self.sysenter_eip,
            tsc_aux: self.tsc_aux,
            spec_ctrl: self.spec_ctrl.unwrap_or(0),
            xfd: self.xfd.map_or(Xfd::default(), Xfd::from),
            blocking: Blocking {
                sti: self.blocked_by_sti,
                mov_ss: self.blocked_by_mov_ss,
                nmi: self.nmi_blocked,
                debug: self.pending_debug,
            },
            waiting: self.waiting.map(SavedEvent::event).transpose()?,
        })
    }
}

impl SavedSegment {
    fn new(Segment { selector, attributes, limit, base }: Segment) -> Self {
        Self { selector, attributes, limit, base }
    }

    fn segment(self) -> Segment {
        let Self { selector, attributes, limit, base } = self;
        Segment { selector, attributes, limit, base }
    }
}

impl SavedEvent {
    fn new(event: Event) -> Self {
        match event {
            Event::Interrupt(vector) => Self { kind: 0, vector, error_code: None },
            Event::Nmi => Self { kind: 2, vector: 2, error_code: None },
            Event::Exception(Exception { vector, error_code, .. }) => Self { kind: 3, vector, error_code },
        }
    }

    fn event(self) -> Result<Event, Invalid> {
        match self.kind {
            0 => Ok(Event::Interrupt(self.vector)),
            2 => Ok(Event::Nmi),
            3 => {
                let Self { vector, error_code, .. } = self;
                Ok(Event::Exception(Exception { vector, error_code, fault_address: None }))
            }
            _ => Err(Invalid("an event that there is not")),
        }
    }
}
