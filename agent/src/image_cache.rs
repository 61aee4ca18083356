//! What of the images on this host may go, and the task that lets go of it.
//!
//! An image is only a source: disks are copies of it (`volumes`), and a kernel is read when a guest starts. So an image
//! is needed while a VM that is told to run here names it, and afterwards only to spare a fetch. It goes
//! - when the fleet has deleted it: at the next look,
//! - when the images take more than their budget, or the disk is nearly full: the longest unused first.
//!
//! Never one that is needed, and none at all before the leader has said what is to run here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};

use crate::host::Host;

/// How often the folder is looked over. Images come and go in hours.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How often it is looked whether the leader has said what is to run here.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Share of the disk that unused images give back when less is free, percent: guests' own disks grow.
const FREE_MIN_PERCENT: u64 = 10;

/// One image in the folder, whole or half fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    /// When it was last asked for.
    pub(crate) used: SystemTime,
}

/// What decides which images go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    /// Needed by a VM that is told to run here.
    pub(crate) needed: &'a BTreeSet<String>,
    /// Those the fleet has; none when it could not be asked.
    pub(crate) fleet: Option<&'a BTreeSet<String>>,
    /// Most that all images together may take, bytes.
    pub(crate) budget_bytes: u64,
    /// Bytes that should become free on the disk.
    pub(crate) short_bytes: u64,
}

/// Which images go, the longest unused first.
pub(crate) fn doomed(mut cached: Vec<Cached>, rules: Rules<'_>) -> Vec<Cached> {
    let total: u64 = cached.iter().map(|image| image.size_bytes).sum();
    let mut excess = total.saturating_sub(rules.budget_bytes).max(rules.short_bytes);
    cached.sort_by(|a, b| (a.used, &a.sha256).cmp(&(b.used, &b.sha256)));
    cached.retain(|image| !rules.needed.contains(&image.sha256));
    let deleted = |image: &Cached| rules.fleet.is_some_and(|fleet| !fleet.contains(&image.sha256));
    let (mut doomed, kept): (Vec<_>, Vec<_>) = cached.into_iter().partition(deleted);
    for image in &doomed {
        excess = excess.saturating_sub(image.size_bytes);
    }
    for image in kept {
        if excess == 0 {
            break;
        }
        excess = excess.saturating_sub(image.size_bytes);
        doomed.push(image);
    }
    doomed
}

/// Looks the folder over from time to time, and whenever a fetch found the disk full. Ends with the agent.
pub(crate) async fn keep(host: Arc<Host>) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first look is due as soon as it is known what is to run here.
    while host.board.images_told().is_none() {
        tokio::time::sleep(TOLD_EVERY).await;
    }
    loop {
        let asking = tokio::select! {
            _ = looks.tick() => None,
            asking = host.images.pressed() => asking,
        };
        let freed = look(&host, asking.is_some()).await;
        if let Some(asking) = asking {
            // Whoever asked may have been given up meanwhile.
            let _ = asking.send(freed);
        }
    }
}

/// One look. Under pressure, everything that is not needed goes. Returns the bytes that went.
async fn look(host: &Host, pressed: bool) -> u64 {
    let Some(catalog) = host.board.images_told() else { return 0 };
    let needed: BTreeSet<String> = catalog.values().map(|spec| spec.sha256.clone()).collect();
    let cached = match host.images.cached() {
        Ok(cached) if cached.iter().any(|image| !needed.contains(&image.sha256)) => cached,
        Ok(_) => return 0,
        Err(error) => {
            tracing::warn!(%error, "the folder of images could not be looked over");
            return 0;
        }
    };
    let fleet = host.images.in_fleet().await;
    let rules = Rules {
        needed: &needed,
        fleet: fleet.as_ref(),
        budget_bytes: if pressed { 0 } else { host.config.image_cache_mib << 20 },
        short_bytes: short_bytes(&host.config.data_dir),
    };
    let mut freed = 0;
    for image in doomed(cached, rules) {
        // What is told to run may have changed while the fleet was asked.
        let now = host.board.images_told().unwrap_or_default();
        if now.values().any(|spec| spec.sha256 == image.sha256) {
            continue;
        }
        match host.images.forget(&image.sha256).await {
            Ok(true) => {
                freed += image.size_bytes;
                tracing::info!(sha256 = image.sha256, size_bytes = image.size_bytes, "let go of an image");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(sha256 = image.sha256, %error, "an image could not be removed"),
        }
    }
    freed
}

/// How much less than the least share of the disk is free, bytes.
fn short_bytes(dir: &std::path::Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |disk| {
        let wanted = disk.f_blocks / 100 * FREE_MIN_PERCENT;
        wanted.saturating_sub(disk.f_bavail).saturating_mul(disk.f_frsize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fleet has deleted goes, then the longest unused until the budget holds; what is needed stays, whatever
    /// it costs; and when the fleet cannot be asked nothing counts as deleted.
    #[test]
    fn only_the_unneeded_goes_oldest_first() {
        let image = |name: &str, size_bytes, age_s: u64| Cached {
            sha256: name.to_owned(),
            size_bytes,
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age_s),
        };
        let all = || {
            vec![image("needed", 50, 900), image("old", 20, 500), image("new", 30, 1), image("gone", 5, 0)]
        };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let (needed, fleet) = (set(&["needed"]), set(&["old", "new"]));
        let check = |fleet, budget_bytes, short_bytes, expect: &[&str]| {
            let rules = Rules { needed: &needed, fleet, budget_bytes, short_bytes };
            let names: Vec<_> = doomed(all(), rules).into_iter().map(|image| image.sha256).collect();
            assert_eq!(names, expect, "budget {budget_bytes}, short {short_bytes}");
        };
        check(Some(&fleet), 1000, 0, &["gone"]);
        check(None, 1000, 0, &[]);
        check(Some(&fleet), 100, 0, &["gone"]);
        check(Some(&fleet), 99, 0, &["gone", "old"]);
        check(None, 104, 0, &["old"]);
        check(Some(&fleet), 0, 0, &["gone", "old", "new"]);
        check(Some(&fleet), 1000, 6, &["gone", "old"]);
    }
}
