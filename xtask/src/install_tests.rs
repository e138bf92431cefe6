//! Installations below a directory of the test, with a script in the place of the binary.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
use crate::install::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("crust-install-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// Everything below, with a / behind directories and -> TARGET behind links.
    fn list(&self) -> BTreeSet<String> {
        fn walk(at: &Path, top: &Path, found: &mut BTreeSet<String>) {
            for entry in fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(top).unwrap().display().to_string();
                if let Ok(target) = fs::read_link(&path) {
                    found.insert(format!("{name} -> {}", target.display()));
                } else if path.is_dir() {
                    found.insert(format!("{name}/"));
                    walk(&path, top, found);
                } else {
                    found.insert(name);
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(&self.0, &self.0, &mut found);
        found
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program that answers whatever it is asked.
fn binary(dir: &Dir) -> PathBuf {
    let path = dir.0.join("built");
    // Written by another program: what another test starts just now inherits a descriptor of ours that writes, and a
    // program that somebody writes to is "busy".
    let script = "printf '#!/bin/sh\necho \"$@\"\n' >\"$0\" && chmod 755 \"$0\"";
    assert!(std::process::Command::new("sh").args(["-c", script]).arg(&path).status().unwrap().success());
    path
}

fn places(dir: &Dir, more: &[(&str, &str)]) -> Places {
    let destdir = dir.0.display().to_string();
    Places::new(|name| match name {
        "DESTDIR" => Some(destdir.clone()),
        _ => more.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()),
    })
    .unwrap()
}

#[test]
fn everything_has_its_place_and_nothing_is_left() {
    let (built, dir) = (Dir::new("built"), Dir::new("all"));
    let binary = binary(&built);
    let places = places(&dir, &[("PREFIX", "/usr"), ("SBINDIR", "/opt/x/bin")]);
    install(&source(), &binary, &places).unwrap();
    let found = dir.list();
    let mut expected: BTreeSet<String> = [
        "opt/x/bin/crust",
        "opt/x/bin/criu -> crust",
        "usr/share/crust/manifest",
        "usr/share/man/man8/crust.8",
        "usr/share/man/man8/criu.8 -> crust.8",
        "usr/share/man/man5/crust.socket.5",
        "usr/share/bash-completion/completions/crust",
        "usr/share/bash-completion/completions/criu -> crust",
        "usr/share/zsh/site-functions/_crust",
        "usr/share/fish/vendor_completions.d/crust.fish",
        "usr/share/fish/vendor_completions.d/criu.fish -> crust.fish",
        "usr/lib/systemd/user/crust.socket",
        "usr/lib/systemd/user/crust.service",
    ]
    .map(str::to_owned)
    .into();
    for unit in texts(&source().join("packaging/system")).unwrap().into_keys() {
        expected.insert(format!("usr/lib/systemd/system/{unit}"));
    }
    assert!(expected.contains("usr/lib/systemd/system/crust.socket"));
    assert_eq!(found.iter().filter(|f| !f.ends_with('/')).cloned().collect::<BTreeSet<_>>(), expected);

    let read = |name: &str| fs::read_to_string(dir.0.join(name)).unwrap();
    for file in expected.iter().filter(|f| f.ends_with(".service")) {
        let unit = read(file);
        assert!(unit.contains("\nExecStart=/opt/x/bin/crust service"), "{file}: {unit}");
        assert!(!unit.contains("@SBINDIR@"), "{file}: {unit}");
    }
    assert_eq!(read("usr/share/man/man8/crust.8"), "help-man\n");
    assert_eq!(read("usr/share/zsh/site-functions/_crust"), "help-completion zsh\n");
    let mode = |name: &str| fs::metadata(dir.0.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("opt/x/bin/crust"), mode("usr/lib/systemd/system/crust.socket")), (0o755, 0o644));

    // Once more is no change, and does not forget what the first time made.
    install(&source(), &binary, &places).unwrap();
    assert_eq!(dir.list(), found);
    uninstall(&places).unwrap();
    assert_eq!(dir.list(), BTreeSet::new());
    assert!(uninstall(&places).unwrap_err().contains("nothing was installed"));
}

#[test]
fn what_others_put_there_stays() {
    let (built, dir) = (Dir::new("built2"), Dir::new("others"));
    let binary = binary(&built);
    let places = places(&dir, &[]);
    let at = |name: &str| dir.0.join("usr/local").join(name);
    fs::create_dir_all(at("sbin")).unwrap();
    fs::create_dir_all(at("share/man")).unwrap();
    fs::write(at("sbin/criu"), "the other one").unwrap();
    let before = dir.list();
    install(&source(), &binary, &places).unwrap();
    assert_eq!(fs::read_to_string(at("sbin/criu")).unwrap(), "the other one");

    // A file of an older version goes with the next installation; a changed one and a foreign one stay.
    let mut manifest = Manifest::read(&places).unwrap().unwrap();
    manifest.file(&places, Path::new("/usr/local/share/crust/old"), b"old", 0o644).unwrap();
    manifest.write(&places).unwrap();
    install(&source(), &binary, &places).unwrap();
    assert!(!at("share/crust/old").exists());
    fs::write(at("lib/systemd/system/crust.service"), "edited").unwrap();
    fs::write(at("share/zsh/site-functions/_other"), "").unwrap();
    uninstall(&places).unwrap();
    let mut left = before;
    for name in [
        "lib/",
        "lib/systemd/",
        "lib/systemd/system/",
        "lib/systemd/system/crust.service",
        "share/zsh/",
        "share/zsh/site-functions/",
        "share/zsh/site-functions/_other",
    ] {
        left.insert(format!("usr/local/{name}"));
    }
    assert_eq!(dir.list(), left);
}

#[test]
fn paths_that_a_unit_cannot_hold_are_refused() {
    for (name, value) in [("PREFIX", "usr"), ("SBINDIR", "/a b"), ("SBINDIR", "/a%i"), ("DESTDIR", "x")] {
        let get = |asked: &str| (asked == name).then(|| value.to_owned());
        assert!(Places::new(get).is_err(), "{name}={value}");
    }
    let places = Places::new(|_| None).unwrap();
    assert_eq!(places.sbindir, Path::new("/usr/local/sbin"));
    assert_eq!(places.unitdir, Path::new("/usr/local/lib/systemd/system"));
}
