//! Becoming somebody: from a one-time token, or from the local socket of a controller, to a certificate beside the context.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use dunlin_model::{Invalid, Name, Role, Timestamp};
use dunlin_pki::{Clock, JoinToken, KeyPair, Keyring, Ring, Shown, Trust};
use dunlin_proto::{Wire as _, v1};

use crate::client::{Fleet, idempotency_key};
use crate::context::{Contexts, check_name};
use crate::failure::Failure;
use crate::identity::Files;
use crate::output;

/// Life of a token that is used at once, s.
const TOKEN_TTL_S: u64 = 60;
/// The socket in a controller's data directory.
const SOCKET: &str = "admin.sock";

#[derive(Debug, Subcommand)]
pub(crate) enum AdminVerb {
    /// Become an admin through the local socket of a controller on this machine: as root, or as who owns its folder
    Enroll(EnrollArgs),
}

#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    /// The controller's --data-dir
    #[arg(long)]
    data_dir: PathBuf,
    /// Name to go by
    #[arg(long, default_value = "admin")]
    name: Name,
    /// Context to make
    #[arg(long = "as", value_name = "CONTEXT", default_value = "default")]
    context: String,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Context to make
    context: String,
    /// Controllers, any of them
    #[arg(required = true)]
    endpoints: Vec<String>,
    /// Token of `dunlin token create --role admin`
    #[arg(long, env = "DUNLIN_TOKEN", hide_env_values = true)]
    token: String,
    /// Name to go by
    #[arg(long, default_value = "admin")]
    name: Name,
}

/// The local socket below a data directory, as an endpoint.
pub(crate) fn socket(data_dir: &Path) -> String {
    format!("unix:{}", data_dir.join(SOCKET).display())
}

pub(crate) async fn admin(verb: AdminVerb, contexts: &Path) -> Result<(), Failure> {
    let AdminVerb::Enroll(args) = verb;
    let fleet = Fleet::new(&[socket(&args.data_dir)], None)?;
    enroll(&fleet, args.name.clone(), contexts, &args.context).await?;
    output::remark(&format!("context {} is admin {}", args.context, args.name));
    Ok(())
}

/// Makes a token over a connection that is an admin already, and trades it for a certificate of the context's own.
pub(crate) async fn enroll(fleet: &Fleet, name: Name, contexts: &Path, context: &str) -> Result<(), Failure> {
    check_name(context)?;
    let request = v1::CreateTokenRequest {
        idempotency_key: idempotency_key(),
        ttl_s: TOKEN_TTL_S,
        role: Role::Admin.to_wire(),
        ..v1::CreateTokenRequest::default()
    };
    let made = fleet.call(async |mut client| client.create_token(request.clone()).await).await?;
    trade(fleet, &made.token.parse()?, name, contexts, context, None).await
}

/// Trades a token that somebody handed over.
pub(crate) async fn join(args: JoinArgs, contexts: &Path) -> Result<(), Failure> {
    check_name(&args.context)?;
    let token: JoinToken = args.token.parse()?;
    if token.role != Role::Admin {
        return Err(Invalid::new("--token", format!("it is {token}"), "a token for an admin").into());
    }
    // Whom the token is for is known by its fingerprint alone: to nobody else is it shown.
    let ring = Ring { shown: None, trust: Trust::Pinned(token.fingerprint.clone()), beside: Vec::new() };
    let fleet = Fleet::new(&args.endpoints, Some(&Keyring::new(ring, Clock::system())?))?;
    trade(&fleet, &token, args.name, contexts, &args.context, Some(&args.endpoints)).await
}

async fn trade(
    fleet: &Fleet,
    token: &JoinToken,
    name: Name,
    contexts: &Path,
    context: &str,
    endpoints: Option<&[String]>,
) -> Result<(), Failure> {
    let key = KeyPair::generate()?;
    let request = v1::JoinRequest {
        token: token.secret.expose().to_owned(),
        role: Role::Admin.to_wire(),
        name: name.to_string(),
        public_key: key.public().as_bytes().to_vec(),
        ..v1::JoinRequest::default()
    };
    let given = fleet.identities(async |mut client| client.join(request.clone()).await).await?;
    Files::of(contexts, context).keep(&shown(&key, &given), &given.authorities)?;
    let mut known = Contexts::read(contexts)?;
    known.set(context, endpoints.map_or(given.controllers, <[String]>::to_vec));
    known.write(contexts)?;
    Ok(())
}

/// Another certificate when this one's time is half over, or another authority signs by now. That it could not be had is
/// told, and is no failure of what was asked for.
pub(crate) async fn renew_when_due(fleet: &Fleet, keyring: &Arc<Keyring>, files: &Files) {
    if !keyring.is_due() {
        return;
    }
    if let Err(failure) = renew(fleet, files).await {
        output::remark(&format!(
            "the certificate in {} is not renewed yet: {failure}",
            files.shown.display()
        ));
    }
}

/// Gets another certificate.
pub(crate) async fn renew(fleet: &Fleet, files: &Files) -> Result<(), Failure> {
    let key = KeyPair::generate()?;
    let request = v1::RenewRequest { public_key: key.public().as_bytes().to_vec() };
    let given = fleet.identities(async |mut client| client.renew(request.clone()).await).await?;
    files.keep(&shown(&key, &given), &given.authorities)
}

fn shown(key: &KeyPair, given: &v1::Credentials) -> Shown {
    Shown {
        key: key.to_pem(),
        certificate: given.certificate.clone(),
        issued: Timestamp(given.issued_ms),
        expires: Timestamp(given.expires_ms),
    }
}
