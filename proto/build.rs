//! Compiles the `.proto` files with a protobuf compiler written in Rust, so that building needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "dunlin/v1/objects.proto",
        "dunlin/v1/fleet.proto",
        "dunlin/v1/session.proto",
        "dunlin/v1/raft.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    // Ordered maps: the same object is always the same bytes.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
