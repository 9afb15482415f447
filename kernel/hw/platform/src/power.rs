//! Turning the machine off and resetting it.

use crate::Platform;
use cpu::{halt_forever, port_out8, port_out16};

const SLEEP_ENABLE: u16 = 1 << 13;

/// Turns the machine off by ACPI S5; where that is not known, stops this processor.
pub fn power_off(platform: &Platform) -> ! {
    if let Some((port, value)) = platform.power_off {
        // SAFETY: the port of PM1a_CNT and the value that the firmware's \_S5 names.
        unsafe { port_out16(port, value) };
    }
    halt_forever()
}

/// Resets the machine: by the register that ACPI names, else by the keyboard controller.
pub fn reset(platform: &Platform) -> ! {
    let (port, value) = platform.reset.unwrap_or((0x64, 0xfe));
    // SAFETY: what ACPI names, or what every PC has.
    unsafe { port_out8(port, value) };
    halt_forever()
}

/// The value of PM1a_CNT for a sleep type (ACPI 6.5, table 4.13).
pub fn off(sleep_type: u8) -> u16 {
    SLEEP_ENABLE | u16::from(sleep_type & 7) << 10
}

/// The sleep type of S5, from the DSDT's `Name (_S5, Package () { type, ... })`.
///
/// Pollux runs no AML. The package's first element is found by its encoding (ACPI 6.5, 20.2): the name, PackageOp, a
/// length of one to four bytes, the count, and a constant.
pub fn sleep_type_off(aml: &[u8]) -> Option<u8> {
    const PACKAGE: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    let at = aml.windows(4).position(|window| window == b"_S5_")?;
    let rest = aml.get(at + 4..)?.strip_prefix(&[PACKAGE])?;
    let length_bytes = usize::from(*rest.first()? >> 6) + 1;
    match rest.get(length_bytes + 1..)? {
        [BYTE_PREFIX, value, ..] => Some(*value),
        [constant @ (0 | 1), ..] => Some(*constant),
        _ => None,
    }
}
