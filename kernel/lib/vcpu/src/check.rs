//! Which states of a vCPU may be given to a processor.
//!
//! A state that comes from elsewhere is checked here before [`Vcpu::set_state`](crate::Vcpu::set_state) sees it: what the
//! host itself loads into registers must not fault there. What only an entry into the guest loads is left to the
//! processor's own checks, which end that guest alone.

use crate::{Event, VcpuState};

/// The bits of DR6 and DR7 that exist in 64-bit mode.
const DEBUG_BITS: u64 = 0xffff_ffff;

impl VcpuState {
    /// Whether a host whose linear addresses have so many bits can load this state: `Err` says what is wrong with it.
    ///
    /// # Errors
    /// For an address that is not canonical, a reserved bit, an unknown memory type, or an event that there is not.
    pub fn check(&self, linear_address_bits: u32) -> Result<(), &'static str> {
        let addresses =
            [self.lstar, self.cstar, self.kernel_gs_base, self.sysenter_esp, self.sysenter_eip, self.gdtr.base];
        let bases = [self.idtr.base, self.ldtr.base, self.tr.base];
        let segments = self.segments.iter().map(|segment| segment.base);
        // Whether CR4.LA57 is set makes no difference to a register (SDM volume 3, 4.5.1).
        if !addresses.into_iter().chain(bases).chain(segments).all(|address| is_canonical(address, linear_address_bits))
        {
            return Err("an address that is not canonical");
        }
        if (self.sfmask | self.tsc_aux | self.sysenter_cs) >> 32 != 0 || (self.dr6 | self.dr7) & !DEBUG_BITS != 0 {
            return Err("a reserved bit of a register");
        }
        if !self.pat.to_le_bytes().iter().all(|&kind| matches!(kind, 0 | 1 | 4..=7)) {
            return Err("a memory type that there is not");
        }
        match self.waiting {
            Some(Event::Exception(exception)) if exception.vector >= 32 || exception.vector == 2 => {
                Err("an exception that there is not")
            }
            Some(Event::Interrupt(_) | Event::Nmi | Event::Exception(_)) | None => Ok(()),
        }
    }
}

/// Whether the bits above so many repeat the highest of those: 48, or 57 (SDM volume 1, 3.3.7.1).
pub const fn is_canonical(address: u64, bits: u32) -> bool {
    let unused = 64 - bits;
    (address << unused).cast_signed() >> unused == address.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Exception, Table};

    #[test]
    fn reset_is_fine_and_each_wrong_part_is_found() {
        let reset = VcpuState::reset();
        assert_eq!(reset.check(48), Ok(()));
        let high = VcpuState { lstar: 0xffff_8000_0000_0000, ..reset.clone() };
        assert_eq!(high.check(48), Ok(()));
        let wide = VcpuState { gdtr: Table { base: 0xff00_0000_0000_0000, limit: 0 }, ..reset.clone() };
        assert!(wide.check(48).is_err() && wide.check(57) == Ok(()));
        let unknown = Exception { vector: 32, error_code: None, fault_address: None };
        for wrong in [
            VcpuState { kernel_gs_base: 0x8000_0000_0000, ..reset.clone() },
            VcpuState { tsc_aux: 1 << 32, ..reset.clone() },
            VcpuState { dr7: 1 << 32, ..reset.clone() },
            VcpuState { pat: 2, ..reset.clone() },
            VcpuState { waiting: Some(Event::Exception(unknown)), ..reset.clone() },
        ] {
            assert!(wrong.check(48).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_are_canonical_when_their_upper_bits_are_equal() {
        for (good, bits) in [(0, 48), ((1 << 47) - 1, 48), (0xffff_8000_0000_0000, 48), (u64::MAX, 48), (1 << 55, 57)] {
            assert!(is_canonical(good, bits));
        }
        for (bad, bits) in [(1 << 47, 48), (1 << 63, 48), (0xfffe_ffff_ffff_ffff, 48), (1 << 56, 57), (1 << 63, 57)] {
            assert!(!is_canonical(bad, bits));
        }
    }
}
