//! [`MockVcpu`]: a processor that does not run code, but does what the test's script says.
//!
//! It takes events as a processor does (an interrupt's handler starts with IF clear), and leaves when the window opens
//! that was asked for.

use addr::Gpa;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use vcpu::*;

/// What the guest does between two exits, and the exit.
pub type Step = Box<dyn FnOnce(&mut VcpuState) -> Exit + Send>;

/// What test and processor share.
#[derive(Default)]
pub struct Shared {
    pub script: VecDeque<Step>,
    /// The events that the guest took.
    pub taken: Vec<Event>,
    /// The task priority in its CR8.
    pub tpr: u8,
    /// The local APIC's page, whether the processor takes interrupts out of it, and whether the guest may reach it.
    pub apic: Option<Arc<ApicPage>>,
    pub delivers: bool,
    pub is_apic_open: bool,
    /// It takes posted interrupts by itself.
    pub takes_posted: bool,
    /// How fast its TSC runs, once that was said.
    pub tsc_ratio: Option<TscRatio>,
    /// How often it had to forget translations.
    pub invalidations: u32,
    /// The pages that the processor logged as written.
    pub written: Vec<Gpa>,
}

impl Shared {
    /// Begins the highest interrupt of the page as a processor does that delivers by itself.
    fn begin_virtual(&mut self) -> Option<u8> {
        let page = self.apic.as_ref().filter(|_| self.delivers)?;
        let vector = page.requested().highest()?;
        let priority = page.task_priority().max(page.in_service().highest().unwrap_or(0)) >> 4;
        (vector >> 4 > priority).then(|| page.begin(vector))?;
        Some(vector)
    }
}

/// The first byte of an extended state that it refuses.
pub const UNLOADABLE: u8 = 0xff;

/// A processor of plain fields that follows its script; at the script's end the host interrupts it.
pub struct MockVcpu {
    state: VcpuState,
    waiting: Option<Event>,
    in_nmi: bool,
    window: Window,
    tsc_offset: u64,
    /// The last exit's instruction has to be decoded to find its end.
    string_exit: bool,
    /// The bits of CR4 that its guest was offered.
    cr4_offered: u64,
    extended: Vec<u8>,
    shared: Arc<Mutex<Shared>>,
}

impl MockVcpu {
    /// A processor after reset.
    pub fn new(shared: Arc<Mutex<Shared>>) -> Self {
        let state = VcpuState::reset();
        let (waiting, in_nmi, window, tsc_offset, string_exit) = (None, false, Window::Never, 0, false);
        Self { state, waiting, in_nmi, window, tsc_offset, string_exit, cr4_offered: 0, extended: vec![], shared }
    }
}

/// The host's TSC at a moment.
pub fn host_tsc(ns: u64) -> u64 {
    2 * ns + 987_654_321
}

impl Vcpu for MockVcpu {
    fn run(&mut self) -> Exit {
        let mut shared = self.shared.lock().unwrap();
        if let Some(event) = self.waiting.take() {
            shared.taken.push(event);
            match event {
                Event::Interrupt(_) => self.state.rflags &= !rflags::IF,
                Event::Nmi => self.in_nmi = true,
                Event::Exception(_) => {}
            }
        }
        let open = self.state.rflags & rflags::IF != 0;
        if open
            && self.window == Window::Never
            && let Some(vector) = shared.begin_virtual()
        {
            shared.taken.push(Event::Interrupt(vector));
            self.state.rflags &= !rflags::IF;
        }
        match self.window {
            Window::Open if open => return Exit::InterruptWindow,
            Window::Below(class) if shared.tpr < class => return Exit::InterruptWindow,
            _ => {}
        }
        let Some(step) = shared.script.pop_front() else { return Exit::HostInterrupt };
        drop(shared);
        let exit = step(&mut self.state);
        // What the exit interrupted.
        self.waiting = self.state.waiting.take();
        self.string_exit = matches!(exit, Exit::Port(PortAccess { string: true, .. }) | Exit::NestedFault { .. });
        exit
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
        // As an IRET with these flags: an NMI's handler ends.
        self.in_nmi = false;
        self.state.rflags = value;
    }

