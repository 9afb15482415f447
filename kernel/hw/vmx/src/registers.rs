//! The guest's registers that no field of the VMCS holds: they are in the processor while the vCPU is.

use crate::entry::Vmx;
use crate::msrs::Way;
use crate::vmcs::{Field, secondary};
use core::arch::asm;
use cpu::msr;

/// MSRs that are switched when the vCPU comes and goes: the host uses none of them.
const SWITCHED: [u32; 5] = [msr::STAR, msr::LSTAR, msr::CSTAR, msr::SFMASK, msr::KERNEL_GS_BASE];

impl Vmx {
    /// Puts them into the processor.
    pub(crate) fn load_registers(&mut self) {
        self.extended.load();
        let saved = &self.saved;
        let switched = [saved.star, saved.lstar, saved.cstar, saved.sfmask, saved.kernel_gs_base];
        // SAFETY: `checks::loadable` saw the values; the host uses none of these registers, and DR7 arms no breakpoint
        // while it runs.
        unsafe {
            SWITCHED.into_iter().zip(switched).for_each(|(register, value)| msr::write(register, value));
            if self.has_tsc_aux() {
                msr::write(msr::TSC_AUX, saved.tsc_aux);
            }
            asm!("mov cr2, {}", "mov dr6, {}", in(reg) saved.cr2, in(reg) saved.dr6, options(nostack));
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) saved.dr[0], in(reg) saved.dr[1],
                in(reg) saved.dr[2], in(reg) saved.dr[3], options(nostack));
        }
    }

    /// Takes them out of it.
    pub(crate) fn save_registers(&mut self) {
        self.extended.unload();
        let has_tsc_aux = self.has_tsc_aux();
        let saved = &mut self.saved;
        // SAFETY: reads registers that were written by `load_registers`.
        unsafe {
            [saved.star, saved.lstar, saved.cstar, saved.sfmask, saved.kernel_gs_base] =
                SWITCHED.map(|register| msr::read(register));
            if has_tsc_aux {
                saved.tsc_aux = msr::read(msr::TSC_AUX);
            }
            asm!("mov {}, cr2", "mov {}, dr6", out(reg) saved.cr2, out(reg) saved.dr6, options(nostack));
        }
        self.saved.dr = self.debug_registers();
    }

    /// The breakpoints' addresses.
    pub(crate) fn debug_registers(&self) -> [u64; 4] {
        let mut dr = self.saved.dr;
        if self.loaded {
            // SAFETY: reads registers.
            unsafe {
                asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) dr[0], out(reg) dr[1],
                    out(reg) dr[2], out(reg) dr[3], options(nostack));
            }
        }
        dr
    }

    /// A debug exception clears DR7.GD (19.2.4).
    pub(crate) fn forget_general_detect(&mut self) {
        const GENERAL_DETECT: u64 = 1 << 13;
        if !self.loaded {
            self.saved.dr7 &= !GENERAL_DETECT;
            return;
        }
        let dr7 = self.vmcs.read(Field::GUEST_DR7);
        if dr7 & GENERAL_DETECT != 0 {
            self.vmcs.write(Field::GUEST_DR7, dr7 & !GENERAL_DETECT);
        }
    }

    /// IA32_SPEC_CTRL. Linux without enhanced IBRS writes it at each system call: from its first value on a guest has it for
    /// itself, where it was offered all bits that the processor has.
    pub(crate) fn change_spec_ctrl(&mut self, value: u64) {
        let was_guarded = self.spec_ctrl.guards();
        self.spec_ctrl.set(value);
        if self.spec_ctrl.guards() != was_guarded {
            // The exit is another one from now on.
            self.leave();
        }
        if self.spec_ctrl.is_set() && self.spec_ctrl_passes {
            self.spec_ctrl.open();
            self.msrs.pass(msr::SPEC_CTRL, Way::Read, true);
            self.msrs.pass(msr::SPEC_CTRL, Way::Write, true);
        }
    }

    /// TSC_AUX comes with RDTSCP.
    fn has_tsc_aux(&self) -> bool {
        self.controls.secondary & secondary::RDTSCP != 0
    }

    /// CR2 is in the processor while the vCPU is: the host takes no page faults that it survives.
    pub(crate) fn set_cr2(&mut self, address: u64) {
        self.saved.cr2 = address;
        if self.loaded {
            // SAFETY: the guest's own register.
            unsafe { asm!("mov cr2, {}", in(reg) address, options(nomem, nostack, preserves_flags)) }
        }
    }

    /// So is DR6: the host takes no debug exceptions.
    pub(crate) fn change_dr6(&mut self, change: impl FnOnce(u64) -> u64) {
        if !self.loaded {
            self.saved.dr6 = change(self.saved.dr6);
            return;
        }
        let before: u64;
        // SAFETY: the guest's own register; its upper half stays clear.
        unsafe {
            asm!("mov {}, dr6", out(reg) before, options(nomem, nostack, preserves_flags));
            let after = change(before) & 0xffff_ffff;
            asm!("mov dr6, {}", in(reg) after, options(nomem, nostack, preserves_flags));
        }
    }
}
