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

/// What an ordinary user does with a service of its own; its process is this program again.
const AS_USER: &str = "the_client_of_an_ordinary_user";

/// Not a test by itself: called by the one below, inside, as a user with a manager.
#[test]
fn the_client_of_an_ordinary_user() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| dir == driver::USERS_DIR) {
        driver::be_users_client();
    }
}

#[test]
fn a_real_systemd_starts_and_supervises_the_service() {
    if std::env::var_os(INSIDE).is_some() {
        return driver::run();
    }
    boot::run("a_real_systemd_starts_and_supervises_the_service");
}
