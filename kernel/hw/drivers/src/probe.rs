//! Which driver a PCI function gets.
//!
//! The main function is [`probe`]; the start-up report prints what it says of each function.

use crate::ahci;
use crate::ide;
use crate::intel_nic::{self, Model};
use crate::nvme;
use crate::pci::Function;
use crate::pci::interrupt::Message;
use crate::virtio::VIRTIO_VENDOR;
use crate::{virtio_blk::VirtioBlk, virtio_net::VirtioNet};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use block::Disk;
use switch::Nic;
use virtio_drivers::Hal;

/// The class of SATA controllers with the AHCI interface.
const AHCI: [u8; 3] = [0x01, 0x06, 0x01];
/// The class of NVMe controllers with the I/O command set.
const NVME: [u8; 3] = [0x01, 0x08, 0x02];

/// The class of IDE controllers, whose interface says where their ports are.
const IDE: [u8; 2] = [0x01, 0x01];

/// Who gives a device its interrupt. All of a device's are one to the host, whatever it raises.
pub trait Interrupts {
    /// The message that the device shall send; `None` where there is none to be had.
    fn message(&mut self) -> Option<Message>;

    /// Brings an ISA interrupt, which the device raises as an edge, to a processor; says whether that was possible.
    fn isa(&mut self, irq: u8) -> bool;

    /// Brings the interrupt line of a device without messages to a processor, as the level that it is; says whether that
    /// was possible. Where the line ends is found by experiment: `pull` has the device pull at it, or let it go.
    fn line(&mut self, pull: &mut dyn FnMut(bool)) -> bool;
}

/// What a function turned out to be.
pub enum Probed {
    /// A disk controller's disks, ready: none, one or several, with one interrupt for all.
    Disks(Vec<Box<dyn Disk>>),
    /// A network card, ready.
    Nic(Box<dyn Nic>),
    /// A disk or network controller without a driver, or one that its driver could not start.
    Unsupported {
        /// What it is and what is wrong, in one line.
        what: String,
    },
    /// Neither a disk nor a network card.
    Other,
}

/// Starts the driver of a function, if it is a disk's or a network card's.
///
/// `interrupts` is asked for what the device shall raise only for a device with a driver; a device that cannot raise it,
/// or gets none, is polled (`has_interrupt`). All queues of a device raise the same one.
/// BARs are mapped by `H::mmio_phys_to_virt`. Devices are waited for by the clock `now_ns`.
pub fn probe<H: Hal + 'static>(
    function: Function,
    interrupts: &mut dyn Interrupts,
    now_ns: &dyn Fn() -> u64,
) -> Probed {
    let place = function.to_string();
    if function.class()[..2] == IDE {
        return match ide::start::<H>(function, interrupts, now_ns) {
            Ok(disks) => Probed::Disks(disks),
            Err(fault) => Probed::Unsupported { what: format!("IDE controller at {place}: {fault}") },
        };
    }
    if let Some(model) = Model::find(function.ids()) {
        return match intel_nic::start::<H>(model, function, interrupts) {
            Ok(nic) => Probed::Nic(Box::new(nic)),
            Err(fault) => Probed::Unsupported { what: format!("{} network card at {place}: {fault}", model.name) },
        };
    }
    let message = || interrupts.message();
    if function.class() == AHCI {
        return match ahci::start::<H>(function, message, now_ns) {
            Ok(disks) => Probed::Disks(disks),
            Err(fault) => Probed::Unsupported { what: format!("AHCI controller at {place}: {fault}") },
        };
    }
    if function.class() == NVME {
        return match nvme::start_function::<H>(function, message, now_ns) {
            Ok(disks) => Probed::Disks(disks),
            Err(fault) => Probed::Unsupported { what: format!("NVMe controller at {place}: {fault}") },
        };
    }
    let started = match function.ids() {
        (VIRTIO_VENDOR, 0x1001 | 0x1042) => {
            VirtioBlk::<H>::start(function, message).map(|disk| Probed::Disks(vec![Box::new(disk)]))
        }
        (VIRTIO_VENDOR, 0x1000 | 0x1041) => {
            VirtioNet::<H>::start(function, message).map(|nic| Probed::Nic(Box::new(nic)))
        }
        _ => {
            return match kind(&function) {
                Some(kind) => Probed::Unsupported { what: format!("{kind} at {place}: not supported yet") },
                None => Probed::Other,
            };
        }
    };
    started.unwrap_or_else(|fault| Probed::Unsupported { what: format!("virtio at {place}: {fault}") })
}

/// What kind of disk or network controller a function without a driver is (PCI Code and ID Assignment 1.11, section 1).
fn kind(function: &Function) -> Option<String> {
    let (vendor, device) = function.ids();
    let name = match (function.class(), vendor, device) {
        ([0x01, ..], VIRTIO_VENDOR, 0x1004 | 0x1048) => "virtio-scsi",
        ([0x01, 0x08, _], ..) => "NVMe controller",
        ([0x01, 0x06, _], ..) => "SATA controller without AHCI",
        ([0x01, 0x04, _], ..) => "RAID controller",
        ([0x01, 0x07, _], ..) => "SAS controller",
        ([0x01, 0x00, _], ..) => "SCSI controller",
        ([0x01, ..], ..) => "mass storage controller",
        ([0x02, ..], 0x8086, _) => "Intel network card",
        ([0x02, ..], 0x10ec, _) => "Realtek network card",
        ([0x02, ..], 0x14e4, _) => "Broadcom network card",
        ([0x02, ..], 0x15b3, _) => "Mellanox network card",
        ([0x02, ..], 0x15ad, 0x07b0) => "VMware vmxnet3 network card",
        ([0x02, ..], ..) => "network card",
        _ => return None,
    };
    Some(format!("{name} [{vendor:04x}:{device:04x}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_named() {
        let kind = |class, vendor, device| kind(&Function::for_test(class, vendor, device));
        assert_eq!(kind([1, 8, 2], 0x1b36, 0x10).unwrap(), "NVMe controller [1b36:0010]");
        assert_eq!(kind([2, 0, 0], 0x8086, 0x15b8).unwrap(), "Intel network card [8086:15b8]");
        assert_eq!(kind([3, 0, 0], 0x1234, 0x1111), None);
        assert_eq!(Function::for_test([1, 6, 1], 0x8086, 0x2922).to_string(), "00:1f.2");
    }
}
