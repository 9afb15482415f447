//! Into the guest and out again: [`Svm`], and what VMRUN leaves to software.

use crate::enable::{Features, Host, TSC_FRACTION_BITS, host};
use crate::exit;
use crate::msrs::MsrMap;
use crate::nmi::Nmis;
use crate::vmcb::{Vmcb, clean, misc1, misc2, virtual_interrupt};
use addr::Hpa;
use alloc::boxed::Box;
use core::arch::{asm, global_asm};
use cpu::fpu::ExtendedState;
use cpu::speculation::{self, GuestControl, Trainer};
use vcpu::{Event, Exit, Gpr, TscRatio, VcpuState};

/// A virtual CPU on SVM.
pub struct Svm {
    pub(crate) vmcb: Box<Vmcb>,
    pub(crate) gprs: [u64; 16],
    pub(crate) features: Features,
    pub(crate) extended: ExtendedState,
    pub(crate) dr: [u64; 4],
    pub(crate) tsc_aux: u64,
    pub(crate) tsc_ratio: TscRatio,
    /// The bits of CR4 that the guest may set, where its writes exit.
    pub(crate) cr4_offered: u64,
    pub(crate) msrs: Box<MsrMap>,
    pub(crate) spec_ctrl: GuestControl,
    /// An event whose delivery an exit interrupted; it goes first.
    pub(crate) interrupted: Option<u64>,
    /// This processor delivers a virtual interrupt of the very priority that CR8 has, as it should not (15.21.3).
    pub(crate) equal_priority_passes: bool,
    pub(crate) nmis: Nmis,
    /// The physical processor whose registers hold this guest's VMLOAD state, between `run` and `park`.
    entered: Option<&'static Host>,
    /// Where the ASID is valid: processor and round of its ASIDs.
    asid_of: Option<(usize, u64)>,
    trainer: Trainer,
}

