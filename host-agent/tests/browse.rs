//! `strongroom browse`: what comes out of filesystems that other programs made, and what does not come out of bad ones.
//!
//! Tests that need more than e2fsprogs are ignored unless asked for; `.ci/run` asks for them, and installs what they
//! need.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use common::{Place, code, noise, walk};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// Runs a program that may be where only root looks for it; it must succeed.
fn ran(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path).env("TZ", "UTC").env("MTOOLS_SKIP_CHECK", "1");
    let output = command.output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a filesystem of `mib` MiB from a folder.
fn ext(place: &Place, options: &[&str], source: &Path, mib: usize) -> PathBuf {
    let image = place.path("filesystem");
    let _ = std::fs::remove_file(&image);
    let size = format!("{mib}M");
    ran("mke2fs", &[&["-q", "-F"], options, &["-d", text(source), text(&image), &size]].concat());
    image
}

/// Changes an image with debugfs; each line is a command of its.
fn debugfs(image: &Path, commands: &str) -> String {
    let script = image.with_extension("commands");
    std::fs::write(&script, commands).unwrap();
    ran("debugfs", &["-w", "-f", text(&script), text(image)])
}

/// Backs up an image under the name v.
fn backed_up(place: &Place, image: &Path) {
    place.back_up(image, "v");
}

