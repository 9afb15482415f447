//! Which vendor's virtualisation runs the guests: decided once, here, and named nowhere else.

use addr::{Gpa, HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guestmem::PageSet;
use memory::TableFrames;
use nested::ept::Ept;
use nested::npt::Npt;
use nested::{Format, Mark, OutOfMemory, PageSize, Retired, Tables};
use shell::NotedBy;
use vcpu::Vcpu;

/// What runs guests on this machine.
pub enum Backend {
    /// AMD-V.
    Svm(svm::Features),
    /// Intel VT-x.
    Vmx(vmx::Features),
    /// Nothing, and why.
    None(String),
}

/// A guest's second-stage page tables, in the backend's format.
pub enum SecondStage {
    /// AMD's.
    Npt(Tables<Npt, TableFrames>),
    /// Intel's; pages of 1 GiB are not everywhere.
    Ept {
        /// The tables.
        tables: Tables<Ept, TableFrames>,
        /// Whether they may hold such pages.
        has_huge_pages: bool,
        /// How a page shows that it was written: processors before 2013 note nothing.
        mark: Mark,
        /// Whether the processor logs which pages it marks.
        is_logged: bool,
    },
}

impl Backend {
    /// Looks at the processor.
    pub fn detect() -> Self {
        match (svm::check(), vmx::check()) {
            (Ok(features), _) => Self::Svm(features),
            (_, Ok(features)) => Self::Vmx(features),
            (Err(svm::Unavailable::Missing), Err(vmx::Unavailable::Missing)) => {
                Self::None("this processor has neither AMD-V nor Intel VT-x".to_string())
            }
            (Err(svm::Unavailable::Missing), Err(why)) => Self::None(why.to_string()),
            (Err(why), Err(_)) => Self::None(why.to_string()),
        }
    }

    /// Turns virtualisation on for this processor; says whether it can run guests as the first one can. Firmware sets
    /// each processor's switches on its own.
    #[must_use]
    pub fn enable(&self, index: usize) -> bool {
        match self {
            Self::Svm(_) => svm::check().map(|_| svm::enable(index)).is_ok(),
            Self::Vmx(_) => vmx::check().map(|_| vmx::enable(index)).is_ok(),
            Self::None(_) => true,
        }
    }

    /// Tables for a guest.
    pub fn second_stage(&self) -> Result<SecondStage, OutOfMemory> {
        match self {
            Self::Vmx(features) => Ok(SecondStage::Ept {
                tables: Tables::new(TableFrames)?,
                has_huge_pages: features.contains(vmx::Features::EPT_1_GIB_PAGES),
                mark: match features.contains(vmx::Features::EPT_ACCESSED_DIRTY) {
                    true => Mark::Dirty,
                    false => Mark::Writable,
                },
                is_logged: features.contains(vmx::Features::PAGE_MODIFICATION_LOG),
            }),
            Self::Svm(_) | Self::None(_) => Ok(SecondStage::Npt(Tables::new(TableFrames)?)),
        }
    }

    /// A vCPU behind those tables, or why there is none.
    pub fn vcpu(&self, second_stage: &SecondStage) -> Result<Box<dyn Vcpu>, String> {
        match self {
            Self::Svm(features) => Ok(Box::new(svm::Svm::new(*features, second_stage.root()))),
            Self::Vmx(features) => Ok(Box::new(vmx::Vmx::new(*features, second_stage.root(), interrupts::POSTED))),
            Self::None(why) => Err(why.clone()),
        }
    }

    /// Whether guests can run XSAVES where the processor has it: VT-x has a control for that.
    pub fn has_xsaves(&self) -> bool {
        match self {
            Self::Svm(_) => true,
            Self::Vmx(features) => features.contains(vmx::Features::XSAVES),
            Self::None(_) => false,
        }
    }

    /// How many binary places the processor knows of the ratio at which a guest's TSC runs, where it knows one.
    pub fn tsc_fraction_bits(&self) -> Option<u32> {
        match self {
            Self::Svm(features) => features.tsc_fraction_bits(),
            Self::Vmx(features) => features.tsc_fraction_bits(),
            Self::None(_) => None,
        }
    }

    /// What the report calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Svm(_) => "AMD-V",
            Self::Vmx(_) => "VT-x",
            Self::None(_) => "none",
        }
    }

    /// The same for the shell's replies.
    pub fn reply(&self) -> shell::Backend {
        match self {
            Self::Svm(_) => shell::Backend::Svm,
            Self::Vmx(_) => shell::Backend::Vmx,
            Self::None(why) => shell::Backend::None { reason: why.clone() },
        }
    }

    /// The features that matter and whether they are there, for the report.
    pub fn features(&self) -> Vec<(String, bool)> {
        let readable = |name: &str| name.to_lowercase().replace('_', " ");
        match self {
            Self::Svm(features) => svm::Features::all()
                .iter_names()
                .map(|(name, feature)| (readable(name), features.contains(feature)))
                .collect(),
            Self::Vmx(features) => vmx::Features::all()
                .iter_names()
                .map(|(name, feature)| (readable(name), features.contains(feature)))
                .collect(),
            Self::None(_) => Vec::new(),
        }
    }
}

