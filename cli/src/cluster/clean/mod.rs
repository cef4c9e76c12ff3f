//! `longstrap clean`: deletes what a run has written to its storage.
//!
//! Invariant: without `--yes` nothing is deleted; a run that is at work, or whose data others need, is
//! refused; what is not provably the run's stays.

mod inventory;
mod obstacles;
mod storage;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::Args;
use longstrap_memory_plan::human;
use longstrap_storage::Store;

use self::inventory::{Item, What};
use self::storage::Contents;
use super::access::{Access, Cluster};
use super::output;
use super::target::{Target, find};
use crate::text;

/// Options of `clean`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Credentials come from the environment (AWS_ACCESS_KEY_ID, …), as for `local run`. \
    A URI is cleaned from the storage alone: whether its run is at work on a cluster cannot be seen then.")]
pub(crate) struct CleanArgs {
    /// Object on a cluster (docs, synth/docs, cer/run), or the URI of a run's storage
    #[arg(value_name = "[KIND/]NAME|URI", value_parser = subject)]
    subject: Subject,
    /// Delete; without it, only show what would be deleted
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    access: Access,
}

/// What is to be cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Object(Target),
    Uri(String),
}

fn subject(text: &str) -> Result<Subject, String> {
    if text.contains(':') {
        return Ok(Subject::Uri(text.to_owned()));
    }
    text.parse().map(Subject::Object).map_err(|error: super::target::InvalidTarget| {
        format!("{error}; a storage is named by its URI, as s3://bucket/path or file:///path")
    })
}

/// Shows, or deletes.
pub(crate) async fn clean(args: &CleanArgs) -> Result<u8> {
    let (uri, options, object) = match &args.subject {
        Subject::Uri(uri) => (uri.clone(), BTreeMap::new(), None),
        Subject::Object(target) => {
            let cluster = Cluster::connect(&args.access).await?;
            let found = find(&cluster, target).await?;
            obstacles::refuse_live(&found)?;
            obstacles::refuse_pods(&cluster, found.object.uid()).await?;
            obstacles::refuse_others(&cluster, &found).await?;
            let storage = found.object.common().storage.clone();
            (storage.uri, storage.options, Some((cluster, found)))
        }
    };
    let store = Store::open(&uri, &options)?;
    storage::refuse_busy(&store)?;
    let contents = storage::read(&store).await.with_context(|| {
        let local = object.is_some() && store.local_root().is_some();
        let hint = if local { " (a file: URI is a folder of this machine here)" } else { "" };
        format!("cannot clean {uri}{hint}")
    })?;
    if let Some((cluster, found)) = &object {
        obstacles::refuse_foreign_owner(cluster, found, &contents.owner).await?;
    }
    output::say(&table(&uri, &contents))?;
    if !args.yes {
        return output::say("nothing was deleted; add --yes to delete what is the run's").map(|_| 0);
    }
    storage::empty(&store, &contents).await.context("not all was deleted; the same command goes on")?;
    output::say("deleted").map(|_| 0)
}

/// Every object that would go, then what stays, then the total.
fn table(uri: &str, contents: &Contents) -> String {
    let Contents { owner, items, staged } = contents;
    let (ours, foreign): (Vec<&Item>, Vec<&Item>) = items.iter().partition(|item| item.what != What::Foreign);
    let mut rows = vec![vec!["KEY".to_owned(), "BYTES".to_owned(), "WHAT".to_owned()]];
    let row = |item: &&Item| vec![item.key.clone(), text::count(item.bytes), item.what.as_str().to_owned()];
    rows.extend(ours.iter().map(row));
    let unfinished = |key: &String| vec![key.clone(), "-".to_owned(), "unfinished upload".to_owned()];
    rows.extend(staged.iter().map(unfinished));
    let mut lines = vec![
        format!("{uri} of {}/{} (cluster {})", owner.namespace, owner.name, owner.cluster),
        text::table(&rows),
    ];
    let total: u64 = ours.iter().map(|item| item.bytes).sum();
    lines.push(format!("total: {}, {}", objects(ours.len() + staged.len()), human(total)));
    if !foreign.is_empty() {
        let names = foreign.iter().map(|item| format!("\n  {}", item.key)).collect::<String>();
        lines.push(format!("stays, because no manifest of the run names it:{names}"));
    }
    lines.join("\n")
}

