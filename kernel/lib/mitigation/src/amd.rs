//! AMD's processors: mostly the family says what they are affected by.

use crate::{Plan, Processor, Status, Statuses, closed, control};

/// CPUID 8000_0008, EBX.
const IBPB: u32 = 1 << 12;
const IBRS: u32 = 1 << 14;
const STIBP: u32 = 1 << 15;
const IBRS_ALWAYS_ON: u32 = 1 << 16;
/// CPUID 8000_0021, EAX.
const VERW_CLEAR: u32 = 1 << 5;
const AUTOMATIC_IBRS: u32 = 1 << 8;
const IBPB_BRANCH_TYPE: u32 = 1 << 28;
const SRSO_NO: u32 = 1 << 29;
/// CPUID 8000_0021, ECX.
const TSA_NO: u32 = 1 << 1 | 1 << 2;

/// Families by their cores.
const BULLDOZER: u32 = 0x15;
const JAGUAR: u32 = 0x16;
const ZEN_1_2: u32 = 0x17;
/// Hygon's Zen 1.
const DHYANA: u32 = 0x18;
const ZEN_3_4: u32 = 0x19;

pub fn plan(processor: &Processor) -> (Plan, Statuses) {
    let has = |bit: u32| processor.extended_8 & bit != 0;
    let [eax, ecx] = processor.extended_21;
    let automatic_ibrs = eax & AUTOMATIC_IBRS != 0;
    let (has_ibpb, has_ibrs) = (has(IBPB), has(IBRS));

    // The kernel's returns are not rewritten by its compiler, so predictions that a guest has left are thrown away.
    let retbleed_affected = matches!(processor.family, BULLDOZER | JAGUAR | ZEN_1_2 | DHYANA);
    let is_zen_1_2 = matches!(processor.family, ZEN_1_2 | DHYANA);
    let srso_affected = match processor.family {
        ZEN_3_4 => eax & SRSO_NO == 0,
        // Without the other thread these are not affected (AMD-SB-7005).
        ZEN_1_2 | DHYANA => eax & SRSO_NO == 0 && processor.has_threads,
        _ => false,
    };
    // On Zen 3 and 4 the barrier holds for returns with the microcode that says so.
    let srso_closed = has_ibpb && (is_zen_1_2 || eax & IBPB_BRANCH_TYPE != 0);
    let barrier_on_exit = has_ibpb && (retbleed_affected || srso_affected && srso_closed);

    let tsa_affected = processor.family == ZEN_3_4 && ecx & TSA_NO != TSA_NO;
    let tsa_closed = eax & VERW_CLEAR != 0;

    let holds = has_ibrs && has(IBRS_ALWAYS_ON);
    // Where a barrier follows each exit nothing is left to be held off; so too with automatic IBRS.
    let needs_control = has_ibrs && !automatic_ibrs && !barrier_on_exit;
    // With the other thread in another guest: it cannot steer this one.
    let stibp = if has(STIBP) && processor.has_threads { control::STIBP } else { 0 };
    let control = if needs_control { control::IBRS } else { 0 } | stibp;
    let plan = Plan {
        control,
        control_each_exit: needs_control && !holds,
        automatic_ibrs,
        barrier_on_switch: has_ibpb && !barrier_on_exit,
        barrier_on_exit,
        fill_return_stack: !automatic_ibrs,
        clear_buffers: tsa_affected && tsa_closed,
        flush_l1d: false,
    };
    let spectre_v2 = if automatic_ibrs {
        closed(true, has_ibpb, "automatic IBRS; IBPB between vCPUs")
    } else if barrier_on_exit {
        Status::Mitigated("IBPB after each exit")
    } else if holds {
        closed(true, has_ibpb, "IBRS; IBPB between vCPUs")
    } else {
        closed(true, has_ibpb && has_ibrs, "IBRS after each exit; IBPB between vCPUs")
    };
    let statuses = Statuses {
        spectre_v2,
        return_stack: closed(!automatic_ibrs, true, "filled after each exit"),
        retbleed: closed(retbleed_affected, has_ibpb, "IBPB after each exit"),
        srso: closed(srso_affected, srso_closed, "IBPB after each exit"),
        tsa: closed(tsa_affected, tsa_closed, "VERW before each entry"),
        ..Statuses::all(Status::NotAffected)
    };
    (plan, statuses)
}
