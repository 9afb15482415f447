//! The saved form of the registers that only keep what was written.

use super::{FAST_STRINGS, HARDWARE_CONFIGURATION_BITS, Kept, NO_TRACES, is_memory_type};
use crate::CpuProfile;
use minicbor::{Decode, Encode};
use state::Invalid;

/// MTRRs, MISC_ENABLE and HWCR.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    mtrr_variable: [u64; 16],
    #[n(1)]
    mtrr_fixed: [u64; 11],
    #[n(2)]
    mtrr_default: u64,
    #[n(3)]
    misc_enable: u64,
    #[n(4)]
    hardware_configuration: u64,
    /// Absent where it is zero.
    #[n(5)]
    tsc_adjust: Option<u64>,
}

impl Kept {
    pub fn save(&self) -> Saved {
        let Self { mtrr_variable, mtrr_fixed, mtrr_default, misc_enable, hardware_configuration, tsc_adjust } = *self;
        let tsc_adjust = (tsc_adjust != 0).then_some(tsc_adjust);
        Saved { mtrr_variable, mtrr_fixed, mtrr_default, misc_enable, hardware_configuration, tsc_adjust }
    }

    pub fn restore(saved: &Saved, profile: &CpuProfile) -> Result<Self, Invalid> {
        let Saved { mtrr_variable, mtrr_fixed, mtrr_default, misc_enable, hardware_configuration, tsc_adjust } = *saved;
        let tsc_adjust = tsc_adjust.unwrap_or(0);
        let wide = u64::MAX << profile.physical_address_bits();
        let possible = mtrr_default & !0xcff == 0
            && mtrr_variable.iter().all(|range| range & wide == 0)
            && mtrr_fixed.iter().flat_map(|range| range.to_le_bytes()).all(is_memory_type)
            && misc_enable & !FAST_STRINGS == NO_TRACES
            && hardware_configuration & !HARDWARE_CONFIGURATION_BITS == 0;
        Invalid::unless(possible, "a model-specific register")?;
        Ok(Self { mtrr_variable, mtrr_fixed, mtrr_default, misc_enable, hardware_configuration, tsc_adjust })
    }
}
