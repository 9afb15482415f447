//! The same image on Bochs: VT-x on its Intel model, AMD-V on its AMD model. What is done there is done on QEMU too.

use anyhow::Result;

use super::{guests, host};
use crate::{Artifacts, Model};

/// VT-x: the prompt, and a bare guest that says hello.
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
    guests::run(&mut host, "hello", "", "")?;
    host.power_off()
}
