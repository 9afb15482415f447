//! The whole of a virtual CPU as plain data, grouped as the manuals group it.

use crate::Event;

/// The general registers, in the order of their encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All of them by their encoding.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];
}

/// The segment registers that a program can name, in the order of their encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Type in bits 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11: descriptor bits 47:40 and 55:52 (the form of
    /// the VMCB; APM volume 2, 15.5.1).
    pub attributes: u16,
    /// The limit in bytes, already scaled by G.
    pub limit: u32,
    /// The base.
    pub base: u64,
}

impl Segment {
    /// Whether the attributes' L bit marks 64-bit code.
    pub const fn is_long(self) -> bool {
        self.attributes & 1 << 9 != 0
    }

    /// Whether the attributes' D/B bit marks 32-bit code or stack.
    pub const fn is_big(self) -> bool {
        self.attributes & 1 << 10 != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Table {
    /// The linear base.
    pub base: u64,
    /// The limit, in bytes less one.
    pub limit: u16,
}

/// Everything of a vCPU that its guest can see, but the local APIC, which `chipset` models.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct VcpuState {
    /// In [`Gpr`] order.
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// In [`SegmentName`] order.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub xcr0: u64,
    pub pat: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    pub spec_ctrl: u64,
    pub xfd: Xfd,
    /// What the last instruction holds back, and what an NMI's handler does.
    pub blocking: Blocking,
    /// What the next entry delivers first: it was injected, or its delivery was interrupted. A page fault's address is
    /// in CR2 already.
    pub waiting: Option<Event>,
}

/// Components of the extended state, by their bits in XCR0 (SDM volume 1, 13.14).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Xfd {
    /// IA32_XFD: their use raises #NM.
    pub disabled: u64,
    /// IA32_XFD_ERR: those whose use did.
    pub error: u64,
}

impl From<(u64, u64)> for Xfd {
    fn from((disabled, error): (u64, u64)) -> Self {
        Self { disabled, error }
    }
}

impl From<Xfd> for (u64, u64) {
    fn from(Xfd { disabled, error }: Xfd) -> Self {
        (disabled, error)
    }
}

/// What keeps events from a vCPU besides RFLAGS.IF.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Blocking {
    /// The instruction behind an STI; on processors that have one shadow only, behind a MOV SS too.
    pub sti: bool,
    /// The instruction behind a MOV SS or POP SS.
    pub mov_ss: bool,
    /// An NMI's handler runs.
    pub nmi: bool,
    /// Debug exceptions that wait for the end of a shadow (SDM volume 3, 25.4.2); zero elsewhere.
    pub debug: u64,
}

impl VcpuState {
    /// The state after power-up or INIT (APM volume 2, table 14-1; SDM volume 3, table 10-1).
    pub fn reset() -> Self {
        let data = Segment { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        let code = Segment { selector: 0xf000, attributes: 0x9b, limit: 0xffff, base: 0xffff_0000 };
        let mut segments = [data; 6];
        segments[SegmentName::Cs as usize] = code;
        let mut gprs = [0; 16];
        gprs[Gpr::Rdx as usize] = 0x0080_0f12;
        Self {
            gprs,
            rip: 0xfff0,
            rflags: rflags::FIXED,
            segments,
            ldtr: Segment { selector: 0, attributes: 0x82, limit: 0xffff, base: 0 },
            tr: Segment { selector: 0, attributes: 0x8b, limit: 0xffff, base: 0 },
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            xcr0: 1,
            pat: 0x0007_0406_0007_0406,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            spec_ctrl: 0,
            xfd: Xfd::default(),
            blocking: Blocking::default(),
            waiting: None,
        }
    }
}

impl VcpuState {
    /// The state after INIT: as after power-up but for what INIT leaves alone, which is caching, extended state, the TSC
    /// and the model-specific registers other than EFER (SDM volume 3, table 10-1).
    pub fn after_init(self) -> Self {
        const UNCHANGED_CR0: u64 = cr0::CD | cr0::NW;
        let reset = Self::reset();
        let Self { gprs, rip, rflags, segments, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, efer, dr, dr6, dr7, .. } =
            reset;
        let (blocking, waiting) = (reset.blocking, reset.waiting);
        let cr0 = cr0 & !UNCHANGED_CR0 | self.cr0 & UNCHANGED_CR0;
        Self {
            gprs,
            rip,
            rflags,
            segments,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
            dr,
            dr6,
            dr7,
            blocking,
            waiting,
            ..self
        }
    }
}

/// Bits of RFLAGS.
#[allow(missing_docs, reason = "the names are the architecture's")]
pub mod rflags {
    /// The bit that always reads 1.
    pub const FIXED: u64 = 1 << 1;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
}

/// Bits of CR0.
#[allow(missing_docs, reason = "the names are the architecture's")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of EFER.
#[allow(missing_docs, reason = "the names are the architecture's")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
}
