//! Three children with two grandchildren each, every one with memory and a parent of its own.
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let root = zoo::sys::getpid();
    let mut kids = Vec::new();
    for i in 0..3_u64 {
        kids.push(zoo.fork(&format!("child{i}"), |mut zoo| {
            let (me, mut memory) = (zoo::sys::getpid(), vec![0; 100_000]);
            zoo::mem::fill(&mut memory, i);
            for j in 0..2_u64 {
                zoo.fork(&format!("grandchild{i}{j}"), |mut zoo| {
                    let mut memory = vec![0; 50_000];
                    zoo::mem::fill(&mut memory, 10 * i + j);
                    while zoo.gap() {
                        zoo.eq("parent", std::os::unix::process::parent_id().cast_signed(), me);
                        zoo.ok("memory", zoo::mem::holds(&memory, 10 * i + j));
                    }
                });
            }
            while zoo.gap() {
                zoo.eq("parent", std::os::unix::process::parent_id().cast_signed(), root);
                zoo.ok("memory", zoo::mem::holds(&memory, i));
            }
        }));
    }
    while zoo.gap() {
        zoo.eq("pid", zoo::sys::getpid(), root);
        for kid in &kids {
            zoo.ok("the child is there", zoo::sys::kill(*kid, 0).is_ok());
        }
    }
}
