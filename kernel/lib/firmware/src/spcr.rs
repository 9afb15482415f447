//! Reads the host firmware's Serial Port Console Redirection table, which says where its console is: on many servers, and
//! with serial over LAN, not on COM1. The main function is [`console`]; its answer goes to the host's UART driver.
//!
//! Microsoft, "Serial Port Console Redirection Table", revisions 1 to 4 of the table.

/// A UART that the firmware uses as its console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Console {
    /// Where its registers are.
    pub place: Place,
    /// The ISA interrupt that it raises, where it raises one.
    pub irq: Option<u8>,
    /// Baud; without a rate the UART keeps what it was set to.
    pub baud: Option<u32>,
    /// The clock that its baud rate is made from, where the table says.
    pub clock_hz: Option<u32>,
    /// The PCI function that it is.
    pub pci: Option<PciPlace>,
}

/// Where a UART's eight registers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At eight I/O ports from this one.
    Ports(u16),
    /// In memory.
    Memory {
        /// The first one's physical address.
        address: u64,
        /// Whether each is four bytes wide and read and written as a whole; else one byte.
        wide: bool,
    },
}

/// A PCI function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are PCI's")]
pub struct PciPlace {
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

/// Why the table names no UART that can be driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The table is shorter than its first revision, or its numbers make no sense.
    Malformed,
    /// The firmware's console redirection is off.
    Disabled,
    /// It is another kind of interface.
    OtherKind(u8),
}

/// The first revision's length.
const BYTES_MIN: usize = 80;
/// 16550, 16450 with its registers, and 16550 as the address structure says.
const KINDS: [u8; 3] = [0, 1, 0x12];
/// Of the generic address structure (ACPI 6.5, 5.2.3.2).
const SYSTEM_MEMORY: u8 = 0;
const SYSTEM_IO: u8 = 1;
const DOUBLEWORDS: u8 = 3;
/// Of the interrupt types.
const ISA_INTERRUPT: u8 = 1;
/// From this revision on there is a clock, and a baud rate in baud.
const HAS_CLOCK: u8 = 3;
const HAS_BAUD: u8 = 4;

/// What the table, header and all, says.
///
/// # Errors
/// If it names no UART of a known kind.
pub fn console(table: &[u8]) -> Result<Console, Refusal> {
    let table: &[u8; BYTES_MIN + 8] = &pad(table).ok_or(Refusal::Malformed)?;
    let word = |at: usize| u32::from_le_bytes([table[at], table[at + 1], table[at + 2], table[at + 3]]);
    let (revision, kind) = (table[8], table[36]);
    if !KINDS.contains(&kind) {
        return Err(Refusal::OtherKind(kind));
    }
    let address = u64::from(word(44)) | u64::from(word(48)) << 32;
    if address == 0 {
        return Err(Refusal::Disabled);
    }
    let wide = table[43] == DOUBLEWORDS || table[41] == 32;
    let place = match table[40] {
        SYSTEM_IO => Place::Ports(u16::try_from(address).map_err(|_| Refusal::Malformed)?),
        SYSTEM_MEMORY => Place::Memory { address, wide },
        _ => return Err(Refusal::Malformed),
    };
    let is_pci = table[64..66] != [0xff; 2];
    let pci = PciPlace { bus: table[68], device: table[69] & 0x1f, function: table[70] & 7 };
    let exact_baud = Some(word(80)).filter(|&baud| baud != 0 && revision >= HAS_BAUD);
    Ok(Console {
        place,
        irq: (table[52] & ISA_INTERRUPT != 0 && table[53] < 16).then_some(table[53]),
        baud: exact_baud.or(baud(table[58])),
        // 0 is "not known" and all bits "not given".
        clock_hz: Some(word(76)).filter(|&hz| revision >= HAS_CLOCK && hz != 0 && hz != u32::MAX),
        pci: is_pci.then_some(pci),
    })
}

