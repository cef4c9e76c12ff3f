//! Data that manifests name: torn ones, large ones, and uploads whose writer was killed.
//!
//! Breakages that these tests catch: reads without a digest, parts in the wrong order, an upload
//! of a dead writer that stays, one of a living writer that is aborted.

use std::sync::Mutex;

use longstrap_storage::{ErrorKind, ObjectRef, keys};

use crate::s3::Server;
use crate::{attempt, folder};

#[tokio::test]
async fn torn_data_are_noticed() {
    let (folder, store) = folder();
    let path = store.local_root().unwrap().join("x/data");
    type Tear = fn(&std::path::Path) -> std::io::Result<()>;
    let tears: [(Tear, &str); 3] = [
        (|path| std::fs::write(path, "0123"), "10 bytes and it has 4"),
        (|path| std::fs::write(path, "012345678x"), "sha256:"),
        (|path| std::fs::remove_file(path), "does not exist"),
    ];
    for (tear, says) in tears {
        let object = store.put_ref("x/data", "0123456789").await.unwrap();
        assert_eq!(store.get_verified(&object).await.unwrap(), "0123456789");
        tear(&path).unwrap();
        let copy = folder.path().join("copy");
        for error in [
            store.get_verified(&object).await.unwrap_err(),
            store.download_verified(&object, &copy, &|_| {}).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Torn);
            assert!(error.to_string().contains(says) && error.object().ends_with("x/data"), "{error}");
        }
        assert!(!copy.exists());
    }
    store.put("short", "abc").await.unwrap();
    assert_eq!(store.get_range("short", 1..3).await.unwrap(), "bc");
    assert_eq!(store.get_range("short", 1..9).await.unwrap_err().kind(), ErrorKind::Torn);
}

#[tokio::test]
async fn large_files_go_in_parts_and_come_back() {
    let server = Server::start().await;
    let (folder, local) = folder();
    let content: Vec<u8> = (0..20_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    std::fs::write(&from, &content).unwrap();
    let me = attempt("1-0-me");
    for store in [local, server.store(), server.store().written_by(&me)] {
        let told = Mutex::new(Vec::new());
        let object = store.put_file("big", &from, &|bytes| told.lock().unwrap().push(bytes)).await.unwrap();
        assert_eq!(object, ObjectRef::of("big", &content));
        assert_eq!(told.into_inner().unwrap().last(), Some(&20_000_003));
        store.download_verified(&object, &to, &|_| {}).await.unwrap();
        assert!(std::fs::read(&to).unwrap() == content);
        assert_eq!(store.list(keys::UPLOADS).await.unwrap(), []);
    }
    assert_eq!(server.uploads.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn uploads_of_killed_writers_are_aborted() {
    let server = Server::start().await;
    let (folder, _) = folder();
    let from = folder.path().join("from");
    std::fs::write(&from, vec![7; 20_000_000]).unwrap();
    // "Killed" at the first part that arrived: nothing after it runs.
    let (dead, alive, now) = (attempt("1-0-dead"), attempt("2-1-alive"), attempt("2-0-now"));
    for writer in [&dead, &alive] {
        let store = server.store().written_by(writer).sub("shards");
        let killed = tokio::sync::Notify::new();
        let progress = |_| killed.notify_one();
        tokio::select! {
            done = store.put_file("big", &from, &progress) => panic!("{done:?}"),
            () = killed.notified() => {}
        }
    }
    let store = server.store();
    let open = || server.uploads.lock().unwrap().len();
    let recorded = store.list(keys::UPLOADS).await.unwrap();
    assert_eq!((open(), recorded.len()), (2, 2));
    assert_eq!(store.sweep_uploads(&now).await.unwrap(), 1);
    let left = store.list(keys::UPLOADS).await.unwrap();
    assert_eq!((open(), left.len()), (1, 1));
    assert!(left[0].key.contains("2-1-alive"), "{left:?}");
    assert_eq!(store.sweep_uploads(&now).await.unwrap(), 0);
}
