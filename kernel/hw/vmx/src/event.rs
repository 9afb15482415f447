//! Events on their way into the guest: what is injected, and what an exit interrupted (25.8.3, 25.9.3, 27.6).

use vcpu::{Event, Exception, makes_double_fault};

/// An event as the VM-entry fields take it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// Vector, type, and which of the other words count.
    pub info: u32,
    pub error_code: u32,
}

/// Bits of the information word, the same in all three places (tables 25-17, 25-18 and 25-20).
pub mod info {
    pub const VALID: u32 = 1 << 31;
    pub const ERROR_VALID: u32 = 1 << 11;
    pub const TYPE_MASK: u32 = 7 << 8;
    pub const INTERRUPT: u32 = 0 << 8;
    pub const NMI: u32 = 2 << 8;
    pub const EXCEPTION: u32 = 3 << 8;
    /// In exits only: an IRET ended the blocking of NMIs before the exit.
    pub const NMI_UNBLOCKED: u32 = 1 << 12;
}

const NMI_VECTOR: u32 = 2;

impl Encoded {
    /// The fields for an event. In real mode no exception pushes an error code (27.2.1.3).
    pub fn new(event: Event, real_mode: bool) -> Self {
        match event {
            Event::Interrupt(vector) => Self { info: info::VALID | info::INTERRUPT | u32::from(vector), error_code: 0 },
            Event::Nmi => Self { info: info::VALID | info::NMI | NMI_VECTOR, error_code: 0 },
            Event::Exception(Exception { vector, error_code, .. }) => {
                let with_error = error_code.filter(|_| !real_mode);
                let error_valid = if with_error.is_some() { info::ERROR_VALID } else { 0 };
                let info = info::VALID | info::EXCEPTION | error_valid | u32::from(vector);
                Self { info, error_code: with_error.unwrap_or(0) }
            }
        }
    }

    /// The event; a page fault's address is in CR2 by now.
    pub fn decode(self) -> Event {
        match self.info & info::TYPE_MASK {
            info::INTERRUPT => Event::Interrupt(self.info as u8),
            info::NMI => Event::Nmi,
            _ => {
                let error_code = (self.info & info::ERROR_VALID != 0).then_some(self.error_code);
                Event::Exception(Exception { vector: self.info as u8, error_code, fault_address: None })
            }
        }
    }

    /// An event whose delivery an exit interrupted and that must be delivered again (28.2.4). Software interrupts and
    /// exceptions are not: their instruction is run again.
    pub fn interrupted(info: u32, error_code: impl FnOnce() -> u32) -> Option<Self> {
        let again = matches!(info & info::TYPE_MASK, info::INTERRUPT | info::NMI | info::EXCEPTION);
        if info & info::VALID == 0 || !again {
            return None;
        }
        let error_code = if info & info::ERROR_VALID != 0 { error_code() } else { 0 };
        // Bit 12 is undefined there and must be clear here.
        Some(Self { info: info & (info::VALID | info::ERROR_VALID | info::TYPE_MASK | 0xff), error_code })
    }

    /// What is delivered when `second` comes up during the delivery of this one, an exception (7.15).
    pub fn then(self, second: Self, real_mode: bool) -> Self {
        if !makes_double_fault(self.vector(), second.vector()) {
            return second;
        }
        Self::new(Event::Exception(Exception::DOUBLE_FAULT), real_mode)
    }

    pub fn is_exception(self) -> bool {
        self.info & info::TYPE_MASK == info::EXCEPTION
    }

    pub fn is_nmi(self) -> bool {
        self.info & info::TYPE_MASK == info::NMI
    }

    pub fn vector(self) -> u8 {
        self.info as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(vector: u8, error_code: Option<u32>) -> Encoded {
        Encoded::new(Event::Exception(Exception { vector, error_code, fault_address: None }), false)
    }

    #[test]
    fn events_are_encoded_as_the_entry_fields_take_them() {
        assert_eq!(Encoded::new(Event::Interrupt(0x30), false).info, 0x8000_0030);
        assert_eq!(Encoded::new(Event::Nmi, false).info, 0x8000_0202);
        assert_eq!(exception(6, None), Encoded { info: 0x8000_0306, error_code: 0 });
        assert_eq!(exception(14, Some(2)), Encoded { info: 0x8000_0b0e, error_code: 2 });
    }

    #[test]
    fn real_mode_pushes_no_error_codes() {
        let protection = Encoded::new(Event::Exception(Exception::PROTECTION), true);
        assert_eq!(protection, Encoded { info: 0x8000_030d, error_code: 0 });
        assert_eq!(protection.then(protection, true).info, 0x8000_0308);
    }

    #[test]
    fn what_an_exit_interrupted_goes_in_again_but_for_software_events() {
        const UNDEFINED_BIT: u32 = 1 << 12;
        let fault = Encoded::interrupted(0x8000_0b0e | UNDEFINED_BIT, || 7);
        assert_eq!(fault, Some(Encoded { info: 0x8000_0b0e, error_code: 7 }));
        assert_eq!(Encoded::interrupted(0x8000_0030, || 7), Some(Encoded { info: 0x8000_0030, error_code: 0 }));
        assert!(Encoded::interrupted(0x8000_0202, || 0).is_some_and(Encoded::is_nmi));
        // INT n, ICEBP, INT3 and INTO; and nothing at all.
        for info in [0x8000_0480, 0x8000_0501, 0x8000_0603, 0x0000_030d] {
            assert_eq!(Encoded::interrupted(info, || 0), None);
        }
    }

    #[test]
    fn contributory_exceptions_make_a_double_fault() {
        let (protection, page) = (exception(13, Some(0)), exception(14, Some(0)));
        assert_eq!(page.then(protection, false), exception(8, Some(0)));
        assert_eq!(protection.then(page, false), page);
    }
}
