//! x86_64: interpreter, signal frame, registers.
pub mod interp;
pub mod sigframe;
