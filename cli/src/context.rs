//! Where the CLI talks to when it is not told: `$DUNLIN_CONFIG`, else `~/.config/dunlin/contexts.yaml`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use dunlin_model::{Invalid, Secret};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Named sets of endpoints, one of them current.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// One cluster to talk to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) endpoints: Vec<String>,
    /// Who is logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// His session's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Secret>,
}

#[derive(Debug, Error)]
pub(crate) enum ContextError {
    #[error("reading the context file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the context file {path} is not as it should be: {source}")]
    Parse { path: PathBuf, source: serde_norway::Error },
    #[error("writing the context file {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("there is no context {name:?}; there are: {known}")]
    Unknown { name: String, known: String },
    #[error(
        "no controller to talk to: give --endpoint, set DUNLIN_ENDPOINT, or make a context with `dunlin admin enroll` or `dunlin context join`"
    )]
    Nowhere,
}

/// Names of contexts are names of files too.
pub(crate) fn check_name(name: &str) -> Result<(), Invalid> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if name.is_empty() || name.starts_with('.') || name.chars().any(strange) {
        let problem = format!("{name:?} is no name for a context");
        return Err(Invalid::new("NAME", problem, "text without spaces and slashes"));
    }
    Ok(())
}

impl Contexts {
    /// The contexts in `path`; none when there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Self, ContextError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ContextError::Read { path: path.to_owned(), source }),
        };
        serde_norway::from_str(&text).map_err(|source| ContextError::Parse { path: path.to_owned(), source })
    }

    /// Replaces `path` as a whole.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ContextError> {
        let failed = |source| ContextError::Write { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let text = serde_norway::to_string(self).expect("a map of strings is YAML");
        let fresh = path.with_extension("yaml.new");
        // It may hold a token: from its first byte on it is nobody else's to read.
        let _ = std::fs::remove_file(&fresh);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        std::fs::rename(&fresh, path).map_err(failed)
    }

    /// The endpoints of `wanted`, or of the current context.
    pub(crate) fn endpoints(&self, wanted: Option<&str>) -> Result<Vec<String>, ContextError> {
        let name = wanted.or(self.current.as_deref()).ok_or(ContextError::Nowhere)?;
        let context = self.contexts.get(name).ok_or_else(|| ContextError::Unknown {
            name: name.to_owned(),
            known: self.contexts.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        Ok(context.endpoints.clone())
    }

    /// Adds or replaces a context and makes it the current one.
    pub(crate) fn set(&mut self, name: &str, endpoints: Vec<String>) {
        // Another place must not be shown the token of the one that had this name.
        let same = self.contexts.get(name).filter(|known| known.endpoints == endpoints).cloned();
        let fresh = Context { endpoints, user: None, token: None };
        self.contexts.insert(name.to_owned(), same.unwrap_or(fresh));
        self.current = Some(name.to_owned());
    }

    /// The context of these endpoints: the one that was asked for, the current one, or any that has just these.
    fn at(&self, wanted: Option<&str>, endpoints: &[String]) -> Option<String> {
        let current = wanted.or(self.current.as_deref());
        let fits = |name: &str| self.contexts.get(name).is_some_and(|known| known.endpoints == endpoints);
        let current = current.filter(|name| fits(name)).map(str::to_owned);
        current.or_else(|| self.contexts.keys().find(|name| fits(name)).cloned())
    }

    /// The token to show there.
    pub(crate) fn token(&self, wanted: Option<&str>, endpoints: &[String]) -> Option<Secret> {
        self.contexts.get(&self.at(wanted, endpoints)?)?.token.clone()
    }

    /// Keeps a session with the context of these endpoints, or with a new one. Returns its name.
    pub(crate) fn log_in(
        &mut self,
        wanted: Option<&str>,
        endpoints: &[String],
        user: &str,
        token: Secret,
    ) -> String {
        let first =
            || endpoints.first().map_or("here", |text| text.trim_start_matches("https://")).to_owned();
        let name = self.at(wanted, endpoints).unwrap_or_else(first);
        let (user, token) = (Some(user.to_owned()), Some(token));
        self.contexts.insert(name.clone(), Context { endpoints: endpoints.to_vec(), user, token });
        if self.current.is_none() {
            self.current = Some(name.clone());
        }
        name
    }

    /// Forgets the session with these endpoints.
    pub(crate) fn log_out(&mut self, wanted: Option<&str>, endpoints: &[String]) {
        if let Some(context) = self.at(wanted, endpoints).and_then(|name| self.contexts.get_mut(&name)) {
            (context.user, context.token) = (None, None);
        }
    }

    /// The same without tokens, to be shown.
    pub(crate) fn without_tokens(&self) -> Self {
        let mut shown = self.clone();
        shown.contexts.values_mut().for_each(|context| context.token = None);
        shown
    }

    /// Makes a known context the current one.
    pub(crate) fn select(&mut self, name: &str) -> Result<(), ContextError> {
        self.endpoints(Some(name))?;
        self.current = Some(name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A context that was set is read back, is the current one, and an unknown one is refused by name.
    #[test]
    fn set_write_read_select() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/contexts.yaml");
        let mut contexts = Contexts::read(&path).unwrap();
        assert!(matches!(contexts.endpoints(None), Err(ContextError::Nowhere)));
        contexts.set("lab", vec!["https://10.0.0.1:7400".into()]);
        contexts.set("home", vec!["https://127.0.0.1:7400".into()]);
        contexts.write(&path).unwrap();
        let mut read = Contexts::read(&path).unwrap();
        assert_eq!(read, contexts);
        assert_eq!(read.endpoints(None).unwrap(), ["https://127.0.0.1:7400"]);
        read.select("lab").unwrap();
        assert_eq!(read.endpoints(None).unwrap(), ["https://10.0.0.1:7400"]);
        let error = read.select("labb").unwrap_err().to_string();
        assert_eq!(error, "there is no context \"labb\"; there are: home, lab");
        std::fs::write(&path, "contexts: 3").unwrap();
        assert!(matches!(Contexts::read(&path), Err(ContextError::Parse { .. })));
    }
}
