use std::fs;

use dunlin_model::Name;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

const VM: VmId = VmId(Uuid::from_u128(1));

struct Site {
    dir: TempDir,
    target: Target,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let target = Target { path: dir.path().join("web.raw"), incarnation: Incarnation(2), mark: None };
        Self { dir, target }
    }

    fn beside(&self) -> PathBuf {
        beside(&self.target.path, VM, self.target.incarnation)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Cut off after any step, a target is removed whole; what somebody else put at its path, before or after, is not.
#[test]
fn what_is_ours_goes_and_nothing_else() {
    for steps in 0..=4 {
        for intruder in [false, true] {
            let mut site = Site::new();
            let target = &mut site.target;
            let beside = beside(&target.path, VM, target.incarnation);
            if steps >= 1 {
                begin(&beside).unwrap();
                fs::write(&beside, b"half a disk").unwrap();
            }
            let mark = (steps >= 2).then(|| finish(&beside).unwrap());
            if steps >= 3 {
                target.mark = mark;
            }
            if steps >= 4 {
                claim(&beside, &target.path).unwrap();
            }
            if intruder {
                // Replaces ours, when ours is there: an admin copied a file into its place.
                let other = site.dir.path().join("other");
                fs::write(&other, b"somebody's disk").unwrap();
                fs::rename(&other, &site.target.path).unwrap();
            }
            unmake(&site.target, VM).unwrap();
            unmake(&site.target, VM).unwrap();
            let left: &[&str] = if intruder { &["web.raw"] } else { &[] };
            assert_eq!(site.names(), left, "after {steps} steps, intruder: {intruder}");
        }
    }
}

/// A path that is taken, in a folder that is not there, or among the agent's own files is refused; one that is taken at
/// the last moment is not overwritten.
#[test]
fn no_file_is_overwritten() {
    let site = Site::new();
    let (path, own) = (&site.target.path, site.dir.path().join("own"));
    fs::create_dir(&own).unwrap();
    assert_eq!(refusal(path, &own), None);
    let says = |path: &Path, words: &str| {
        let refusal = refusal(path, &own).unwrap();
        assert!(refusal.contains(words), "{refusal}");
    };
    says(&site.dir.path().join("nowhere/web.raw"), "nowhere is not on this host");
    says(&own.join("web.raw"), "own data folder");

    begin(&site.beside()).unwrap();
    finish(&site.beside()).unwrap();
    fs::write(path, b"somebody's disk").unwrap();
    says(path, "a file already");
    let late = claim(&site.beside(), path).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(path).unwrap(), b"somebody's disk");
    fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink("/no/such/file", path).unwrap();
    says(path, "a file already");
}

/// A disk whose guest has left gets the name that says so, once, and never another file's.
#[test]
fn an_old_disk_is_set_aside() {
    let site = Site::new();
    let (path, vm): (_, Name) = (&site.target.path, "web".parse().unwrap());
    let aside = dunlin_model::vm::Disk::left_behind(&path.display().to_string(), &vm, Incarnation(7));
    fs::write(path, b"an old disk").unwrap();
    set_aside(path, Path::new(&aside)).unwrap();
    set_aside(path, Path::new(&aside)).unwrap();
    assert_eq!(site.names(), ["web.raw.stale-web-7"]);
    assert_eq!(fs::read(&aside).unwrap(), b"an old disk");
    fs::write(path, b"another").unwrap();
    set_aside(path, Path::new(&aside)).unwrap_err();
    assert_eq!(fs::read(&aside).unwrap(), b"an old disk");
}
