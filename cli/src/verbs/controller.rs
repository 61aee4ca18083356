//! Verbs of controllers: who they are, taking one in or out, handing the leadership over.

use clap::Subcommand;
use dunlin_model::ErrorCode;
use dunlin_proto::{Fault, v1};
use tonic::Streaming;

use super::Session;
use crate::args::{Format, whole};
use crate::client::{Line, endpoint};
use crate::failure::Failure;
use crate::output;

/// How often an addition is asked for again after the leadership has moved.
const AGAIN_MAX: usize = 5;

#[derive(Debug, Subcommand)]
pub(crate) enum ControllerVerb {
    /// List the controllers as the leader sees them
    List,
    /// Take in a controller that runs with --join: it learns, then votes. Repeat it to go on after a break
    Add {
        /// Its number, never used before
        #[arg(value_parser = whole::<u64>("1 and up"))]
        id: u64,
        /// Where clients and agents reach it: host:port
        api: String,
        /// Where the other controllers reach it: host:port
        raft: String,
    },
    /// Put a new controller in the place of a lost one, in one step
    Replace {
        /// The number of the lost one
        #[arg(value_parser = whole::<u64>("1 and up"))]
        lost: u64,
        /// The number of the new one, never used before
        #[arg(value_parser = whole::<u64>("1 and up"))]
        id: u64,
        /// Where clients and agents reach the new one: host:port
        api: String,
        /// Where the other controllers reach the new one: host:port
        raft: String,
        /// Even when the old one still answers, or too few others do
        #[arg(long)]
        force: bool,
    },
    /// Take a controller out; the leader hands over first
    Remove {
        /// Its number
        #[arg(value_parser = whole::<u64>("1 and up"))]
        id: u64,
        /// Even when too few of the others answer
        #[arg(long)]
        force: bool,
    },
    /// Hand the leadership to another controller
    Transfer {
        /// Its number [default: the one that has most of the log]
        #[arg(value_parser = whole::<u64>("1 and up"))]
        to: Option<u64>,
    },
}

pub(crate) async fn run(session: &Session, verb: ControllerVerb) -> Result<(), Failure> {
    match verb {
        ControllerVerb::List => list(session).await,
        ControllerVerb::Add { id, api, raft } => add(session, id, &api, raft, 0, false).await,
        ControllerVerb::Replace { lost, id, api, raft, force } => {
            if let Some(v1::ListControllersResponse { leader, .. }) =
                state(session).await.ok().filter(|s| s.leader == lost)
            {
                transfer(session, leader, 0).await?;
            }
            add(session, id, &api, raft, lost, force).await
        }
        ControllerVerb::Remove { id, force } => {
            let leader = state(session).await?.leader;
            if leader == id {
                transfer(session, leader, 0).await?;
            }
            let request = v1::RemoveControllerRequest { id, force };
            let call = async |mut client: Client| client.remove_controller(request).await;
            follow(session.fleet.operate(call).await?).await
        }
        ControllerVerb::Transfer { to } => {
            let leader = state(session).await?.leader;
            transfer(session, leader, to.unwrap_or(0)).await
        }
    }
}

pub(super) type Client = v1::operator_client::OperatorClient<Line>;

async fn state(session: &Session) -> Result<v1::ListControllersResponse, Fault> {
    let call = async |mut client: Client| client.list_controllers(v1::ListControllersRequest {}).await;
    session.fleet.operate(call).await
}

async fn add(
    session: &Session,
    id: u64,
    api: &str,
    raft: String,
    replaces: u64,
    force: bool,
) -> Result<(), Failure> {
    let api_endpoint = endpoint(api)?;
    let request = v1::AddControllerRequest { id, api_endpoint, raft_endpoint: raft, replaces, force };
    let call = async |mut client: Client| client.add_controller(request.clone()).await;
    for _ in 0..AGAIN_MAX {
        match follow(session.fleet.operate(call).await?).await {
            // The leadership moved in between: the next leader goes on where this one stopped.
            Err(Failure::Fleet(fault)) if fault.code == ErrorCode::Unavailable => {
                output::remark(&fault.message);
            }
            told => return told,
        }
    }
    follow(session.fleet.operate(call).await?).await
}

/// A leader that has handed over may be gone before it says so: what counts is who leads then.
async fn transfer(session: &Session, leader: u64, to: u64) -> Result<(), Failure> {
    let call =
        async |mut client: Client| client.transfer_leadership(v1::TransferLeadershipRequest { to }).await;
    let told = follow(session.fleet.operate(call).await?).await;
    match told {
        Err(Failure::Fleet(fault)) if fault.code == ErrorCode::Unavailable => {
            let now = state(session).await?.leader;
            if now == leader { Err(fault.into()) } else { output::line(&format!("controller {now} leads")) }
        }
        told => told,
    }
}

/// Prints the news until the work is done or has failed.
pub(super) async fn follow(mut news: Streaming<v1::OperationNews>) -> Result<(), Failure> {
    loop {
        match news.message().await {
            Ok(Some(told)) => output::line(&told.text)?,
            Ok(None) => return Ok(()),
            Err(status) => return Err(Fault::from_status(&status).into()),
        }
    }
}

async fn list(session: &Session) -> Result<(), Failure> {
    let state = state(session).await?;
    if matches!(session.format, Format::Json | Format::Yaml) {
        let each = |one: &v1::ControllerState| {
            serde_json::json!({
                "id": one.id, "api": one.api_endpoint, "raft": one.raft_endpoint, "votes": one.votes,
                "leads": one.id == state.leader, "answers": one.answers, "behind": one.behind,
            })
        };
        let items: Vec<_> = state.controllers.iter().map(each).collect();
        return output::value(session.format, &serde_json::json!({ "term": state.term, "items": items }));
    }
    let row = |one: &v1::ControllerState| {
        let role = match (one.id == state.leader, one.votes) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let behind = one.behind.map_or_else(|| "-".to_owned(), |behind| behind.to_string());
        let answers = if one.answers { "yes" } else { "no" };
        let (api, raft) = (one.api_endpoint.clone(), one.raft_endpoint.clone());
        vec![one.id.to_string(), role.to_owned(), answers.to_owned(), behind, api, raft]
    };
    let rows: Vec<_> = state.controllers.iter().map(row).collect();
    output::line(output::table::columns(&["ID", "ROLE", "ANSWERS", "BEHIND", "API", "RAFT"], rows).trim_end())
}
