//! A small identity provider: discovery, keys, authorization with a proof key, and tokens signed by ES256. Whoever asks is
//! logged in as the person it was told to.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

/// What this fleet is called there.
pub(crate) const CLIENT: &str = "dunlin-test";

/// The provider; it serves until the test's process ends.
pub(crate) struct Issuer {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    key: EcdsaKeyPair,
    /// Claims of whoever logs in next.
    person: Mutex<Value>,
    /// What each code was given for.
    codes: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
}

impl Issuer {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok();
        let made = made.context("a key")?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random);
        let key = key.ok().context("the key")?;
        let shared =
            Shared { url: url.clone(), key, person: Mutex::new(Value::Null), codes: Mutex::default() };
        let shared = Arc::new(shared);
        let serves = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever hangs up is served no further.
                let _ = serves.serve(stream);
            }
        });
        Ok(Self { url, shared })
    }

    /// Who logs in from now on.
    pub(crate) fn person(&self, subject: &str, name: &str, groups: &[&str]) {
        let person = json!({"sub": subject, "preferred_username": name, "name": name, "groups": groups});
        *self.shared.person.lock().unwrap_or_else(PoisonError::into_inner) = person;
    }
}

/// What is asked for, or what a form says.
fn pairs(text: &str) -> BTreeMap<String, String> {
    let plain = |text: &str| {
        let (mut bytes, mut rest) = (Vec::new(), text.bytes());
        while let Some(byte) = rest.next() {
            let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).unwrap_or(0);
            bytes.push(match byte {
                b'%' => u8::try_from(hex(rest.next()) * 16 + hex(rest.next())).unwrap_or(b'?'),
                b'+' => b' ',
                other => other,
            });
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first)?;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let target = first.split(' ').nth(1).context("a target")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (status, headers, said) = match path {
            "/.well-known/openid-configuration" => ("200 OK", String::new(), self.discovery()),
            "/keys" => ("200 OK", String::new(), self.keys()),
            "/authorize" => ("302 Found", self.authorize(pairs(query))?, Value::Null),
            "/token" => match self.token(&pairs(std::str::from_utf8(&body)?)) {
                Ok(tokens) => ("200 OK", String::new(), tokens),
                Err(_) => ("400 Bad Request", String::new(), json!({"error": "invalid_grant"})),
            },
            _ => ("404 Not Found", String::new(), Value::Null),
        };
        let said = said.to_string();
        let length = said.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\n{headers}content-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{said}"
        )?;
        Ok(())
    }

    fn discovery(&self) -> Value {
        let at = |path: &str| format!("{}{path}", self.url);
        json!({"issuer": self.url, "jwks_uri": at("/keys"), "authorization_endpoint": at("/authorize"),
               "token_endpoint": at("/token")})
    }

    fn keys(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "one", "x": x, "y": y}]})
    }

    fn authorize(&self, asked: BTreeMap<String, String>) -> anyhow::Result<String> {
        let said = |name: &str| asked.get(name).cloned().context("missing");
        anyhow::ensure!(
            said("client_id")? == CLIENT && said("code_challenge_method")? == "S256",
            "another client"
        );
        let location = said("redirect_uri")?;
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let code = format!("code-{}", codes.len());
        let header = format!("location: {location}?code={code}&state={}\r\n", said("state")?);
        codes.insert(code, asked);
        Ok(header)
    }

    fn token(&self, form: &BTreeMap<String, String>) -> anyhow::Result<Value> {
        let said = |name: &str| form.get(name).context("missing");
        let given = self.codes.lock().unwrap_or_else(PoisonError::into_inner).remove(said("code")?);
        let given = given.context("no such code")?;
        let digest = ring::digest::digest(&ring::digest::SHA256, said("code_verifier")?.as_bytes());
        anyhow::ensure!(
            given.get("code_challenge") == Some(&URL_SAFE_NO_PAD.encode(digest)),
            "another verifier"
        );
        anyhow::ensure!(given.get("redirect_uri") == form.get("redirect_uri"), "another address");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut claims = self.person.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (claim, value) in [
            ("iss", json!(self.url)),
            ("aud", json!(CLIENT)),
            ("iat", json!(now)),
            ("exp", json!(now + 300)),
            ("nonce", json!(given.get("nonce"))),
        ] {
            claims[claim] = value;
        }
        let head = json!({"alg": "ES256", "kid": "one"}).to_string();
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).ok().context("a signature")?;
        let id_token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        Ok(json!({"access_token": "unused", "token_type": "Bearer", "id_token": id_token}))
    }
}

/// What a browser does with a link: asks for it, and follows where it is sent.
pub(crate) fn browse(link: &str) -> anyhow::Result<String> {
    let mut link = link.to_owned();
    loop {
        let rest = link.strip_prefix("http://").context("plain http")?;
        let (address, path) = rest.split_once('/').context("a path")?;
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /{path} HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.lines().find_map(|line| line.strip_prefix("location: ")) {
            Some(next) => link = next.trim().to_owned(),
            None => return Ok(answer),
        }
    }
}
