//! Connection URIs: `driver[+transport]://[user@][host][:port]/[path][?parameters]`.
//!
//! What is not meant for the way there is passed on to the daemon as it stands.

use std::path::PathBuf;

use dunlin_model::Invalid;

/// Parameters that are about the way to the daemon; the others are the daemon's.
const OWN: &[&str] = &[
    "socket",
    "pkipath",
    "no_verify",
    "name",
    "keyfile",
    "netcat",
    "authfile",
    "no_tty",
    "proxy",
    "known_hosts",
];
/// Longest URI, bytes.
const URI_BYTES_MAX: usize = 4096;
/// Where daemons of libvirt 9 listen, the modular one first.
const RUN: &str = "/run/libvirt";

/// How the daemon is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A unix socket of this machine.
    Unix,
    /// TCP, in the clear.
    Tcp,
    /// TLS.
    Tls,
    /// A program at the other end of ssh.
    Ssh,
}

/// A URI, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Which hypervisor: `qemu`, `lxc`, `test`.
    pub driver: String,
    /// How it is reached.
    pub transport: Transport,
    /// Who one is, for ssh and SASL.
    pub user: Option<String>,
    /// Where; empty on a unix socket.
    pub host: String,
    /// Port, when it is not the usual one.
    pub port: Option<u16>,
    /// `/system`, with the slash.
    pub path: String,
    /// Parameters in order, decoded.
    pub parameters: Vec<(String, String)>,
}

impl std::str::FromStr for Uri {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |problem: &str| {
            let allowed =
                "DRIVER[+unix|tcp|tls|ssh]://[USER@][HOST][:PORT]/PATH[?PARAMETERS], as in qemu:///system";
            Invalid::new("libvirt URI", format!("{text:?} {problem}"), allowed)
        };
        if text.len() > URI_BYTES_MAX || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(wrong("is too long, or has a space or a control character"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no ://"))?;
        let (driver, transport) = match scheme.split_once('+') {
            Some((driver, transport)) => (driver, Some(transport)),
            None => (scheme, None),
        };
        if driver.is_empty() || !driver.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(wrong("names no driver"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(decoded(user).ok_or_else(|| wrong("has a bad %"))?), place),
            None => (None, authority),
        };
        let (host, port) = host_and_port(place).ok_or_else(|| wrong("has no good host and port"))?;
        // A host that begins with a dash would be an option to ssh.
        if host.starts_with('-') || user.as_ref().is_some_and(|user| user.starts_with('-')) {
            return Err(wrong("has a host or user that begins with a dash"));
        }
        let transport = match transport {
            None if host.is_empty() => Transport::Unix,
            None | Some("tls") => Transport::Tls,
            Some("unix") => Transport::Unix,
            Some("tcp") => Transport::Tcp,
            Some("ssh") => Transport::Ssh,
            Some(_) => return Err(wrong("has a transport that is not unix, tcp, tls or ssh")),
        };
        if host.is_empty() != (transport == Transport::Unix) {
            return Err(wrong("has a host where there can be none, or none where there must be one"));
        }
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Some((decoded(key)?, decoded(value)?))
        };
        let parameters = query.split('&').filter(|part| !part.is_empty()).map(pair).collect::<Option<_>>();
        Ok(Self {
            driver: driver.to_owned(),
            transport,
            user,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
            parameters: parameters.ok_or_else(|| wrong("has a bad %"))?,
        })
    }
}

impl Uri {
    /// A parameter's value.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// What the daemon is told to open: the URI as it would be on its own machine.
    #[must_use]
    pub fn name(&self) -> String {
        if let Some(name) = self.parameter("name") {
            return name.to_owned();
        }
        let theirs = self.parameters.iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
        let query: Vec<String> =
            theirs.map(|(key, value)| format!("{}={}", encoded(key), encoded(value))).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}://{}{mark}{}", self.driver, self.path, query.join("&"))
    }

    /// Unix sockets on which the daemon may listen, the likeliest first.
    #[must_use]
    pub fn sockets(&self) -> Vec<PathBuf> {
        if let Some(socket) = self.parameter("socket") {
            return vec![socket.into()];
        }
        let run = PathBuf::from(RUN);
        vec![run.join(format!("virt{}d-sock", self.driver)), run.join("libvirt-sock")]
    }
}

/// `HOST`, `HOST:PORT`, `[::1]:PORT`.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
    host.chars().all(sound).then_some((host, port))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:,".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libvirt's own client sends as the name, and where it goes for it.
    #[test]
    fn names_and_ways() {
        let name = |text: &str| text.parse::<Uri>().map(|uri| uri.name());
        for (uri, told) in [
            ("qemu:///system", "qemu:///system"),
            ("qemu+unix:///system?socket=/tmp/a%20b", "qemu:///system"),
            ("qemu+tcp://h:16509/system", "qemu:///system"),
            ("qemu+tcp://h:16509", "qemu://"),
            ("qemu+tcp://h/system?tenant=acme&node=n1", "qemu:///system?tenant=acme&node=n1"),
            ("qemu+tls://h/system?name=xen:///bogus", "xen:///bogus"),
            ("test:///default", "test:///default"),
            ("xen+ssh://root@[fe80::1]:22/system?keyfile=/k", "xen:///system"),
        ] {
            assert_eq!(name(uri).as_deref(), Ok(told), "{uri}");
        }
        let uri: Uri = "qemu+ssh://root@[fe80::1]:22/system".parse().unwrap();
        assert_eq!((uri.host.as_str(), uri.port, uri.user.as_deref()), ("fe80::1", Some(22), Some("root")));
        assert_eq!("qemu://h/system".parse::<Uri>().unwrap().transport, Transport::Tls);
        let uri: Uri = "qemu+unix:///system?socket=/tmp/a%20b".parse().unwrap();
        assert_eq!(uri.sockets(), [PathBuf::from("/tmp/a b")]);
        assert_eq!("lxc:///system".parse::<Uri>().unwrap().sockets().len(), 2);
    }

    /// What is no URI is refused with what was wrong, and nothing becomes an option of ssh.
    #[test]
    fn refused() {
        let long = format!("qemu:///{}", "x".repeat(5000));
        for uri in [
            "",
            "qemu",
            "qemu:/system",
            "://x",
            "qemu+smoke://h/",
            "qemu+tcp:///system",
            "qemu+unix://h/system",
            "qemu+ssh://-oProxyCommand=x/system",
            "qemu+ssh://-l@h/system",
            "qemu+tcp://h:99999/",
            "qemu+tcp://[::1/",
            "qemu+tcp://h;reboot/",
            "qemu:///system?socket=%zz",
            "qemu:///a b",
            &long,
        ] {
            assert!(uri.parse::<Uri>().is_err(), "{uri}");
        }
    }
}
