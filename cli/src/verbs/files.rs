//! Documents of `apply`, `diff` and `delete`: read from files, folders and standard input, and put into an order in which
//! each finds what it needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dunlin_model::{Invalid, Kind, Name};
use serde_json::Value;

use super::document::{all, within};
use super::vm_create::{bytes, told};
use crate::failure::Failure;

/// Endings of the files of a folder that are read.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Most files of one folder: more is a mistake in the path.
const FILES_MAX: usize = 4_096;

/// One object of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// The file, and where in it, for a refusal.
    pub(super) origin: String,
    pub(super) kind: Kind,
    /// Empty for a cluster that is not named: there is one.
    pub(super) name: String,
    pub(super) value: Value,
    /// The folder of its file, from which paths within it lead.
    pub(super) folder: PathBuf,
}

impl Document {
    /// As in `vm/web`.
    pub(super) fn title(&self) -> String {
        let noun = self.kind.to_string().to_lowercase();
        if self.name.is_empty() { noun } else { format!("{noun}/{}", self.name) }
    }
}

/// Reads every document, those first that others need: an image before the VM that boots from it.
pub(super) async fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        for file in files(path)? {
            let origin = told(&file);
            let folder = file.parent().map(Path::to_owned).unwrap_or_default();
            for (origin, value) in all(&bytes(&file).await?, &origin)? {
                found.push(document(origin, value, folder.clone())?);
            }
        }
    }
    if found.is_empty() {
        return Err(Invalid::new("-f", "there is no document in it", "objects in YAML or JSON").into());
    }
    let mut seen: BTreeMap<(Kind, String), String> = BTreeMap::new();
    for document in &found {
        let key = (document.kind, document.name.clone());
        if let Some(first) = seen.insert(key, document.origin.clone()) {
            let problem = format!("{} stands in {first} too", document.title());
            return Err(Invalid::new(document.origin.clone(), problem, "each object once").into());
        }
    }
    found.sort_by_key(|document| rank(document.kind));
    Ok(found)
}

/// What has to be there first comes first.
fn rank(kind: Kind) -> usize {
    match kind {
        Kind::Cluster => 0,
        Kind::Host => 1,
        Kind::Image => 2,
        _ => 3,
    }
}

/// The file itself, or those of the folder, by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let reading = || Failure::io(format!("reading {}", path.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(reading())? {
        let file = entry.map_err(reading())?.path();
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if ENDINGS.contains(&ending) && file.is_file() {
            found.push(file);
        }
    }
    dunlin_model::invalid::in_range(&path.display().to_string(), found.len() as u64, 1..=FILES_MAX as u64)?;
    found.sort();
    Ok(found)
}

fn document(origin: String, value: Value, folder: PathBuf) -> Result<Document, Invalid> {
    if !value.is_object() {
        return Err(Invalid::new(origin, "is no object", "an object with a kind, a name and a spec"));
    }
    let kind = dunlin_proto::document::kind(&value).map_err(|e| within(&origin, e))?;
    if !matches!(kind, Kind::Cluster | Kind::Host | Kind::Image | Kind::Vm) {
        let problem = format!("a {kind} is not made by a document");
        return Err(Invalid::new(format!("{origin}: kind"), problem, "Cluster, Host, Image or Vm"));
    }
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if kind != Kind::Cluster || !name.is_empty() {
        let refused = |e: Invalid| within(&origin, Invalid { field: "metadata.name".to_owned(), ..e });
        name.parse::<Name>().map_err(refused)?;
    }
    Ok(Document { name: name.to_owned(), origin, kind, value, folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Several documents in several files of a folder, in any order: read by name of the file, put in the order of need,
    /// and refused as a whole when one is wrong.
    #[tokio::test]
    async fn folders_and_orders() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "a.yaml",
            "kind: Vm\nmetadata: {name: web}\nspec: {mem_mib: 1}\n---\n---\nkind: Image\nmetadata: {name: disk}\n",
        );
        write("b.json", r#"{"kind": "List", "items": [{"kind": "Vm", "metadata": {"name": "db"}}]}"#);
        write("c.yml", "kind: Cluster\nspec: {}\n");
        write("notes.txt", "not read");
        let read = async || read(&[folder.path().to_owned()]).await;
        let titles: Vec<_> = read().await.unwrap().iter().map(Document::title).collect();
        assert_eq!(titles, ["cluster", "image/disk", "vm/web", "vm/db"]);
        let refused =
            async || read().await.unwrap_err().to_string().replace(&folder.path().display().to_string(), "D");
        write("d.yaml", "kind: Vm\nmetadata: {name: web}\n");
        assert_eq!(
            refused().await,
            "D/d.yaml: vm/web stands in D/a.yaml, document 1 too; allowed: each object once"
        );
        write("d.yaml", "kind: vm\n");
        assert!(
            refused().await.contains("D/d.yaml: kind: \"vm\" is not known; allowed: "),
            "{}",
            refused().await
        );
        write("d.yaml", "kind: Task\nmetadata: {name: t}\n");
        assert!(refused().await.starts_with("D/d.yaml: kind: a Task is not made by a document"));
        write("d.yaml", "kind: Vm\n");
        assert!(refused().await.starts_with("D/d.yaml: metadata.name: "), "{}", refused().await);
        write("d.yaml", "kind: Vm\nkind: Vm\n");
        assert!(refused().await.starts_with("D/d.yaml, document 1: duplicate entry"), "{}", refused().await);
    }
}
