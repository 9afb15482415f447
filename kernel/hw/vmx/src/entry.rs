//! Into the guest and out again: [`Vmx`], and what VM entry leaves to software.

use crate::apic::Apic;
use crate::checks;
use crate::control_registers::CR0_GUEST;
use crate::controls::{self, Controls};
use crate::enable::{Features, TSC_FRACTION_BITS, host};
use crate::event::Encoded;
use crate::exit::{self, Reason};
use crate::host_state;
use crate::msrs::MsrMap;
use crate::vmcs::{Field, Vmcs, interruptibility, leaving, pin, processor, secondary};
use crate::write_log::WriteLog;
use addr::Hpa;
use alloc::boxed::Box;
use core::arch::global_asm;
use core::cell::Cell;
use cpu::fpu::ExtendedState;
use cpu::speculation::{self, GuestControl, Trainer};
use vcpu::{Event, Exit, Gpr, TscRatio, VcpuState, rflags};

/// A virtual CPU on VMX.
///
/// Its state is in one of two places. While [`loaded`](Vmx::loaded) it is in the VMCS, which is then this processor's
/// current one, and in registers that the host does not use; else it is in `saved`.
pub struct Vmx {
    pub(crate) vmcs: Vmcs,
    pub(crate) loaded: bool,
    launched: bool,
    pub(crate) saved: VcpuState,
    pub(crate) gprs: [u64; 16],
    /// What changes at most exits: as it shall be, and as the VMCS has it.
    pub(crate) hot: Hot,
    written: Hot,
    pub(crate) features: Features,
    pub(crate) controls: Controls,
    pub(crate) ept_root: Hpa,
    pub(crate) extended: ExtendedState,
    pub(crate) tsc_ratio: TscRatio,
    /// The bits of CR4 that the guest may set.
    pub(crate) cr4_offered: u64,
    pub(crate) msrs: Box<MsrMap>,
    pub(crate) spec_ctrl: GuestControl,
    /// The bits of IA32_SPEC_CTRL that the guest may set, and whether there is no other.
    pub(crate) spec_ctrl_offered: u64,
    pub(crate) spec_ctrl_passes: bool,
    pub(crate) apic: Apic,
    pub(crate) write_log: WriteLog,
    /// The last exit.
    pub(crate) reason: Reason,
    /// Where the instruction that caused it ends.
    pub(crate) next_rip: Option<u64>,
    /// What goes in at the next entry.
    pub(crate) event: Option<Encoded>,
    /// An event whose delivery an exit interrupted; it goes first.
    pub(crate) interrupted: Option<Encoded>,
    /// Traps that a shadow holds back, while the VMCS does not keep them.
    pub(crate) pending_debug: u64,
    /// An NMI was held back: an exit shall follow as soon as it could go in.
    pub(crate) nmi_waits: Cell<bool>,
    /// How often in a row the guest was entered with RFLAGS.IF clear.
    closed_entries: u32,
    /// The four page-directory pointers in the VMCS are not those of the guest's CR3.
    pub(crate) pointers_stale: bool,
    pub(crate) ept_changed: bool,
    /// Where the VPID is valid: processor and round of its VPIDs.
    pub(crate) vpid_of: Option<(usize, u64)>,
    pub(crate) vpid: u16,
    trainer: Trainer,
}

/// Fields of the VMCS that are read after every exit or change often; only those that differ are written back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Hot {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub interruptibility: u64,
    pub processor_controls: u64,
    pub tsc_offset: u64,
    /// The guest exits when CR8 falls below this (25.6.8).
    pub tpr_threshold: u64,
}

const EXCEPTION_DEBUG: u64 = 1 << 1;
const EXCEPTION_ALIGNMENT: u64 = 1 << 17;
const EXCEPTION_MACHINE_CHECK: u64 = 1 << 18;

/// Cycles between two PAUSEs of one loop, and how long a loop may last (25.6.13).
const PAUSE_LOOP_GAP: u64 = 128;
const PAUSE_LOOP_WINDOW: u64 = 4096;

/// Cycles that a guest runs at most from one entry to the next exit, where there is a preemption timer. A millisecond or
/// two: the host's interrupts end runs long before, but Bochs holds them back while a guest that was entered with
/// RFLAGS.IF clear keeps it so.
const RUN_CYCLES_MAX: u64 = 1 << 22;
/// Entries in a row with RFLAGS.IF clear until the host has its turn: for the same reason, where a guest leaves too often
/// for that timer to end.
const CLOSED_ENTRIES_MAX: u32 = 1000;

