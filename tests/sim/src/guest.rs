//! The guest: a processor that runs no code, but writes memory with a running hash and prints now and then.
//!
//! All that it is lies in its registers and its memory, as with any guest; [`Truth`] knows what both must be, whoever
//! runs it, and [`Processor`] compares at every step.

use crate::random::mix;
use addr::{Gpa, PAGE_BYTES};
use guestmem::{GuestMemory, PageSet};
use std::sync::{Arc, Mutex};
use vcpu::{
    Access, ApicPage, Blocking, Breakpoints, Event, Exit, Paging, PortAccess, PortDirection, Posted, ReadyFor, Segment,
    SegmentName, Speculation, TscRatio, Unloadable, Vcpu, VcpuState, Window, Xfd, cr0,
};

/// Where the pages are that it writes, and how many.
const FIRST_PAGE: u64 = 256;
const PAGES: u64 = 48;
/// Steps between two exits, and between two bytes on its console.
const STEPS: u64 = 4;
const STEPS_A_BYTE: u64 = 32;
/// Registers: AL of an OUT, the steps made, the hash.
const AL: usize = 0;
const COUNT: usize = 8;
const HASH: usize = 9;
const COM1: u16 = 0x3f8;

/// What the guest is, wherever it runs.
pub struct Truth {
    count: u64,
    hash: u64,
    words: [u64; PAGES as usize],
    printed: u64,
    /// The first thing that was not so.
    pub wrong: Option<String>,
}

impl Truth {
    /// A guest that has done nothing.
    pub fn new() -> Self {
        Self { count: 0, hash: 0, words: [0; PAGES as usize], printed: 0, wrong: None }
    }

    /// Steps made.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn must(&mut self, is_so: bool, what: impl FnOnce() -> String) {
        if !is_so && self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    /// A byte left the guest by its console.
    pub fn heard(&mut self, byte: u8) {
        self.printed += 1;
        let expected = self.printed as u8;
        self.must(byte == expected, || format!("its console printed {byte} where {expected} was due"));
    }

    /// The guest's memory as a host has it, page by page.
    pub fn check(&mut self, memory: &GuestMemory) {
        for page in 0..PAGES {
            let found = memory.load(at(page), 8).unwrap_or(u64::MAX);
            let word = self.words[page as usize];
            self.must(found == word, || format!("page {page} holds {found:#x} at the end, and should {word:#x}"));
        }
        let (printed, due) = (self.printed, self.count / STEPS_A_BYTE);
        self.must(printed.abs_diff(due) <= 1, || format!("{printed} of {due} bytes left its console"));
    }
}

fn at(page: u64) -> Gpa {
    Gpa::new((FIRST_PAGE + page) * PAGE_BYTES + page % 500 * 8)
}

/// The processor that runs it.
pub struct Processor {
    state: VcpuState,
    /// Its own way to memory, as by second-stage tables.
    memory: Arc<GuestMemory>,
    /// Pages whose dirty bit is set there.
    dirty: Arc<Mutex<PageSet>>,
    truth: Arc<Mutex<Truth>>,
    tsc_offset: u64,
    tpr: u8,
}

impl Processor {
    /// A processor after reset, before a guest's memory.
    pub fn new(memory: Arc<GuestMemory>, dirty: Arc<Mutex<PageSet>>, truth: Arc<Mutex<Truth>>) -> Self {
        Self { state: VcpuState::reset(), memory, dirty, truth, tsc_offset: 0, tpr: 0 }
    }

    /// Makes a step, or says which address it needs for it that is not here.
    fn step(&mut self) -> Result<(), Gpa> {
        let mut truth = self.truth.lock().expect("nobody panicked");
        let (count, hash) = (self.state.gprs[COUNT], self.state.gprs[HASH]);
        let page = mix(count) % PAGES;
        if !self.memory.is_here(at(page), 8) {
            return Err(at(page));
        }
        let old = self.memory.load(at(page), 8).unwrap_or(u64::MAX);
        let (known_count, known_hash, word) = (truth.count, truth.hash, truth.words[page as usize]);
        truth.must(count == known_count, || {
            format!("it makes step {count} where {known_count} is due: two owners, or a step back")
        });
        truth.must(hash == known_hash, || format!("at step {count} its hash is another"));
        truth.must(old == word, || format!("at step {count} page {page} holds {old:#x}, and should {word:#x}"));
        let new = mix(count ^ hash);
        if self.memory.store(at(page), 8, new).is_err() {
            truth.must(false, || "its memory is not there".to_string());
        }
        self.dirty.lock().expect("nobody panicked").insert(FIRST_PAGE + page, 1);
        self.state.gprs[COUNT] = count + 1;
        self.state.gprs[HASH] = (hash ^ old).wrapping_mul(0x100_0000_01b3) ^ new;
        (truth.count, truth.hash) = (count + 1, self.state.gprs[HASH]);
        truth.words[page as usize] = new;
        Ok(())
    }
}

