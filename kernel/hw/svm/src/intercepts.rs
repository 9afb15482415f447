//! What ends a run only at times, or only for some guests: [`Intercept`]. What always does is in `entry`.

use crate::entry::Svm;
use crate::vmcb::{Control, clean, cr_write, misc1};

/// An intercept that comes and goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intercept {
    /// A virtual interrupt could be delivered.
    InterruptWindow,
    /// An IRET, before it runs.
    Iret,
    /// MOV to CR4.
    Cr4Write,
    /// MOV to CR8.
    Cr8Write,
}

impl Intercept {
    fn word(self, control: &mut Control) -> (&mut u32, u32) {
        match self {
            Self::InterruptWindow => (&mut control.intercept_misc[0], misc1::VINTR),
            Self::Iret => (&mut control.intercept_misc[0], misc1::IRET),
            Self::Cr4Write => (&mut control.intercept_cr, cr_write::CR4),
            Self::Cr8Write => (&mut control.intercept_cr, cr_write::CR8),
        }
    }
}

impl Svm {
    /// Turns one on or off; the others stay as they are.
    pub(crate) fn intercept(&mut self, what: Intercept, on: bool) {
        let (word, bit) = what.word(&mut self.vmcb.control);
        let wanted = if on { *word | bit } else { *word & !bit };
        if *word != wanted {
            *word = wanted;
            self.changed(clean::INTERCEPTS);
        }
    }
}