/// A link pointer that points nowhere (25.4.2).
const NO_LINK: u64 = u64::MAX;
/// A pending debug exception: the single step (table 25-4).
const PENDING_SINGLE_STEP: u64 = 1 << 14;
const DEBUGCTL_BRANCH_STEP: u64 = 1 << 1;

/// The world switch by the names of its two ends: what goes before the guest's registers are loaded, behind an exit, and
/// behind the saving of the guest's registers.
macro_rules! world_switch {
    ($enter:literal, $exit:literal, $before:expr, $behind:expr, $saved:expr
        $(, $operand:ident = sym $symbol:path)*) => {
        global_asm!(
            // ENTER(gprs: rdi, launched: rsi, control: rdx) -> eax: 0 after an exit, 1 when the entry failed with a
            // VM-instruction error. RSP is in the VMCS, whose host RSP points at the saved RDI.
            ".section .text.vcpu_entry, \"ax\"",
            concat!(".global ", $enter),
            concat!($enter, ":"),
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "push rdx",
            "push rdi",
            "mov eax, 0x6c14",
            "vmwrite rax, rsp",
            // What follows until the entry loads nothing but the guest's own.
            $before,
            // MOV leaves the flags alone.
            "test sil, sil",
            "mov rax, [rdi]",
            "mov rcx, [rdi + 8]",
            "mov rdx, [rdi + 16]",
            "mov rbx, [rdi + 24]",
            "mov rbp, [rdi + 40]",
            "mov rsi, [rdi + 48]",
            "mov r8, [rdi + 64]",
            "mov r9, [rdi + 72]",
            "mov r10, [rdi + 80]",
            "mov r11, [rdi + 88]",
            "mov r12, [rdi + 96]",
            "mov r13, [rdi + 104]",
            "mov r14, [rdi + 112]",
            "mov r15, [rdi + 120]",
            "mov rdi, [rdi + 56]",
            "jnz 2f",
            "vmlaunch",
            "jmp 3f",
            "2:",
            "vmresume",
            "3:",
            // The exit that would have brought back what is the host's did not come.
            $saved,
            "pop rdi",
            "mov eax, 1",
            "jmp 4f",
            concat!(".global ", $exit),
            concat!($exit, ":"),
            "push rax",
            $behind,
            "mov rax, [rsp + 8]",
            "mov [rax + 8], rcx",
            "mov [rax + 16], rdx",
            "mov [rax + 24], rbx",
            "mov [rax + 40], rbp",
            "mov [rax + 48], rsi",
            "mov [rax + 56], rdi",
            "mov [rax + 64], r8",
            "mov [rax + 72], r9",
            "mov [rax + 80], r10",
            "mov [rax + 88], r11",
            "mov [rax + 96], r12",
            "mov [rax + 104], r13",
            "mov [rax + 112], r14",
            "mov [rax + 120], r15",
            "pop rcx",
            "mov [rax], rcx",
            $saved,
            "pop rdi",
            "xor eax, eax",
            "4:",
            "pop rdx",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbp",
            "pop rbx",
            "ret",
            $($operand = sym $symbol,)*
        );
    };
}

world_switch!("vmx_enter", "vmx_exit", "", "", "");
world_switch!(
    "vmx_enter_guarded",
    "vmx_exit_guarded",
    cpu::clear_buffers!(),
    cpu::fill_return_stack!(),
    cpu::after_exit!(),
    null_selector = sym speculation::NULL_SELECTOR,
    after_exit = sym speculation::AFTER_EXIT,
    host_control = sym speculation::HOST_CONTROL
);

unsafe extern "sysv64" {
    fn vmx_enter(gprs: *mut [u64; 16], launched: bool, control: *mut GuestControl) -> u32;
    static vmx_exit: u8;
    /// The same with what `cpu::speculation` asks for.
    fn vmx_enter_guarded(gprs: *mut [u64; 16], launched: bool, control: *mut GuestControl) -> u32;
    static vmx_exit_guarded: u8;
}

