//! ISA interrupts: those of the serial line and of legacy disk channels, by the I/O APICs.

use crate::confinement;
use interrupts::local_apic;
use platform::Platform;

/// Masks every input, whatever firmware left there. Called before the first [`route`].
pub fn mask_all(platform: &Platform) {
    platform.io_apics.iter().for_each(|apic| apic.mask_all());
}

/// Brings an interrupt to this processor, if it is an edge: the handler does not take a level's cause away.
pub fn route(platform: &Platform, irq: u8, vector: u8) -> bool {
    let Some((apic, input)) = platform.isa_input(irq).filter(|(_, input)| !input.level) else { return false };
    let Some((address, _)) = confinement::io_apic_message(apic.id, local_apic::id(), vector) else {
        log::warn!("ISA interrupt {irq} cannot reach the processor with APIC ID {}", local_apic::id());
        return false;
    };
    apic.route(input.gsi, address, vector, input.level, input.active_low);
    true
}
