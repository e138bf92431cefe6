//! Memory: mappings, their pages and the mm's own fields; both halves.
//!
//! Dump: [`collect()`] reads every mapping of a frozen process and refuses what cannot come back; [`dump_pages`] writes the
//! content of private memory; [`SharedMemory`] gathers the anonymous shared segments of the whole tree and writes each once.
//! Everything is seen from outside: nothing runs in the target.
//!
//! Restore: [`Images::read`] checks the records; [`Segments`] makes shared memory before the first fork; in each task
//! [`hold()`] maps what its children share with it before they are forked, [`stage()`] maps and fills everything that may already stand at its final address and parks the rest; the plan then
//! clears and moves.
mod aio;
mod collect;
mod copier;
mod dump;
mod fill;
mod held;
mod huge;
mod hugetlb;
pub mod layout;
mod load;
mod pages;
mod shared;
mod stage;
mod sysv;
pub mod twin;

pub use collect::{FileIds, Mm, Vma, collect};
pub use dump::{Ahead, PageCount, PagesDump, dump_pages, dump_pages_into};
pub use held::{Held, hold, mark_common};
pub use load::{Images, Pages, needs_file};
pub use shared::{Segments, SharedMemory, dump_file, fill_file};
pub use stage::{MapFiles, StageOptions, Staged, stage};

/// Bits of `vma_entry.status`.
pub mod status {
    /// To be saved and restored.
    pub const REGULAR: u32 = 1 << 0;
    /// `[vsyscall]`.
    pub const VSYSCALL: u32 = 1 << 2;
    /// The vDSO's code.
    pub const VDSO: u32 = 1 << 3;
    /// The brk heap.
    pub const HEAP: u32 = 1 << 5;
    /// Private mapping of a file.
    pub const FILE_PRIVATE: u32 = 1 << 6;
    /// Shared mapping of a file.
    pub const FILE_SHARED: u32 = 1 << 7;
    /// Shared anonymous memory.
    pub const ANON_SHARED: u32 = 1 << 8;
    /// Private anonymous memory.
    pub const ANON_PRIVATE: u32 = 1 << 9;
    /// System V shared memory.
    pub const SYSVIPC: u32 = 1 << 10;
    /// A packet socket's ring.
    pub const SOCKET: u32 = 1 << 11;
    /// The vDSO's data.
    pub const VVAR: u32 = 1 << 12;
    /// An AIO context's ring.
    pub const AIORING: u32 = 1 << 13;
    /// A memfd.
    pub const MEMFD: u32 = 1 << 14;
    /// Shadow stack.
    pub const SHADOW_STACK: u32 = 1 << 15;
    /// No mapping, but a guard region inside one.
    pub const GUARD: u32 = 1 << 16;
    /// `[uprobes]`.
    pub const UPROBES: u32 = 1 << 17;
    /// A device that a plugin saves.
    pub const PLUGIN: u32 = 1 << 27;
}

/// Asks once, in the coordinator, what every task would otherwise ask for itself. Gives the coordinator's own mappings.
///
/// # Errors
/// If /proc/self/maps cannot be read.
pub fn prepare() -> crate::Result<Vec<(u64, u64)>> {
    let own = layout::own()?;
    let _warm =
        (layout::own_vdso(&layout::Special::of(&own)), layout::vdso_content_len(false), fill::huge_pages_allowed());
    Ok(layout::busy(&own))
}

/// Bits of `pagemap_entry.flags`.
pub mod page_flags {
    /// The pages are in the parent images.
    pub const PARENT: u32 = 1 << 0;
    /// The pages may be brought by a lazy-pages server.
    pub const LAZY: u32 = 1 << 1;
    /// The pages are in this pages image.
    pub const PRESENT: u32 = 1 << 2;
}

/// Highest address of user space on x86_64 with four-level page tables, plus one.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
