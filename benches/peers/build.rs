//! Generates the services of peers that are used by generated code.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=idl/bench.thrift");
    tonic();
    volo_build::Builder::thrift().add_service("idl/bench.thrift").write().expect("a valid IDL");
}

/// Its messages are written by hand, so that no protobuf compiler is needed.
fn tonic() {
    let method = |name, route, input, output| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("super::{input}"))
            .output_type(format!("super::{output}"))
            .codec_path("tonic_prost::ProstCodec")
            .build()
    };
    let service = Service::builder()
        .name("Bench")
        .package("peers")
        .method(method("sum", "Sum", "SumRequest", "SumReply"))
        .method(method("echo", "Echo", "Body", "Body"))
        .build();
    Builder::new().compile(&[service]);
}
