//! Which vendor's virtualisation runs the guests: decided once, here, and named nowhere else.

use addr::{Gpa, Hpa};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use memory::TableFrames;
use nested::npt::Npt;
use nested::{OutOfMemory, PageSize, Tables};
use vcpu::Vcpu;

/// What runs guests on this machine.
pub enum Backend {
    /// AMD-V.
    Svm(svm::Features),
    /// Nothing, and why.
    None(String),
}

/// A guest's second-stage page tables, in the backend's format.
pub struct SecondStage(Tables<Npt, TableFrames>);

impl Backend {
    /// Looks at the processor.
    pub fn detect() -> Self {
        match svm::check() {
            Ok(features) => Self::Svm(features),
            Err(svm::Unavailable::Missing) if has_vmx() => {
                Self::None("this processor has Intel VT-x, which Pollux does not drive yet".to_string())
            }
            Err(why) => Self::None(why.to_string()),
        }
    }

    /// Turns virtualisation on for this processor.
    pub fn enable(&self, index: usize) {
        match self {
            Self::Svm(_) => svm::enable(index),
            Self::None(_) => {}
        }
    }

    /// Tables for a guest.
    pub fn second_stage(&self) -> Result<SecondStage, OutOfMemory> {
        Ok(SecondStage(Tables::new(TableFrames)?))
    }

    /// A vCPU behind those tables, or why there is none.
    pub fn vcpu(&self, second_stage: &SecondStage) -> Result<Box<dyn Vcpu>, String> {
        match self {
            Self::Svm(features) => Ok(Box::new(svm::Svm::new(*features, second_stage.0.root()))),
            Self::None(why) => Err(why.clone()),
        }
    }

    /// The features that matter and whether they are there, for the report.
    pub fn features(&self) -> Vec<(String, bool)> {
        match self {
            Self::Svm(features) => svm::Features::all()
                .iter_names()
                .map(|(name, feature)| (name.to_lowercase().replace('_', " "), features.contains(feature)))
                .collect(),
            Self::None(_) => Vec::new(),
        }
    }
}

impl SecondStage {
    /// Maps a page of guest memory.
    pub fn map(&mut self, gpa: Gpa, hpa: Hpa, size: PageSize) -> Result<(), OutOfMemory> {
        self.0.map(gpa, hpa, size)
    }
}

fn has_vmx() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 5 != 0
}
