//! Logging in by an identity provider: the authorization code flow with a proof key, on the loopback (RFC 8252, RFC 7636).
//!
//! ```text
//!  controllers: which provider? --> its addresses --> a link, opened in a browser --> 127.0.0.1:PORT?code
//!                                     code + verifier --> ID token --> controllers: a session
//! ```

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dunlin_model::Secret;
use dunlin_proto::v1;
use reqwest::Url;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::client::Fleet;
use crate::failure::{Failure, chain};
use crate::output;

/// How long somebody may take over his provider's pages.
const BROWSER_TIMEOUT: Duration = Duration::from_secs(300);
/// One answer of the provider.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of the browser's request, bytes: the code and what browsers send with it.
const HEAD_MAX: usize = 32 << 10;
/// What OpenID Connect Discovery 1.0 puts behind the issuer.
const DISCOVERY: &str = "/.well-known/openid-configuration";

#[derive(Deserialize)]
struct Discovered {
    authorization_endpoint: String,
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

fn random() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| Failure::Local(format!("drawing a random number: {e}")))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// A session by the provider that the controllers believe.
pub(crate) async fn begin(fleet: &Fleet) -> Result<v1::Session, Failure> {
    let ask = async |mut client: v1::access_client::AccessClient<crate::client::Line>| {
        client.show_provider(v1::ShowProviderRequest {}).await
    };
    let provider = fleet.access(ask).await?;
    let (nonce, id_token) = id_token(&provider).await?;
    let request =
        || v1::LoginByProviderRequest { id_token: id_token.expose().to_owned(), nonce: nonce.clone() };
    Ok(fleet.access(async |mut client| client.login_by_provider(request()).await).await?)
}

/// The nonce it was asked for with, and the token.
async fn id_token(provider: &v1::Provider) -> Result<(String, Secret), Failure> {
    let talk = |e: reqwest::Error| Failure::Local(format!("the identity provider: {}", chain(&e)));
    let http = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build().map_err(talk)?;
    let issuer = provider.issuer.trim_end_matches('/');
    let found = http.get(format!("{issuer}{DISCOVERY}")).send().await;
    let found: Discovered =
        found.and_then(reqwest::Response::error_for_status).map_err(talk)?.json().await.map_err(talk)?;
    let listener =
        TcpListener::bind("127.0.0.1:0").await.map_err(Failure::io("listening for the browser"))?;
    let port = listener.local_addr().map_err(Failure::io("listening for the browser"))?.port();
    let redirect = format!("http://127.0.0.1:{port}/");
    let (state, nonce, verifier) = (random()?, random()?, random()?);
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    let asked = [
        ("response_type", "code"),
        ("client_id", &provider.client_id),
        ("redirect_uri", &redirect),
        ("scope", &provider.scope),
        ("state", &state),
        ("nonce", &nonce),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let strange = |e| Failure::Local(format!("the identity provider's addresses: {e}"));
    let link = Url::parse_with_params(&found.authorization_endpoint, asked).map_err(strange)?;
    output::remark(&format!("open this in a browser on this machine, and log in:\n{link}"));
    let code = tokio::time::timeout(BROWSER_TIMEOUT, code(&listener, &state)).await;
    let code = code.map_err(|_| Failure::Local("nobody came back from the browser".into()))??;
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", code.expose()),
        ("redirect_uri", &redirect),
        ("client_id", &provider.client_id),
        ("code_verifier", &verifier),
    ];
    // What a form is encoded as is what a query is.
    let form = Url::parse_with_params("http://form.invalid/", fields).map_err(strange)?;
    let request =
        http.post(&found.token_endpoint).header("content-type", "application/x-www-form-urlencoded");
    let answer = request.body(form.query().unwrap_or_default().to_owned()).send().await;
    let tokens: Tokens =
        answer.and_then(reqwest::Response::error_for_status).map_err(talk)?.json().await.map_err(talk)?;
    Ok((nonce, Secret::new(tokens.id_token)))
}

/// The code that the browser brings, of this login and no other.
async fn code(listener: &TcpListener, state: &str) -> Result<Secret, Failure> {
    loop {
        let (stream, _) = listener.accept().await.map_err(Failure::io("waiting for the browser"))?;
        // A browser also asks for icons, and may hang up: only what came back from the provider counts.
        let Ok(Some(url)) = brought(stream).await else { continue };
        let said =
            |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        if said("state").as_deref() != Some(state) {
            continue;
        }
        return match (said("code"), said("error")) {
            (Some(code), _) => Ok(Secret::new(code)),
            (None, error) => {
                let why = error.unwrap_or_else(|| "it brought no code".to_owned());
                Err(Failure::Local(format!("the identity provider refused: {why}")))
            }
        };
    }
}

/// What a browser asks for, which is answered whatever it is.
async fn brought(mut stream: TcpStream) -> std::io::Result<Option<Url>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_MAX {
        let mut bytes = [0; 4_096];
        let count = tokio::time::timeout(ANSWER_TIMEOUT, stream.read(&mut bytes)).await??;
        if count == 0 {
            break;
        }
        head.extend_from_slice(&bytes[..count]);
    }
    let text = String::from_utf8_lossy(&head);
    let path = text.strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
    let url = path.and_then(|path| Url::parse(&format!("http://127.0.0.1{path}")).ok());
    let page = "You may close this page and go back to the terminal.\n";
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
        page.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    Ok(url)
}
