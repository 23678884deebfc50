//! The program `envoy` in the image of waypoints, gateways and sidecars: a plain Envoy, without the
//! extensions that only Istio's build has.

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let run = underpass_tests::envoy::run(std::env::args().skip(1).collect());
    match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, run),
        Err(e) => {
            eprintln!("no runtime: {e}");
            ExitCode::FAILURE
        }
    }
}
