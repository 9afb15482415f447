//! Builds everything that a boot needs and says where it is: the kernel, the guests and the image, as [`e2e::Artifacts`].

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use e2e::{Accel, Artifacts};

use crate::image::{self, Contents};
use crate::{bochs, guest, kernel, paths};

/// Where Debian's package ovmf puts the two halves of the firmware, newest name first.
const OVMF: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

/// Builds what tests and demonstrations boot.
pub fn build(accel: Accel) -> Result<Artifacts> {
    let kernel = kernel::build()?;
    kernel::check_no_simd(&kernel.elf)?;
    let guests = guest::guests()?;
    let image = paths::target().join("pollux.img");
    let usb_image = paths::target().join("pollux-usb.img");
    let test_image = paths::target().join("pollux-test.img");
    let ovmf = ovmf()?;
    let contents = Contents::demonstration(&guests, &ovmf);
    let bare_guests = kernel::build_guests()?;
    image::build(&kernel.elf, &contents, &image)?;
    image::build_usb(&kernel.elf, &contents, &usb_image)?;
    image::build(&kernel.elf, &Contents::tests(&guests, &bare_guests)?, &test_image)?;
    Ok(Artifacts {
        kernel32: kernel.elf32,
        image,
        usb_image,
        test_image,
        datastore: guests.datastore,
        uefi_datastore: guests.uefi_datastore,
        linux: guests.linux,
        debian_initrd: guests.debian_initrd,
        tiny_initrd: guests.tiny_initrd,
        debian_programs: guests.debian_programs,
        guests: bare_guests,
        ovmf,
        bochs: bochs::find().map_err(|error| format!("{error:#}")),
        accel,
        logs: paths::e2e_logs(),
    })
}

/// The firmware: code and variables.
pub fn ovmf() -> Result<(PathBuf, PathBuf)> {
    for (code, variables) in OVMF {
        if Path::new(code).exists() && Path::new(variables).exists() {
            return Ok((code.into(), variables.into()));
        }
    }
    bail!("the UEFI firmware is missing (package ovmf): cargo xtask setup installs it")
}
