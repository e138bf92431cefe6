//! Developer commands: `cargo xtask check`, `cargo xtask install`.
fn main() {}
