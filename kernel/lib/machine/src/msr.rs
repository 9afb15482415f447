//! Model-specific registers that exit: implemented, or refused with #GP as hardware refuses what it lacks.
//!
//! SDM volume 4 and APM volume 2, appendix A. The local APIC's registers are `chipset`'s, KVM's are in `paravirt`;
//! those that the vCPU's backend leaves to the guest never come here.

mod saved;

pub use saved::Saved;

use crate::run::Thread;
use crate::{Machine, paravirt};
use alloc::vec::Vec;
use chipset::{Clock, Effect, GeneralProtection};
use vcpu::{Xfd, cr0, efer, is_canonical};

const TSC: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const APIC_BASE: u32 = 0x1b;
const TSC_ADJUST: u32 = 0x3b;
const SPEC_CTRL: u32 = 0x48;
const UPDATE_TRIGGER: u32 = 0x79;
const PATCH_LEVEL: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const ARCH_CAPABILITIES: u32 = 0x10a;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MISC_ENABLE: u32 = 0x1a0;
const XFD: u32 = 0x1c4;
const XFD_ERR: u32 = 0x1c5;
const DEBUG_CTL: u32 = 0x1d9;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_VARIABLE_LAST: u32 = 0x20f;
const MTRR_FIXED_64K: u32 = 0x250;
const MTRR_FIXED_16K: u32 = 0x258;
const MTRR_FIXED_16K_LAST: u32 = 0x259;
const MTRR_FIXED_4K: u32 = 0x268;
const MTRR_FIXED_4K_LAST: u32 = 0x26f;
const PAT: u32 = 0x277;
const MTRR_DEFAULT: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;
const X2APIC_SVR: u32 = 0x80f;
/// Those on which the timer depends: spurious vector (which masks), timer entry, initial count, divider.
const X2APIC_TIMER: [u32; 4] = [0x80f, 0x832, 0x838, 0x83e];
const XSS: u32 = 0xda0;
const EFER: u32 = 0xc000_0080;
const SYSTEM_CONFIGURATION: u32 = 0xc001_0010;
const HARDWARE_CONFIGURATION: u32 = 0xc001_0015;
const NORTHBRIDGE_CONFIGURATION: u32 = 0xc001_001f;
const INTERRUPT_PENDING: u32 = 0xc001_0055;
const MMIO_CONFIGURATION: u32 = 0xc001_0058;
const SMM_ADDRESS: u32 = 0xc001_0112;
const SMM_MASK: u32 = 0xc001_0113;
const DECODE_CONFIGURATION: u32 = 0xc001_1029;
/// Switches of the core by which firmware and systems work around errata: load and store, instruction cache, data cache,
/// table walks, buses, execution.
const CORE_CONFIGURATION: u32 = 0xc001_1020;
const CORE_CONFIGURATION_WALKS: u32 = 0xc001_1023;
const BUS_CONFIGURATION: u32 = 0xc001_102a;
const EXECUTION_CONFIGURATION: u32 = 0xc001_102c;

/// MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const MTRR_CAPABILITIES: u64 = 0x508;
/// The revision of microcode on AMD's processors, and on Intel's, which have it in the upper half.
const PATCH_LEVEL_AMD: u64 = 0x0100_0065;
const PATCH_LEVEL_INTEL: u64 = 1 << 32;
/// MISC_ENABLE: fast strings, which Linux takes for a condition of fast short REP MOV and a guest may turn off.
const FAST_STRINGS: u64 = 1 << 0;
/// MISC_ENABLE: no branch trace store, no processor event-based sampling. Read-only.
const NO_TRACES: u64 = 1 << 11 | 1 << 12;
/// LFENCE serialises.
const LFENCE_SERIALISES: u64 = 1 << 1;
/// HWCR bits that system software sets and that change nothing a guest sees: SLOWFENCE, CACHEFLSH, MONMWAIT, TSC rate.
const HARDWARE_CONFIGURATION_BITS: u64 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 24;

/// NB_CFG: extended configuration space through port 0CF8h, which is always there.
const EXTENDED_CONFIGURATION: u64 = 1 << 46;

/// Registers that only keep what was written.
#[derive(Clone, Debug)]
pub struct Kept {
    mtrr_variable: [u64; 16],
    mtrr_fixed: [u64; 11],
    mtrr_default: u64,
    misc_enable: u64,
    hardware_configuration: u64,
    /// By how much software moved the TSC, other than the whole machine's (SDM volume 3, 19.17.3).
    tsc_adjust: u64,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            mtrr_variable: [0; 16],
            mtrr_fixed: [0x0606_0606_0606_0606; 11],
            // Enabled, fixed ranges too, write-back: what firmware leaves for memory.
            mtrr_default: 0xc06,
            misc_enable: FAST_STRINGS | NO_TRACES,
            hardware_configuration: 1 << 24,
            tsc_adjust: 0,
        }
    }
}

