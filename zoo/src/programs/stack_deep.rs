//! Three hundred frames deep in a recursion, each with a canary.
#[inline(never)]
fn dive(zoo: &mut zoo::Zoo, depth: u64) -> bool {
    let canary = std::hint::black_box([depth.wrapping_mul(0x9e37_79b9); 32]);
    let on = if depth == 0 { zoo.gap() } else { dive(zoo, depth - 1) };
    zoo.ok(&format!("frame {depth}"), std::hint::black_box(canary) == [depth.wrapping_mul(0x9e37_79b9); 32]);
    on
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    while dive(&mut zoo, 300) {}
}
