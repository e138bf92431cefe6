//! What /proc says about the program itself: executable, arguments, environment, auxiliary vector, code and data.
use std::fs::{read, read_link};

/// Addresses of code, data, heap, stack, arguments and environment: fields 26–28 and 45–51 of stat.
fn addresses() -> Vec<String> {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    [23, 24, 25, 42, 43, 44, 45, 46, 47, 48].iter().map(|&i| fields.get(i).unwrap_or(&"").to_string()).collect()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let look = || {
        let files = ["cmdline", "environ", "auxv"].map(|f| read(format!("/proc/self/{f}")).unwrap_or_default());
        (read_link("/proc/self/exe").ok(), files, addresses())
    };
    let entry = || [rustix::param::page_size(), rustix::param::clock_ticks_per_second() as usize];
    let before = (look(), entry());
    zoo.ok("it knows its name", before.0.1[0].windows(10).any(|w| w == b"self_image"));
    zoo.ok("it has addresses", before.0.2.iter().all(|a| a.len() > 3));
    while zoo.gap() {
        zoo.eq("exe, cmdline, environ, auxv, addresses", look(), before.0.clone());
        zoo.eq("getauxval", entry(), before.1);
    }
}
