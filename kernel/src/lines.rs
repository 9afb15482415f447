//! Interrupt lines of PCI devices that send no messages, by the I/O APICs.
//!
//! Which input a line ends at is said by `_PRT`, which is AML, and so it is found by experiment: [`find`] has the device
//! pull. All lines are one interrupt, [`interrupts::LINE`], and come to CPU 0. Its user is `probe`, and `devices` serves
//! what comes.

use crate::confinement;
use alloc::vec::Vec;
use cpu::percpu;
use interrupts::ioapic::IoApic;
use interrupts::{LINE, local_apic};
use platform::{Override, Platform};
use spin::Mutex;

/// How long an interrupt is waited for, and how often it is looked for at least: an I/O APIC's message takes a microsecond,
/// an emulator's more.
const ARRIVAL_TICKS: u64 = 100 * TICKS_PER_US;
const LOOKS_MIN: u32 = 100;
/// TSC ticks that take a microsecond at least: no processor counts faster.
const TICKS_PER_US: u64 = 5000;
/// How many interrupts of a line may be under way when its input is masked: one in service, and one that waits.
const ON_THE_WAY_MAX: usize = 2;

/// The inputs that are open.
static FOUND: Mutex<Vec<Input>> = Mutex::new(Vec::new());

/// An input, by its global system interrupt.
#[derive(Clone, Copy)]
struct Input {
    apic: IoApic,
    gsi: u32,
}

/// Opens the input where a device's line ends, for this processor; says whether one was found. `pull` has the device pull
/// at its line, or let it go.
///
/// It is the input that is quiet, interrupts while the device pulls, and is quiet again when it has let go. Another device
/// that nobody drives and that pulls at the same line makes it one that cannot be used. The device pulls once: a card may
/// wait between interrupts. Called at start-up alone; what else arrives meanwhile is noted.
pub fn find(platform: &Platform, pull: &mut dyn FnMut(bool)) -> bool {
    if confinement::remaps_interrupts() {
        return false;
    }
    let Some((address, _)) = local_apic::msi(local_apic::id(), LINE) else { return false };
    let mut found = FOUND.lock();
    let mut inputs = Vec::new();
    for (apic, Override { gsi, level, active_low, .. }) in platform.line_inputs() {
        apic.prepare(gsi, address, LINE, level, active_low);
        inputs.push(Input { apic, gsi });
    }
    // What is noted is looked for at the end.
    take_note();
    inputs.retain(|input| input.is_quiet());
    pull(true);
    let pulled = inputs.into_iter().find(|input| input.interrupts());
    pull(false);
    let own = pulled.filter(|input| {
        interrupts::end_line();
        input.is_quiet()
    });
    if let Some(input) = own
        && found.iter().all(|known| known.gsi != input.gsi)
    {
        found.push(input);
    }
    found.iter().for_each(|input| input.apic.unmask(input.gsi));
    // Another card may have pulled meanwhile.
    percpu::current().arrive(LINE);
    own.is_some()
}

/// Masks every line: something pulls that nobody drives.
pub fn give_up() {
    FOUND.lock().drain(..).for_each(|input| input.apic.mask(input.gsi));
}

impl Input {
    /// Whether nobody pulls. The input is masked before and after.
    fn is_quiet(&self) -> bool {
        let is_quiet = !self.interrupts();
        if !is_quiet {
            interrupts::end_line();
            // What was on its way.
            (0..ON_THE_WAY_MAX).take_while(|_| arrives()).for_each(|_| interrupts::end_line());
        }
        is_quiet
    }

    /// Whether somebody pulls. The input is masked before and after, and the interrupt, if any, not ended.
    fn interrupts(&self) -> bool {
        self.apic.unmask(self.gsi);
        let interrupts = arrives();
        self.apic.mask(self.gsi);
        interrupts
    }
}

/// Whether a line interrupts now.
fn arrives() -> bool {
    let start = cpu::tsc();
    let mut looks = 0;
    while looks < LOOKS_MIN || cpu::tsc().wrapping_sub(start) < ARRIVAL_TICKS {
        cpu::take_interrupts();
        if take_note() {
            return true;
        }
        looks += 1;
    }
    false
}

/// Takes the note that a line interrupted, and no other.
fn take_note() -> bool {
    let mut vectors = Vec::new();
    percpu::current().take_arrived(|vector| vectors.push(vector));
    let others = vectors.iter().filter(|&&vector| vector != LINE);
    others.for_each(|&vector| percpu::current().arrive(vector));
    vectors.contains(&LINE)
}
