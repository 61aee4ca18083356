//! The one binary. Reads arguments and environment, and is a thin shell around everything else.

mod args;
mod client;
mod context;
mod daemon;
mod errors;
mod failure;
mod identity;
mod local;
mod output;
mod trace;
mod verbs;
mod wait;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, ControllerArgs, Noun};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two providers linked would panic at the first handshake; one is chosen before anything dials.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let format = cli.output;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failed(format, &failure);
            ExitCode::from(failure.exit())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let contexts = contexts_path();
    let collector = cli
        .otlp_endpoint
        .clone()
        .or_else(|| std::env::var("DUNLIN_OTLP_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()));
    match cli.noun {
        Noun::Controller(ControllerArgs { verb: None, daemon: Some(args) }) => {
            daemon::controller(args, logs().as_deref(), collector.as_deref())
        }
        Noun::Restore(args) => verbs::backup::restore(&args),
        Noun::Agent(args) => daemon::agent(args, logs().as_deref(), collector.as_deref()),
        Noun::Up(args) => client_runtime()?.block_on(local::up(args, &contexts)),
        Noun::Down(args) => local::down(&args, &contexts),
        _ => {
            let endpoint = std::env::var("DUNLIN_ENDPOINT").ok();
            let token = std::env::var("DUNLIN_API_TOKEN").ok().filter(|token| !token.is_empty());
            let token = token.map(dunlin_model::Secret::new);
            let surroundings = verbs::Surroundings { contexts, endpoint, token };
            client_runtime()?.block_on(trace::command(collector.as_deref(), verbs::run(cli, &surroundings)))
        }
    }
}

/// One thread is plenty for a command that mostly waits.
fn client_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::io("starting the runtime"))
}

/// What is to be logged, if anybody says.
fn logs() -> Option<String> {
    std::env::var("RUST_LOG").ok()
}

fn contexts_path() -> std::path::PathBuf {
    if let Some(path) = std::env::var_os("DUNLIN_CONFIG") {
        return path.into();
    }
    let home = || std::env::var_os("HOME").map(|home| std::path::PathBuf::from(home).join(".config"));
    let config = std::env::var_os("XDG_CONFIG_HOME").map(Into::into).or_else(home).unwrap_or_default();
    config.join("dunlin/contexts.yaml")
}
