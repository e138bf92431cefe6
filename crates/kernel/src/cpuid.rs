//! What the processor says of itself: CPUID leaves.
use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

/// One leaf of CPUID, all zero where the processor has none of that number.
pub fn leaf(leaf: u32, sub: u32) -> CpuidResult {
    let highest = __cpuid(leaf & 0x8000_0000).eax;
    if leaf > highest {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_beyond_the_last_are_empty() {
        assert_ne!(leaf(1, 0).edx, 0);
        let none = leaf(0x7fff_0000, 0);
        assert_eq!((none.eax, none.ebx, none.ecx, none.edx), (0, 0, 0, 0));
    }
}
