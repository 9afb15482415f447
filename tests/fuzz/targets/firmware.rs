//! What a guest's own firmware talks to: fw_cfg by ports and DMA, and the flash with its variables. Whatever a guest asks,
//! nothing outside its memory and the chip changes, and what was written to the chip is reported.
#![no_main]

use addr::{Gpa, LARGE_PAGE_BYTES};
use chipset::Flash;
use firmware::fw_cfg::{DMA_HIGH_PORT, FwCfg, SELECTOR_PORT};
use fuzz::Input;
use guestmem::GuestMemory;
use guestmem::heap::guest_memory;
use libfuzzer_sys::fuzz_target;

/// The chip is a part of its memory; what follows belongs to nobody.
const FLASH_BYTES: usize = 8 * 4096;
const BEHIND: [u8; 16] = [0xa5; 16];
/// Where the guest has its DMA structure, most of the time.
const STRUCTURE: Gpa = Gpa::new(0x1000);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let memory = guest_memory(LARGE_PAGE_BYTES);
    let cells = guest_memory(LARGE_PAGE_BYTES);
    cells.write(Gpa::new(FLASH_BYTES as u64), &BEHIND).unwrap();
    let mut flash = Flash::new(cells, FLASH_BYTES);
    let mut device = FwCfg::new(2, vec![("etc/one".into(), vec![1; 700]), ("etc/two".into(), b"two".to_vec())]);
    let mut before = flash.content(0..FLASH_BYTES);
    while !input.is_empty() {
        act(&mut input, &mut device, &mut flash, &memory);
        let mut now = flash.content(0..FLASH_BYTES);
        if flash.has_written() || !flash.is_readable() {
            while let Some(range) = flash.take_written() {
                before[range.clone()].copy_from_slice(&now[range]);
            }
        }
        assert_eq!(now, before, "a change that was not reported");
        core::mem::swap(&mut now, &mut before);
    }
    let mut behind = BEHIND;
    flash.cells().read(Gpa::new(FLASH_BYTES as u64), &mut behind).unwrap();
    assert_eq!(behind, BEHIND);
});

fn act(input: &mut Input<'_>, device: &mut FwCfg, flash: &mut Flash, memory: &GuestMemory) {
    match input.u8() % 6 {
        0 => {
            device.port_read(SELECTOR_PORT + u16::from(input.u8() % 12), input.port_width());
        }
        1 => {
            device.port_write(SELECTOR_PORT + u16::from(input.u8() % 12), input.port_width(), input.u32());
            device.transfer(memory);
        }
        2 => {
            memory.write(STRUCTURE, input.bytes(16)).unwrap();
            device.port_write(DMA_HIGH_PORT, 4, 0);
            device.port_write(DMA_HIGH_PORT + 4, 4, (STRUCTURE.as_u64() as u32).to_be());
            device.transfer(memory);
        }
        3 => {
            flash.read(u64::from(input.u16()), input.width());
        }
        4 => flash.write(u64::from(input.u16()), input.width(), input.u64()),
        _ => {
            flash.write(input.u64(), input.width(), input.u64());
            flash.read(input.u64(), input.width());
        }
    }
}
