//! Puts the same environment and descriptors before libsystemd and before this crate, and compares the answers.
//!
//! One thread, no libtest: the environment is changed all the time. Without libsystemd every test is skipped, counted
//! and named; with `SD_DAEMON_NO_SKIP` set a skip fails. `SD_DAEMON_LIBSYSTEMD` names another library, `SD_DAEMON_SEED`
//! another seed.
mod api;
mod environments;
mod notifications;
mod questions;
mod report;
mod rust_api;
mod vsock;

use report::{Findings, Report};
use rust_api::RustApi;

fn main() {
    let mut report = Report::new();
    let theirs = match cfg!(feature = "disable-systemd") {
        true => Err("built with disable-systemd: nothing to compare, see tests/disabled.rs".into()),
        false => api::Library::reference(),
    };
    let mut test = |name: &str, f: &dyn Fn(&api::Library, &mut Findings) -> Result<(), String>| {
        report.run(name, |found| theirs.as_ref().map_err(Clone::clone).and_then(|lib| f(lib, found)));
    };
    test("listen_fds in 20000 environments", &|lib, found| {
        environments::listen_fds(lib, &RustApi, found, 20_000);
        Ok(())
    });
    test("owned descriptors and names in 10000 environments", &|lib, found| {
        environments::with_names(lib, found, 10_000);
        Ok(())
    });
    test("watchdog_enabled in 20000 environments", &|lib, found| {
        environments::watchdog(lib, found, 20_000);
        Ok(())
    });
    test("every descriptor, every question", &|lib, found| questions::all(lib, &RustApi, found));
    test("socket addresses", &questions::addresses);
    test("notifications, byte by byte", &|lib, found| notifications::bytes(lib, found, 3_000));
    test("every documented assignment", &notifications::assignments);
    test("addresses of notification sockets", &|lib, found| notifications::addresses(lib, &RustApi, found, 5_000));
    test("barrier", &notifications::barrier);
    test("notification as another user", &notifications::other_user);
    test("vsock, call by call", &vsock::delivery);
    // These change the mounts of this process, hence last.
    test("message queues", &|lib, found| match cfg!(feature = "disable-mq") {
        true => Err("built with disable-mq: nothing to compare, see tests/disabled.rs".into()),
        false => questions::message_queues(lib, &RustApi, found),
    });
    test("booted", &|lib, found| questions::booted(lib, &RustApi, found));
    test("journal fields, byte by byte", &notifications::journal);
    report.finish()
}