impl Vmx {
    /// A virtual CPU in the state after reset whose guest-physical addresses go through the tables at `ept_root`. The
    /// processors' vector `notification` tells of posted interrupts and of nothing else.
    ///
    /// # Panics
    /// Where [`check`](crate::check) did not say that VMX can be used.
    pub fn new(features: Features, ept_root: Hpa, notification: u8) -> Self {
        let mut controls = Controls::adjusted().expect("check said so");
        if !features.contains(Features::VPID) {
            controls.secondary &= !secondary::VPID;
        }
        if !features.contains(Features::POSTED_INTERRUPTS) {
            controls.pin &= !pin::POSTED_INTERRUPTS;
            controls.leaving &= !leaving::ACKNOWLEDGE_INTERRUPT;
        }
        if !features.contains(Features::PAGE_MODIFICATION_LOG) {
            controls.secondary &= !secondary::PAGE_MODIFICATION_LOG;
        }
        let hot = Hot { processor_controls: controls.processor.into(), ..Hot::default() };
        let mut vmx = Self {
            vmcs: Vmcs::new(),
            loaded: false,
            launched: false,
            saved: VcpuState::reset(),
            gprs: [0; 16],
            hot,
            written: hot,
            features,
            controls,
            ept_root,
            extended: ExtendedState::reset(),
            tsc_ratio: TscRatio::ONE,
            cr4_offered: 0,
            msrs: MsrMap::boxed(),
            spec_ctrl: GuestControl::default(),
            spec_ctrl_offered: 0,
            spec_ctrl_passes: false,
            apic: Apic::new(notification),
            write_log: WriteLog::new(),
            reason: Reason::default(),
            next_rip: None,
            event: None,
            interrupted: None,
            pending_debug: 0,
            nmi_waits: Cell::new(false),
            closed_entries: 0,
            pointers_stale: true,
            ept_changed: false,
            vpid_of: None,
            vpid: 0,
            trainer: Trainer::another(),
        };
        vcpu::Vcpu::set_state(&mut vmx, &VcpuState::reset());
        vmx
    }

    /// The guest's next exit.
    pub(crate) fn enter(&mut self) -> Exit {
        loop {
            if self.owes_a_turn() {
                return Exit::HostInterrupt;
            }
            if !self.loaded
                && let Err(rule) = self.load()
            {
                return Exit::InvalidState(rule);
            }
            self.flush_ept();
            self.write_event();
            self.write_virtual_interrupts();
            self.write_hot();
            // SAFETY: interrupts are shut; the VMCS is current, its host part is this processor's, the guest's other
            // registers are in place, and whatever the guest does stays inside its EPT.
            let failed = unsafe {
                if self.spec_ctrl.guards() {
                    speculation::before_entry(&mut self.spec_ctrl);
                    vmx_enter_guarded(&raw mut self.gprs, self.launched, &raw mut self.spec_ctrl)
                } else {
                    vmx_enter(&raw mut self.gprs, self.launched, &raw mut self.spec_ctrl)
                }
            } != 0;
            if failed {
                return Exit::InvalidState(checks::instruction_error(self.vmcs.read(Field::INSTRUCTION_ERROR)));
            }
            self.launched = true;
            self.read_exit();
            // What the guest never sees the end of is carried out here.
            if let Some(exit) = exit::exit(self) {
                return exit;
            }
        }
    }

    /// Whether interrupts of the host may have been held back for too long, see [`CLOSED_ENTRIES_MAX`].
    fn owes_a_turn(&mut self) -> bool {
        let is_closed = self.hot.rflags & rflags::IF == 0;
        self.closed_entries = if is_closed { self.closed_entries + 1 } else { 0 };
        // What is to be delivered stays with its entry.
        let owes = self.closed_entries > CLOSED_ENTRIES_MAX && self.event.is_none() && self.interrupted.is_none();
        if owes {
            self.closed_entries = 0;
        }
        owes
    }

