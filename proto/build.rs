//! Compiles the `.proto` files with a protobuf compiler written in Rust, so that building needs no `protoc`.

/// Messages that hold a password or a token.
const SECRET: [&str; 6] = [
    "LoginRequest",
    "LoginByProviderRequest",
    "Session",
    "SetPasswordRequest",
    "CreateApiTokenResponse",
    "CreateTokenResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "dunlin/v1/metadata.proto",
        "dunlin/v1/rights.proto",
        "dunlin/v1/objects.proto",
        "dunlin/v1/decisions.proto",
        "dunlin/v1/advice.proto",
        "dunlin/v1/fleet.proto",
        "dunlin/v1/identity.proto",
        "dunlin/v1/session.proto",
        "dunlin/v1/raft.proto",
        "dunlin/v1/operator.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let mut prost = tonic_prost_build::Config::new();
    // What holds a password or a token is never printed; see `rights.rs`.
    prost.skip_debug(SECRET.map(|name| format!(".dunlin.v1.{name}")));
    tonic_prost_build::configure()
        // Ordered maps: the same object is always the same bytes.
        .btree_map(".")
        // The log's payloads are shared between the disk, the cache and every follower: cloning one must cost nothing.
        .bytes(".dunlin.v1.LogEntry")
        .bytes(".dunlin.v1.PackedCommand")
        .bytes(".dunlin.v1.Record")
        .compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