/// One bit a port, set: every port access exits (15.10.1). The last byte is for accesses that straddle the end.
#[repr(align(4096))]
struct PortMap(#[expect(dead_code, reason = "only the processor reads it")] [u8; 3 * 4096]);
static PORT_MAP: PortMap = PortMap([0xff; 3 * 4096]);

/// EVENTINJ and EXITINTINFO (15.20).
pub(crate) mod event {
    pub const VALID: u64 = 1 << 31;
    pub const ERROR_VALID: u64 = 1 << 11;
    pub const TYPE_MASK: u64 = 7 << 8;
    pub const INTERRUPT: u64 = 0 << 8;
    pub const NMI: u64 = 2 << 8;
    pub const EXCEPTION: u64 = 3 << 8;
    pub const SOFTWARE: u64 = 4 << 8;
}

/// TLB_CONTROL (15.16.1).
const FLUSH_ALL: u32 = 1;
const FLUSH_THIS_GUEST: u32 = 3;

const EXCEPTION_DEBUG: u32 = 1 << 1;
const EXCEPTION_ALIGNMENT: u32 = 1 << 17;
const EXCEPTION_MACHINE_CHECK: u32 = 1 << 18;

const PAUSE_FILTER_COUNT: u16 = 3000;
const PAUSE_FILTER_THRESHOLD: u16 = 128;

/// The world switch by name: what goes before VMRUN, behind it, and behind the saving of the guest's registers.
macro_rules! world_switch {
    ($name:literal, $before:expr, $behind:expr, $saved:expr $(, $operand:ident = sym $symbol:path)*) => {
        global_asm!(
            // NAME(gprs: rdi, vmcb: rsi, control: rdx): RAX and RSP are in the VMCB; VMRUN itself keeps the host's RAX, RSP
            // and RIP.
            ".section .text.vcpu_entry, \"ax\"",
            concat!(".global ", $name),
            concat!($name, ":"),
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "push rdx",
            "push rdi",
            "mov rax, rsi",
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
            $before,
            "vmrun rax",
            $behind,
            "mov rax, [rsp]",
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
            $saved,
            "pop rdi",
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

world_switch!("svm_enter", "", "", "");
world_switch!(
    "svm_enter_guarded",
    cpu::clear_buffers!(),
    cpu::fill_return_stack!(),
    cpu::after_exit!(),
    null_selector = sym speculation::NULL_SELECTOR,
    after_exit = sym speculation::AFTER_EXIT,
    host_control = sym speculation::HOST_CONTROL
);

unsafe extern "sysv64" {
    fn svm_enter(gprs: *mut [u64; 16], vmcb: *mut Vmcb, control: *mut GuestControl);
    /// The same with what `cpu::speculation` asks for.
    fn svm_enter_guarded(gprs: *mut [u64; 16], vmcb: *mut Vmcb, control: *mut GuestControl);
}

impl Svm {
    /// A virtual CPU in the state after reset whose guest-physical addresses go through the tables at `nested_cr3`.
    pub fn new(features: Features, nested_cr3: Hpa) -> Self {
        let mut vmcb = Vmcb::boxed();
        let control = &mut vmcb.control;
        control.intercept_exceptions = EXCEPTION_DEBUG | EXCEPTION_ALIGNMENT | EXCEPTION_MACHINE_CHECK;
        control.intercept_misc[0] = intercepts_1(features);
        control.intercept_misc[1] = intercepts_2();
        control.iopm_base = &raw const PORT_MAP as u64;
        let msrs = MsrMap::boxed();
        control.msrpm_base = &raw const *msrs as u64;
        control.virtual_interrupt = virtual_interrupt::MASKING;
        control.nested_enable = 1;
        control.nested_cr3 = nested_cr3.as_u64();
        if features.contains(Features::PAUSE_FILTER) {
            control.pause_filter_count = PAUSE_FILTER_COUNT;
            control.pause_filter_threshold = PAUSE_FILTER_THRESHOLD;
        }
        let mut svm = Self {
            vmcb,
            gprs: [0; 16],
            features,
            extended: ExtendedState::reset(),
            dr: [0; 4],
            tsc_aux: 0,
            tsc_ratio: TscRatio::ONE,
            cr4_offered: 0,
            msrs,
            spec_ctrl: GuestControl::default(),
            interrupted: None,
            equal_priority_passes: false,
            nmis: Nmis::default(),
            entered: None,
            asid_of: None,
            trainer: Trainer::another(),
        };
        vcpu::Vcpu::set_state(&mut svm, &VcpuState::reset());
        svm
    }

    /// The guest's next exit.
    pub(crate) fn enter(&mut self) -> Exit {
        if self.entered.is_none() {
            self.load_world();
        }
        loop {
            self.enter_once();
            if let Some(exit) = exit::exit(self) {
                return exit;
            }
        }
    }

    fn enter_once(&mut self) {
        if let Some(interrupted) = self.interrupted.take() {
            self.vmcb.control.event_injection = interrupted;
        }
        self.begin_step();
        let begun = self.begin_virtual();
        self.vmcb.save.rax = self.gprs[Gpr::Rax as usize];
        self.vmcb.save.rsp = self.gprs[Gpr::Rsp as usize];
        // SAFETY: interrupts cannot be taken (GIF is clear), the guest's VMLOAD state and floating-point state are in
        // the processor, the block is this vCPU's own, and whatever the guest does stays inside its nested tables.
        unsafe {
            if self.spec_ctrl.guards() {
                speculation::before_entry(&mut self.spec_ctrl);
                svm_enter_guarded(&raw mut self.gprs, &raw mut *self.vmcb, &raw mut self.spec_ctrl);
            } else {
                svm_enter(&raw mut self.gprs, &raw mut *self.vmcb, &raw mut self.spec_ctrl);
            }
        }
        self.gprs[Gpr::Rax as usize] = self.vmcb.save.rax;
        self.gprs[Gpr::Rsp as usize] = self.vmcb.save.rsp;
        let control = &mut self.vmcb.control;
        control.tlb_control = 0;
        control.event_injection = 0;
        control.clean = if self.features.contains(Features::VMCB_CLEAN) { clean::ALL } else { 0 };
        self.interrupted = exit::interrupted_event(control.exit_interrupt_info);
        if let Some(begun) = begun {
            self.end_virtual(begun);
        }
    }

    /// Puts the guest's state that VMRUN does not switch into the processor, with host interrupts held back (15.17).
    fn load_world(&mut self) {
        let (host, cpu) = host();
        self.choose_asid(host, cpu);
        speculation::switched(&host.trained, &self.trainer);
        if self.features.contains(Features::TSC_SCALING) {
            host.scale_tsc(self.tsc_ratio.fixed(TSC_FRACTION_BITS));
        }
        if !self.extended.is_loaded() {
            self.extended.load();
            self.load_debug_registers();
        }
        // SAFETY: CLGI holds back every interrupt until `leave_world`; with GIF clear, IF may be set, which makes
        // VMRUN let host interrupts end the run (15.21.1). The VMCB is this vCPU's own.
        unsafe {
            asm!("clgi", "sti", "vmload rax", in("rax") &raw const *self.vmcb, options(nostack));
            if host.has_tsc_aux {
                cpu::msr::write(cpu::msr::TSC_AUX, self.tsc_aux);
            }
        }
        self.entered = Some(host);
    }

    /// Brings back the host's own, and lets held interrupts become pending behind a clear IF.
    pub(crate) fn leave_world(&mut self) {
        let Some(host) = self.entered.take() else { return };
        // SAFETY: the guest's state is in the processor and goes to its VMCB; the host's was saved by `enable`.
        unsafe {
            if host.has_tsc_aux {
                self.tsc_aux = cpu::msr::read(cpu::msr::TSC_AUX);
            }
            asm!("vmsave rax", in("rax") &raw mut *self.vmcb, options(nostack));
            asm!("vmload rax", "cli", "stgi", in("rax") &raw const *host.state, options(nostack));
        }
    }

    /// Sees to it that no stale translation can be used: a tag of this processor's current round.
    fn choose_asid(&mut self, host: &Host, cpu: usize) {
        if self.asid_of == Some((cpu, host.asid_round())) {
            return;
        }
        let (asid, flush) = host.take_asid();
        self.vmcb.control.asid = asid;
        self.vmcb.control.tlb_control = if flush { FLUSH_ALL } else { 0 };
        // On another processor than last time nothing of the block is known (15.15.2).
        self.vmcb.control.clean = 0;
        self.asid_of = Some((cpu, host.asid_round()));
    }

    /// Forgets this guest's translations before it runs again.
    pub(crate) fn flush(&mut self) {
        if self.features.contains(Features::FLUSH_BY_ASID) {
            self.vmcb.control.tlb_control = FLUSH_THIS_GUEST;
        } else {
            // A new tag does the same, and costs other guests nothing.
            self.leave_world();
            self.asid_of = None;
        }
    }

    /// Takes the floating-point state out of the processor.
    pub(crate) fn unload_fpu(&mut self) {
        if self.extended.is_loaded() {
            self.dr = self.debug_registers();
            self.extended.unload();
        }
    }

    /// Marks parts of the block as changed.
    pub(crate) fn changed(&mut self, parts: u32) {
        self.vmcb.control.clean &= !parts;
    }

    /// The injection field for an event.
    pub(crate) fn encode(&mut self, event: Event) -> u64 {
        match event {
            Event::Interrupt(vector) => event::VALID | event::INTERRUPT | u64::from(vector),
            Event::Nmi => {
                self.block_nmis(true);
                event::VALID | event::NMI | 2
            }
            Event::Exception(exception) => {
                if let Some(address) = exception.fault_address {
                    self.vmcb.save.cr2 = address;
                    self.changed(clean::CR2);
                }
                // Real mode pushes no error codes (8.2).
                let error_code = exception.error_code.filter(|_| self.vmcb.save.cr0 & vcpu::cr0::PE != 0);
                let error = error_code.map_or(0, |code| event::ERROR_VALID | u64::from(code) << 32);
                event::VALID | event::EXCEPTION | u64::from(exception.vector) | error
            }
        }
    }

    /// The guest's breakpoint addresses; VMRUN switches only DR6 and DR7.
    fn load_debug_registers(&self) {
        // SAFETY: the host uses no breakpoints, and DR7 arms none while it runs.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) self.dr[0], in(reg) self.dr[1],
                in(reg) self.dr[2], in(reg) self.dr[3], options(nostack));
        }
    }

    /// The same, as the guest has them now.
    pub(crate) fn debug_registers(&self) -> [u64; 4] {
        let mut dr = self.dr;
        if self.extended.is_loaded() {
            // SAFETY: reads registers.
            unsafe {
                asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) dr[0], out(reg) dr[1],
                    out(reg) dr[2], out(reg) dr[3], options(nostack));
            }
        }
        dr
    }
}

