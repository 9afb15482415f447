//! Which controls are wanted, and what the processor makes of them (25.6 to 25.8; A.2 to A.5).

use crate::enable::Unavailable;
use crate::vmcs::{BASIC, entering, leaving, pin, processor, secondary};
use cpu::msr;

/// IA32_VMX_BASIC bit 55: the TRUE registers say which bits may be clear after all (A.1).
const TRUE_CONTROLS: u64 = 1 << 55;

/// The registers that say which bits must be set (31:0) and may be set (63:32), and their TRUE forms.
const PIN: (u32, u32) = (0x481, 0x48d);
const PROCESSOR: (u32, u32) = (0x482, 0x48e);
const LEAVING: (u32, u32) = (0x483, 0x48f);
const ENTERING: (u32, u32) = (0x484, 0x490);
const SECONDARY: (u32, u32) = (0x48b, 0x48b);

/// A control that is used.
struct Wanted {
    bit: u32,
    /// What the manual calls it, where Pollux cannot do without it.
    required: Option<&'static str>,
    /// Set all the time, or turned on and off.
    always: bool,
}

const fn required(bit: u32, name: &'static str) -> Wanted {
    Wanted { bit, required: Some(name), always: true }
}

const fn switched(bit: u32, name: &'static str) -> Wanted {
    Wanted { bit, required: Some(name), always: false }
}

const fn optional(bit: u32) -> Wanted {
    Wanted { bit, required: None, always: true }
}

const PIN_WANTED: &[Wanted] = &[
    required(pin::EXTERNAL_INTERRUPTS, "external-interrupt exiting"),
    required(pin::NMI, "NMI exiting"),
    required(pin::VIRTUAL_NMI, "virtual NMIs"),
    optional(pin::PREEMPTION_TIMER),
    optional(pin::POSTED_INTERRUPTS),
];

const PROCESSOR_WANTED: &[Wanted] = &[
    switched(processor::INTERRUPT_WINDOW, "interrupt-window exiting"),
    required(processor::TSC_OFFSET, "TSC offsetting"),
    required(processor::HLT, "HLT exiting"),
    required(processor::MWAIT, "MWAIT exiting"),
    required(processor::RDPMC, "RDPMC exiting"),
    required(processor::TPR_SHADOW, "TPR shadow"),
    switched(processor::NMI_WINDOW, "NMI-window exiting"),
    required(processor::PORTS, "unconditional I/O exiting"),
    required(processor::MSR_BITMAPS, "MSR bitmaps"),
    required(processor::MONITOR, "MONITOR exiting"),
    required(processor::SECONDARY, "secondary controls"),
];

/// Exits that no processor with TRUE controls insists on, and that nothing here handles.
const PROCESSOR_UNWANTED: u32 = processor::CR3_LOAD | processor::CR3_STORE;

const SECONDARY_WANTED: &[Wanted] = &[
    required(secondary::EPT, "EPT"),
    required(secondary::UNRESTRICTED_GUEST, "unrestricted guest"),
    required(secondary::WBINVD, "WBINVD exiting"),
    optional(secondary::VPID),
    optional(secondary::PAUSE_LOOP),
    optional(secondary::PAGE_MODIFICATION_LOG),
    optional(secondary::VIRTUAL_INTERRUPTS),
    // Without these the instructions would raise #UD though the guest's CPUID offers them.
    optional(secondary::RDTSCP),
    optional(secondary::INVPCID),
    optional(secondary::XSAVES),
    optional(secondary::TSC_SCALING),
];

const LEAVING_WANTED: &[Wanted] = &[
    required(leaving::SAVE_DEBUG, "save debug controls"),
    required(leaving::HOST_64_BIT, "host address-space size"),
    // Posted interrupts need it (27.2.1.1).
    optional(leaving::ACKNOWLEDGE_INTERRUPT),
    required(leaving::SAVE_PAT, "save IA32_PAT"),
    required(leaving::LOAD_PAT, "load IA32_PAT on exit"),
    required(leaving::SAVE_EFER, "save IA32_EFER"),
    required(leaving::LOAD_EFER, "load IA32_EFER on exit"),
];

const ENTERING_WANTED: &[Wanted] = &[
    required(entering::LOAD_DEBUG, "load debug controls"),
    switched(entering::GUEST_LONG_MODE, "IA-32e mode guest"),
    required(entering::LOAD_PAT, "load IA32_PAT on entry"),
    required(entering::LOAD_EFER, "load IA32_EFER on entry"),
];

/// The controls as this processor takes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    pub pin: u32,
    pub processor: u32,
    pub secondary: u32,
    pub leaving: u32,
    pub entering: u32,
}

impl Controls {
    /// The wanted controls, or the name of the first that this processor lacks.
    pub fn adjusted() -> Result<Self, Unavailable> {
        let processor = adjust(PROCESSOR, PROCESSOR_WANTED)?;
        if processor & PROCESSOR_UNWANTED != 0 {
            return Err(Unavailable::Lacks("CR3 accesses without exits"));
        }
        Ok(Self {
            pin: adjust(PIN, PIN_WANTED)?,
            processor,
            // Only where the primary controls have it does the register exist.
            secondary: adjust(SECONDARY, SECONDARY_WANTED)?,
            leaving: adjust(LEAVING, LEAVING_WANTED)?,
            entering: adjust(ENTERING, ENTERING_WANTED)?,
        })
    }
}

/// How many bits a count of the preemption timer is behind the TSC (A.6).
pub fn preemption_timer_shift() -> u32 {
    const MISC: u32 = 0x485;
    // SAFETY: a processor with VMX has the register.
    unsafe { msr::read(MISC) as u32 & 0x1f }
}

/// The pin-based and the secondary controls that may be set.
pub fn offered() -> (u32, u32) {
    (limits(PIN).1, limits(SECONDARY).1)
}

fn adjust(register: (u32, u32), wanted: &[Wanted]) -> Result<u32, Unavailable> {
    let (must, may) = limits(register);
    let mut value = must;
    for control in wanted {
        if may & control.bit != 0 {
            value |= if control.always { control.bit } else { 0 };
        } else if let Some(name) = control.required {
            return Err(Unavailable::Lacks(name));
        }
    }
    Ok(value)
}

/// Bits that must be set, and bits that may be.
fn limits((register, true_register): (u32, u32)) -> (u32, u32) {
    // SAFETY: a processor with VMX has these registers; the TRUE ones where bit 55 says so.
    let value = unsafe {
        let has_true = msr::read(BASIC) & TRUE_CONTROLS != 0;
        msr::read(if has_true { true_register } else { register })
    };
    (value as u32, (value >> 32) as u32)
}
