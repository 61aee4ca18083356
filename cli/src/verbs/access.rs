//! Logging in and out, passwords, and who one is.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use clap::Args;
use dunlin_model::{Invalid, Secret, Timestamp};
use dunlin_pki::{Clock, Keyring, Ring, Trust};
use dunlin_proto::v1;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::json;

use super::{Session, provider};
use crate::args::Format;
use crate::client::Fleet;
use crate::context::{Contexts, check_name};
use crate::failure::Failure;
use crate::identity::Files;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Who logs in with a password; without it the identity provider is asked who it is
    user: Option<String>,
    /// Controllers to log in at, where there is no context yet; goes with --authority
    #[arg(long = "controller", value_name = "URL", requires = "authority")]
    pub(crate) controllers: Vec<String>,
    /// Fingerprint of their authority, as `dunlin ca show` prints it: to nobody else is the password shown
    #[arg(long, value_name = "FINGERPRINT", requires = "controllers")]
    authority: Option<String>,
    /// Context to make
    #[arg(long = "as", value_name = "CONTEXT", default_value = "default", requires = "controllers")]
    save_as: String,
}

/// Trades a password for a session, which is kept in the context file.
pub(crate) async fn login(session: &Session, args: LoginArgs) -> Result<(), Failure> {
    let begun = begin(&session.fleet.anonymous(), args.user.as_deref()).await?;
    let mut contexts = Contexts::read(&session.contexts)?;
    let (token, until) = (Secret::new(begun.token), Timestamp(begun.expires_ms));
    let name = contexts.log_in(session.context.as_deref(), &session.endpoints, &begun.user, token);
    contexts.write(&session.contexts)?;
    output::line(&format!("logged in as {} until {until}, in the context {name}", begun.user))
}

/// The same at controllers of which only the fingerprint of their authority is known; makes a context.
pub(crate) async fn login_at(args: LoginArgs, path: &Path) -> Result<(), Failure> {
    check_name(&args.save_as)?;
    let trust = Trust::Pinned(args.authority.unwrap_or_default());
    let ring = Ring { shown: None, trust, beside: Vec::new() };
    let fleet = Fleet::new(&args.controllers, Some(&Keyring::new(ring, Clock::system())?))?;
    let begun = begin(&fleet, args.user.as_deref()).await?;
    // Whoever had a context of this name was somebody else.
    let files = Files::of(path, &args.save_as);
    files.remove();
    files.believe(&begun.authorities)?;
    let mut contexts = Contexts::read(path)?;
    contexts.set(&args.save_as, begun.controllers.clone());
    let (token, until) = (Secret::new(begun.token), Timestamp(begun.expires_ms));
    contexts.log_in(Some(&args.save_as), &begun.controllers, &begun.user, token);
    contexts.write(path)?;
    output::line(&format!("logged in as {} until {until}, in the context {}", begun.user, args.save_as))
}

async fn begin(fleet: &Fleet, user: Option<&str>) -> Result<v1::Session, Failure> {
    let Some(user) = user else { return provider::begin(fleet).await };
    let password = prompted(&format!("password of {user}: "))?;
    let request = || v1::LoginRequest { user: user.to_owned(), password: password.expose().to_owned() };
    Ok(fleet.access(async |mut client| client.login(request()).await).await?)
}

/// Ends the session, here and in the fleet.
pub(crate) async fn logout(session: &Session) -> Result<(), Failure> {
    let ended = session.fleet.access(async |mut client| client.logout(v1::LogoutRequest {}).await).await;
    let mut contexts = Contexts::read(&session.contexts)?;
    // Forgotten here whatever the fleet says: it may have ended there long ago.
    contexts.log_out(session.context.as_deref(), &session.endpoints);
    contexts.write(&session.contexts)?;
    ended?;
    output::line("logged out")
}

async fn identity(session: &Session) -> Result<v1::Account, Failure> {
    Ok(session.fleet.access(async |mut client| client.show_account(v1::ShowAccountRequest {}).await).await?)
}

/// The name one goes by.
pub(crate) async fn me(session: &Session) -> Result<String, Failure> {
    Ok(identity(session).await?.name)
}

pub(crate) async fn whoami(session: &Session) -> Result<(), Failure> {
    let v1::Account { name, via, groups, bound, expires_ms } = identity(session).await?;
    let expires = expires_ms.map(Timestamp);
    match session.format {
        Format::Table | Format::Wide => {
            let mut text = format!("{name}, by {via}\n");
            if !groups.is_empty() {
                text.push_str(&format!("in {}\n", groups.join(", ")));
            }
            bound.iter().for_each(|role| text.push_str(&format!("may {role}\n")));
            expires.iter().for_each(|at| text.push_str(&format!("until {at}\n")));
            output::line(text.trim_end())
        }
        format => {
            let told =
                json!({"name": name, "via": via, "groups": groups, "bound": bound, "expires": expires});
            output::value(format, &told)
        }
    }
}

/// `user passwd`.
pub(crate) async fn passwd(session: &Session, name: Option<String>, none: bool) -> Result<(), Failure> {
    let name = match name {
        Some(name) => name,
        None => me(session).await?,
    };
    let password = if none { Secret::new("") } else { new_password()? };
    set_password(session, &name, password).await?;
    output::line(&format!("user {name} has {} password", if none { "no" } else { "another" }))
}

pub(crate) async fn set_password(session: &Session, user: &str, password: Secret) -> Result<(), Failure> {
    let request = || v1::SetPasswordRequest { user: user.to_owned(), password: password.expose().to_owned() };
    session.fleet.access(async |mut client| client.set_password(request()).await).await?;
    Ok(())
}

/// A password that is to be set: typed twice at a terminal.
pub(crate) fn new_password() -> Result<Secret, Failure> {
    let password = prompted("new password: ")?;
    if std::io::stdin().is_terminal() && prompted("once more: ")? != password {
        return Err(Invalid::new("password", "was not typed the same twice", "the same twice").into());
    }
    if password.expose().is_empty() {
        return Err(Invalid::new("password", "is empty", "8 to 1024 bytes").into());
    }
    Ok(password)
}

/// One line of standard input; from a terminal it is asked for and not shown.
fn prompted(prompt: &str) -> Result<Secret, Failure> {
    let failed = || Failure::io("reading the password");
    let stdin = std::io::stdin();
    let mut line = String::new();
    if !stdin.is_terminal() {
        stdin.lock().read_line(&mut line).map_err(failed())?;
    } else {
        let before = tcgetattr(&stdin).map_err(|e| failed()(e.into()))?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        let _ = write!(std::io::stderr(), "{prompt}");
        tcsetattr(&stdin, OptionalActions::Now, &quiet).map_err(|e| failed()(e.into()))?;
        let read = stdin.lock().read_line(&mut line);
        // A terminal that has gone away needs no echo.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &before);
        output::remark("");
        read.map_err(failed())?;
    }
    Ok(Secret::new(line.trim_end_matches(['\n', '\r'])))
}
