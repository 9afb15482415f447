//! What a guest's own firmware finds beside the board that every guest has: flash, fw_cfg and an LPC bridge.
//!
//! [`FirmwareConfig`] says what to make and [`Firmware`] is it; `board` finds the devices by address, and the firmware's
//! code is read-only memory that the host added to the machine's. The pieces are those of QEMU's q35 that OVMF looks for.

mod saved;

use crate::board::{Board, Slot};
use crate::mail::Mail;
use crate::saved::plan;
use crate::{Host, Machine, Outbox, Thread};
use addr::{Gpa, GpaRange, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::vec::Vec;
use chipset::Flash;
use firmware::fw_cfg::FwCfg;
use firmware::layout;
use guestmem::GuestMemory;
use pci::ConfigSpace;
use vcpu::VcpuState;

/// A firmware of the guest's own.
pub struct FirmwareConfig {
    /// How long its code is; it ends at [`layout::FLASH_END`] and the variables right before it.
    pub code_bytes: u64,
    /// By which two firmwares' code is told apart.
    pub code_checksum: u64,
    /// Memory of its own for the flash with its variables, which it holds from address 0 on.
    pub variables: GuestMemory,
    /// How much of that is flash: whole pages.
    pub variables_bytes: usize,
}

/// The devices that such a firmware needs.
pub struct Firmware {
    pub(crate) plan: plan::Firmware,
    flash: Flash,
    window: GpaRange,
    /// Whether the guest reads it without an exit now.
    is_mapped: bool,
    pub fw_cfg: FwCfg,
    pub lpc: ConfigSpace,
}

impl Machine {
    /// The state in which the boot vCPU of a machine with a firmware of its own starts: as after power-up.
    pub fn power_on(&self) -> VcpuState {
        VcpuState::reset()
    }

    /// Looks into the firmware's flash for variables, or puts in what was kept; `None` without one. No vCPU writes to it
    /// meanwhile.
    pub fn with_variables<R>(&self, act: impl FnOnce(&mut Flash) -> R) -> Option<R> {
        self.board.lock().firmware.as_mut().map(|firmware| act(&mut firmware.flash))
    }

    /// The pages through which the guest reads the firmware's variables: its address and the host's, in order. The host
    /// maps them, read-only, before the machine first runs.
    pub fn variable_pages(&self) -> Vec<(Gpa, Hpa)> {
        self.board.lock().firmware.as_ref().map_or(Vec::new(), |firmware| firmware.pages().collect())
    }

    /// Those of them that the guest of a restored machine must not read without an exit, for its flash was amid a command.
    /// The host takes them away before the machine runs.
    pub fn hidden_pages(&self) -> Vec<Gpa> {
        let board = self.board.lock();
        let hidden = board.firmware.as_ref().filter(|firmware| !firmware.is_mapped);
        hidden.map_or(Vec::new(), |firmware| firmware.pages().map(|(gpa, _)| gpa).collect())
    }

    /// Sees to what a guest's access asked of its firmware's devices.
    pub(crate) fn serve_firmware(
        &self,
        board: &mut Board,
        thread: &mut Thread,
        outbox: &mut Outbox,
        host: &mut dyn Host,
    ) {
        let Some(firmware) = &mut board.firmware else { return };
        firmware.fw_cfg.transfer(&self.memory);
        if firmware.flash.take_news() {
            outbox.note_variables();
        }
        let readable = firmware.flash.is_readable();
        if readable != firmware.is_mapped {
            firmware.is_mapped = readable;
            host.show_pages(&mut firmware.pages(), readable);
            thread.vcpu.invalidate();
            let others = (0..self.vcpus()).filter(|&vcpu| vcpu != thread.index);
            others.for_each(|vcpu| self.post(vcpu, Mail::Invalidate, host));
        }
    }
}

impl Firmware {
    /// The flash's pages: the guest's address and the host's.
    fn pages(&self) -> impl Iterator<Item = (Gpa, Hpa)> + '_ {
        let small_pages = |(_, frame): (Gpa, Hpa)| {
            (0..LARGE_PAGE_BYTES).step_by(PAGE_BYTES as usize).map(move |offset| frame.wrapping_add(offset))
        };
        let gpas = (0..self.window.bytes()).step_by(PAGE_BYTES as usize);
        gpas.map(|offset| self.window.start().wrapping_add(offset))
            .zip(self.flash.cells().frames().flat_map(small_pages))
    }
}

impl Board {
    /// Adds what a firmware needs. The functions stay where they are after power-up: nowhere, for it places them.
    ///
    /// # Panics
    /// Where code and variables do not fit below [`layout::FLASH_END`]: the host checks the files.
    pub fn add_firmware(&mut self, config: FirmwareConfig, memory: &GuestMemory, vcpus: u32) {
        let FirmwareConfig { code_bytes, code_checksum, variables, variables_bytes } = config;
        let flash = Flash::new(variables, variables_bytes);
        let bytes = variables_bytes as u64;
        let start = layout::FLASH_END.as_u64().checked_sub(code_bytes + bytes).expect("the flash fits below 4 GiB");
        let window = GpaRange::new(Gpa::new(start), bytes).expect("it ends below 4 GiB");
        let board = firmware::Board {
            vcpus,
            // Where it is, the firmware decides after the tables are made; nothing here needs it.
            ecam: None,
            pci_memory: layout::PCI_MEMORY,
            pci_memory64: None,
            keyboard: false,
            hotplug: self.hotplug_slots(),
        };
        let disks: Vec<u8> = self.disks.numbers().map(|disk| self.device_number(Slot::Disk(disk))).collect();
        let fw_cfg = firmware::describe(memory, &board, disks.into_iter()).expect("a board of constants is described");
        self.bridge = pci::host_bridge_for_firmware();
        let lpc = pci::lpc_bridge(layout::PM1_EVENT_PORT);
        let plan = plan::Firmware { code_bytes, code_checksum, variables_bytes: bytes };
        self.firmware = Some(Firmware { plan, flash, window, is_mapped: true, fw_cfg, lpc });
    }

    /// The flash for variables and the offset into it, where it is at this address.
    pub(crate) fn flash_at(&mut self, gpa: Gpa) -> Option<(&mut Flash, u64)> {
        let Firmware { flash, window, .. } = self.firmware.as_mut()?;
        window.contains(gpa).then(|| (flash, gpa.as_u64() - window.start().as_u64()))
    }
}