    /// Reads what every exit is looked at for.
    fn read_exit(&mut self) {
        self.written.rip = self.vmcs.read(Field::GUEST_RIP);
        self.written.rsp = self.vmcs.read(Field::GUEST_RSP);
        self.written.rflags = self.vmcs.read(Field::GUEST_RFLAGS);
        self.written.interruptibility = self.vmcs.read(Field::INTERRUPTIBILITY);
        let Hot { processor_controls, tsc_offset, tpr_threshold, .. } = self.hot;
        self.hot = Hot { processor_controls, tsc_offset, tpr_threshold, ..self.written };
        self.gprs[Gpr::Rsp as usize] = self.hot.rsp;
        self.reason = Reason(self.vmcs.read(Field::EXIT_REASON) as u32);
        self.next_rip = self.reason.has_length().then(|| self.instruction_end());
        let info = self.vmcs.read(Field::INTERRUPTED_EVENT) as u32;
        let vmcs = &self.vmcs;
        self.interrupted = Encoded::interrupted(info, || vmcs.read(Field::INTERRUPTED_ERROR_CODE) as u32);
        if self.interrupted.is_some_and(Encoded::is_nmi) {
            // Blocking began with the delivery that must begin again (25.4.2, 27.3.1.5).
            self.hot.interruptibility &= !interruptibility::NMI;
        }
    }

    /// Where the instruction that exited ends (28.2.5).
    fn instruction_end(&self) -> u64 {
        let end = self.hot.rip.wrapping_add(self.vmcs.read(Field::EXIT_INSTRUCTION_BYTES));
        // Only at the end of the first 4 GiB does it matter how wide RIP is.
        let wraps = (self.hot.rip ^ end) >> 32 != 0 && !self.is_64_bit_code();
        if wraps { end & 0xffff_ffff } else { end }
    }

    /// Puts the event that goes first into the entry.
    fn write_event(&mut self) {
        if self.nmi_waits.take() {
            // The NMI window does not wait for the shadow of STI to end; the other one does.
            let sti = self.hot.interruptibility & interruptibility::STI != 0;
            let window = if sti { processor::INTERRUPT_WINDOW } else { processor::NMI_WINDOW };
            self.hot.processor_controls |= u64::from(window);
        }
        if let Some(event) = self.interrupted.take().or_else(|| self.event.take()) {
            self.vmcs.write(Field::ENTRY_EVENT, event.info.into());
            self.vmcs.write(Field::ENTRY_ERROR_CODE, event.error_code.into());
        }
    }

    /// Writes what changed since the last exit.
    fn write_hot(&mut self) {
        const SHADOW: u64 = interruptibility::STI | interruptibility::MOV_SS;
        self.hot.rsp = self.gprs[Gpr::Rsp as usize];
        // A threshold above the TPR would fail the entry (27.2.1.1).
        self.hot.tpr_threshold = self.hot.tpr_threshold.min(self.apic.tpr().into());
        if self.hot != self.written {
            let (hot, written) = (self.hot, self.written);
            let fields = [
                (Field::GUEST_RIP, hot.rip, written.rip),
                (Field::GUEST_RSP, hot.rsp, written.rsp),
                (Field::GUEST_RFLAGS, hot.rflags, written.rflags),
                (Field::INTERRUPTIBILITY, hot.interruptibility, written.interruptibility),
                (Field::PROCESSOR_CONTROLS, hot.processor_controls, written.processor_controls),
                (Field::TSC_OFFSET, hot.tsc_offset, written.tsc_offset),
                (Field::TPR_THRESHOLD, hot.tpr_threshold, written.tpr_threshold),
            ];
            for (field, value, _) in fields.into_iter().filter(|(_, value, before)| value != before) {
                self.vmcs.write(field, value);
            }
            self.written = hot;
        }
        if self.hot.rflags & rflags::TF != 0 && self.hot.interruptibility & SHADOW != 0 {
            self.await_single_step();
        }
    }

    /// In a shadow, the trap of a single step must be pending (27.3.1.5).
    fn await_single_step(&mut self) {
        if self.vmcs.read(Field::GUEST_DEBUGCTL) & DEBUGCTL_BRANCH_STEP == 0 {
            let pending = self.vmcs.read(Field::PENDING_DEBUG);
            self.vmcs.write(Field::PENDING_DEBUG, pending | PENDING_SINGLE_STEP);
        }
    }

