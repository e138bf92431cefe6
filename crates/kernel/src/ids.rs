//! Newtypes for the numbers that must never be mixed up: ids, descriptors and addresses of ours and of a target.
use std::fmt;
use std::num::NonZeroI32;

/// Size of a page in bytes. Fixed on x86_64; an architecture with other sizes must ask the kernel.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! tid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(NonZeroI32);
        impl $name {
            /// `None` for zero and negative numbers, which are never a task's id.
            pub fn new(raw: i32) -> Option<Self> {
                if raw > 0 { NonZeroI32::new(raw).map(Self) } else { None }
            }
            /// The plain number, for a syscall or an image record.
            pub fn as_raw(self) -> i32 {
                self.0.get()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

tid! {
    /// Thread id in *our* pid namespace. Proves only "was positive": the task may be gone or replaced.
    HostTid
}
tid! {
    /// Id inside the task's own pid namespace: what goes into images. Never pass it to a syscall made here.
    NsTid
}

/// Slot in the *target's* descriptor table. Ours are `OwnedFd`; there is no conversion between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetFd(pub u32);

impl fmt::Display for TargetFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Address in the target. Proves nothing about being mapped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The plain number.
    pub fn as_raw(self) -> u64 {
        self.0
    }
    /// `None` on overflow.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
    /// Start of the page that holds this address.
    pub fn page_floor(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }
    /// True at the start of a page.
    pub fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_SIZE)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