impl Drop for Svm {
    fn drop(&mut self) {
        assert!(self.entered.is_none(), "a vCPU is parked before it is dropped");
    }
}

/// What ends a run, first vector: what the host needs, and what the guest must not do itself.
fn intercepts_1(features: Features) -> u32 {
    let pause = if features.contains(Features::PAUSE_FILTER) { misc1::PAUSE } else { 0 };
    pause
        | misc1::INTR
        | misc1::NMI
        | misc1::SMI
        | misc1::INIT
        | misc1::RDPMC
        | misc1::CPUID
        | misc1::INVD
        | misc1::HLT
        | misc1::INVLPGA
        | misc1::IOIO
        | misc1::MSR
        | misc1::TASK_SWITCH
        | misc1::FERR_FREEZE
        | misc1::SHUTDOWN
}

/// The same, second vector. VMRUN's is mandatory (15.5.1).
fn intercepts_2() -> u32 {
    misc2::VMRUN
        | misc2::VMMCALL
        | misc2::VMLOAD
        | misc2::VMSAVE
        | misc2::STGI
        | misc2::CLGI
        | misc2::SKINIT
        | misc2::WBINVD
        | misc2::MONITOR
        | misc2::MWAIT
        | misc2::MWAIT_ARMED
        | misc2::XSETBV
        | misc2::RDPRU
}
