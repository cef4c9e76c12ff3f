//! Compiles `proto/*.proto` with the pure-Rust protobuf compiler: no protoc has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "longstrap/exit.proto",
        "longstrap/progress.proto",
        "longstrap/rendezvous.proto",
        "longstrap/rank.proto",
    ];
    let set = protox::compile(files, ["."])?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
