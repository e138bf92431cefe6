//! A stopped thread borrowed and given back: remote syscalls, plans, and the only assembly of the project.
pub mod arch;
pub mod plan;
