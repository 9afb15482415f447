//! Addresses that cannot be mixed up: guest-physical, guest-virtual and host-physical, and ranges of the first.
//!
//! The main types are [`Gpa`], [`Gva`] and [`Hpa`]; everything else in the tree builds on them and this crate
//! builds on nothing.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod frames;

use core::fmt;

/// Bytes in the smallest page and in a frame.
pub const PAGE_BYTES: u64 = 4 << 10;
/// Bytes in a large (PDE) page.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Bytes in a huge (PDPE) page.
pub const HUGE_PAGE_BYTES: u64 = 1 << 30;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address.
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The address `bytes` further on, wrapping as the processor's adders do.
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The largest multiple of `align` (a power of two) that is not above this address.
            pub const fn align_down(self, align: u64) -> Self {
                assert!(align.is_power_of_two());
                Self(self.0 & !(align - 1))
            }

            /// How far the address lies above a multiple of `align` (a power of two).
            pub const fn offset_in(self, align: u64) -> u64 {
                assert!(align.is_power_of_two());
                self.0 & (align - 1)
            }

            /// Whether the address is a multiple of `align` (a power of two).
            pub const fn is_aligned(self, align: u64) -> bool {
                self.offset_in(align) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address: what the guest takes for a physical one.
    Gpa
}
address! {
    /// A guest-virtual (linear) address.
    Gva
}
address! {
    /// A host-physical address.
    Hpa
}

/// A run of guest-physical bytes. It never wraps: `start + bytes` is representable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpaRange {
    start: Gpa,
    bytes: u64,
}

impl GpaRange {
    /// The range of `bytes` bytes from `start`, or `None` where it would wrap.
    pub const fn new(start: Gpa, bytes: u64) -> Option<Self> {
        match start.checked_add(bytes) {
            Some(_) => Some(Self { start, bytes }),
            None => None,
        }
    }

    /// Its first address.
    pub const fn start(self) -> Gpa {
        self.start
    }

    /// Its length.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The first address past it.
    pub const fn end(self) -> Gpa {
        Gpa::new(self.start.as_u64() + self.bytes)
    }

    /// Whether `at` lies inside.
    pub const fn contains(self, at: Gpa) -> bool {
        self.start.as_u64() <= at.as_u64() && at.as_u64() < self.end().as_u64()
    }

    /// Whether the two share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.bytes > 0
            && other.bytes > 0
            && self.start.as_u64() < other.end().as_u64()
            && other.start.as_u64() < self.end().as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment() {
        assert_eq!(Gpa::new(0x2f_ffff).align_down(LARGE_PAGE_BYTES), Gpa::new(0x20_0000));
        assert_eq!(Hpa::new(0x1234).offset_in(PAGE_BYTES), 0x234);
        assert!(Gva::new(0x4000).is_aligned(PAGE_BYTES));
    }

    #[test]
    fn ranges_do_not_wrap() {
        assert_eq!(GpaRange::new(Gpa::new(u64::MAX), 2), None);
        let range = GpaRange::new(Gpa::new(0x1000), 0x1000).unwrap();
        assert!(range.contains(Gpa::new(0x1fff)) && !range.contains(Gpa::new(0x2000)));
        assert!(!range.overlaps(GpaRange::new(Gpa::new(0x2000), 1).unwrap()));
        assert!(range.overlaps(GpaRange::new(Gpa::new(0x1fff), 1).unwrap()));
    }
}