/// What the guest begins with.
pub fn boot_state() -> VcpuState {
    let segment = |attributes| Segment { selector: 8, attributes, limit: u32::MAX, base: 0 };
    let mut state = VcpuState::reset();
    state.segments = [segment(0xc93); 6];
    state.segments[SegmentName::Cs as usize] = segment(0xc9b);
    (state.cr0, state.rip) = (cr0::PE | cr0::ET, 0x8000);
    state
}

impl Vcpu for Processor {
    fn run(&mut self) -> Exit {
        for _ in 0..STEPS {
            if let Err(gpa) = self.step() {
                return Exit::NestedFault { gpa, access: Access::Write, page_walk: false };
            }
            if self.state.gprs[COUNT].is_multiple_of(STEPS_A_BYTE) {
                self.state.gprs[AL] = self.state.gprs[COUNT] / STEPS_A_BYTE;
                return Exit::Port(PortAccess { port: COM1, size: 1, direction: PortDirection::Out, string: false });
            }
        }
        Exit::HostInterrupt
    }

    fn park(&mut self) {}
    fn unload(&mut self) {}

    fn gprs(&self) -> &[u64; 16] {
        &self.state.gprs
    }

    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.state.gprs
    }

    fn rip(&self) -> u64 {
        self.state.rip
    }

    fn rflags(&self) -> u64 {
        self.state.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        self.state.rflags = value;
    }

    fn next_rip(&self) -> Option<u64> {
        Some(self.state.rip)
    }

    fn retire(&mut self, next_rip: u64, _met: u64) {
        self.state.rip = next_rip;
    }

    fn breakpoints(&self) -> Option<Breakpoints> {
        None
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.state.segments[name as usize]
    }

    fn paging(&self) -> Paging {
        Paging { cr0: self.state.cr0, ..Paging::default() }
    }

    fn inject(&mut self, event: Event) {
        self.truth.lock().expect("nobody panicked").must(false, || format!("it got {event:?}, and wants nothing"));
    }

    fn ready_for(&self) -> ReadyFor {
        ReadyFor::Exceptions
    }

    fn nmi_blocked(&self) -> bool {
        false
    }

    fn want_interrupt_window(&mut self, _window: Window) {}

    fn tpr(&self) -> u8 {
        self.tpr
    }

    fn set_tpr(&mut self, class: u8) {
        self.tpr = class;
    }

    fn share_apic(&mut self, _page: &Arc<ApicPage>) -> bool {
        false
    }

    fn share_posted(&mut self, _posted: &Arc<Posted>) -> bool {
        false
    }

    fn open_apic(&mut self, _is_open: bool) {}

    fn state(&mut self) -> VcpuState {
        VcpuState { blocking: Blocking::default(), ..self.state.clone() }
    }

    fn set_state(&mut self, state: &VcpuState) {
        self.state = state.clone();
    }

    fn extended_state(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn set_extended_state(&mut self, _area: &[u8]) -> Result<(), Unloadable> {
        Ok(())
    }

    fn offer_cr4(&mut self, _bits: u64) {}

    fn write_cr4(&mut self, value: u64) -> bool {
        self.state.cr4 = value;
        true
    }

    fn offer_speculation(&mut self, _offered: Speculation) {}

    fn spec_ctrl(&self) -> u64 {
        self.state.spec_ctrl
    }

    fn set_spec_ctrl(&mut self, value: u64) {
        self.state.spec_ctrl = value;
    }

    fn pkru(&self) -> u32 {
        0
    }

    fn set_xcr0(&mut self, value: u64) {
        self.state.xcr0 = value;
    }

    fn xfd(&self) -> Xfd {
        self.state.xfd
    }

    fn set_xfd(&mut self, xfd: Xfd) {
        self.state.xfd = xfd;
    }

    fn scale_tsc(&mut self, ratio: TscRatio) {
        assert_eq!(ratio, TscRatio::ONE, "its hosts' are alike");
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    fn invalidate(&mut self) {}

    fn take_written(&mut self, _report: &mut dyn FnMut(Gpa)) {}
}
