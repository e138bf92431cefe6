//! Compiles `proto/rpc.proto` in pure Rust: no protoc is needed.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/rpc.proto");
    let files = protox::compile(["rpc.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
