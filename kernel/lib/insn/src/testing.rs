//! A vCPU and a machine of plain fields for the tests: RAM from 0 to 1 MiB, a device at [`DEVICE`], nothing else.

use std::collections::VecDeque;
use std::fmt;

use addr::Gpa;
use vcpu::{Exception, Gpr, Paging, Segment, SegmentName, cr0, cr4, efer, rflags};

use crate::{Completed, Context, Fault, Unavailable, VECTOR_BYTES};

pub(crate) const RAM_BYTES: usize = 1 << 20;
/// Where [`Mock::run`] puts code.
pub(crate) const CODE: u64 = 0x8000;
/// RAM that no test's tables or code use.
pub(crate) const DATA: u64 = 0x2_0000;
/// A page of device registers, which the identity maps cover.
pub(crate) const DEVICE: u64 = 0xf000_0000;

/// Bits of page-table entries.
pub(crate) const P: u64 = 1 << 0;
pub(crate) const W: u64 = 1 << 1;
pub(crate) const U: u64 = 1 << 2;
pub(crate) const A: u64 = 1 << 5;
pub(crate) const D: u64 = 1 << 6;
pub(crate) const PS: u64 = 1 << 7;
pub(crate) const NX: u64 = 1 << 63;

const CODE_64: u16 = 0x29b;
const CODE_32: u16 = 0x49b;
const CODE_16: u16 = 0x09b;
pub(crate) const DATA_32: u16 = 0x493;
const DATA_16: u16 = 0x093;

#[derive(Clone, PartialEq)]
pub(crate) struct Mock {
    pub(crate) gprs: [u64; 16],
    pub(crate) vectors: [[u8; VECTOR_BYTES]; 16],
    /// What was cleared above a vector register, of which.
    pub(crate) cleared: Vec<usize>,
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) segments: [Segment; 6],
    pub(crate) paging: Paging,
    pub(crate) pkru: u32,
    pub(crate) physical_address_bits: u32,
    pub(crate) ram: Vec<u8>,
    /// What the device reads as.
    pub(crate) device: u64,
    /// Device accesses: offset, size, value stored or `None` for a load.
    pub(crate) accesses: Vec<(u64, u8, Option<u64>)>,
    pub(crate) port_input: VecDeque<u32>,
    pub(crate) port_output: Vec<(u16, u8, u32)>,
    pub(crate) port_reads: u32,
    /// Loads and stores of this page fail.
    pub(crate) unavailable: Option<u64>,
    /// How many exchanges another vCPU wins, each time leaving RAM with this added.
    pub(crate) races: u32,
    next_table: u64,
}

impl fmt::Debug for Mock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = out.debug_struct("Mock");
        out.field("gprs", &self.gprs).field("rip", &self.rip).field("rflags", &self.rflags);
        out.field("segments", &self.segments).field("paging", &self.paging).finish_non_exhaustive()
    }
}

impl Mock {
    fn new(code: u16, data: u16, paging: Paging) -> Self {
        let segment = |attributes| Segment { selector: 8, attributes, limit: u32::MAX, base: 0 };
        let mut segments = [segment(data); 6];
        segments[SegmentName::Cs as usize] = segment(code);
        Self {
            gprs: [0; 16],
            vectors: [[0; VECTOR_BYTES]; 16],
            cleared: Vec::new(),
            rip: CODE,
            rflags: rflags::FIXED,
            segments,
            paging,
            pkru: 0,
            physical_address_bits: 40,
            ram: vec![0; RAM_BYTES],
            device: 0,
            accesses: Vec::new(),
            port_input: VecDeque::new(),
            port_output: Vec::new(),
            port_reads: 0,
            unavailable: None,
            races: 0,
            next_table: 0x4_0000,
        }
    }

    /// Real mode with segments based at zero.
    pub(crate) fn real() -> Self {
        let mut mock = Self::new(CODE_16, DATA_16, Paging::default());
        mock.segments.iter_mut().for_each(|segment| segment.limit = 0xffff);
        mock
    }

    /// Flat 32-bit protected mode without paging.
    pub(crate) fn flat32() -> Self {
        Self::new(CODE_32, DATA_32, Paging { cr0: cr0::PE, ..Paging::default() })
    }

    /// 64-bit mode at CPL 0 with WP and NXE; the low 4 GiB are mapped one to one by user pages of 1 GiB.
    pub(crate) fn long() -> Self {
        let paging = Paging {
            cr0: cr0::PE | cr0::PG | cr0::WP,
            cr3: 0x1000,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA | efer::NXE,
            cpl: 0,
        };
        let mut mock = Self::new(CODE_64, DATA_32, paging);
        mock.poke(0x1000, 8, 0x2000 | P | W | U);
        for gib in 0..4 {
            mock.poke(0x2000 + 8 * gib, 8, gib << 30 | P | W | U | PS);
        }
        mock
    }

    /// Compatibility mode: as [`long`](Self::long), with 32-bit code.
    pub(crate) fn compat() -> Self {
        let mut mock = Self::long();
        mock.segments[SegmentName::Cs as usize].attributes = CODE_32;
        mock
    }