impl Machine {
    pub(crate) fn read_msr(&self, thread: &mut Thread, index: u32, clock: Clock) -> Result<u64, GeneralProtection> {
        Ok(match index {
            APIC_BASE | TSC_DEADLINE | X2APIC..=X2APIC_LAST => thread.lapic.read_msr(index, clock)?,
            TSC => clock.tsc,
            TSC_ADJUST if self.profile.has_tsc_adjust() => thread.kept.tsc_adjust,
            SPEC_CTRL if self.profile.speculation().control != 0 => thread.vcpu.spec_ctrl(),
            XFD | XFD_ERR => self.read_xfd(thread, index)?,
            ARCH_CAPABILITIES => self.profile.arch_capabilities().ok_or(GeneralProtection)?,
            // No state of the system's own is offered: XSAVES stores what XSAVEC stores.
            XSS if self.profile.has_xsaves() => 0,
            EFER => thread.vcpu.paging().efer,
            PAT => thread.vcpu.state().pat,
            MTRR_CAP => MTRR_CAPABILITIES,
            MTRR_DEFAULT => thread.kept.mtrr_default,
            MTRR_VARIABLE..=MTRR_VARIABLE_LAST => thread.kept.mtrr_variable[(index - MTRR_VARIABLE) as usize],
            MISC_ENABLE if !self.profile.is_amd() => thread.kept.misc_enable,
            MCG_CAP | MCG_STATUS | DEBUG_CTL => 0,
            PATCH_LEVEL if self.profile.is_amd() => PATCH_LEVEL_AMD,
            PATCH_LEVEL => PATCH_LEVEL_INTEL,
            // Platform 0, as the microcode's updates number them.
            PLATFORM_ID if !self.profile.is_amd() => 0,
            SYSTEM_CONFIGURATION | INTERRUPT_PENDING | MMIO_CONFIGURATION if self.profile.is_amd() => 0,
            SMM_ADDRESS | SMM_MASK if self.profile.is_amd() => 0,
            index if is_core_configuration(index) && self.profile.is_amd() => 0,
            HARDWARE_CONFIGURATION if self.profile.is_amd() => thread.kept.hardware_configuration,
            NORTHBRIDGE_CONFIGURATION if self.profile.is_amd() => EXTENDED_CONFIGURATION,
            DECODE_CONFIGURATION if self.profile.is_amd() => LFENCE_SERIALISES,
            _ => match fixed_mtrr(index) {
                Some(fixed) => thread.kept.mtrr_fixed[fixed],
                None => paravirt::read_msr(thread, index)?,
            },
        })
    }

    pub(crate) fn write_msr(
        &self,
        thread: &mut Thread,
        index: u32,
        value: u64,
        clock: Clock,
        effects: &mut Vec<Effect>,
    ) -> Result<(), GeneralProtection> {
        match index {
            APIC_BASE if value >> self.profile.physical_address_bits() != 0 => return Err(GeneralProtection),
            APIC_BASE | TSC_DEADLINE | X2APIC..=X2APIC_LAST => {
                thread.timer_changed |= !matches!(index, X2APIC..=X2APIC_LAST) || X2APIC_TIMER.contains(&index);
                thread.lapic.write_msr(index, value, clock, effects)?;
                if matches!(index, APIC_BASE | X2APIC_SVR) {
                    self.readdress(thread);
                }
            }
            TSC => self.move_tsc(thread, value.wrapping_sub(clock.tsc), clock),
            TSC_ADJUST if self.profile.has_tsc_adjust() => {
                self.move_tsc(thread, value.wrapping_sub(thread.kept.tsc_adjust), clock);
            }
            SPEC_CTRL => self.write_spec_ctrl(thread, value)?,
            XFD | XFD_ERR => self.write_xfd(thread, index, value)?,
            XSS if self.profile.has_xsaves() => check(value == 0)?,
            EFER => self.write_efer(thread, value)?,
            PAT => write_pat(thread, value)?,
            MTRR_DEFAULT => {
                check(value & !0xcff == 0 && is_memory_type(value as u8))?;
                thread.kept.mtrr_default = value;
            }
            MTRR_VARIABLE..=MTRR_VARIABLE_LAST => {
                let is_base = index & 1 == 0;
                let reserved = if is_base { 0xf00 } else { 0x7ff } | u64::MAX << self.profile.physical_address_bits();
                check(value & reserved == 0 && (!is_base || is_memory_type(value as u8)))?;
                thread.kept.mtrr_variable[(index - MTRR_VARIABLE) as usize] = value;
            }
            MISC_ENABLE if !self.profile.is_amd() => {
                check((value ^ thread.kept.misc_enable) & !FAST_STRINGS == 0)?;
                thread.kept.misc_enable = value;
            }
            // Software writes zero there before CPUID loads the revision again (SDM volume 3, 10.11.7.1).
            PATCH_LEVEL if !self.profile.is_amd() => check(value == 0)?,
            // What is no update of this processor's changes nothing, and none is.
            UPDATE_TRIGGER if !self.profile.is_amd() => check(is_canonical(value, self.profile.linear_address_bits()))?,
            MCG_STATUS | DEBUG_CTL => check(value == 0)?,
            SYSTEM_CONFIGURATION | INTERRUPT_PENDING | MMIO_CONFIGURATION if self.profile.is_amd() => {
                check(value == 0)?
            }
            // The errata are those of silicon that no guest sees.
            index if is_core_configuration(index) && self.profile.is_amd() => {}
            HARDWARE_CONFIGURATION if self.profile.is_amd() => {
                check(value & !HARDWARE_CONFIGURATION_BITS == 0)?;
                thread.kept.hardware_configuration = value;
            }
            NORTHBRIDGE_CONFIGURATION if self.profile.is_amd() => check(value == EXTENDED_CONFIGURATION)?,
            DECODE_CONFIGURATION if self.profile.is_amd() => check(value == LFENCE_SERIALISES)?,
            _ => match fixed_mtrr(index) {
                Some(fixed) => {
                    check(value.to_le_bytes().into_iter().all(is_memory_type))?;
                    thread.kept.mtrr_fixed[fixed] = value;
                }
                None => self.write_paravirt_msr(thread, index, value, clock)?,
            },
        }
        Ok(())
    }

