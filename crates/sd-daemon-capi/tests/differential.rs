//! The C library against libsystemd: same environments, descriptors and notifications, both called through C.
//!
//! One thread, no libtest, as in `sd-daemon`'s own differential test, whose cases these are. Without libsystemd every
//! comparison is skipped, counted and named; with `SD_DAEMON_NO_SKIP` set a skip fails.
#![allow(unsafe_code, reason = "calls variadic C functions and receives what they send")]
#![allow(clippy::unwrap_used, reason = "a test that cannot make its sockets must stop")]
#[path = "../../sd-daemon/tests/differential/api.rs"]
mod api;
#[path = "../../sd-daemon/tests/differential/environments.rs"]
#[allow(dead_code, reason = "the parts about Rust types belong to the other test")]
mod environments;
#[path = "../../sd-daemon/tests/differential/notifications.rs"]
#[allow(dead_code, reason = "the parts about Rust types belong to the other test")]
mod notifications;
#[path = "../../sd-daemon/tests/differential/questions.rs"]
#[allow(dead_code, reason = "the parts about Rust types belong to the other test")]
mod questions;
#[path = "../../sd-daemon/tests/differential/report.rs"]
mod report;
#[path = "../../sd-daemon/tests/differential/rust_api.rs"]
#[allow(dead_code, reason = "the parts about Rust types belong to the other test")]
mod rust_api;

use api::Library;
use report::{Findings, Report};
use std::ffi::{CString, c_char, c_int};
use std::os::unix::net::UnixDatagram;

fn main() {
    let mut report = Report::new();
    // The library made from this crate lies beside this program.
    let so = std::env::current_exe().unwrap().with_file_name("libsd_daemon_capi.so");
    let ours = Library::open(so.to_str().unwrap());
    let theirs = Library::reference();
    let mut test = |name: &str, f: &dyn Fn(&Library, &Library, &mut Findings) -> Result<(), String>| {
        report.run(name, |found| {
            let ours = match &ours {
                Ok(ours) => ours,
                Err(e) => {
                    found.same(|| e.clone(), &true, &false);
                    return Ok(());
                }
            };
            f(theirs.as_ref().map_err(Clone::clone)?, ours, found)
        });
    };
    test("C: listen_fds in 20000 environments", &|theirs, ours, found| {
        environments::listen_fds(theirs, ours, found, 20_000);
        Ok(())
    });
    test("C: every descriptor, every question", &|theirs, ours, found| questions::all(theirs, ours, found));
    test("C: addresses of notification sockets", &|theirs, ours, found| {
        notifications::addresses(theirs, ours, found, 5_000)
    });
    test("C: notify and notifyf", &|theirs, ours, found| notify(theirs, ours, found));
    test("C: message queues", &|theirs, ours, found| questions::message_queues(theirs, ours, found));
    test("C: booted", &|theirs, ours, found| questions::booted(theirs, ours, found));
    report.finish()
}

type Notifyf = unsafe extern "C" fn(c_int, *const c_char, ...) -> c_int;

/// What arrives, from `sd_notify` and from `sd_notifyf` with arguments in every place arguments can be: integer
/// registers, vector registers, the stack.
fn notify(theirs: &Library, ours: &Library, found: &mut Findings) -> Result<(), String> {
    use api::Api;
    let dir = questions::Scratch::new("capi-notify");
    let path = dir.0.join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = path.to_str().unwrap().to_owned();
    let sent = |send: &dyn Fn() -> c_int, found: &mut Findings| {
        environments::set_var("NOTIFY_SOCKET", Some(address.as_bytes()));
        let code = send();
        let mut buf = vec![0; 1 << 20];
        let text = socket.recv(&mut buf).ok().map(|n| String::from_utf8_lossy(&buf[..n]).into_owned());
        found.same(|| format!("sent and received, {text:?}"), &(code > 0), &text.is_some());
        (code, text, std::env::var_os("NOTIFY_SOCKET").is_some())
    };
    for unset in [false, true] {
        for state in ["READY=1", "", "STATUS=a\nREADY=1\n", &"x".repeat(100_000)] {
            let state = CString::new(state).unwrap();
            let want = sent(&|| theirs.notify(unset, &state), found);
            let got = sent(&|| ours.notify(unset, &state), found);
            found.same(|| format!("sd_notify({unset}, {state:?})"), &want, &got);
        }
    }
    let null = |lib: &Library| {
        let f = lib.symbol(c"sd_notify").unwrap();
        // SAFETY: the documented signature; NULL is an error, not a crash.
        unsafe {
            let f: unsafe extern "C" fn(c_int, *const c_char) -> c_int = std::mem::transmute(f);
            f(0, std::ptr::null())
        }
    };
    found.same(|| "sd_notify(0, NULL)".into(), &null(theirs), &null(ours));

    let variadic = |lib: &Library| -> Notifyf {
        let f = lib.symbol(c"sd_notifyf").unwrap();
        // SAFETY: the documented signature.
        unsafe { std::mem::transmute(f) }
    };
    let (a, b) = (variadic(theirs), variadic(ours));
    let s = c"string";
    /// One call, as either library's function is to be called.
    macro_rules! calls {
        ($($what:literal: $($arg:expr),*;)*) => {
            [$(($what, Box::new(|f: Notifyf| {
                // SAFETY: the format gets the arguments it asks for; strings live through the call.
                unsafe { f($($arg),*) }
            }) as Box<dyn Fn(Notifyf) -> c_int>)),*]
        };
    }
    let mixed = c"%g %d %g %d %g %d %g %d %g %d %g %d %g %g %g %g %s".as_ptr();
    let calls = calls! {
        "no arguments": 0, c"READY=1 100%%".as_ptr();
        "unset": 1, c"MAINPID=%lu".as_ptr(), 4711u64;
        "registers": 0, c"%d %s %x %c".as_ptr(), -1, s.as_ptr(), 255, 65;
        "stack": 0, c"%d %d %d %d %d %ld %s %hhd".as_ptr(), 1, 2, 3, 4, 5, i64::MIN, s.as_ptr(), 7;
        "vectors": 0, c"%g %g %.17g".as_ptr(), 1.5, -0.0, 1.0 / 3.0;
        "all, mixed": 0, mixed, 1.0, 1, 2.0, 2, 3.0, 3, 4.0, 4, 5.0, 5, 6.0, 6, 7.0, 8.0, 9.0, 10.0, s.as_ptr();
        "NULL": 0, std::ptr::null();
        "long": 0, c"STATUS=%0100000d".as_ptr(), 5;
    };
    for (what, call) in calls {
        let want = sent(&|| call(a), found);
        let got = sent(&|| call(b), found);
        found.same(|| format!("sd_notifyf, {what}"), &want, &got);
    }
    environments::set_var("NOTIFY_SOCKET", None);
    Ok(())
}