    fn next_rip(&self) -> Option<u64> {
        (!self.string_exit).then(|| self.state.rip.wrapping_add(2))
    }

    fn breakpoints(&self) -> Option<Breakpoints> {
        Breakpoints::new(self.state.dr7, || self.state.dr)
    }

    fn retire(&mut self, next_rip: u64, met: u64) {
        self.state.rip = next_rip;
        self.state.rflags &= !rflags::RF;
        let steps = self.state.rflags & rflags::TF != 0;
        if steps || met != 0 {
            self.state.dr6 = dr6_after_trap(self.state.dr6, met, steps);
            self.inject(Event::Exception(Exception::DEBUG));
        }
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.state.segments[name as usize]
    }

    fn paging(&self) -> Paging {
        let VcpuState { cr0, cr3, cr4, efer, .. } = self.state;
        Paging { cr0, cr3, cr4, efer, cpl: (self.segment(SegmentName::Ss).attributes >> 5 & 3) as u8 }
    }

    fn inject(&mut self, event: Event) {
        assert!(self.waiting.is_none(), "one event an entry");
        self.waiting = Some(event);
    }

    fn ready_for(&self) -> ReadyFor {
        match (self.waiting, self.state.rflags & rflags::IF) {
            (Some(_), _) => ReadyFor::Nothing,
            (None, 0) => ReadyFor::Exceptions,
            (None, _) => ReadyFor::Interrupts,
        }
    }

    fn nmi_blocked(&self) -> bool {
        self.in_nmi
    }

    fn want_interrupt_window(&mut self, window: Window) {
        self.window = window;
    }

    fn tpr(&self) -> u8 {
        self.shared.lock().unwrap().tpr
    }

    fn set_tpr(&mut self, class: u8) {
        self.shared.lock().unwrap().tpr = class;
    }

    fn share_apic(&mut self, page: &Arc<ApicPage>) -> bool {
        let mut shared = self.shared.lock().unwrap();
        shared.apic = Some(page.clone());
        shared.delivers
    }

    fn share_posted(&mut self, _posted: &Arc<Posted>) -> bool {
        self.shared.lock().unwrap().takes_posted
    }

    fn open_apic(&mut self, is_open: bool) {
        self.shared.lock().unwrap().is_apic_open = is_open;
    }

    fn state(&mut self) -> VcpuState {
        let blocking = Blocking { nmi: self.in_nmi, ..Blocking::default() };
        VcpuState { blocking, waiting: self.waiting, ..self.state.clone() }
    }

    fn set_state(&mut self, state: &VcpuState) {
        self.state = VcpuState { waiting: None, ..state.clone() };
        (self.in_nmi, self.waiting) = (state.blocking.nmi, state.waiting);
    }

    fn extended_state(&mut self) -> Vec<u8> {
        self.extended.clone()
    }

    fn set_extended_state(&mut self, area: &[u8]) -> Result<(), Unloadable> {
        if area.first() == Some(&UNLOADABLE) {
            return Err(Unloadable);
        }
        self.extended = area.to_vec();
        Ok(())
    }

    fn offer_cr4(&mut self, bits: u64) {
        self.cr4_offered = bits;
    }

    fn write_cr4(&mut self, value: u64) -> bool {
        let allowed = cr4::may_write(&self.paging(), value, self.cr4_offered);
        if allowed {
            self.state.cr4 = value;
        }
        allowed
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
        self.shared.lock().unwrap().tsc_ratio = Some(ratio);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    fn invalidate(&mut self) {
        self.shared.lock().unwrap().invalidations += 1;
    }

    fn take_written(&mut self, report: &mut dyn FnMut(Gpa)) {
        self.shared.lock().unwrap().written.drain(..).for_each(report);
    }
}
