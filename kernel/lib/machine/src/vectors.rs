//! The vector registers in an XSAVE area of the standard layout (SDM volume 1, 13.4): the main type is [`Vectors`].

use crate::CpuProfile;
use alloc::vec::Vec;
use insn::VECTOR_BYTES;

/// Components of XCR0: XMM, the upper halves of YMM, the upper halves of ZMM.
const SSE: usize = 1;
const AVX: usize = 2;
const ZMM: usize = 6;
/// Where XMM0 is, and the bits of the components that are not in their initial state, all zeroes.
const XMM_AT: usize = 160;
const PRESENT_AT: usize = 512;
const REGISTERS: usize = 16;
const XMM_BYTES: usize = VECTOR_BYTES / 2;
const ZMM_UPPER_BYTES: usize = 32;

/// A vCPU's area.
pub struct Vectors {
    area: Vec<u8>,
    /// Where AVX's and AVX-512's upper halves are, where its guest has them.
    avx_at: Option<usize>,
    zmm_at: Option<usize>,
}

impl Vectors {
    pub fn new(area: Vec<u8>, profile: &CpuProfile) -> Self {
        Self { area, avx_at: profile.xsave_offset(AVX), zmm_at: profile.xsave_offset(ZMM) }
    }

    pub fn into_area(self) -> Vec<u8> {
        self.area
    }

    /// YMM, of which the upper half is zero where there is none.
    pub fn get(&self, number: usize) -> [u8; VECTOR_BYTES] {
        let mut value = [0; VECTOR_BYTES];
        for (part, (component, at)) in value.chunks_mut(XMM_BYTES).zip(self.halves()) {
            let is_present = self.area[PRESENT_AT] & 1 << component != 0;
            if let Some(at) = at.filter(|_| is_present) {
                part.copy_from_slice(&self.area[at + number * XMM_BYTES..][..XMM_BYTES]);
            }
        }
        value
    }

    pub fn set(&mut self, number: usize, value: [u8; VECTOR_BYTES]) {
        for (part, (component, at)) in value.chunks(XMM_BYTES).zip(self.halves()) {
            if let Some(at) = at {
                self.begin(component, at, XMM_BYTES);
                self.area[at + number * XMM_BYTES..][..XMM_BYTES].copy_from_slice(part);
            }
        }
    }

    /// Clears what is above YMM.
    pub fn clear_above(&mut self, number: usize) {
        if let Some(at) = self.zmm_at {
            self.begin(ZMM, at, ZMM_UPPER_BYTES);
            self.area[at + number * ZMM_UPPER_BYTES..][..ZMM_UPPER_BYTES].fill(0);
        }
    }

    /// The lower and the upper half of YMM: component, and where that is.
    fn halves(&self) -> [(usize, Option<usize>); 2] {
        [(SSE, Some(XMM_AT)), (AVX, self.avx_at)]
    }

    /// Has a component count, whose registers of so many bytes are zero if it did not.
    fn begin(&mut self, component: usize, at: usize, bytes: usize) {
        let present = self.area[PRESENT_AT];
        if present & 1 << component == 0 {
            self.area[PRESENT_AT] = present | 1 << component;
            self.area[at..][..REGISTERS * bytes].fill(0);
        }
    }
}
