//! Wraps a test guest's ELF file into a bzImage, so that it boots as a Linux kernel does.
//!
//! [`bz_image`] lays the ELF's segments out as one flat image behind a setup header (Linux 6.12,
//! Documentation/arch/x86/boot.rst). The guests of `tests/guests` have their 64-bit entry where the protocol wants it;
//! `loader` and other boot loaders of the 64-bit protocol take the result.
#![forbid(unsafe_code)]

mod elf;

use anyhow::{Result, ensure};
use elf::Elf;

const SECTOR_BYTES: usize = 512;
/// The boot sector and one sector of real-mode code.
const SETUP_BYTES: usize = 2 * SECTOR_BYTES;
/// Where the 64-bit entry lies in the image.
const ENTRY_OFFSET: u64 = 0x200;
/// The largest image that is taken, memory without content included.
const IMAGE_BYTES_MAX: u64 = 1 << 30;
const PROTOCOL: u16 = 0x020f;
const LOADED_HIGH: u8 = 1 << 0;
const KERNEL_64: u16 = 1 << 0;

/// The bzImage of a 64-bit ELF program that is linked at a fixed physical address, with its entry 0x200 bytes in.
///
/// # Errors
/// Where the file is no such program; the text says what is wrong with it.
pub fn bz_image(elf: &[u8]) -> Result<Vec<u8>> {
    let elf = Elf::parse(elf)?;
    let start = elf.segments.iter().map(|segment| segment.address).min().unwrap_or(0);
    let end = elf.segments.iter().map(|segment| segment.address + segment.memory_bytes).max().unwrap_or(0);
    ensure!(end - start <= IMAGE_BYTES_MAX, "the program spans {:#x} bytes: more than 1 GiB", end - start);
    ensure!(elf.entry == start + ENTRY_OFFSET, "the entry is at {:#x}, not {:#x}", elf.entry, start + ENTRY_OFFSET);

    let content_end = elf.segments.iter().map(|segment| segment.address + segment.content.len() as u64).max();
    let payload_bytes = (content_end.unwrap_or(start) - start).next_multiple_of(16) as usize;
    let mut file = setup(start, end - start, payload_bytes as u64);
    file.resize(SETUP_BYTES + payload_bytes, 0);
    for segment in &elf.segments {
        let at = SETUP_BYTES + (segment.address - start) as usize;
        file[at..at + segment.content.len()].copy_from_slice(segment.content);
    }
    Ok(file)
}

/// The boot sector and setup code: nothing but the header.
fn setup(preferred: u64, memory_bytes: u64, payload_bytes: u64) -> Vec<u8> {
    let mut setup = vec![0; SETUP_BYTES];
    let mut put = |at: usize, bytes: &[u8]| setup[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[(SETUP_BYTES / SECTOR_BYTES - 1) as u8]);
    put(0x1f4, &((payload_bytes / 16) as u32).to_le_bytes());
    // The boot flag, and a jump over the header, which ends at 0x26c.
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &PROTOCOL.to_le_bytes());
    put(0x211, &[LOADED_HIGH]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x236, &KERNEL_64.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &preferred.to_le_bytes());
    put(0x260, &(memory_bytes as u32).to_le_bytes());
    setup
}

#[cfg(test)]
mod tests {
    use super::*;
    use addr::Gpa;
    use guestmem::heap::guest_memory;

    const START: u64 = 0x20_0000;

    /// A program of one segment: 0x300 bytes of content, 0x2000 of memory.
    fn program() -> Vec<u8> {
        let mut file = vec![0; 120];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        put(16, &[2, 0, 62, 0]);
        put(24, &(START + 0x200).to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &[56, 0, 1, 0]);
        put(64, &1u32.to_le_bytes());
        for (at, value) in [(72, 120), (80, START), (88, START), (96, 0x300), (104, 0x2000u64)] {
            put(at, &value.to_le_bytes());
        }
        file.extend((0..0x300u32).map(|index| index as u8));
        file
    }

    #[test]
    fn the_loader_takes_it() {
        let image = bz_image(&program()).unwrap();
        let memory = guest_memory(8 << 20);
        let linux = loader::Linux { kernel: &image, initrd: None, command_line: "", rsdp: Gpa::new(0) };
        assert_eq!(loader::load(&memory, &linux).unwrap().rip, START + 0x200);
        let mut loaded = [0; 0x300];
        memory.read(Gpa::new(START), &mut loaded).unwrap();
        assert!(loaded.iter().zip(0u32..).all(|(byte, index)| *byte == index as u8));
        let small = guest_memory(2 << 20);
        assert!(matches!(loader::load(&small, &linux), Err(loader::Error::TooLarge { .. })));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(bz_image(b"").is_err());
        assert!(bz_image(&program()[..100]).is_err());
        assert!(bz_image(&program()[..300]).is_err());
        let broken = |at: usize, byte: u8| {
            let mut file = program();
            file[at] = byte;
            bz_image(&file).unwrap_err().to_string()
        };
        assert!(broken(0, 0).contains("ELF"));
        assert!(broken(24, 1).contains("entry"));
        assert!(broken(64, 6).contains("no segment"));
        assert!(broken(111, 0x7f).contains("wraps") || broken(111, 0x7f).contains("spans"));
        assert!(broken(39, 0xff).contains("ends early"));
    }
}
