//! `explain`: why something is as it is.

use clap::{Args, ValueEnum};
use dunlin_model::Kind;
use dunlin_model::advice::Explanation;
use dunlin_model::vm::Vm;
use dunlin_proto::v1;

use super::Session;
use crate::failure::Failure;
use crate::output::advice;

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// What it is
    kind: ExplainKind,
    name: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExplainKind {
    Vm,
    Host,
    Migration,
}

pub(crate) async fn run(session: &Session, args: ExplainArgs) -> Result<(), Failure> {
    let kind = match args.kind {
        ExplainKind::Vm => Kind::Vm,
        ExplainKind::Host => Kind::Host,
        ExplainKind::Migration => Kind::Migration,
    };
    let request = v1::ExplainRequest { kind: v1::Kind::from(kind).into(), name: args.name, vm: None };
    advice::explanation(session.format, &ask(session, request).await?)
}

/// Where a VM that is yet to be created would go.
pub(crate) async fn rehearse(session: &Session, vm: Vm) -> Result<Explanation, Failure> {
    let request = v1::ExplainRequest { kind: v1::Kind::Vm.into(), name: String::new(), vm: Some(vm.into()) };
    ask(session, request).await
}

async fn ask(session: &Session, request: v1::ExplainRequest) -> Result<Explanation, Failure> {
    let told = session.fleet.advise(async |mut client| client.explain(request.clone()).await).await?;
    Ok(Explanation::try_from(told)?)
}