    /// Maps a 4 KiB page in 4-level tables; `flags` are those of the leaf, the levels above allow everything.
    pub(crate) fn map(&mut self, gva: u64, gpa: u64, flags: u64) -> u64 {
        let mut table = self.paging.cr3 & !0xfff;
        for shift in [39, 30, 21] {
            let at = table + 8 * (gva >> shift & 0x1ff);
            if self.peek(at, 8) & P == 0 {
                self.poke(at, 8, self.next_table | P | W | U);
                self.next_table += 0x1000;
            }
            table = self.peek(at, 8) & 0xf_ffff_f000;
        }
        let leaf = table + 8 * (gva >> 12 & 0x1ff);
        self.poke(leaf, 8, gpa | flags);
        leaf
    }

    pub(crate) fn poke(&mut self, at: u64, size: usize, value: u64) {
        self.ram[at as usize..at as usize + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    pub(crate) fn peek(&self, at: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&self.ram[at as usize..at as usize + size]);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn put_code(&mut self, code: &[u8]) {
        self.ram[CODE as usize..CODE as usize + code.len()].copy_from_slice(code);
        self.rip = CODE;
    }

    /// Carries out one instruction and checks that it ends where its bytes do.
    pub(crate) fn run(&mut self, code: &[u8]) {
        self.put_code(code);
        let next_rip = CODE + code.len() as u64;
        assert_eq!(crate::step(self, 1000), Ok(Completed { next_rip }), "{code:02x?}");
    }

    /// The exception that an instruction raises, with a check that it changed no register.
    pub(crate) fn fails(&mut self, code: &[u8]) -> Exception {
        self.put_code(code);
        let before = self.clone();
        match crate::step(self, 1000) {
            Err(Fault::Exception(exception)) => {
                assert_eq!((self.gprs, self.rflags, self.vectors), (before.gprs, before.rflags, before.vectors));
                exception
            }
            other => panic!("{code:02x?} gave {other:x?}"),
        }
    }

    pub(crate) fn reg(&mut self, gpr: Gpr) -> &mut u64 {
        &mut self.gprs[gpr as usize]
    }

    fn in_ram(gpa: u64, size: u64) -> bool {
        gpa.checked_add(size).is_some_and(|end| end <= RAM_BYTES as u64)
    }

    fn reach(&self, gpa: Gpa, size: u8) -> Result<(), Unavailable> {
        assert!(matches!(size, 1 | 2 | 4 | 8));
        assert!(gpa.as_u64() % 4096 + u64::from(size) <= 4096, "an access crosses a page");
        self.check(gpa, size)
    }
}

impl Context for Mock {
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
        self.cleared.push(number);
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        assert_eq!((value ^ self.rflags) & !crate::alu::STATUS, 0, "only status flags change");
        self.rflags = value;
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }

    fn paging(&self) -> Paging {
        self.paging
    }

    fn physical_address_bits(&self) -> u32 {
        self.physical_address_bits
    }

    fn pkru(&self) -> u32 {
        self.pkru
    }

    fn check(&self, gpa: Gpa, _: u8) -> Result<(), Unavailable> {
        if self.unavailable == Some(gpa.as_u64() & !0xfff) { Err(Unavailable) } else { Ok(()) }
    }

    fn load(&mut self, gpa: Gpa, size: u8) -> Result<u64, Unavailable> {
        self.reach(gpa, size)?;
        let at = gpa.as_u64();
        if Self::in_ram(at, size.into()) {
            return Ok(self.peek(at, size.into()));
        }
        if at & !0xfff == DEVICE {
            self.accesses.push((at - DEVICE, size, None));
            return Ok(self.device);
        }
        Ok(u64::MAX)
    }

    fn store(&mut self, gpa: Gpa, size: u8, value: u64) -> Result<(), Unavailable> {
        self.reach(gpa, size)?;
        let at = gpa.as_u64();
        if Self::in_ram(at, size.into()) {
            self.poke(at, size.into(), value);
        } else if at & !0xfff == DEVICE {
            self.accesses.push((at - DEVICE, size, Some(value)));
        }
        Ok(())
    }

    fn compare_exchange(&mut self, gpa: Gpa, size: u8, expected: u64, new: u64) -> Result<bool, Unavailable> {
        self.reach(gpa, size)?;
        let at = gpa.as_u64();
        if !Self::in_ram(at, size.into()) {
            return self.store(gpa, size, new).map(|()| true);
        }
        if self.races > 0 {
            self.races -= 1;
            let value = self.peek(at, size.into()).wrapping_add(1 << 9);
            self.poke(at, size.into(), value);
        }
        let matches = self.peek(at, size.into()) == expected;
        if matches {
            self.poke(at, size.into(), new);
        }
        Ok(matches)
    }

    fn ram(&self, gpa: Gpa, into: &mut [u8]) -> bool {
        assert!(gpa.as_u64() % 4096 + into.len() as u64 <= 4096, "a fetch crosses a page");
        if !Self::in_ram(gpa.as_u64(), into.len() as u64) {
            return false;
        }
        let at = gpa.as_u64() as usize;
        into.copy_from_slice(&self.ram[at..at + into.len()]);
        true
    }

    fn ram_u64(&self, gpa: Gpa) -> Option<u64> {
        assert!(gpa.as_u64() % 4096 <= 4088, "a read crosses a page");
        Self::in_ram(gpa.as_u64(), 8).then(|| self.peek(gpa.as_u64(), 8))
    }

    fn port_in(&mut self, _: u16, _: u8) -> u32 {
        self.port_reads += 1;
        self.port_input.pop_front().unwrap_or(u32::MAX)
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.port_output.push((port, size, value));
    }
}