    /// Puts the guest's state into this processor; or says which rule it breaks.
    fn load(&mut self) -> Result<(), &'static str> {
        checks::loadable(&self.saved)?;
        let (host, cpu) = host();
        self.vmcs.make_current();
        self.launched = false;
        self.choose_vpid(host, cpu);
        speculation::switched(&host.trained, &self.trainer);
        self.write_controls();
        let exit = if self.spec_ctrl.guards() { &raw const vmx_exit_guarded } else { &raw const vmx_exit };
        host_state::write(&mut self.vmcs, exit as u64);
        self.loaded = true;
        self.write_state();
        self.load_registers();
        if self.pointers_stale && self.uses_page_directory_pointers() {
            self.load_page_directory_pointers();
        }
        self.pointers_stale = false;
        Ok(())
    }

    /// Takes the guest's state out of this processor.
    pub(crate) fn leave(&mut self) {
        if self.loaded {
            self.read_state();
            self.save_registers();
            self.unload_write_log();
            self.vmcs.clear();
            self.loaded = false;
        }
    }

    fn write_controls(&mut self) {
        let Controls { pin, leaving, entering, .. } = self.controls;
        let exceptions = EXCEPTION_DEBUG | EXCEPTION_ALIGNMENT | EXCEPTION_MACHINE_CHECK;
        let fields = [
            (Field::PIN_CONTROLS, pin.into()),
            (Field::EXIT_CONTROLS, leaving.into()),
            (Field::ENTRY_CONTROLS, entering.into()),
            (Field::EXCEPTION_BITMAP, exceptions),
            (Field::MSR_BITMAP, &raw const *self.msrs as u64),
            (Field::EPT_POINTER, self.ept_pointer()),
            (Field::CR0_MASK, !CR0_GUEST),
            (Field::CR4_MASK, !self.cr4_guest()),
            (Field::CR3_TARGET_COUNT, 0),
            (Field::EXIT_MSR_STORE_COUNT, 0),
            (Field::EXIT_MSR_LOAD_COUNT, 0),
            (Field::ENTRY_MSR_LOAD_COUNT, 0),
            (Field::ENTRY_EVENT, 0),
            (Field::LINK_POINTER, NO_LINK),
            (Field::GUEST_DEBUGCTL, 0),
            (Field::ACTIVITY, 0),
            (Field::PROCESSOR_CONTROLS, self.hot.processor_controls),
            (Field::TSC_OFFSET, self.hot.tsc_offset),
            (Field::TPR_THRESHOLD, self.hot.tpr_threshold),
        ];
        fields.into_iter().for_each(|(field, value)| self.vmcs.write(field, value));
        if self.features.contains(Features::VPID) {
            self.vmcs.write(Field::VPID, self.vpid.into());
        }
        self.load_apic();
        self.load_write_log();
        if self.features.contains(Features::PREEMPTION_TIMER) {
            // Not saved on exits, so that each entry begins anew (26.5.1).
            self.vmcs.write(Field::PREEMPTION_TIMER, RUN_CYCLES_MAX >> controls::preemption_timer_shift());
        }
        if self.features.contains(Features::XSAVES) {
            self.vmcs.write(Field::XSS_EXITS, 0);
        }
        if self.features.contains(Features::TSC_SCALING) {
            self.vmcs.write(Field::TSC_MULTIPLIER, self.tsc_ratio.fixed(TSC_FRACTION_BITS));
        }
        if self.features.contains(Features::PAUSE_LOOP) {
            self.vmcs.write(Field::PAUSE_LOOP_GAP, PAUSE_LOOP_GAP);
            self.vmcs.write(Field::PAUSE_LOOP_WINDOW, PAUSE_LOOP_WINDOW);
        }
    }

    /// Puts `hot` into a VMCS that was just made current.
    pub(crate) fn write_all_hot(&mut self) {
        self.vmcs.write(Field::GUEST_RIP, self.hot.rip);
        self.vmcs.write(Field::GUEST_RSP, self.hot.rsp);
        self.vmcs.write(Field::GUEST_RFLAGS, self.hot.rflags);
        self.vmcs.write(Field::INTERRUPTIBILITY, self.hot.interruptibility);
        self.written = self.hot;
    }

    /// The fields for an event; a page fault's address goes to CR2.
    pub(crate) fn encode(&mut self, event: Event) -> Encoded {
        if let Event::Exception(exception) = event
            && let Some(address) = exception.fault_address
        {
            self.set_cr2(address);
        }
        Encoded::new(event, self.is_real_mode())
    }
}

impl Drop for Vmx {
    fn drop(&mut self) {
        assert!(!self.loaded, "a vCPU is unloaded before it is dropped");
    }
}
