//! Compiles the record schemas of `proto/` with a Rust protobuf compiler: no protoc is needed.
use protox::prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value,
};
use std::error::Error;
use std::fmt::Write;
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
    fs::write(format!("{}/schema.rs", env::var("OUT_DIR")?), schema_tables(&compiler.descriptor_pool())?)?;

    let mut set_without_options = set;
    set_without_options.file.retain(|f| f.name() != "show.proto" && !f.name().starts_with("google/"));
    for file in &mut set_without_options.file {
        file.dependency.retain(|name| name != "show.proto");
    }
    let mut config = prost_build::Config::new();
    for field in boxed(&compiler.descriptor_pool())? {
        config.boxed(field);
    }
    config
        .default_package_filename("records")
        .type_attribute(".", "#[allow(missing_docs, reason = \"fields keep CRIU's names; proto/*.proto comments on those that need it\")]")
        .compile_fds(set_without_options)?;
    Ok(())
}

/// Parts of records of which each has one of many, or only the first of many: the place for all of them would be a page for
/// each open file and thread.
fn boxed(pool: &DescriptorPool) -> Result<Vec<String>, Box<dyn Error>> {
    let mut found = Vec::new();
    for (record, part) in [("file_entry", ""), ("core_entry", "ti_"), ("core_entry", "tc")] {
        let message = pool.get_message_by_name(record).ok_or(record)?;
        let parts = message.fields().filter(|f| matches!(f.kind(), Kind::Message(_)) && f.name().starts_with(part));
        found.extend(parts.map(|f| format!(".{record}.{}", f.name())));
    }
    Ok(found)
}

/// The schema as tables for the JSON half of the crate (`src/schema.rs` has their types).
fn schema_tables(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let ours = |file: &str| file != "show.proto" && !file.starts_with("google/");
    let messages: Vec<MessageDescriptor> = pool.all_messages().filter(|m| ours(m.parent_file().name())).collect();
    let enums: Vec<EnumDescriptor> = pool.all_enums().filter(|e| ours(e.parent_file().name())).collect();
    let mut out = String::from("pub(crate) static MESSAGES: &[Message] = &[\n");
    for message in &messages {
        writeln!(out, "Message {{ name: {:?}, fields: &[", message.name())?;
        let mut fields: Vec<FieldDescriptor> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        for field in fields {
            let ty = match field.kind() {
                Kind::Message(m) => format!("Message({})", messages.iter().position(|x| *x == m).ok_or("a message")?),
                Kind::Enum(e) => format!("Enum({})", enums.iter().position(|x| *x == e).ok_or("an enum")?),
                Kind::Bytes if flag(&field, "text") => "Text".to_owned(),
                Kind::String => "Text".to_owned(),
                scalar => {
                    let name = format!("{scalar:?}");
                    name.get(..1).unwrap_or_default().to_uppercase() + name.get(1..).unwrap_or_default()
                }
            };
            let label = match field.cardinality() {
                Cardinality::Required => "Required",
                Cardinality::Optional => "Optional",
                Cardinality::Repeated => "Repeated",
            };
            writeln!(
                out,
                "Field {{ number: {}, name: {:?}, ty: Type::{ty}, label: Label::{label}, packed: {}, show: {} }},",
                field.number(),
                field.name(),
                field.is_list() && field.is_packed(),
                show(&field)?,
            )?;
        }
        writeln!(out, "] }},")?;
    }
    writeln!(out, "];\npub(crate) static ENUMS: &[Enum] = &[")?;
    for e in &enums {
        let values: Vec<(i32, String)> = e.values().map(|v| (v.number(), v.name().to_owned())).collect();
        writeln!(out, "Enum {{ name: {:?}, values: &{values:?} }},", e.name())?;
    }
    writeln!(out, "];")?;
    Ok(out)
}

fn option(field: &FieldDescriptor, name: &str) -> Option<Value> {
    let extension = field.parent_pool().get_extension_by_name(name)?;
    let options = field.options();
    options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
}

fn flag(field: &FieldDescriptor, name: &str) -> bool {
    option(field, name).is_some_and(|v| v.as_bool() == Some(true))
}

fn show(field: &FieldDescriptor) -> Result<String, Box<dyn Error>> {
    if let Some(table) = option(field, "flags") {
        return Ok(format!("Show::Flags({:?})", table.as_str().ok_or("flags is text")?));
    }
    if let Some(table) = option(field, "values") {
        return Ok(format!("Show::Values({:?})", table.as_str().ok_or("values is text")?));
    }
    let number = option(field, "show").and_then(|v| v.as_enum_number()).unwrap_or(0);
    let name =
        ["Plain", "Hex", "Ip", "Dev", "OldDev", "Quoted"].get(number as usize).ok_or("an unknown way to show")?;
    Ok(format!("Show::{name}"))
}
