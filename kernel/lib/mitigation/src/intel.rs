//! Intel's processors: mostly the processor says itself what it is not affected by.

use crate::{Plan, Processor, Status, Statuses, closed, closed_but_for_threads, control};

/// CPUID 7, EBX.
const RTM: u32 = 1 << 11;
/// CPUID 7, EDX.
const MD_CLEAR: u32 = 1 << 10;
const SPEC_CTRL: u32 = 1 << 26;
const L1D_FLUSH: u32 = 1 << 28;
/// CPUID 7.2, EDX.
const BHI_CTRL: u32 = 1 << 4;

/// IA32_ARCH_CAPABILITIES.
mod capability {
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    pub const MDS_NO: u64 = 1 << 5;
    pub const PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TSX_CTRL: u64 = 1 << 7;
    pub const TAA_NO: u64 = 1 << 8;
    pub const STALE_DATA_NO: u64 = 1 << 13 | 1 << 14 | 1 << 15;
    pub const FB_CLEAR: u64 = 1 << 17;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_CTRL: u64 = 1 << 25;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const RFDS_CLEAR: u64 = 1 << 28;
}

/// Models of family 6 whose cores are Silvermont's or Airmont's: not affected by L1TF and by the multiple hits in the
/// instruction TLB.
const SILVERMONT: [u32; 9] = [0x37, 0x4a, 0x4c, 0x4d, 0x5a, 0x5d, 0x65, 0x6e, 0x75];
/// The Atom cores after them, Goldmont to Tremont: not by MDS either.
const GOLDMONT: [u32; 6] = [0x5c, 0x5f, 0x7a, 0x86, 0x96, 0x9c];
/// Models affected by Gather Data Sampling: Skylake to Tiger Lake and Rocket Lake.
const GATHER: [u32; 15] = [0x4e, 0x5e, 0x55, 0x8e, 0x9e, 0xa5, 0xa6, 0x66, 0x6a, 0x6c, 0x7d, 0x7e, 0x8c, 0x8d, 0xa7];

pub fn plan(processor: &Processor) -> (Plan, Statuses) {
    let has = |bits: u64| processor.capabilities & bits == bits;
    let [leaf_7_ebx, leaf_7_edx] = processor.leaf_7;
    let is_one_of = |models: &[u32]| processor.family == 6 && models.contains(&processor.model);
    let is_goldmont = is_one_of(&GOLDMONT);
    let is_atom = is_goldmont || is_one_of(&SILVERMONT);
    let has_ibrs = leaf_7_edx & SPEC_CTRL != 0;
    let enhanced = has_ibrs && has(capability::IBRS_ALL);

    let history_affected = enhanced && !has(capability::BHI_NO);
    let history_closed = history_affected && processor.leaf_7_2 & BHI_CTRL != 0;
    let return_affected = !(enhanced && has(capability::PBRSB_NO));

    let l1tf_affected = !has(capability::RDCL_NO) && !is_atom;
    let flush_l1d = l1tf_affected && !has(capability::SKIP_L1DFL_VMENTRY) && leaf_7_edx & L1D_FLUSH != 0;
    let flush_offered = flush_l1d || has(capability::SKIP_L1DFL_VMENTRY);

    let mds_affected = !has(capability::MDS_NO) && !is_goldmont;
    let has_tsx = leaf_7_ebx & RTM != 0 || has(capability::TSX_CTRL);
    let taa_affected = has_tsx && !has(capability::TAA_NO);
    let stale_affected = !has(capability::STALE_DATA_NO);
    let registers_affected = has(capability::RFDS_CLEAR) && !has(capability::RFDS_NO);
    let md_clear = leaf_7_edx & MD_CLEAR != 0;
    // Before its own bit there was, MD_CLEAR with MDS or TAA meant the same (Intel, "Processor MMIO Stale Data").
    let fb_clear = has(capability::FB_CLEAR) || md_clear && (mds_affected || taa_affected);
    let clear_buffers = (mds_affected || taa_affected) && md_clear || stale_affected && fb_clear || registers_affected;

    let control = match (has_ibrs, history_closed) {
        (false, _) => 0,
        (true, false) => control::IBRS,
        (true, true) => control::IBRS | control::BHI_DIS_S,
    };
    let plan = Plan {
        control,
        control_each_exit: has_ibrs && !enhanced,
        automatic_ibrs: false,
        barrier_on_switch: has_ibrs,
        barrier_on_exit: false,
        fill_return_stack: return_affected,
        clear_buffers,
        flush_l1d,
    };
    let statuses = Statuses {
        spectre_v2: spectre_v2(has_ibrs, enhanced),
        branch_history: branch_history(history_affected, history_closed),
        return_stack: closed(return_affected, true, "filled after each exit"),
        // IBRS holds returns as well; a processor that is affected has it since the microcode of 2018.
        retbleed: closed(!enhanced && !is_atom, has_ibrs, "IBRS after each exit"),
        srso: Status::NotAffected,
        l1tf: closed_but_for_threads(processor, l1tf_affected, flush_offered, "L1D flush before each entry"),
        mds: closed_but_for_threads(processor, mds_affected, md_clear, "VERW before each entry"),
        taa: closed_but_for_threads(processor, taa_affected, md_clear, "VERW before each entry"),
        mmio_stale_data: closed_but_for_threads(processor, stale_affected, fb_clear, "VERW before each entry"),
        register_file: closed(registers_affected, true, "VERW before each entry"),
        gather: gather(processor),
        tsa: Status::NotAffected,
        instruction_tlb: if has(capability::PSCHANGE_MC_NO) || is_atom {
            Status::NotAffected
        } else {
            Status::Exposed("a guest can stop the host: large pages of guests stay executable")
        },
    };
    (plan, statuses)
}

fn spectre_v2(has_ibrs: bool, enhanced: bool) -> Status {
    match (has_ibrs, enhanced) {
        (false, _) => Status::Exposed(crate::OLD_MICROCODE),
        (true, true) => Status::Mitigated("enhanced IBRS; IBPB between vCPUs"),
        (true, false) => Status::Mitigated("IBRS after each exit; IBPB between vCPUs"),
    }
}

fn branch_history(affected: bool, closed: bool) -> Status {
    match (affected, closed) {
        (false, _) => Status::NotAffected,
        (true, true) => Status::Mitigated("BHI_DIS_S"),
        (true, false) => Status::Exposed("this processor has no BHI_DIS_S, and the history is not cleared after exits"),
    }
}

/// The microcode closes it alone, unless the firmware has locked that open.
fn gather(processor: &Processor) -> Status {
    let is_listed = processor.family == 6 && GATHER.contains(&processor.model);
    let affected = is_listed && processor.capabilities & capability::GDS_NO == 0;
    closed(affected, processor.capabilities & capability::GDS_CTRL != 0, "by the microcode")
}
