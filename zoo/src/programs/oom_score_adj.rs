//! The word on who dies first when memory runs out.
const FILE: &str = "/proc/self/oom_score_adj";

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.fork("child", |mut zoo| {
        let set = std::fs::write(FILE, "700");
        zoo.get("set", set);
        while zoo.gap() {
            zoo.eq("the child's score", std::fs::read_to_string(FILE).unwrap_or_default(), "700\n".to_owned());
        }
    });
    let set = std::fs::write(FILE, "321");
    zoo.get("set", set);
    while zoo.gap() {
        zoo.eq("score", std::fs::read_to_string(FILE).unwrap_or_default(), "321\n".to_owned());
    }
}
