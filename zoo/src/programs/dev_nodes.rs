//! Devices that every system has: null, zero, full, random, urandom.
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let open = |name: &str| std::fs::OpenOptions::new().read(true).write(true).open(format!("/dev/{name}")).ok();
    let names = ["null", "zero", "full", "random", "urandom"];
    let mut devices: Vec<_> = names.into_iter().filter_map(open).collect();
    zoo.eq("devices", devices.len(), names.len());
    while zoo.gap() {
        for (device, name) in devices.iter_mut().zip(names) {
            zoo.eq("link", zoo::proc::fd_link(device.as_raw_fd()), format!("/dev/{name}"));
            let mut bytes = [1; 16];
            let read = device.read(&mut bytes).unwrap_or(99);
            zoo.eq(&format!("reading {name}"), read, if name == "null" { 0 } else { 16 });
            zoo.ok("random bytes", name != "urandom" || bytes != [1; 16]);
            zoo.ok("zero bytes", name != "zero" || bytes == [0; 16]);
            zoo.eq(&format!("writing {name}"), device.write(b"x").is_ok(), name != "full");
        }
    }
}
