//! Compiles the record schemas of `proto/` with a Rust protobuf compiler: no protoc is needed.
use std::error::Error;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::new();
    for entry in fs::read_dir("proto")? {
        let name = entry?.file_name();
        let name = name.to_str().ok_or("a file name in proto/ is not UTF-8")?;
        if name.ends_with(".proto") {
            files.push(name.to_owned());
        }
    }
    files.sort();

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(&files)?;
    let set = compiler.file_descriptor_set();
    fs::write(format!("{}/schema.bin", env::var("OUT_DIR")?), compiler.encode_file_descriptor_set())?;

    let mut set_without_options = set;
    set_without_options.file.retain(|f| f.name() != "show.proto" && !f.name().starts_with("google/"));
    for file in &mut set_without_options.file {
        file.dependency.retain(|name| name != "show.proto");
    }
    prost_build::Config::new()
        .default_package_filename("records")
        .type_attribute(".", "#[allow(missing_docs, reason = \"fields keep CRIU's names; proto/*.proto comments on those that need it\")]")
        .compile_fds(set_without_options)?;
    Ok(())
}