    /// Moves the guest's TSC by `ticks` (wrapping). Whichever register it was written by, the other follows.
    fn move_tsc(&self, thread: &mut Thread, ticks: u64, clock: Clock) {
        thread.kept.tsc_adjust = thread.kept.tsc_adjust.wrapping_add(ticks);
        thread.vcpu.set_tsc_offset(thread.vcpu.tsc_offset().wrapping_add(ticks));
        thread.timer_changed = true;
        self.update_clock(thread, Clock { tsc: clock.tsc.wrapping_add(ticks), ..clock });
    }

    /// IA32_SPEC_CTRL: no bit that was not offered, and without any there is none.
    fn write_spec_ctrl(&self, thread: &mut Thread, value: u64) -> Result<(), GeneralProtection> {
        let offered = self.profile.speculation().control;
        check(offered != 0 && value & !offered == 0)?;
        thread.vcpu.set_spec_ctrl(value);
        Ok(())
    }

    /// IA32_XFD or IA32_XFD_ERR.
    fn read_xfd(&self, thread: &Thread, index: u32) -> Result<u64, GeneralProtection> {
        check(self.profile.xfd_bits() != 0)?;
        let Xfd { disabled, error } = thread.vcpu.xfd();
        Ok(if index == XFD { disabled } else { error })
    }

    /// The same: no bit but those of components that have one, and without any there is neither.
    fn write_xfd(&self, thread: &mut Thread, index: u32, value: u64) -> Result<(), GeneralProtection> {
        let offered = self.profile.xfd_bits();
        check(offered != 0 && value & !offered == 0)?;
        let before = thread.vcpu.xfd();
        let after = if index == XFD { Xfd { disabled: value, ..before } } else { Xfd { error: value, ..before } };
        thread.vcpu.set_xfd(after);
        Ok(())
    }

    /// EFER: no bit that was not offered; LME stays while paging is on; LMA is the processor's (APM volume 2, 3.1.7).
    fn write_efer(&self, thread: &mut Thread, value: u64) -> Result<(), GeneralProtection> {
        let mut state = thread.vcpu.state();
        check(value & !self.profile.efer_bits() == 0)?;
        check(state.cr0 & cr0::PG == 0 || (value ^ state.efer) & efer::LME == 0)?;
        state.efer = value & !efer::LMA | state.efer & efer::LMA;
        thread.vcpu.set_state(&state);
        Ok(())
    }
}

/// IA32_PAT: only types of memory that there are.
fn write_pat(thread: &mut Thread, value: u64) -> Result<(), GeneralProtection> {
    check(value.to_le_bytes().iter().all(|&kind| matches!(kind, 0 | 1 | 4..=7)))?;
    let mut state = thread.vcpu.state();
    state.pat = value;
    thread.vcpu.set_state(&state);
    Ok(())
}

fn check(allowed: bool) -> Result<(), GeneralProtection> {
    if allowed { Ok(()) } else { Err(GeneralProtection) }
}

/// The memory types of an MTRR (SDM volume 3, table 13-8).
fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4..=6)
}

fn is_core_configuration(index: u32) -> bool {
    matches!(index, CORE_CONFIGURATION..=CORE_CONFIGURATION_WALKS | BUS_CONFIGURATION | EXECUTION_CONFIGURATION)
}

fn fixed_mtrr(index: u32) -> Option<usize> {
    let place = match index {
        MTRR_FIXED_64K => 0,
        MTRR_FIXED_16K..=MTRR_FIXED_16K_LAST => 1 + index - MTRR_FIXED_16K,
        MTRR_FIXED_4K..=MTRR_FIXED_4K_LAST => 3 + index - MTRR_FIXED_4K,
        _ => return None,
    };
    Some(place as usize)
}
