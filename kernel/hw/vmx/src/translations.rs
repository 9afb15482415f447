//! Cached translations: the tags that tell one guest's from another's, and what makes the processor forget some.
//!
//! Chapter 29. A change of the guest's own tables is flushed by VPID, one of its EPT by the EPT pointer. Both matter only
//! where the vCPU runs; another processor's are dealt with when it comes there.

use crate::enable::{Features, Host};
use crate::entry::Vmx;
use core::arch::asm;

impl Vmx {
    /// EPT of four levels that the processor walks write-back, noting accesses where it can (25.6.11).
    pub(crate) fn ept_pointer(&self) -> u64 {
        const WRITE_BACK: u64 = 6;
        const LEVELS_LESS_ONE: u64 = 3 << 3;
        const ACCESSED_DIRTY: u64 = 1 << 6;
        let noting = if self.features.contains(Features::EPT_ACCESSED_DIRTY) { ACCESSED_DIRTY } else { 0 };
        self.ept_root.as_u64() | WRITE_BACK | LEVELS_LESS_ONE | noting
    }

    /// Sees to it that no stale translation can be used: a tag of this processor's current round, and nothing cached
    /// of an EPT that changed while the vCPU ran elsewhere, or that lies where another guest's did (29.4.3).
    pub(crate) fn choose_vpid(&mut self, host: &Host, cpu: usize) {
        if self.vpid_of == Some((cpu, host.vpid_round())) {
            return;
        }
        if self.features.contains(Features::VPID) {
            let (vpid, flush) = host.take_vpid();
            self.vpid = vpid;
            if flush {
                invvpid(INVVPID_ALL, 0);
            }
        }
        self.ept_changed = true;
        self.vpid_of = Some((cpu, host.vpid_round()));
    }

    /// Forgets cached translations of an EPT that lost or narrowed an entry.
    pub(crate) fn flush_ept(&mut self) {
        if core::mem::take(&mut self.ept_changed) {
            let single = self.features.contains(Features::INVEPT_SINGLE);
            invept(if single { INVEPT_SINGLE } else { INVEPT_ALL }, self.ept_pointer());
        }
    }

    /// Forgets the guest's own translations, as its MOV to a control register does. Without VPIDs every entry does.
    pub(crate) fn flush_linear(&self) {
        if self.features.contains(Features::VPID) {
            invvpid(INVVPID_SINGLE, self.vpid);
        }
    }
}

/// INVEPT's and INVVPID's types (chapter 31).
const INVEPT_SINGLE: u64 = 1;
const INVEPT_ALL: u64 = 2;
const INVVPID_SINGLE: u64 = 1;
const INVVPID_ALL: u64 = 2;

fn invept(kind: u64, ept_pointer: u64) {
    let descriptor = [ept_pointer, 0];
    // SAFETY: only forgets what is cached; `check` and `Features` said which types there are.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) }
}

fn invvpid(kind: u64, vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    // SAFETY: as in `invept`.
    unsafe { asm!("invvpid {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) }
}
