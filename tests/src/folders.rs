//! A folder that every host of a fleet sees as its own: on one machine all hosts see the same files, and a disk that is not
//! shared cannot be told from one that is.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::Fleet;

/// Such a folder. Needs the fleet's namespaces: `ip netns exec NAME` puts what is in /etc/netns/NAME over /etc for the
/// process it starts (ip-netns(8)), and for every guest that process starts.
#[derive(Debug)]
pub struct HostFolders {
    path: PathBuf,
    /// The true folder of each host.
    behind: Vec<PathBuf>,
    /// What was made in /etc/netns.
    netns: Vec<PathBuf>,
}

impl HostFolders {
    /// Makes it, and starts the agents again so that they see it. None where hosts have no namespaces: not as root.
    pub fn make(fleet: &Fleet) -> anyhow::Result<Option<Self>> {
        let text = std::fs::read(fleet.dir().join("fleet.json")).context("reading the fleet's record")?;
        let plan: serde_json::Value = serde_json::from_slice(&text)?;
        if plan["namespaces"] != true {
            return Ok(None);
        }
        let tag = plan["tag"].as_str().context("no tag")?;
        let path = PathBuf::from(format!("/etc/dunlin-test-{tag}"));
        let mut folders = Self { path: path.clone(), behind: Vec::new(), netns: Vec::new() };
        std::fs::create_dir_all(&path)?;
        for number in 1..=plan["hosts"].as_u64().context("no hosts")? {
            let behind = fleet.scratch().join(format!("own-{number}"));
            let netns = PathBuf::from(format!("/etc/netns/dunlin-{tag}-{number}"));
            std::fs::create_dir_all(&behind)?;
            std::fs::create_dir_all(&netns)?;
            std::os::unix::fs::symlink(&behind, netns.join(path.file_name().context("a name")?))?;
            folders.behind.push(behind);
            folders.netns.push(netns);
            fleet.agent(&format!("host-{number}"))?.kill()?;
        }
        fleet.up()?;
        Ok(Some(folders))
    }

    /// The path of a file in it, as every host names it.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Where one host's files really are.
    pub fn behind(&self, host: &str) -> anyhow::Result<&Path> {
        let number: usize = host.strip_prefix("host-").and_then(|n| n.parse().ok()).context("no host")?;
        Ok(self.behind.get(number - 1).context("no such host")?)
    }

    /// The names of one host's files, in order.
    pub fn names(&self, host: &str) -> anyhow::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.behind(host)?)?;
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }
}

impl Drop for HostFolders {
    fn drop(&mut self) {
        for folder in self.netns.iter().chain([&self.path]) {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                tracing::error!(folder = %folder.display(), %error, "a test leaves a folder behind");
            }
        }
    }
}
