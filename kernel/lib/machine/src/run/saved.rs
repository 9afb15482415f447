//! What a thread keeps, in and out of its saved form.

use super::{Activity, Thread};
use crate::cpuid::CpuProfile;
use crate::msr::Kept;
use crate::paravirt::Registered;
use crate::saved::registers::{Registers, Saved};
use state::Invalid;

impl Thread {
    /// What restores it, beside its local APIC and its extended state, while its TSC reads `tsc`.
    pub(crate) fn save(&mut self, tsc: u64) -> Saved {
        Saved {
            registers: Registers::new(&self.vcpu.state()),
            tsc,
            activity: match self.activity {
                Activity::Running => 0,
                Activity::Halted => 1,
                Activity::WaitingForStartup => 2,
            },
            unhalted: self.unhalted,
            kept: self.kept.save(),
            registered: self.registered.save(),
        }
    }

    /// Makes a thread with the saved registers go on where the saved one was.
    ///
    /// # Errors
    /// Where no thread can have been there.
    pub(crate) fn restore(&mut self, saved: &Saved, profile: &CpuProfile) -> Result<(), Invalid> {
        self.activity = match saved.activity {
            0 => Activity::Running,
            1 => Activity::Halted,
            2 => Activity::WaitingForStartup,
            _ => return Err(Invalid("what it does")),
        };
        self.unhalted = saved.unhalted;
        self.kept = Kept::restore(&saved.kept, profile)?;
        self.registered = Registered::restore(&saved.registered);
        // Work may have been left to whoever runs first.
        self.board_touched = true;
        Ok(())
    }
}