fn browse(place: &Place, args: &[&str]) -> Output {
    place.run(&[&["browse", "v@latest"], args].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn extracted(place: &Place, path: &str) -> Vec<u8> {
    let output = browse(place, &[path, "--extract", "-"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    output.stdout
}

fn write(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000 + content.len() as u64);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// A folder with whatever filesystems keep in different ways.
fn source(place: &Place) -> PathBuf {
    let folder = place.path("source");
    let at = |name: &str| folder.join(name);
    write(&at("empty"), b"");
    write(&at("small"), b"a line\n");
    // More than twelve blocks, and more than is named by one block of numbers.
    write(&at("blocks"), &noise(300_001, 1));
    write(&at("large"), &noise(5 * MIB + 17, 2));
    write(&at("zeros"), &vec![0; 100_000]);
    write(&at(&"n".repeat(255)), b"a long name");
    write(&at(&vec!["deep"; 40].join("/")).join("bottom"), b"at the bottom");
    for number in 0..600 {
        write(&at(&format!("many/file number {number}")), format!("{number}").as_bytes());
    }
    for (nth, size) in [59, 60, 61, 100, 150, 200].into_iter().enumerate() {
        write(&at(&format!("in inodes/{nth}")), &noise(size, size as u64));
    }
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(&noise(10_000, 3), 3 * MIB as u64 + 123).unwrap();
    sparse.set_len(20 * MIB as u64 + 1).unwrap();
    symlink("small", at("link")).unwrap();
    symlink("/many/../deep", at("absolute link")).unwrap();
    symlink(format!("{}/small", vec!["."; 60].join("/")), at("long link")).unwrap();
    symlink("nowhere", at("dangling link")).unwrap();
    std::fs::write(folder.join(OsStr::from_bytes(b"not \xff utf-8\n")), b"bytes").unwrap();
    for (name, mode) in [("small", 0o4751), ("blocks", 0o400), ("many", 0o1750), ("empty", 0)] {
        std::fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    folder
}

/// What must be alike: kind, permissions without setuid and the like, time, content or target.
fn state(folder: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut state = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            std::fs::read(&path).unwrap()
        };
        let relative = path.strip_prefix(folder).unwrap();
        if !relative.starts_with("lost+found") && relative != Path::new("") {
            state.insert(relative.to_owned(), (metadata.mode() & 0o170_777, metadata.mtime(), content));
        }
    }
    state
}

fn assert_alike(source: &Path, extracted: &Path, what: &str) {
    let (wanted, found) = (state(source), state(extracted));
    for (path, state) in &wanted {
        let found = found.get(path).unwrap_or_else(|| panic!("{what}: {path:?} is missing"));
        assert_eq!((found.0, found.1, found.2.len()), (state.0, state.1, state.2.len()), "{what}: {path:?}");
        assert!(found.2 == state.2, "{what}: the content of {path:?} differs");
    }
    assert_eq!(wanted.len(), found.len(), "{what}");
}

/// docs/operations.md: "`browse` lists and extracts files of the machine that is in a backup: from ext2, ext3, ext4".
#[test]
fn everything_comes_out_as_it_went_in() {
    let place = Place::new();
    let source = source(&place);
    let kinds: &[&[&str]] = &[
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-b", "4096"],
        &["-t", "ext4", "-b", "65536"],
        &["-t", "ext4", "-b", "4096", "-O", "inline_data"],
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"],
        &["-t", "ext4", "-b", "4096", "-O", "bigalloc,^resize_inode"],
        &["-t", "ext4", "-b", "2048", "-O", "^64bit,^metadata_csum,^flex_bg", "-I", "128"],
        &["-t", "ext3", "-b", "4096"],
        &["-t", "ext2", "-b", "1024", "-O", "^filetype"],
    ];
    for (number, options) in kinds.iter().enumerate() {
        let image = ext(&place, options, &source, 96);
        if number < 2 {
            // Folders become trees.
            let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
            Command::new("e2fsck").args(["-fyD", text(&image)]).env("PATH", path).output().unwrap();
        }
        backed_up(&place, &image);
        let out = place.path(&format!("out{number}"));
        let output = browse(&place, &["/", "--extract", text(&out), "--json"]);
        assert_eq!(
            code(&output),
            0,
            "{options:?}: {}{}",
            said(&output),
            String::from_utf8_lossy(&output.stdout)
        );
        if options.contains(&"inline_data") {
            // mke2fs makes it only as long as its data there.
            let sparse = File::options().write(true).open(out.join("sparse")).unwrap();
            let modified = sparse.metadata().unwrap().modified().unwrap();
            sparse.set_len(source.join("sparse").metadata().unwrap().len()).unwrap();
            sparse.set_modified(modified).unwrap();
        }
        assert_alike(&source, &out, &format!("{options:?}"));
        // Holes stay holes, and zeros become holes.
        for name in ["sparse", "zeros"] {
            assert!(out.join(name).metadata().unwrap().blocks() * 512 < 200_000, "{options:?}: {name}");
        }
    }
    assert_eq!(walk(&place.path("target/inbox")).len(), 0, "collection is told of the end");
}

#[test]
fn folders_and_files_are_listed() {
    let place = Place::new();
    let source = source(&place);
    backed_up(&place, &ext(&place, &["-t", "ext4", "-L", "a label"], &source, 96));

    let partitions = place.ran(&["browse", "v@latest"]);
    assert!(partitions.contains("ext4") && partitions.contains("\"a label\""), "{partitions}");
    let line = place.ran(&["browse", "v@latest", "/small"]);
    assert!(
        line.starts_with("-rwsr-x--x ") && line.contains(" 7 ") && line.contains("2020-09-13T12:26:47Z"),
        "{line}"
    );
    let listed = place.ran(&["browse", "v@latest", "/"]);
    assert!(listed.contains("link -> small") && listed.contains("not \\xff utf-8\\n"), "{listed}");
    assert!(!listed.contains("file number"), "not what is below");
    // Through a link, from the root, with dots.
    let below = place.ran(&["browse", "v@latest", "absolute link/deep/../deep/deep/"]);
    assert!(below.starts_with('d') && below.trim_end().ends_with(" deep"), "{below}");

    let events = place.ran(&["browse", "v@latest", "/", "--recursive", "--json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let entry =
        |path: &str| events.iter().find(|event| event["path"] == path).unwrap_or_else(|| panic!("{path}"));
    assert_eq!(entry("/many")["mode"], "1750");
    assert_eq!(entry("/many/file number 599")["size_bytes"], 3);
    assert_eq!(entry("/dangling link")["target"], "nowhere");
    assert_eq!(entry("/link")["kind"], "symlink");
    assert!(events.iter().all(|event| event["event"] == "entry"));
    assert_eq!(events.len(), state(&source).len() + 1, "and lost+found");

    for (path, expected) in [("/nowhere", 2), ("/small/below", 2), ("/dangling link/", 2), ("/link/below", 2)]
    {
        assert_eq!(code(&browse(&place, &[path])), expected, "{path}");
    }
    assert_eq!(code(&browse(&place, &["/", "--partition", "1"])), 2);
    assert_eq!(code(&browse(&place, &["--partition", "0"])), 2, "without a path");
    assert_eq!(code(&place.run(&["browse", "nothing", "/"])), 2);
}

#[test]
fn nothing_is_replaced_unless_asked_for() {
    let place = Place::new();
    let source = source(&place);
    backed_up(&place, &ext(&place, &["-t", "ext4"], &source, 96));
    let file = place.file("file", b"mine");
    let refused = browse(&place, &["/small", "--extract", &file]);
    assert_eq!(code(&refused), 4, "{}", said(&refused));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    place.ran(&["browse", "v@latest", "/link", "--extract", &file, "--overwrite"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"a line\n");
    assert_eq!(Path::new(&file).metadata().unwrap().mode() & 0o7777, 0o751, "without setuid");

    let folder = place.path("folder");
    place.ran(&["browse", "v@latest", "/many", "--extract", text(&folder)]);
    assert_alike(&source.join("many"), &folder, "a folder");
    assert_eq!(folder.metadata().unwrap().mode() & 0o7777, 0o750);
    assert_eq!(code(&browse(&place, &["/many", "--extract", text(&folder)])), 4);
    std::fs::write(folder.join("mine"), b"mine").unwrap();
    std::fs::write(folder.join("file number 7"), b"mine").unwrap();
    place.ran(&["browse", "v@latest", "/many", "--extract", text(&folder), "--overwrite"]);
    assert_eq!(std::fs::read(folder.join("file number 7")).unwrap(), b"7");
    std::fs::remove_file(folder.join("mine")).unwrap();
    assert_alike(&source.join("many"), &folder, "over itself");

    assert_eq!(extracted(&place, "/sparse"), std::fs::read(source.join("sparse")).unwrap());
    let to = |path: &str, destination: &str| code(&browse(&place, &[path, "--extract", destination]));
    assert_eq!(to("/many", "-"), 2, "a folder to standard output");
    assert_eq!(to("/small", text(&folder)), 2, "the folder is there");
    assert_eq!(to("/small", text(&place.path("no such folder/file"))), 1);
    assert_eq!(to("/dangling link", text(&place.path("dangling"))), 2);
    let left =
        walk(&place.path("")).into_iter().filter(|path| path.to_string_lossy().ends_with("incomplete"));
    assert_eq!(left.count(), 0);
}

/// Issue: what was set aside for a file, and not written yet, was read as what the disk had there before.
#[test]
fn what_was_never_written_is_zeros() {
    let place = Place::new();
    let source = place.path("source");
    write(&source.join("file"), b"begin");
    let image = place.path("filesystem");
    std::fs::write(&image, noise(32 * MIB, 1)).unwrap();
    let options =
        ["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "nodiscard", "-d", text(&source), text(&image)];
    ran("mke2fs", &options);
    let told = debugfs(&image, "fallocate /file 1 99\nset_inode_field /file size 300000\nextents /file\n");
    assert!(told.contains("Uninit"), "{told}");
    backed_up(&place, &image);
    let mut expected = b"begin".to_vec();
    expected.resize(300_000, 0);
    assert!(extracted(&place, "/file") == expected);
}

/// docs/operations.md: "what was committed to the journal counts, also where it is not in its place yet".
#[test]
fn what_the_journal_holds_counts() {
    for checksums in ["", "-c", "-c -v 2"] {
        let place = Place::new();
        let source = place.path("source");
        for number in 0..5 {
            write(&source.join(format!("file{number}")), &noise(4096, number));
        }
        let image = ext(&place, &["-t", "ext4", "-b", "4096", "-O", "^64bit"], &source, 64);
        let block = |number: u64| {
            let told = debugfs(&image, &format!("bmap /file{number} 0\n"));
            told.lines().last().unwrap().trim().to_owned()
        };
        let blocks: Vec<String> = (0..5).map(block).collect();
        let mut content: Vec<Vec<u8>> = (0..5).map(|number| noise(4096, 10 + number)).collect();
        // As what the journal's own blocks begin with.
        content[1][..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        let files: Vec<String> = (0..5).map(|n| place.file(&format!("new{n}"), &content[n])).collect();
        // Three transactions: some blocks; the same again, and one revoked; one that was never ended.
        let told = debugfs(
            &image,
            &format!(
                "journal_open {checksums}\njournal_write -b {},{},{} {}\njournal_write -b {},{} {}\njournal_write -r {}\njournal_close\n",
                blocks[0],
                blocks[1],
                blocks[2],
                joined(&place, &files[0..3]),
                blocks[3],
                blocks[0],
                joined(&place, &[files[3].clone(), files[4].clone()]),
                blocks[2],
            ),
        );
        backed_up(&place, &image);
        let found = |number: usize| extracted(&place, &format!("/file{number}"));
        assert!(found(0) == content[4], "the newer one: {told}");
        assert!(found(1) == content[1], "{checksums}");
        assert!(found(2) == noise(4096, 2), "{checksums}: what was revoked is what is in its place");
        assert!(found(3) == content[3], "{checksums}");
        assert!(found(4) == noise(4096, 4), "{checksums}");
        // The same as by those who made it.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        Command::new("e2fsck").args(["-fy", text(&image)]).env("PATH", path).output().unwrap();
        backed_up(&place, &image);
        for (number, wanted) in [(0, &content[4]), (1, &content[1]), (2, &noise(4096, 2)), (3, &content[3])] {
            assert!(&found(number) == wanted, "{checksums}: file{number} after e2fsck");
        }
    }
}

fn joined(place: &Place, files: &[String]) -> String {
    let bytes: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    place.file(&format!("joined{}", files.len()), &bytes)
}

#[test]
fn what_can_not_be_is_an_error_and_ends() {
    let place = Place::new();
    let source = source(&place);
    let image = ext(&place, &["-t", "ext4", "-b", "4096"], &source, 96);
    let whole = std::fs::read(&image).unwrap();
    let with = |offset: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[offset..offset + bytes.len()].copy_from_slice(bytes);
        backed_up(&place, Path::new(&place.file("damaged", &damaged)));
        browse(&place, &["/"])
    };
    for (offset, what) in
        [(1024 + 4, "blocks"), (1024 + 0x18, "the size of blocks"), (1024 + 0x28, "inodes in a group")]
    {
        let refused = with(offset, &[0xff; 4]);
        assert_eq!(code(&refused), 3, "{what}: {}", said(&refused));
        assert!(said(&refused).contains("superblock"), "{}", said(&refused));
    }
    let refused = with(1024 + 0x60, &[0xff; 4]);
    assert_eq!(code(&refused), 2, "unknown features: {}", said(&refused));
    assert_eq!(code(&with(1024 + 0x38, &[0; 2])), 2, "no magic number");
    // The descriptors of all groups.
    let refused = with(4096, &[0xff; 4096]);
    assert_eq!(code(&refused), 3, "{}", said(&refused));

    // A folder that leads back to the root, and one inode that is no more.
    std::fs::write(&image, &whole).unwrap();
    debugfs(&image, "link <2> /many/loop\nset_inode_field /small links_count 0\n");
    backed_up(&place, &image);
    let listed = browse(&place, &["/", "--recursive"]);
    assert_eq!(code(&listed), 3, "{}", said(&listed));
    assert!(said(&listed).contains("/many/loop: is in more than one folder"), "{}", said(&listed));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("/large"), "the others are listed");
    let out = place.path("out");
    let output = browse(&place, &["/", "--extract", text(&out)]);
    assert_eq!(code(&output), 3);
    assert!(std::fs::read(out.join("large")).unwrap() == std::fs::read(source.join("large")).unwrap());
    assert!(!out.join("small").exists() && !out.join("many/loop").exists());
}

/// docs/operations.md: "Names with a slash or of dots alone are refused".
#[test]
fn names_lead_nowhere_else() {
    let place = Place::new();
    let source = place.path("source");
    let outside = place.path("outside");
    std::fs::create_dir(&outside).unwrap();
    write(&source.join("1-innocent"), b"innocent");
    write(&source.join("upwardsupwards"), b"hostile");
    write(&source.join("twofoldfolder/evil"), b"hostile");
    symlink(&outside, source.join("twofoldtolink")).unwrap();
    let image = ext(&place, &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"], &source, 16);
    let mut bytes = std::fs::read(&image).unwrap();
    for (name, instead) in [("upwardsupwards", "../../outside/"), ("twofoldfolder", "twofoldtolink")] {
        assert_eq!(name.len(), instead.len());
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
        bytes[at..at + name.len()].copy_from_slice(instead.as_bytes());
    }
    backed_up(&place, Path::new(&place.file("hostile", &bytes)));
    for overwrite in [&[][..], &["--overwrite"]] {
        let out = place.path("out");
        let output = browse(&place, &[&["/", "--extract", text(&out)], overwrite].concat());
        assert_eq!(code(&output), 3, "{}", said(&output));
        assert!(said(&output).contains("a name that no file can have"), "{}", said(&output));
        assert_eq!(std::fs::read(out.join("1-innocent")).unwrap(), b"innocent");
        assert_eq!(walk(&outside), Vec::<PathBuf>::new());
        assert!(!place.path("out/../../outside").join("evil").exists());
    }
}

#[test]
fn what_is_not_read_here_is_named_with_what_reads_it() {
    let place = Place::new();
    for (offset, magic, name) in [
        (0, &b"XFSB"[..], "xfs"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (3, b"NTFS    ", "ntfs"),
        (4086, b"SWAPSPACE2", "swap"),
    ] {
        let mut bytes = vec![0; MIB];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        backed_up(&place, Path::new(&place.file("image", &bytes)));
        assert!(place.ran(&["browse", "v@latest"]).contains(name));
        for args in [&["/"][..], &["/", "--partition", "0"]] {
            let refused = browse(&place, args);
            assert_eq!(code(&refused), 2);
            assert!(
                said(&refused).contains("strongroom serve") && said(&refused).contains(name),
                "{}",
                said(&refused)
            );
        }
    }
}

/// docs/operations.md: "The same goes for what a damaged pack held".
#[test]
fn what_a_lost_pack_held_is_left_out() {
    let place = Place::new();
    let source = place.path("source");
    for number in 0..6 {
        write(&source.join(format!("file{number}")), &noise(2 * MIB, number));
    }
    backed_up(&place, &ext(&place, &["-t", "ext4", "-b", "4096"], &source, 64));
    let (mut partly, wanted) = (0, state(&source));
    for (nth, pack) in walk(&place.path("target/packs")).into_iter().enumerate() {
        let kept = std::fs::read(&pack).unwrap();
        std::fs::remove_file(&pack).unwrap();
        let out = place.path(&format!("out{nth}"));
        let output = browse(&place, &["/", "--extract", text(&out)]);
        std::fs::write(&pack, kept).unwrap();
        let found = if out.exists() { state(&out) } else { BTreeMap::new() };
        assert_eq!(code(&output), if found.len() == wanted.len() { 0 } else { 3 }, "{}", said(&output));
        partly += usize::from(!found.is_empty() && found.len() < wanted.len());
        for (path, state) in found {
            assert!(wanted[&path] == state, "{path:?} looks whole, and is not");
        }
    }
    assert!(partly > 3);
}

/// A disk of some MiB with a partition table that sfdisk makes, and filesystems in it.
fn disk(place: &Place, mib: usize, script: &str, parts: &[(usize, &Path)]) -> PathBuf {
    let disk = place.path("disk");
    let file = File::create(&disk).unwrap();
    file.set_len((mib * MIB) as u64).unwrap();
    if !script.is_empty() {
        let script = place.file("script", script.as_bytes());
        ran("sh", &["-c", &format!("sfdisk --quiet {} < {script}", text(&disk))]);
    }
    for (start, part) in parts {
        file.write_all_at(&std::fs::read(part).unwrap(), (start * MIB) as u64).unwrap();
    }
    disk
}

#[test]
fn partitions_of_an_mbr_are_found() {
    let place = Place::new();
    let source = place.path("source");
    write(&source.join("file"), b"in a partition");
    let part = ext(&place, &["-t", "ext4"], &source, 8);
    let disk = disk(&place, 16, "", &[(1, &part)]);
    let mut entry = [0; 16];
    (entry[0], entry[4]) = (0x80, 0x83);
    entry[8..12].copy_from_slice(&2048_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&16384_u32.to_le_bytes());
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&[&entry[..], &[0; 48], &[0x55, 0xaa]].concat(), 446).unwrap();
    backed_up(&place, &disk);
    let told = place.ran(&["browse", "v@latest", "--json"]);
    let event: Value = serde_json::from_str(told.trim()).unwrap();
    assert_eq!(
        (&event["table"], &event["number"], &event["filesystem"]),
        (&"dos".into(), &1.into(), &"ext4".into())
    );
    assert_eq!((&event["offset_bytes"], &event["size_bytes"]), (&MIB.into(), &(8 * MIB).into()));
    assert_eq!(extracted(&place, "file"), b"in a partition");
}

#[test]
#[ignore = "needs fdisk, dosfstools and mtools"]
fn partitions_are_found_and_told_apart() {
    let place = Place::new();
    let source = place.path("source");
    write(&source.join("file"), b"in a partition");
    let part = ext(&place, &["-t", "ext4"], &source, 8);
    let fat = fat(&place, &["-F", "12"], 4, &source);
    let gpt = "label: gpt\nstart=1MiB, size=4MiB, type=U, name=\"EFI System\"\nstart=8MiB, size=8MiB\n";
    let logical = "label: dos\nstart=1MiB, size=4MiB, type=ef\nstart=6MiB, size=22MiB, type=5\nstart=8MiB, size=8MiB, type=83\n\
                   start=20MiB, size=2MiB, type=82\n";
    for (script, number, count) in [(gpt, "2", 2), (logical, "5", 3)] {
        let disk = disk(&place, 32, script, &[(1, &fat), (8, &part)]);
        let first = std::fs::read(&disk).unwrap();
        let mut without_first = first.clone();
        without_first[512..1024].fill(0);
        // A GPT has a second copy at the end.
        let variants = if script == gpt { vec![first, without_first] } else { vec![first] };
        for bytes in variants {
            backed_up(&place, Path::new(&place.file("disk", &bytes)));
            let told = place.ran(&["browse", "v@latest"]);
            assert_eq!(told.lines().count(), count, "{told}");
            assert!(told.contains("fat12") && told.contains("ext4"), "{told}");
            assert_eq!(told.contains("EFI System"), script == gpt, "{told}");
            let refused = browse(&place, &["/file"]);
            assert_eq!(code(&refused), 2);
            assert!(said(&refused).contains("--partition N"), "{}", said(&refused));
            for number in [number, "1"] {
                let args = ["browse", "v@latest", "/file", "--partition", number, "--extract", "-"];
                assert_eq!(place.ran(&args), "in a partition");
            }
        }
        if script == gpt {
            let mut bytes = std::fs::read(&disk).unwrap();
            bytes[512..1024].fill(0);
            let end = bytes.len();
            bytes[end - 512..].fill(0);
            backed_up(&place, Path::new(&place.file("disk", &bytes)));
            assert_eq!(code(&browse(&place, &[])), 3, "both copies are gone");
        }
    }
}

/// Makes a FAT filesystem of some MiB, and copies what is in a folder to it.
fn fat(place: &Place, options: &[&str], mib: usize, source: &Path) -> PathBuf {
    let image = place.path("fat");
    let _ = std::fs::remove_file(&image);
    let kib = (mib << 10).to_string();
    ran("mkfs.fat", &[options, &["-C", text(&image), &kib]].concat());
    for entry in std::fs::read_dir(source).unwrap() {
        ran("mcopy", &["-s", "-m", "-i", text(&image), text(&entry.unwrap().path()), "::"]);
    }
    image
}

#[test]
#[ignore = "needs fdisk, dosfstools and mtools"]
fn files_of_fat_come_out_as_they_went_in() {
    let place = Place::new();
    let source = place.path("source");
    for (name, content) in [
        ("UPPER.TXT", b"upper".to_vec()),
        ("lower.txt", b"lower".to_vec()),
        ("A long name, with ümläuts and ж.text", noise(70_000, 1)),
        ("empty", Vec::new()),
        ("large.bin", noise(3 * MIB + 5, 2)),
        ("one/two/three/four/five/bottom", b"bottom".to_vec()),
    ] {
        write(&source.join(name), &content);
    }
    for number in 0..300 {
        write(&source.join(format!("many/file number {number}")), format!("{number}").as_bytes());
    }
    write(&source.join("n".repeat(250)), b"a long name");
    for (options, mib, kind) in [
        (&["-F", "12"][..], 8, "fat12"),
        (&["-F", "16", "-s", "4"], 32, "fat16"),
        (&["-F", "32", "-s", "1", "-n", "LABEL"], 64, "fat32"),
    ] {
        backed_up(&place, &fat(&place, options, mib, &source));
        let told = place.ran(&["browse", "v@latest"]);
        assert!(told.contains(kind) && told.contains("LABEL") == options.contains(&"LABEL"), "{told}");
        let out = place.path(kind);
        place.ran(&["browse", "v@latest", "/", "--extract", text(&out)]);
        let (wanted, found) = (state(&source), state(&out));
        assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{kind}");
        for (path, (_, time, content)) in wanted {
            assert!(found[&path].2 == content, "{kind}: {path:?}");
            let is_file = source.join(&path).is_file();
            assert!(
                !is_file || (found[&path].1 - time).abs() < 2,
                "{kind}: {path:?}: {time} {}",
                found[&path].1
            );
        }
        // As others do, it takes names as the same that differ in case.
        assert_eq!(extracted(&place, "/ONE/TWO/three/four/FIVE/Bottom"), b"bottom");
    }
}
