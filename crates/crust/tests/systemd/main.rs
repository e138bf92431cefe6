//! The service under a real systemd: booted as PID 1 in namespaces of its own, on the files that `cargo xtask install`
//! installs; and activated by systemd's own test tool, and by hand.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it saw")]
mod boot;
#[path = "../common/mod.rs"]
mod common;
mod driver;
mod hands;
#[allow(dead_code, unreachable_pub, reason = "xtask's module: the test installs, xtask also uninstalls")]
#[path = "../../../../xtask/src/install.rs"]
mod install;
mod program;
mod tools;

use std::io::Write;

/// Says what was not run, and why; `.ci/run` lists these lines.
fn skip(name: &str, why: &str) {
    // Past the harness, which keeps what a passing test prints to itself.
    let _shown = std::io::stdout().write_all(format!("zoo: skip 1 {name}: {why}\n").as_bytes());
}

/// Set in the copy of this test that runs inside of namespaces.
const INSIDE: &str = "CRUST_TEST_INSIDE";

#[test]
fn a_real_systemd_starts_and_supervises_the_service() {
    if std::env::var_os(INSIDE).is_some() {
        return driver::run();
    }
    boot::run("a_real_systemd_starts_and_supervises_the_service");
}