/// The table with zeroes behind it up to the fourth revision's fixed part; nothing where the first is not whole.
fn pad(table: &[u8]) -> Option<[u8; BYTES_MIN + 8]> {
    let mut padded = [0; BYTES_MIN + 8];
    if table.len() < BYTES_MIN {
        return None;
    }
    let length = table.len().min(padded.len());
    padded[..length].copy_from_slice(&table[..length]);
    Some(padded)
}

fn baud(code: u8) -> Option<u32> {
    match code {
        3 => Some(9600),
        4 => Some(19200),
        6 => Some(57600),
        7 => Some(115_200),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of revision 2: COM2 at 57,600 baud, interrupt 3, no PCI device.
    fn com2() -> [u8; 80] {
        let mut table = [0; 80];
        table[..4].copy_from_slice(b"SPCR");
        table[8] = 2;
        table[40..44].copy_from_slice(&[SYSTEM_IO, 8, 0, 1]);
        table[44..46].copy_from_slice(&0x2f8_u16.to_le_bytes());
        table[52..54].copy_from_slice(&[ISA_INTERRUPT, 3]);
        table[58] = 6;
        table[64..68].fill(0xff);
        table
    }

    #[test]
    fn a_port_is_read() {
        let expected =
            Console { place: Place::Ports(0x2f8), irq: Some(3), baud: Some(57600), clock_hz: None, pci: None };
        assert_eq!(console(&com2()), Ok(expected));
    }

    #[test]
    fn serial_over_lan_on_pci_is_read() {
        let mut table = com2();
        table[44..46].copy_from_slice(&0xf0e0_u16.to_le_bytes());
        table[52] = 2;
        table[64..71].copy_from_slice(&[0x3d, 0xa1, 0x86, 0x80, 0, 0x16, 3]);
        let console = console(&table).unwrap();
        assert_eq!(console.place, Place::Ports(0xf0e0));
        assert_eq!(console.pci, Some(PciPlace { bus: 0, device: 0x16, function: 3 }));
        assert_eq!(console.irq, None);
    }

    #[test]
    fn registers_in_memory_are_read() {
        let mut table = com2();
        table[36] = 0x12;
        table[40..44].copy_from_slice(&[SYSTEM_MEMORY, 32, 0, DOUBLEWORDS]);
        table[44..52].copy_from_slice(&0x1_fedc_9000_u64.to_le_bytes());
        assert_eq!(console(&table).unwrap().place, Place::Memory { address: 0x1_fedc_9000, wide: true });
        table[41..44].copy_from_slice(&[8, 0, 1]);
        assert_eq!(console(&table).unwrap().place, Place::Memory { address: 0x1_fedc_9000, wide: false });
    }

    #[test]
    fn later_revisions_give_clock_and_baud() {
        let mut table = [&com2()[..], &921_600_u32.to_le_bytes(), &[0; 4]].concat();
        table[76..80].copy_from_slice(&48_000_000_u32.to_le_bytes());
        table[8] = 4;
        let newest = console(&table).unwrap();
        assert_eq!((newest.baud, newest.clock_hz), (Some(921_600), Some(48_000_000)));
        table[8] = 2;
        let older = console(&table).unwrap();
        assert_eq!((older.baud, older.clock_hz), (Some(57600), None));
        table[58] = 0;
        assert_eq!(console(&table).unwrap().baud, None);
    }

    #[test]
    fn what_is_no_uart_is_refused() {
        let with = |at: usize, value: u8| {
            let mut table = com2();
            table[at] = value;
            console(&table)
        };
        assert_eq!(with(36, 3), Err(Refusal::OtherKind(3)));
        assert_eq!(with(40, 2), Err(Refusal::Malformed));
        assert_eq!(with(46, 1), Err(Refusal::Malformed));
        let mut off = com2();
        off[44..52].fill(0);
        assert_eq!(console(&off), Err(Refusal::Disabled));
        (0..80).for_each(|length| assert_eq!(console(&com2()[..length]), Err(Refusal::Malformed)));
        // Whatever else it says, it is read.
        for at in 0..80 {
            let _ = with(at, 0xff);
        }
    }
}
