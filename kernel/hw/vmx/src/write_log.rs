//! The log of the guest's writes: page-modification logging (29.3.6).
//!
//! The processor enters a page's address when it sets the dirty bit of the EPT entry that maps it, so that a harvest
//! need not look through all tables. The log is kept all the time: without tracking the bits stay set and nothing is
//! entered. [`WriteLog`] is one vCPU's; `nested` clears the bits of what it names.

use crate::enable::Features;
use crate::entry::Vmx;
use crate::vmcs::Field;
use addr::Gpa;
use alloc::boxed::Box;

const ENTRIES: usize = 512;
/// The index of an empty log: entries are written from the last to the first.
const EMPTY: u16 = ENTRIES as u16 - 1;

/// Addresses of pages.
#[repr(C, align(4096))]
struct Entries([u64; ENTRIES]);

/// The log, and where its next entry goes while the VMCS, which says so else, is not loaded. Below 0 it is full.
pub(crate) struct WriteLog {
    entries: Box<Entries>,
    next: u16,
}

impl WriteLog {
    pub fn new() -> Self {
        Self { entries: Box::new(Entries([0; ENTRIES])), next: EMPTY }
    }

    /// Reports what was entered before the index came to `next`.
    fn report(&self, next: u16, report: &mut dyn FnMut(Gpa)) {
        let first = usize::from(next.wrapping_add(1));
        for entry in self.entries.0.get(first..).unwrap_or_default() {
            // SAFETY: the processor writes the log behind the compiler's back, but never while the host runs.
            report(Gpa::new(unsafe { (&raw const *entry).read_volatile() }));
        }
    }
}

impl Vmx {
    /// Gives the log to the VMCS that was made current.
    pub(crate) fn load_write_log(&mut self) {
        if self.features.contains(Features::PAGE_MODIFICATION_LOG) {
            self.vmcs.write(Field::WRITE_LOG, &raw const *self.write_log.entries as u64);
            self.vmcs.write(Field::WRITE_LOG_INDEX, self.write_log.next.into());
        }
    }

    /// Takes it back from a VMCS that will be cleared.
    pub(crate) fn unload_write_log(&mut self) {
        if self.features.contains(Features::PAGE_MODIFICATION_LOG) {
            self.write_log.next = self.vmcs.read(Field::WRITE_LOG_INDEX) as u16;
        }
    }

    /// Reports what was entered, and empties the log.
    pub(crate) fn empty_write_log(&mut self, report: &mut dyn FnMut(Gpa)) {
        if !self.features.contains(Features::PAGE_MODIFICATION_LOG) {
            return;
        }
        if self.loaded {
            self.unload_write_log();
        }
        self.write_log.report(self.write_log.next, report);
        self.write_log.next = EMPTY;
        if self.loaded {
            self.vmcs.write(Field::WRITE_LOG_INDEX, EMPTY.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_fills_from_its_end() {
        let mut log = WriteLog::new();
        log.entries.0 = core::array::from_fn(|index| (index as u64) << 12);
        let reported = |next| {
            let mut pages = alloc::vec::Vec::new();
            log.report(next, &mut |gpa| pages.push(gpa.as_u64() >> 12));
            pages
        };
        assert_eq!(reported(EMPTY), []);
        assert_eq!(reported(EMPTY - 2), [510, 511]);
        assert_eq!(reported(0), (1..512).collect::<alloc::vec::Vec<_>>());
        assert_eq!(reported(u16::MAX).len(), ENTRIES, "a full log");
        assert_eq!(reported(600), [], "an index that no processor leaves");
    }
}
