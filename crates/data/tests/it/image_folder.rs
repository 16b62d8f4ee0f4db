//! What rows may name as images, and what they may not, with and without `--follow_links true`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use data::ImageFolder;
use tempfile::TempDir;

/// `images/` with links beside `data/`, where the images are.
fn cluster() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    for folder in ["images/own", "data/coco/deep", "data/more", "secret"] {
        fs::create_dir_all(at(folder)).expect("folders");
    }
    for file in [
        "images/own/a.jpg",
        "data/coco/b.jpg",
        "data/coco/deep/c.jpg",
        "data/more/d.jpg",
        "data/e.jpg",
        "secret/s.jpg",
    ] {
        fs::write(at(file), "x").expect("files");
    }
    for (target, link) in [
        ("../data/coco", "images/coco"),
        ("../../data/e.jpg", "images/own/e.jpg"),
        ("../more", "data/coco/more"),
        ("own", "images/same"),
        ("/dev/zero", "images/zero.jpg"),
        ("/proc/self", "images/process"),
        ("loop", "images/loop"),
        ("../gone", "images/gone"),
    ] {
        symlink(target, at(link)).expect("links");
    }
    let made = Command::new("mkfifo").arg(at("data/coco/pipe.jpg")).status();
    assert!(made.expect("mkfifo").success());
    dir
}

/// What comes of a name, `{}` in it being the folder of all.
fn resolve(dir: &Path, name: &str, follow_links: bool) -> Result<(), String> {
    let folder = ImageFolder::new(Some(&dir.join("images")));
    let all = dir.display().to_string();
    let found = folder.resolve(&name.replace("{}", &all), follow_links);
    let text = |error: data::RowCause| error.to_string().replace(&format!("{all}/"), "");
    found.map(drop).map_err(text)
}

#[test]
fn links_are_followed_where_that_is_asked() {
    let dir = cluster();
    for name in ["own/a.jpg", "same/a.jpg", "own/../own/a.jpg", "{}/images/own/a.jpg"] {
        for follow in [false, true] {
            assert_eq!(resolve(dir.path(), name, follow), Ok(()), "{name}");
        }
    }
    for (name, link, target) in [
        ("coco/b.jpg", "images/coco", "data/coco"),
        ("coco/deep/c.jpg", "images/coco", "data/coco"),
        ("coco/more/d.jpg", "images/coco", "data/coco"),
        ("own/e.jpg", "images/own/e.jpg", "data/e.jpg"),
        ("{}/images/coco/b.jpg", "images/coco", "data/coco"),
        ("{}/data/coco/b.jpg", "images/coco", "data/coco"),
        ("{}/data/coco/more/d.jpg", "images/coco", "data/coco"),
    ] {
        assert_eq!(resolve(dir.path(), name, true), Ok(()), "{name}");
        let refused = resolve(dir.path(), name, false).expect_err(name);
        let images = dir.path().join("images");
        let refused = refused.replace(&images.display().to_string(), "images");
        let cause = format!("leaves its image folder `images`: `{link}` is a link to `{target}`");
        assert!(refused.contains(&cause), "{refused}");
        assert!(refused.contains("hint: `--follow_links true`"), "{refused}");
    }
}

#[test]
fn hostile_names_are_refused_either_way() {
    let dir = cluster();
    for (name, cause) in [
        ("../secret/s.jpg", "leaves its image folder"),
        ("own/../../secret/s.jpg", "leaves its image folder"),
        // Through a link, and from there by `..`.
        ("coco/../more/d.jpg", "leaves its image folder"),
        ("coco/../../secret/s.jpg", "leaves its image folder"),
        ("{}/data/coco/../../secret/s.jpg", "leaves its image folder"),
        ("{}/secret/s.jpg", "leaves its image folder"),
        ("{}/data/e.jpg", "leaves its image folder"),
        ("{}/data/coco-other/x.jpg", "is not in"),
        ("/etc/passwd", "leaves its image folder"),
        ("/proc/self/environ", "leaves its image folder"),
        ("process/environ", "leaves its image folder"),
        ("zero.jpg", "leaves its image folder"),
        ("loop/x.jpg", "Too many levels of symbolic links"),
        ("own", "not a regular file"),
    ] {
        for follow in [false, true] {
            let refused = resolve(dir.path(), name, follow).expect_err(name);
            assert!(refused.contains(cause), "{name}: {refused}");
            assert!(!refused.contains("follow_links"), "{name}: {refused}");
        }
    }
    // A pipe would wait for its other end.
    let pipe = resolve(dir.path(), "coco/pipe.jpg", true).expect_err("a pipe");
    assert!(pipe.contains("not a regular file"), "{pipe}");
    let gone = resolve(dir.path(), "gone/x.jpg", true).expect_err("no such folder");
    assert!(gone.contains("`images/gone` is a link to `images/../gone`"), "{gone}");
}
