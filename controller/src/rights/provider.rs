//! The identity provider: whose keys are believed, and whom it vouches for. Asked for its keys only, never about a person.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_model::rights::{SET_MAX, UserSpec, WORDS_MAX};
use dunlin_model::{ErrorCode, Invalid, Name, Secret};
use dunlin_proto::Fault;
use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::id_token::{Claims, Expected, Keys, TokenError, verify};
use crate::clock;

/// What OpenID Connect Discovery 1.0 puts behind the issuer.
const DISCOVERY: &str = "/.well-known/openid-configuration";
/// How long keys are good: a provider that withdraws one is believed within that time.
const KEYS_TTL: Duration = Duration::from_secs(3_600);
/// How soon the provider is asked again for a key that it did not publish: guesses must not become requests to it.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// One answer of the provider; a login waits for two.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// Largest answer taken, bytes: a dozen keys with their certificates.
const ANSWER_MAX: usize = 256 << 10;

/// Which identity provider vouches for people, and how what it says is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderConfig {
    /// Its name: `https://...`, as its tokens have it. Plain http only on the loopback.
    pub issuer: String,
    /// This fleet's name there.
    pub client_id: String,
    /// What clients ask it for: `openid`, and what brings the claims below.
    pub scope: String,
    /// The claim that becomes the user's name.
    pub name_claim: String,
    /// The claim with his groups, which bindings name.
    pub groups_claim: String,
}

impl ProviderConfig {
    /// Refuses an issuer whose word could be changed on its way.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.client_id.is_empty() {
            return Err(Invalid::new("oidc_client_id", "is empty", "this fleet's name at the provider"));
        }
        safe(&self.issuer).map(drop)
    }
}

fn safe(text: &str) -> Result<Url, Invalid> {
    let wrong =
        |problem: String| Invalid::new("oidc_issuer", problem, "https://..., or http:// on the loopback");
    let url = Url::parse(text).map_err(|e| wrong(format!("{text:?}: {e}")))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let near = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if near => Ok(url),
        _ => Err(wrong(format!("{text:?} is neither"))),
    }
}

/// The provider, with what is remembered of its keys.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) config: ProviderConfig,
    http: reqwest::Client,
    known: Mutex<Known>,
    /// One question at a time.
    asking: Semaphore,
}

#[derive(Clone, Debug, Default)]
struct Known {
    keys: Arc<Keys>,
    since: Option<Instant>,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

/// Somebody the provider vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vouched {
    pub(crate) name: Name,
    pub(crate) spec: UserSpec,
}

fn unavailable(what: impl std::fmt::Display) -> Fault {
    Fault::new(ErrorCode::Unavailable, format!("the identity provider does not answer as it should: {what}"))
}

impl Provider {
    pub(crate) fn new(config: ProviderConfig) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let http = http.timeout(ANSWER_TIMEOUT).build()?;
        Ok(Self { config, http, known: Mutex::default(), asking: Semaphore::new(1) })
    }

    /// Whom the token is of, when it is to be believed.
    pub(crate) async fn identify(&self, token: &Secret, nonce: &str) -> Result<Vouched, Fault> {
        let (issuer, client_id) = (&self.config.issuer, &self.config.client_id);
        let expected = Expected { issuer, client_id, nonce, now: clock::now() };
        let mut checked = verify(token.expose(), &*self.keys(KEYS_TTL).await?, &expected);
        if checked == Err(TokenError::UnknownKey) {
            // It may have other keys since.
            checked = verify(token.expose(), &*self.keys(ASK_AGAIN).await?, &expected);
        }
        let refused = |e: TokenError| {
            Fault::new(
                ErrorCode::Unauthenticated,
                format!("the identity provider's token is not believed: {e}"),
            )
        };
        self.vouched(&checked.map_err(refused)?)
    }

    fn vouched(&self, claims: &Claims) -> Result<Vouched, Fault> {
        let claim = self.config.name_claim.as_str();
        let called = claims.text(claim).ok_or_else(|| {
            let message = format!("the identity provider's token has no {claim:?}, which users are named by");
            Fault::new(ErrorCode::Unauthenticated, message)
        })?;
        let short = |text: &&String| !text.is_empty() && text.len() as u64 <= WORDS_MAX;
        let groups: BTreeSet<String> =
            claims.texts(&self.config.groups_claim).iter().filter(short).cloned().collect();
        if groups.len() as u64 > SET_MAX {
            let message = format!("the identity provider names {} groups; {SET_MAX} are taken", groups.len());
            return Err(Fault::new(ErrorCode::Unauthenticated, message));
        }
        let display_name = claims.text("name").unwrap_or_default().to_owned();
        let subject = claims.text("sub").unwrap_or_default();
        let spec = UserSpec {
            display_name,
            groups,
            disabled: false,
            vouched_by: format!("{}#{subject}", self.config.issuer),
        };
        Ok(Vouched { name: user_name(called)?, spec })
    }

    /// Its keys, not older than that.
    async fn keys(&self, oldest: Duration) -> Result<Arc<Keys>, Fault> {
        let remembered = || {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
            known.since.is_some_and(|since| since.elapsed() < oldest).then_some(known.keys)
        };
        if let Some(keys) = remembered() {
            return Ok(keys);
        }
        let _turn = self.asking.acquire().await.map_err(unavailable)?;
        // Whoever asked before us may have what we want.
        if let Some(keys) = remembered() {
            return Ok(keys);
        }
        let issuer = self.config.issuer.trim_end_matches('/');
        let found: Discovered = self.ask(&format!("{issuer}{DISCOVERY}")).await?;
        if found.issuer != self.config.issuer {
            return Err(unavailable(format!("it calls itself {:?}", found.issuer)));
        }
        let set: serde_json::Value = self.ask(&found.jwks_uri).await?;
        let keys = Arc::new(Keys::read(set.to_string().as_bytes()).map_err(unavailable)?);
        let fresh = Known { keys: Arc::clone(&keys), since: Some(Instant::now()) };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(keys)
    }

    async fn ask<T: DeserializeOwned>(&self, url: &str) -> Result<T, Fault> {
        let url = safe(url).map_err(unavailable)?;
        let answer = self.http.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut answer = answer.map_err(unavailable)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unavailable)? {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(unavailable(format!("more than {ANSWER_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(unavailable)
    }
}

/// A name as the fleet has them, of whatever the provider calls somebody. Two who come to the same name are told apart by
/// who vouches for them: the second is refused.
fn user_name(called: &str) -> Result<Name, Invalid> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = called.chars().map(plain).collect();
    text.trim_matches('-').parse()
}
