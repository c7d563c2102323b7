//! What only a store in a directory can do wrong: paths, locks, leftovers, full disks, vanished roots.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::fs::{FlockOperation, flock};
use strongroom_format::ids::{PackId, RunId, SessionId, TimestampMs};
use strongroom_format::layout::{InboxEntry, KeyPrefix, ObjectKey};
use strongroom_store::{DirectoryStore, ETag, ObjectStore, StoreErrorKind};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

async fn new_store() -> (tempfile::TempDir, DirectoryStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(folder.path().join("target")).await.unwrap();
    (folder, store)
}

fn run(n: u8) -> ObjectKey {
    ObjectKey::Run(RunId::from_bytes([n; 16]))
}

fn now() -> TimestampMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    TimestampMs(u64::try_from(since.as_millis()).unwrap())
}

fn files_in(folder: impl AsRef<Path>) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[tokio::test]
async fn opening_what_is_no_directory_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = DirectoryStore::open(&missing).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.to_string().contains("mounted?"), "{error}");
    assert!(!missing.exists(), "open creates nothing");

    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = DirectoryStore::open(&file).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    let error = DirectoryStore::open(file.join("below")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    let error = DirectoryStore::create(&file).await.unwrap_err();
    assert_ne!(error.kind, StoreErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn keys_are_paths_and_create_keeps_what_is_there() {
    let (_folder, store) = new_store().await;
    let pack = ObjectKey::Pack(PackId::from_bytes([0xab; 16]));
    store.put_if_absent(&pack, "content".into()).await.unwrap();
    assert_eq!(fs::read(store.root().join(pack.to_string())).unwrap(), b"content");
    let again = DirectoryStore::create(store.root()).await.unwrap();
    assert_eq!(again.get(&pack, 100).await.unwrap().bytes, "content");
    // Whoever may read the directory may read its objects: they are sealed.
    let mode = fs::metadata(store.root().join(pack.to_string())).unwrap().permissions().mode();
    assert_ne!(mode & 0o040, 0, "the umask decides, not the temporary file: {mode:o}");
}

#[tokio::test]
async fn a_root_may_be_relative_or_bare() {
    // Tests share a working directory, so this only checks what leaves no traces: a root that is there.
    let store = DirectoryStore::open(".").await.unwrap();
    assert!(store.list(KeyPrefix::Runs, None).await.unwrap().objects.is_empty());
}

#[tokio::test]
async fn listings_show_objects_and_nothing_else() {
    let (_folder, store) = new_store().await;
    let root = store.root().to_path_buf();
    store.put_if_absent(&ObjectKey::Root, "r".into()).await.unwrap();
    store.put_if_absent(&run(1), "one".into()).await.unwrap();
    fs::write(root.join("runs/.hidden"), "x").unwrap();
    fs::write(root.join(".temporary/leftover"), "x").unwrap();
    fs::write(root.join("root-notes"), "a foreign file sorts between 'root' and 'roots/'").unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
    let keys =
        |page: strongroom_store::ListPage| page.objects.into_iter().map(|row| row.key).collect::<Vec<_>>();
    let listed = keys(store.list(KeyPrefix::All, None).await.unwrap());
    assert_eq!(listed, ["root".to_owned(), "root-notes".to_owned(), run(1).to_string()]);
    let listed = keys(store.list(KeyPrefix::All, Some("root")).await.unwrap());
    assert_eq!(listed, ["root-notes".to_owned(), run(1).to_string()]);
}

#[tokio::test]
async fn full_keys_are_in_byte_order_across_folders_and_pages() {
    let (_folder, store) = new_store().await;
    let root = store.root().to_path_buf();
    // Names before and after '/' (0x2f), beside folders of the same beginning, more of them than a page has rows.
    let mut expected = Vec::new();
    for folder in ["runs/a", "runs/a-", "runs/a0", "runs/b"] {
        fs::create_dir(root.join(folder)).unwrap();
        for n in 0..400 {
            expected.push(format!("{folder}/{n:03}"));
        }
    }
    expected.extend(["runs/a!", "runs/a.b", "runs/aa", "runs/a00"].map(str::to_owned));
    // Empty folders use up names without giving rows.
    for n in 0..1500 {
        fs::create_dir(root.join(format!("runs/a-empty-{n}"))).unwrap();
    }
    for key in &expected {
        fs::write(root.join(key), "x").unwrap();
    }
    expected.sort_unstable();
    let mut listed = Vec::new();
    let mut next = None;
    loop {
        let page = store.list(KeyPrefix::Runs, next.as_deref()).await.unwrap();
        listed.extend(page.objects.into_iter().map(|row| row.key));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn nothing_temporary_stays_and_stale_leftovers_are_swept() {
    let (_folder, store) = new_store().await;
    let temporary = store.root().join(".temporary");
    let etag = store.put_if_absent(&run(1), "one".into()).await.unwrap();
    store.put_if_absent(&run(1), "two".into()).await.unwrap_err();
    store.put_if_match(&run(1), "three".into(), &etag).await.unwrap();
    store.put_if_match(&run(1), "four".into(), &etag).await.unwrap_err();
    assert_eq!(files_in(&temporary), 0, "won or lost, a put leaves nothing behind");

    fs::write(temporary.join("killed"), "half a pack").unwrap();
    assert_eq!(store.sweep_temporary_files(now()).await.unwrap(), 0, "it may still be written");
    let tomorrow = TimestampMs(now().0 + DAY_MS + 60_000);
    assert_eq!(store.sweep_temporary_files(tomorrow).await.unwrap(), 1);
    assert_eq!(store.sweep_temporary_files(tomorrow).await.unwrap(), 0);
    assert_eq!(store.get(&run(1), 100).await.unwrap().bytes, "three", "objects are not swept");
}

#[tokio::test]
async fn missing_folders_are_made_again() {
    let (_folder, store) = new_store().await;
    for folder in [".temporary", ".locks", "packs", "inbox", "runs"] {
        fs::remove_dir_all(store.root().join(folder)).unwrap();
    }
    let pack = ObjectKey::Pack(PackId::from_bytes([7; 16]));
    store.put_if_absent(&pack, "content".into()).await.unwrap();
    let etag = store.put_if_absent(&run(1), "one".into()).await.unwrap();
    store.put_if_match(&run(1), "two".into(), &etag).await.unwrap();
    store.delete(&[run(1), run(2)]).await.unwrap();
}

#[tokio::test]
async fn session_folders_come_and_go_while_others_write() {
    let (_folder, store) = new_store().await;
    let session = SessionId::from_bytes([1; 16]);
    let tasks = (0..8_u32).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..25 {
                let key = ObjectKey::Inbox(session, InboxEntry::Record(task * 100 + round));
                store.put_if_absent(&key, "record".into()).await.unwrap();
                store.get(&key, 10).await.unwrap();
                store.delete(&[key]).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(files_in(store.root().join("inbox")), 0, "no empty folder stays");
}

#[tokio::test]
async fn a_root_that_has_gone_is_no_empty_store() {
    let (folder, store) = new_store().await;
    store.put_if_absent(&run(1), "one".into()).await.unwrap();
    fs::rename(store.root(), folder.path().join("moved")).unwrap();
    for replaced in [false, true] {
        if replaced {
            // What an unmounted disk leaves behind: its mount point.
            fs::create_dir(store.root()).unwrap();
        }
        let etag = ETag("x".to_owned());
        for error in [
            store.get(&run(1), 100).await.unwrap_err(),
            store.get_range(&run(1), 0..1).await.unwrap_err(),
            store.put_if_absent(&run(2), "two".into()).await.unwrap_err(),
            store.put_if_match(&run(1), "two".into(), &etag).await.unwrap_err(),
            store.list(KeyPrefix::All, None).await.unwrap_err(),
            store.delete(&[run(1)]).await.unwrap_err(),
        ] {
            assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
            assert!(error.to_string().contains("unmounted"), "{error}");
        }
    }
    assert_eq!(files_in(store.root()), 0, "nothing is written where the target isn't");
}

#[tokio::test(start_paused = true)]
async fn a_lock_held_by_others_is_waited_for_and_given_up_on() {
    let (_folder, store) = new_store().await;
    let etag = store.put_if_absent(&run(1), "one".into()).await.unwrap();
    store.put_if_match(&run(1), "one".into(), &etag).await.unwrap();
    let held = fs::File::open(store.root().join(".locks/runs")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();

    let started = tokio::time::Instant::now();
    let error = store.put_if_match(&run(1), "two".into(), &etag).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("30 s"), "{error}");
    assert_eq!(started.elapsed().as_secs(), 30);
    // Others are not held up.
    store.delete(&[ObjectKey::Root]).await.unwrap();

    let waiting = tokio::spawn({
        let (store, etag) = (store.clone(), etag.clone());
        async move { store.put_if_match(&run(1), "two".into(), &etag).await }
    });
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!waiting.is_finished());
    drop(held);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lock_ends_with_its_process() {
    let (_folder, store) = new_store().await;
    let etag = store.put_if_absent(&run(1), "one".into()).await.unwrap();
    store.put_if_match(&run(1), "one".into(), &etag).await.unwrap();
    let path = store.root().join(".locks/runs");
    // `--no-fork`: the process killed below is the one that holds the lock.
    let mut holder = std::process::Command::new("flock")
        .arg("--no-fork")
        .arg(&path)
        .args(["sleep", "60"])
        .spawn()
        .unwrap();
    let free = || {
        let file = fs::File::open(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
    };
    while free() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waiting = tokio::spawn({
        let (store, etag) = (store.clone(), etag.clone());
        async move { store.put_if_match(&run(1), "two".into(), &etag).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    holder.kill().unwrap();
    holder.wait().unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn many_tasks_on_many_threads_create_one_object() {
    let (_folder, store) = new_store().await;
    for round in 0..20 {
        let tasks: Vec<_> = (0..16_u8)
            .map(|racer| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.put_if_absent(&run(round), Bytes::from(vec![racer; 10_000])).await.map(|_| racer)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(racer) => winners.push(racer),
                Err(error) => assert_eq!(error.kind, StoreErrorKind::Conflict, "{error}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(store.get(&run(round), 10_000).await.unwrap().bytes, vec![winners[0]; 10_000]);
    }
}

#[tokio::test]
async fn errors_of_the_file_system_have_kinds() {
    let (_folder, store) = new_store().await;
    let key = ObjectKey::Pack(PackId::random(&mut StdRng::seed_from_u64(1)));
    fs::create_dir(store.root().join(key.to_string())).unwrap();
    let error = store.get(&key, 100).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "a folder where an object should be: {error}");
    let error = store.delete(&[key]).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
}
