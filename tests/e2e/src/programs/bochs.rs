//! The same image on Bochs: VT-x on its Intel model, AMD-V on its AMD model. What is done there is done on QEMU too.

use anyhow::{Context, Result};

use super::{guests, host};
use crate::{Artifacts, Model};

/// VT-x: the prompt, a bare guest that says hello, and one that looks at CR8, which each vendor's hardware keeps its own way.
pub fn vmx_hello(artifacts: &Artifacts) -> Result<()> {
    hello(artifacts, "bochs_vmx_hello", Model::Intel)
}

/// AMD-V: the same.
pub fn svm_hello(artifacts: &Artifacts) -> Result<()> {
    hello(artifacts, "bochs_svm_hello", Model::Amd)
}

fn hello(artifacts: &Artifacts, name: &str, model: Model) -> Result<()> {
    let mut host = artifacts.boot_bochs(name, model, 2)?;
    host::answers(&mut host, model.backend(), 2)?;
    for guest in ["hello", "cr8"] {
        guests::run(&mut host, guest, "", "").with_context(|| format!("test guest `{guest}`"))?;
    }
    host.power_off()
}
