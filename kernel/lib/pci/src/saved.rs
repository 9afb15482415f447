//! The saved form of a function's configuration space and of its message table; each stands beside what it saves.

pub use crate::config_space::Saved as ConfigSpace;
pub use crate::msix::Saved as MsiX;
