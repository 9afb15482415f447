//! [`Processor`]: registers and memory as plain fields, for targets that carry out what a processor would.

use crate::Input;
use addr::Gpa;
use insn::{Context, Unavailable, VECTOR_BYTES};
use vcpu::{Gpr, Paging, Segment, SegmentName};

const RAM_BYTES: usize = 64 << 10;
/// Accesses of one step: a hundred elements and their page walks stay far below.
const ACCESSES_MAX: u32 = 20_000;

/// A processor between two instructions.
#[allow(missing_docs, reason = "the names say it")]
pub struct Processor {
    pub gprs: [u64; 16],
    vectors: [[u8; VECTOR_BYTES]; 16],
    pub rip: u64,
    rflags: u64,
    segments: [Segment; 6],
    paging: Paging,
    pub ram: Vec<u8>,
    device: u64,
    /// How often memory and devices were accessed: to be set to zero before each step.
    pub accesses: u32,
}

impl Processor {
    /// Any registers, mode and code.
    #[must_use]
    pub fn new(data: &[u8]) -> Self {
        let mut input = Input::new(data);
        let mode = input.u8();
        let paging = match mode & 3 {
            0 => Paging { cr0: 0x10, ..Paging::default() },
            1 => Paging { cr0: 0x11, ..Paging::default() },
            2 => Paging { cr0: 0x8000_0011, cr3: 0x1000, cr4: 0x20, efer: 0xd00, cpl: (mode >> 2) & 3 },
            _ => {
                Paging { cr0: input.u64(), cr3: input.u64(), cr4: input.u64(), efer: input.u64(), cpl: (mode >> 2) & 3 }
            }
        };
        let code = if mode & 3 == 2 { 0x29b } else { 0x49b };
        let mut segments = [Segment { selector: 8, attributes: 0x493, limit: u32::MAX, base: 0 }; 6];
        segments[SegmentName::Cs as usize].attributes = if mode & 0x40 == 0 { code } else { input.u16() };
        if mode & 0x80 != 0 {
            segments[usize::from(input.u8() % 6)] =
                Segment { selector: input.u16(), attributes: input.u16(), limit: input.u32(), base: input.u64() };
        }
        let gprs = std::array::from_fn(|_| if input.u8() & 1 == 0 { u64::from(input.u16()) } else { input.u64() });
        let mut processor = Self {
            gprs,
            vectors: [[0x5a; VECTOR_BYTES]; 16],
            rip: 0x8000,
            rflags: 2 | input.u64() & 0x0003_7fd5,
            segments,
            paging,
            ram: vec![0; RAM_BYTES],
            device: input.u64(),
            accesses: 0,
        };
        processor.map_identity();
        let code = input.rest();
        let bytes = code.len().min(RAM_BYTES - 0x8000);
        processor.ram[0x8000..0x8000 + bytes].copy_from_slice(&code[..bytes]);
        processor
    }

    /// Any memory.
    #[must_use]
    pub fn with_ram(data: &[u8]) -> Self {
        let mut processor = Self::new(&[]);
        let bytes = data.len().min(RAM_BYTES);
        processor.ram[..bytes].copy_from_slice(&data[..bytes]);
        processor
    }

    /// Four-level tables that map the first 2 MiB, for the mode that uses them.
    fn map_identity(&mut self) {
        for (at, entry) in [(0x1000, 0x2007_u64), (0x2000, 0x3007), (0x3000, 0x87)] {
            self.ram[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
    }

    fn range(&self, gpa: Gpa, size: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(gpa.as_u64()).ok()?;
        let end = start.checked_add(size)?;
        (end <= self.ram.len()).then_some(start..end)
    }

    fn count(&mut self) {
        self.accesses += 1;
        assert!(self.accesses < ACCESSES_MAX, "one instruction goes on and on");
    }
}

impl Context for Processor {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gprs[gpr as usize]
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gprs[gpr as usize] = value;
    }

    fn vector(&mut self, number: usize) -> [u8; VECTOR_BYTES] {
        self.vectors[number]
    }

    fn set_vector(&mut self, number: usize, value: [u8; VECTOR_BYTES]) {
        self.vectors[number] = value;
    }

    fn replace_vector(&mut self, number: usize, value: [u8; VECTOR_BYTES]) {
        self.vectors[number] = value;
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        assert_eq!((value ^ self.rflags) & !0x8d5, 0, "a flag changed that is no status flag");
        self.rflags = value;
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }

    fn paging(&self) -> Paging {
        self.paging
    }

    fn physical_address_bits(&self) -> u32 {
        40
    }

    fn load(&mut self, gpa: Gpa, size: u8) -> Result<u64, Unavailable> {
        self.count();
        assert!(gpa.as_u64() % 4096 + u64::from(size) <= 4096, "an access crosses a page");
        let mut bytes = [0; 8];
        match self.range(gpa, size.into()) {
            Some(range) => bytes[..size.into()].copy_from_slice(&self.ram[range]),
            None if gpa.as_u64() & 0x1000 != 0 => return Err(Unavailable),
            None => bytes[..size.into()].copy_from_slice(&self.device.to_le_bytes()[..size.into()]),
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&mut self, gpa: Gpa, size: u8, value: u64) -> Result<(), Unavailable> {
        self.count();
        assert!(gpa.as_u64() % 4096 + u64::from(size) <= 4096, "an access crosses a page");
        if let Some(range) = self.range(gpa, size.into()) {
            self.ram[range].copy_from_slice(&value.to_le_bytes()[..size.into()]);
        }
        Ok(())
    }

    fn compare_exchange(&mut self, gpa: Gpa, size: u8, expected: u64, new: u64) -> Result<bool, Unavailable> {
        let now = self.load(gpa, size)?;
        let mask = u64::MAX >> (64 - 8 * u32::from(size));
        let is_equal = self.range(gpa, size.into()).is_none() || now == expected & mask;
        if is_equal {
            self.store(gpa, size, new)?;
        }
        Ok(is_equal)
    }

    fn ram(&self, gpa: Gpa, into: &mut [u8]) -> bool {
        let range = self.range(gpa, into.len());
        range.map(|range| into.copy_from_slice(&self.ram[range])).is_some()
    }

    fn ram_u64(&self, gpa: Gpa) -> Option<u64> {
        let range = self.range(gpa, 8)?;
        Some(u64::from_le_bytes(self.ram[range].try_into().ok()?))
    }

    fn port_in(&mut self, _port: u16, _size: u8) -> u32 {
        self.count();
        self.device as u32
    }

    fn port_out(&mut self, _port: u16, _size: u8, _value: u32) {
        self.count();
    }
}
