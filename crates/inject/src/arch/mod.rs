//! The architecture seam: everything that knows registers, instructions or signal frames lives below.
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("crust knows x86_64 only so far; add arch/<name> with the same items");
