//! Takes the descriptor set that the envoy-types crate ships but does not export, drops comments, services and options,
//! and compresses it: 3.4 MB become 130 KB, which `json::Schema` unpacks when it is asked for.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, MessageOptions};

/// Where the descriptor set lies inside the crate's source.
const TYPES_BIN: &str = "src/generated/types.bin";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    let path = from_registry()
        .or_else(from_metadata)
        .expect("the source of the crate envoy-types, with its descriptor set");
    println!("cargo::rerun-if-changed={}", path.display());

    let mut set = FileDescriptorSet::decode(fs::read(&path).expect("a readable descriptor set").as_slice())
        .expect("a FileDescriptorSet in types.bin");
    for file in &mut set.file {
        file.source_code_info = None;
        file.options = None;
        file.service.clear();
        file.message_type.iter_mut().for_each(strip_message);
        file.enum_type.iter_mut().for_each(strip_enum);
    }
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&set.encode_to_vec()).expect("writing to memory");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("OUT_DIR, set by cargo"));
    fs::write(out.join("envoy.bin.z"), packed.finish().expect("writing to memory"))
        .expect("a writable OUT_DIR");
}

/// The unpacked crates of the user's cargo home: found without starting another cargo.
fn from_registry() -> Option<PathBuf> {
    let lock =
        fs::read_to_string(Path::new(&env::var_os("CARGO_MANIFEST_DIR")?).join("../Cargo.lock")).ok()?;
    let version = lock.split("name = \"envoy-types\"\nversion = \"").nth(1)?.split('"').next()?;
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/src")).ok()?;
    registries
        .flatten()
        .map(|registry| registry.path().join(format!("envoy-types-{version}")).join(TYPES_BIN))
        .find(|path| path.is_file())
}

/// Vendored sources and other unusual places: cargo knows where they are.
fn from_metadata() -> Option<PathBuf> {
    let cargo = env::var_os("CARGO")?;
    let target = env::var("TARGET").ok()?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--filter-platform", &target])
        .current_dir(env::var_os("CARGO_MANIFEST_DIR")?)
        .output()
        .ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let package = metadata["packages"].as_array()?.iter().find(|package| package["name"] == "envoy-types")?;
    let path = Path::new(package["manifest_path"].as_str()?).parent()?.join(TYPES_BIN);
    path.is_file().then_some(path)
}

fn strip_message(message: &mut DescriptorProto) {
    // Whether a nested message is a map's entry is an option, and the only one that JSON depends on.
    let map_entry = message.options.as_ref().and_then(|options| options.map_entry);
    message.options = map_entry.map(|entry| MessageOptions { map_entry: Some(entry), ..Default::default() });
    message.field.iter_mut().for_each(|field| {
        let packed = field.options.as_ref().and_then(|options| options.packed);
        field.options =
            packed.map(|packed| prost_types::FieldOptions { packed: Some(packed), ..Default::default() });
    });
    message.oneof_decl.iter_mut().for_each(|oneof| oneof.options = None);
    message.nested_type.iter_mut().for_each(strip_message);
    message.enum_type.iter_mut().for_each(strip_enum);
}

fn strip_enum(descriptor: &mut EnumDescriptorProto) {
    // `allow_alias` stays: without it a pool refuses two names for one number.
    if !descriptor.options.as_ref().is_some_and(|options| options.allow_alias()) {
        descriptor.options = None;
    }
    descriptor.value.iter_mut().for_each(|value| value.options = None);
}