fn objects(count: usize) -> String {
    if count == 1 { "1 object".to_owned() } else { format!("{} objects", text::count(count as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longstrap_storage::{Digest, ObjectRef, keys};
    use serde_json::json;

    #[test]
    fn a_subject_is_a_name_or_a_uri() {
        assert_eq!(subject("s3://b/x"), Ok(Subject::Uri("s3://b/x".to_owned())));
        assert_eq!(subject("file:///x"), Ok(Subject::Uri("file:///x".to_owned())));
        assert!(matches!(subject("synth/docs"), Ok(Subject::Object(_))));
        assert!(subject("/data/run").unwrap_err().contains("file:///path"));
    }

    /// A run with one committed and one unfinished stage, a restart, and files of somebody else.
    async fn written(uri: &str) -> Store {
        let store = Store::open(uri, &BTreeMap::new()).unwrap();
        let put = async |key: &str, value: &str| store.put(key, value.to_owned()).await.unwrap();
        let owner = json!({"cluster": "c", "namespace": "ml", "name": "run", "uid": "u"}).to_string();
        put(&keys::owner(0), &owner).await;
        for folder in ["", "r1/"] {
            put(&format!("{folder}{}", keys::RUN), "{}").await;
            let key = "stages/a/1-0-x/model.safetensors";
            put(&format!("{folder}{key}"), "12345").await;
            let manifest = json!({
                "attemptId": "1-0-x",
                "fingerprint": Digest::of("{}"),
                "files": [ObjectRef::of(key, b"12345")],
            });
            put(&format!("{folder}{}", keys::stage_manifest("a")), &manifest.to_string()).await;
        }
        put("r1/restart.json", "{}").await;
        put("stages/b/2-0-y/model.safetensors", "123").await;
        put("stages/b/mine.txt", "keep").await;
        put("notes.txt", "keep").await;
        store
    }

    #[tokio::test]
    async fn all_that_is_the_runs_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("file://{}/run", folder.path().display());
        let store = written(&uri).await;
        let half = folder.path().join("run/stages/b/2-0-y/config.json#1");
        std::fs::write(&half, "half").unwrap();
        let contents = storage::read(&store).await.unwrap();
        assert_eq!(
            table("file:///run", &contents),
            "file:///run of ml/run (cluster c)\n\
             KEY                                  BYTES  WHAT\n\
             r1/stages/a/1-0-x/model.safetensors  5      data\n\
             stages/a/1-0-x/model.safetensors     5      data\n\
             stages/b/2-0-y/model.safetensors     3      leftover\n\
             r1/restart.json                      2      manifest\n\
             r1/stages/a/stage.json               255    manifest\n\
             stages/a/stage.json                  255    manifest\n\
             r1/run.json                          2      run\n\
             run.json                             2      run\n\
             owner/0.json                         55     owner\n\
             stages/b/2-0-y/config.json           -      unfinished upload\n\
             total: 10 objects, 584 B\n\
             stays, because no manifest of the run names it:\n  \
               notes.txt\n  \
               stages/b/mine.txt"
        );
        assert!(half.exists(), "looking deletes nothing");
        storage::empty(&store, &contents).await.unwrap();
        let left: Vec<String> = store.list("").await.unwrap().into_iter().map(|m| m.key).collect();
        assert_eq!(left, ["notes.txt", "stages/b/mine.txt"]);
        assert!(!half.exists());
        assert!(!folder.path().join("run/r1").exists(), "empty folders go");
        // What was one is none any more.
        let error = storage::read(&store).await.unwrap_err().to_string();
        assert!(error.contains("is no run's storage"), "{error}");
    }

    #[tokio::test]
    async fn a_clean_that_was_cut_off_is_repeated() {
        let store = written("memory:///run").await;
        let contents = storage::read(&store).await.unwrap();
        // Cut off after any number of deletions.
        for cut in 0..contents.items.iter().filter(|item| item.what != What::Foreign).count() {
            let store = written("memory:///run").await;
            for item in contents.items.iter().take(cut) {
                store.delete(&item.key).await.unwrap();
            }
            let rest = storage::read(&store).await.unwrap();
            storage::empty(&store, &rest).await.unwrap();
            let left: Vec<String> = store.list("").await.unwrap().into_iter().map(|m| m.key).collect();
            assert_eq!(left, ["notes.txt", "stages/b/mine.txt"], "after {cut}");
        }
    }

    #[tokio::test]
    async fn a_folder_of_a_local_run_at_work_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".local")).unwrap();
        let lock = std::fs::File::create(folder.path().join(".local/lock")).unwrap();
        let store =
            Store::open(&format!("file://{}/run", folder.path().display()), &BTreeMap::new()).unwrap();
        storage::refuse_busy(&store).unwrap();
        lock.lock().unwrap();
        let error = storage::refuse_busy(&store).unwrap_err().to_string();
        assert!(error.contains("local run"), "{error}");
    }
}
