//! `guest_image ELF BZIMAGE`: wraps a test guest's ELF file into a bzImage.

use anyhow::{Context, Result, bail};
use std::{env, fs};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [from, to] = arguments.as_slice() else { bail!("usage: guest_image ELF BZIMAGE") };
    let elf = fs::read(from).with_context(|| format!("cannot read {from}"))?;
    let image = guest_image::bz_image(&elf).with_context(|| format!("{from} is no guest"))?;
    fs::write(to, image).with_context(|| format!("cannot write {to}"))
}
