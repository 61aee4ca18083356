//! Where keys and certificates lie: PEM, which other tools read too, of mode 0600, replaced as a whole.
//!
//! ```text
//!   # issued 1790000000000 expires 1791209600000     milliseconds since 1970; without it, it is due at once
//!   -----BEGIN PRIVATE KEY-----
//!   -----BEGIN CERTIFICATE-----
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use dunlin_model::{Secret, Timestamp};
use rustls::pki_types::CertificateDer;

use crate::{PkiError, Shown, pem_certificates, to_pem};

/// Only its owner reads it.
const MODE: u32 = 0o600;
const KEY_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const CERTIFICATE_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// A file of keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PkiError,
    },
}

/// What one shows; none when there is no such file.
pub fn read_shown(path: &Path) -> Result<Option<Shown>, FileError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let shown = parse_shown(&text).ok_or_else(|| {
        let problem = "no private key followed by a certificate".to_owned();
        let source = PkiError::Unreadable { what: "the identity", problem };
        FileError::Content { path: path.to_owned(), source }
    })?;
    Ok(Some(shown))
}

/// Replaces what one shows.
pub fn write_shown(path: &Path, shown: &Shown) -> Result<(), FileError> {
    let head = format!("# issued {} expires {}", shown.issued.0, shown.expires.0);
    let text = format!("{head}\n{}{}", shown.key.expose(), shown.certificate);
    write_private(path, text.as_bytes())
}

/// Whom one believes; none when there is no such file.
pub fn read_roots(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, FileError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let content = |source| FileError::Content { path: path.to_owned(), source };
    let roots = pem_certificates(&text).map_err(content)?;
    if roots.is_empty() {
        let problem = "there is none in it".to_owned();
        return Err(content(PkiError::Unreadable { what: "the authorities' certificates", problem }));
    }
    Ok(Some(roots))
}

/// Replaces whom one believes.
pub fn write_roots(path: &Path, roots: &[CertificateDer<'_>]) -> Result<(), FileError> {
    write_private(path, to_pem(roots).as_bytes())
}

/// Replaces a file that nobody else may read, durably: after a crash there is the old one or the new one.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let at = |source| FileError::Io { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(at)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let write = || {
        // One that a crash left may have another mode.
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(at)
}

fn read(path: &Path) -> Result<Option<String>, FileError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Io { path: path.to_owned(), source }),
    }
}

pub(crate) fn parse_shown(text: &str) -> Option<Shown> {
    let (head, _) = text.split_once(KEY_BEGIN)?;
    let at = text.find(CERTIFICATE_BEGIN)?;
    let key = text.get(head.len()..at)?;
    let words: Vec<&str> = head.split_whitespace().collect();
    let after = |mark: &str| {
        let found = words.iter().position(|word| *word == mark)?;
        words.get(found + 1)?.parse().ok().map(Timestamp)
    };
    let (issued, expires) = (after("issued").unwrap_or_default(), after("expires").unwrap_or_default());
    let shown = Shown { key: Secret::new(key), certificate: text[at..].to_owned(), issued, expires };
    (shown.key().is_ok() && shown.certificate().is_ok()).then_some(shown)
}
