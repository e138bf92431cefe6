//! All programs of the zoo in one binary: `zoo-program NAME` with `ZOO_DIR` set. One binary links and checks in
//! seconds; a hundred of them would not.
#[path = "../programs/mod.rs"]
mod programs;

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    assert!(programs::run(&name), "no program {name:?}");
}
