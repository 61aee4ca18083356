//! The verbs: parse what was typed into a request, send it, and show what came of it. No decision is taken here.

pub(crate) mod access;
mod adoption;
pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod authority;
pub(crate) mod backup;
pub(crate) mod balance;
pub(crate) mod cluster;
pub(crate) mod console;
pub(crate) mod context;
pub(crate) mod controller;
pub(crate) mod doctor;
pub(crate) mod document;
mod driver;
pub(crate) mod enrol;
pub(crate) mod explain;
pub(crate) mod files;
pub(crate) mod get;
pub(crate) mod host;
pub(crate) mod host_set;
pub(crate) mod image;
pub(crate) mod listing;
mod provider;
pub(crate) mod record;
pub(crate) mod rights;
pub(crate) mod rule_flag;
pub(crate) mod simulate;
mod simulate_load;
pub(crate) mod vm;
pub(crate) mod vm_create;
pub(crate) mod vm_flags;
pub(crate) mod vm_set;

use std::path::PathBuf;
use std::sync::Arc;

use dunlin_model::{Invalid, Kind, Secret};
use dunlin_pki::Keyring;

use self::authority::CaVerb;

use crate::args::{Cli, ControllerArgs, EventVerb, Format, Noun};
use crate::client::{Fleet, endpoint};
use crate::context::Contexts;
use crate::failure::Failure;
use crate::identity::Files;
use crate::output;

/// What every verb is given.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) fleet: Fleet,
    pub(crate) format: Format,
    /// Who the user is, and where that is kept; nobody on a local socket.
    pub(crate) own: Option<(Arc<Keyring>, Files)>,
    /// The context file, the context that was asked for, and where `fleet` talks to: a login is kept there.
    pub(crate) contexts: PathBuf,
    pub(crate) context: Option<String>,
    pub(crate) endpoints: Vec<String>,
}

/// Where to find the fleet when nothing is typed, as `main` found out.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// The context file.
    pub(crate) contexts: PathBuf,
    /// What the environment says.
    pub(crate) endpoint: Option<String>,
    /// The token it says to show.
    pub(crate) token: Option<Secret>,
}

/// Runs one verb to its end.
pub(crate) async fn run(cli: Cli, around: &Surroundings) -> Result<(), Failure> {
    let format = cli.output;
    match cli.noun {
        Noun::Context(verb) => return context::run(verb, around, format).await,
        Noun::Admin(verb) => return enrol::admin(verb, &around.contexts).await,
        Noun::Login(args) if !args.controllers.is_empty() => {
            return access::login_at(args, &around.contexts).await;
        }
        Noun::Ca(CaVerb::Init { dir, members }) => return authority::init(&dir, &members),
        Noun::Completions { shell } => return completions(shell),
        Noun::Errors => return output::line(&crate::errors::table()),
        Noun::Simulate(args) => return simulate::run(&args, format),
        _ => {}
    }
    let session = open(&cli.endpoint, cli.context.as_deref(), around, format)?;
    let done = verb(&session, cli.noun).await;
    if let Some((keyring, files)) = &session.own {
        enrol::renew_when_due(&session.fleet, keyring, files).await;
    }
    done
}

async fn verb(session: &Session, noun: Noun) -> Result<(), Failure> {
    match noun {
        Noun::Cluster(verb) => cluster::run(session, verb).await,
        Noun::Ca(verb) => authority::run(session, verb).await,
        Noun::Host(verb) => host::run(session, verb).await,
        Noun::Doctor(args) => doctor::run(session, &args).await,
        Noun::Driver(verb) => driver::run(session, verb).await,
        Noun::Login(args) => access::login(session, args).await,
        Noun::Logout => access::logout(session).await,
        Noun::Whoami => access::whoami(session).await,
        Noun::User(verb) => rights::user(session, verb).await,
        Noun::Role(verb) => rights::role(session, verb).await,
        Noun::Binding(verb) => rights::binding(session, verb).await,
        Noun::Project(verb) => rights::project(session, verb).await,
        Noun::ApiToken(verb) => rights::api_token(session, verb).await,
        Noun::Audit(verb) => audit::run(session, verb).await,
        Noun::Token(verb) => cluster::token(session, verb).await,
        Noun::Image(verb) => image::run(session, verb).await,
        Noun::Vm(verb) => vm::run(session, verb).await,
        Noun::Migration(verb) => record::run(session, Kind::Migration, verb).await,
        Noun::Task(verb) => record::run(session, Kind::Task, verb).await,
        Noun::Balance(verb) => balance::run(session, verb).await,
        Noun::Get(args) => get::run(session, args).await,
        Noun::Apply(args) => apply::run(session, &args).await,
        Noun::Diff(args) => apply::diff(session, &args).await,
        Noun::Delete(args) => apply::delete(session, &args).await,
        Noun::Explain(args) => explain::run(session, args).await,
        Noun::Event(EventVerb::List(args)) => listing::run(session, Kind::Event, &args).await,
        Noun::Controller(ControllerArgs { verb: Some(verb), .. }) => controller::run(session, verb).await,
        Noun::Backup(args) => backup::run(session, &args).await,
        // Daemons and the local fleet are `main`'s: they need a runtime of their own.
        Noun::Controller(_)
        | Noun::Agent(_)
        | Noun::Up(_)
        | Noun::Down(_)
        | Noun::Restore(_)
        | Noun::Context(_)
        | Noun::Admin(_)
        | Noun::Completions { .. }
        | Noun::Simulate(_)
        | Noun::Errors => Ok(()),
    }
}

/// What was typed goes before the environment, and that before the context file.
pub(crate) fn open(
    typed: &[String],
    context: Option<&str>,
    around: &Surroundings,
    format: Format,
) -> Result<Session, Failure> {
    let contexts = || Contexts::read(&around.contexts);
    let endpoints = match (typed, context, around.endpoint.as_deref()) {
        ([_, ..], Some(context), _) => {
            let problem = format!("{context:?} is given beside --endpoint");
            return Err(Invalid::new("--context", problem, "one of the two").into());
        }
        ([_, ..], None, _) => typed.to_vec(),
        // A variable that is set to nothing is as good as none.
        ([], None, Some(told)) if !told.is_empty() => told.split(',').map(str::to_owned).collect(),
        ([], context, _) => contexts()?.endpoints(context)?,
    };
    // Whatever endpoint is typed, one is who one is in the context.
    let known = contexts()?;
    let name = context.or(known.current.as_deref());
    let files = name.map(|name| Files::of(&around.contexts, name));
    let own = match files {
        Some(files) => files.open()?.map(|keyring| (keyring, files)),
        None => None,
    };
    let keyring = own.as_ref().map(|(keyring, _)| Arc::clone(keyring));
    let endpoints = endpoints.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>, _>>()?;
    // A session goes to the controllers it came from, and to no others.
    let token = around.token.clone().or_else(|| known.token(context, &endpoints));
    let fleet = Fleet::new(&endpoints, keyring.as_ref())?.showing(token);
    let (contexts, context) = (around.contexts.clone(), context.map(str::to_owned));
    Ok(Session { fleet, format, own, contexts, context, endpoints })
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut <Cli as clap::CommandFactory>::command(), "dunlin", &mut text);
    output::line(&String::from_utf8_lossy(&text))
}
