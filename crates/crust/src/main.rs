//! The `crust` binary: command line, service, swrk, demo.
fn main() {}
