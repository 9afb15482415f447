//! What can be delivered to a virtual CPU, and when.

/// An event to deliver at the next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// An external interrupt with this vector.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A fault or trap.
    Exception(Exception),
}

/// A processor exception as the guest's handler sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// For a page fault, the faulting linear address, which goes to CR2.
    pub fault_address: Option<u64>,
}

impl Exception {
    /// #DB.
    pub const DEBUG: Self = Self { vector: 1, error_code: None, fault_address: None };
    /// #UD.
    pub const UNDEFINED: Self = Self { vector: 6, error_code: None, fault_address: None };
    /// #GP(0).
    pub const PROTECTION: Self = Self { vector: 13, error_code: Some(0), fault_address: None };
    /// #AC.
    pub const ALIGNMENT: Self = Self { vector: 17, error_code: Some(0), fault_address: None };
    /// #SS(0).
    pub const STACK: Self = Self { vector: 12, error_code: Some(0), fault_address: None };
    /// #DF.
    pub const DOUBLE_FAULT: Self = Self { vector: 8, error_code: Some(0), fault_address: None };
    /// #TS(0).
    pub const INVALID_TSS: Self = Self { vector: 10, error_code: Some(0), fault_address: None };
    /// #NP(0).
    pub const NOT_PRESENT: Self = Self { vector: 11, error_code: Some(0), fault_address: None };

    /// Whether it is a fault: RIP is at the instruction, which runs again without meeting its breakpoint again. #DB is
    /// one only where the processor raises it itself; the others are traps and aborts (SDM volume 3, table 7-1).
    pub const fn is_fault(self) -> bool {
        !matches!(self.vector, 1..=4 | 8 | 18)
    }

    /// #PF at a linear address.
    pub const fn page_fault(error_code: u32, address: u64) -> Self {
        Self { vector: 14, error_code: Some(error_code), fault_address: Some(address) }
    }
}

/// Whether two exceptions, the second in the delivery of the first, are a double fault (SDM volume 3, table 7-5; APM volume
/// 2, table 8-3).
pub const fn makes_double_fault(first: u8, second: u8) -> bool {
    const PAGE_FAULT: u8 = 14;
    let is_contributory = matches!(second, 0 | 10..=13);
    match first {
        0 | 10..=13 => is_contributory,
        PAGE_FAULT => is_contributory || second == PAGE_FAULT,
        _ => false,
    }
}

/// For what [`Exit::InterruptWindow`](crate::Exit::InterruptWindow) is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// Nothing.
    Never,
    /// An external interrupt can be delivered.
    Open,
    /// An interrupt of this priority class, 1 to 15, can be delivered or is only held back by RFLAGS.IF and shadows: the
    /// guest lowered the task priority in CR8 below it.
    Below(u8),
}

/// What a vCPU can take at its next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadyFor {
    /// Nothing: an event already waits, or the entry must first finish one.
    Nothing,
    /// An exception or an NMI, but no external interrupt: RFLAGS.IF is clear or a shadow holds.
    Exceptions,
    /// Anything.
    Interrupts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contributory_exceptions_make_a_double_fault() {
        let [debug, invalid_tss, protection, page_fault] = [1, 10, 13, 14];
        for (first, second) in [(protection, invalid_tss), (page_fault, protection), (page_fault, page_fault)] {
            assert!(makes_double_fault(first, second), "{second} in {first}");
        }
        for (first, second) in [(protection, page_fault), (debug, page_fault), (page_fault, debug)] {
            assert!(!makes_double_fault(first, second), "{second} in {first}");
        }
    }
}
