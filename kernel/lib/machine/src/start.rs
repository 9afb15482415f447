//! From nothing to a guest at its first instruction: firmware tables, kernel, state.

use crate::Machine;
use alloc::string::{String, ToString};
use firmware::{Board as FirmwareBoard, layout};
use loader::{Boot, Module};
use vcpu::VcpuState;

/// What a direct boot starts.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// A bzImage or a Multiboot 1 image.
    pub image: Module<'a>,
    /// Its initial file system, or first Multiboot module.
    pub initrd: Option<Module<'a>>,
    /// More modules.
    pub modules: &'a [Module<'a>],
    /// Its command line.
    pub command_line: &'a str,
}

/// Why a guest cannot start: one clear line with the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartError(pub String);

impl Machine {
    /// Writes tables and kernel into the guest's memory; returns the state in which the boot vCPU starts.
    pub fn load(&self, kernel: &Kernel<'_>) -> Result<VcpuState, StartError> {
        let board = FirmwareBoard {
            vcpus: self.mailboxes.len() as u32,
            ecam: Some(layout::ECAM.start()),
            pci_memory: layout::PCI_MEMORY,
            pci_memory64: None,
            keyboard: false,
            hotplug: self.board.lock().hotplug_slots(),
        };
        let rsdp = firmware::write_acpi(&self.memory, &board).map_err(|error| StartError(error.to_string()))?;
        firmware::write_smbios(&self.memory, &board).map_err(|error| StartError(error.to_string()))?;
        let &Kernel { image, initrd, modules, command_line } = kernel;
        let boot = Boot { kernel: image, initrd, modules, command_line, rsdp };
        loader::load(&self.memory, &boot).map_err(|error| StartError(error.to_string()))
    }
}
