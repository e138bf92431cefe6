//! Names of threads, awkward ones too.
use rustix::thread::set_name;

fn name() -> String {
    std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    for (i, mine) in [c"worker/0", c"a) R 1 (b", c"fifteen letters", c" "].into_iter().enumerate() {
        zoo.thread(&i.to_string(), move |seat| {
            let set = set_name(mine);
            while seat.gap() {
                seat.eq("set", set, Ok(()));
                seat.eq("name", name(), format!("{}\n", mine.to_string_lossy()));
            }
        });
    }
    let set = set_name(c"zoo) Z (\\n\t");
    zoo.get("set", set);
    let before = name();
    while zoo.gap() {
        zoo.eq("name", name(), before.clone());
    }
}