impl SecondStage {
    /// Maps a page of guest memory.
    pub fn map(&mut self, gpa: Gpa, hpa: Hpa, size: PageSize) -> Result<(), OutOfMemory> {
        match self {
            Self::Npt(tables) => tables.map(gpa, hpa, size),
            Self::Ept { tables, has_huge_pages: false, .. } if size == PageSize::Huge => {
                let parts = (0..HUGE_PAGE_BYTES).step_by(LARGE_PAGE_BYTES as usize);
                parts.into_iter().try_for_each(|offset| {
                    tables.map(gpa.wrapping_add(offset), hpa.wrapping_add(offset), PageSize::Large)
                })
            }
            Self::Ept { tables, .. } => tables.map(gpa, hpa, size),
        }
    }

    /// Maps 4 KiB that the guest may read and run, and never write.
    pub fn map_read_only(&mut self, gpa: Gpa, hpa: Hpa) -> Result<(), OutOfMemory> {
        match self {
            Self::Npt(tables) => tables.map_read_only(gpa, hpa),
            Self::Ept { tables, .. } => tables.map_read_only(gpa, hpa),
        }
    }

    /// Takes 4 KiB away that were mapped so.
    pub fn unmap(&mut self, gpa: Gpa) -> Result<(), OutOfMemory> {
        match self {
            Self::Npt(tables) => tables.unmap(gpa, PageSize::Small),
            Self::Ept { tables, .. } => tables.unmap(gpa, PageSize::Small),
        }
    }

    /// Takes a large page of guest memory away; false where it is in small ones, or there is no memory to split a larger one.
    pub fn unmap_large(&mut self, gpa: Gpa) -> bool {
        fn unmap<F: Format>(tables: &mut Tables<F, TableFrames>, gpa: Gpa) -> bool {
            !tables.is_split(gpa, PageSize::Large) && tables.unmap(gpa, PageSize::Large).is_ok()
        }
        match self {
            Self::Npt(tables) => unmap(tables, gpa),
            Self::Ept { tables, .. } => unmap(tables, gpa),
        }
    }

    /// Whether an address of the guest's is mapped.
    pub fn leads_somewhere(&self, gpa: Gpa) -> bool {
        match self {
            Self::Npt(tables) => tables.translate(gpa).is_some(),
            Self::Ept { tables, .. } => tables.translate(gpa).is_some(),
        }
    }

    /// Starts to note which pages the guest writes; see [`Tables::start_tracking`].
    pub fn start_tracking(&mut self) -> Result<(), OutOfMemory> {
        match self {
            Self::Npt(tables) => tables.start_tracking(Mark::Dirty),
            Self::Ept { tables, mark, .. } => tables.start_tracking(*mark),
        }
    }

    /// Adds the pages that the guest wrote since the last call to `written`, which holds those that the host wrote and
    /// those that the processor logged.
    pub fn harvest(&mut self, written: &mut PageSet) {
        let number = |gpa: Gpa| gpa.as_u64() / PAGE_BYTES;
        match self {
            Self::Npt(tables) => tables.harvest(Mark::Dirty, |gpa, pages| written.insert(number(gpa), pages)),
            Self::Ept { tables, is_logged: true, .. } => {
                let mut next = written.next_from(0);
                while let Some(page) = next {
                    if let Some((gpa, pages)) = tables.harvest_page(Gpa::new(page * PAGE_BYTES)) {
                        written.insert(number(gpa), pages);
                    }
                    next = written.next_from(page + 1);
                }
            }
            Self::Ept { tables, mark, .. } => tables.harvest(*mark, |gpa, pages| written.insert(number(gpa), pages)),
        }
    }

    /// Lets the guest write what was protected to see whether it does; says whether `gpa` is such an address.
    pub fn note_write(&mut self, gpa: Gpa) -> bool {
        match self {
            Self::Ept { tables, mark: Mark::Writable, .. } => tables.note_write(gpa),
            Self::Ept { .. } | Self::Npt(_) => false,
        }
    }

    /// How it is known which pages were written.
    pub fn noted_by(&self) -> NotedBy {
        match self {
            Self::Ept { is_logged: true, .. } => NotedBy::Log,
            Self::Ept { mark: Mark::Writable, .. } => NotedBy::Faults,
            Self::Ept { .. } | Self::Npt(_) => NotedBy::DirtyBits,
        }
    }

    /// Notes no more, in pages as large as they were.
    pub fn stop_tracking(&mut self) -> Retired {
        match self {
            Self::Npt(tables) => tables.stop_tracking(crate::vm::has_huge_pages()),
            Self::Ept { tables, has_huge_pages, .. } => tables.stop_tracking(*has_huge_pages),
        }
    }

    /// Frees tables that no processor walks any more.
    pub fn give_back(&mut self, retired: Retired) {
        match self {
            Self::Npt(tables) => tables.give_back(retired),
            Self::Ept { tables, .. } => tables.give_back(retired),
        }
    }

    fn root(&self) -> Hpa {
        match self {
            Self::Npt(tables) => tables.root(),
            Self::Ept { tables, .. } => tables.root(),
        }
    }
}
