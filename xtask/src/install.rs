//! `cargo xtask install` and `uninstall`: where each file goes, and a list of what was put there, so that exactly that
//! can be taken away again. Used by xtask, and by the test that boots a systemd on what was installed.
#![allow(clippy::print_stdout, reason = "a command for people")]
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The list of what was installed, below PREFIX.
const MANIFEST: &str = "share/crust/manifest";

/// Where things go. All but `destdir` are paths as the installed system will see them.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Put in front of every path: for packages.
    pub(crate) destdir: PathBuf,
    pub(crate) prefix: PathBuf,
    pub(crate) sbindir: PathBuf,
    pub(crate) unitdir: PathBuf,
    pub(crate) userunitdir: PathBuf,
}

/// The names under which they are given, on the command line or in the environment.
pub(crate) const VARIABLES: [&str; 5] = ["DESTDIR", "PREFIX", "SBINDIR", "SYSTEMDUNITDIR", "SYSTEMDUSERUNITDIR"];

impl Places {
    /// From variables; what is not given follows from PREFIX.
    ///
    /// # Errors
    /// A path that is relative, or that a unit file could not hold.
    pub(crate) fn new(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let given = |name: &str| get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let prefix = given("PREFIX").unwrap_or_else(|| "/usr/local".into());
        let places = Self {
            destdir: given("DESTDIR").unwrap_or_else(|| "/".into()),
            sbindir: given("SBINDIR").unwrap_or_else(|| prefix.join("sbin")),
            unitdir: given("SYSTEMDUNITDIR").unwrap_or_else(|| prefix.join("lib/systemd/system")),
            userunitdir: given("SYSTEMDUSERUNITDIR").unwrap_or_else(|| prefix.join("lib/systemd/user")),
            prefix,
        };
        for path in [&places.destdir, &places.prefix, &places.sbindir, &places.unitdir, &places.userunitdir] {
            if !path.is_absolute() {
                return Err(format!("{}: an absolute path is needed", path.display()));
            }
        }
        let text = places.sbindir.to_string_lossy();
        if text.contains(|c: char| c.is_whitespace() || "%$\"'\\;".contains(c)) {
            return Err(format!("{text}: a unit's ExecStart= cannot hold this path as it is"));
        }
        Ok(places)
    }

    /// A path of the installed system, here.
    fn here(&self, path: &Path) -> PathBuf {
        self.destdir.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn manifest(&self) -> PathBuf {
        self.prefix.join(MANIFEST)
    }
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A directory that was not there before.
    Dir,
    /// A file, known again by its content.
    File(u64),
    /// A symbolic link, known again by its target.
    Link(String),
}

/// Everything that was put somewhere. Sorted, so that a directory comes before what is in it.
#[derive(Debug, Default)]
pub(crate) struct Manifest(pub(crate) BTreeMap<PathBuf, Entry>);

/// FNV-1a: tells a changed file from an unchanged one; nobody forges units.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn say(path: &Path) -> impl Fn(io::Error) -> String {
    move |e| format!("{}: {e}", path.display())
}

impl Manifest {
    pub(crate) fn read(places: &Places) -> Result<Option<Self>, String> {
        let file = places.here(&places.manifest());
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(say(&file)(e)),
        };
        let mut entries = BTreeMap::new();
        for line in text.lines() {
            let bad = || format!("{}: this line is not understood: {line}", file.display());
            let (kind, rest) = line.split_once('\t').ok_or_else(bad)?;
            let (detail, path) = rest.split_once('\t').ok_or_else(bad)?;
            let entry = match kind {
                "dir" => Entry::Dir,
                "file" => Entry::File(u64::from_str_radix(detail, 16).map_err(|_| bad())?),
                "link" => Entry::Link(detail.to_owned()),
                _ => return Err(bad()),
            };
            entries.insert(PathBuf::from(path), entry);
        }
        Ok(Some(Self(entries)))
    }

    pub(crate) fn write(&self, places: &Places) -> Result<(), String> {
        let file = places.here(&places.manifest());
        let mut text = String::new();
        for (path, entry) in &self.0 {
            let path = path.display();
            text.push_str(&match entry {
                Entry::Dir => format!("dir\t-\t{path}\n"),
                Entry::File(hash) => format!("file\t{hash:016x}\t{path}\n"),
                Entry::Link(target) => format!("link\t{target}\t{path}\n"),
            });
        }
        fs::write(&file, text).map_err(say(&file))
    }

    /// The directory `path` with all above it; those that are new are noted.
    fn dirs(&mut self, places: &Places, path: &Path) -> Result<(), String> {
        if let Some(parent) = path.parent() {
            self.dirs(places, parent)?;
        }
        let here = places.here(path);
        match fs::create_dir(&here) {
            Ok(()) => {
                self.0.insert(path.to_owned(), Entry::Dir);
                fs::set_permissions(&here, fs::Permissions::from_mode(0o755)).map_err(say(&here))
            }
            Err(_) if here.is_dir() => Ok(()),
            Err(e) => Err(say(&here)(e)),
        }
    }

    /// A file appears whole or not at all: a running binary cannot be written over, but its name can be given away.
    pub(crate) fn file(&mut self, places: &Places, path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
        if let Some(dir) = path.parent() {
            self.dirs(places, dir)?;
        }
        let here = places.here(path);
        let part = here.with_file_name(format!(".{}.part", here.file_name().unwrap_or_default().to_string_lossy()));
        fs::write(&part, content).map_err(say(&part))?;
        fs::set_permissions(&part, fs::Permissions::from_mode(mode)).map_err(say(&part))?;
        fs::rename(&part, &here).map_err(say(&here))?;
        self.0.insert(path.to_owned(), Entry::File(hash(content)));
        println!("installed {}", here.display());
        Ok(())
    }

    /// A link to the file beside it, unless somebody else's file has that name.
    fn link(&mut self, places: &Places, path: &Path, target: &str) -> Result<(), String> {
        let here = places.here(path);
        match symlink(target, &here) {
            Ok(()) => println!("installed {} -> {target}", here.display()),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                if fs::read_link(&here).is_ok_and(|t| t == Path::new(target)) && self.0.contains_key(path) {
                    return Ok(());
                }
                println!("{} is there already: left alone", here.display());
                return Ok(());
            }
            Err(e) => return Err(say(&here)(e)),
        }
        self.0.insert(path.to_owned(), Entry::Link(target.to_owned()));
        Ok(())
    }

    /// Takes away what is there and is still ours. What somebody changed stays, and is told.
    fn remove(&self, places: &Places) -> Result<(), String> {
        for (path, entry) in self.0.iter().rev() {
            let here = places.here(path);
            let gone = match entry {
                Entry::Dir => match fs::remove_dir(&here) {
                    Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => {
                        println!("{} is not empty: left alone", here.display());
                        continue;
                    }
                    done => done,
                },
                Entry::File(was) => match fs::read(&here) {
                    Ok(now) if hash(&now) != *was => {
                        println!("{} was changed: left alone", here.display());
                        continue;
                    }
                    Ok(_) => fs::remove_file(&here),
                    Err(e) => Err(e),
                },
                Entry::Link(target) => match fs::read_link(&here) {
                    Ok(now) if now != Path::new(target) => {
                        println!("{} leads elsewhere now: left alone", here.display());
                        continue;
                    }
                    Ok(_) => fs::remove_file(&here),
                    Err(e) => Err(e),
                },
            };
            match gone {
                Ok(()) => println!("removed {}", here.display()),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(say(&here)(e)),
            }
        }
        Ok(())
    }
}

/// What the binary says about itself.
fn ask(binary: &Path, args: &[&str]) -> Result<Vec<u8>, String> {
    let output = Command::new(binary).args(args).output().map_err(say(binary))?;
    match output.status.success() && !output.stdout.is_empty() {
        true => Ok(output.stdout),
        false => Err(format!("{} {}: {}", binary.display(), args.join(" "), String::from_utf8_lossy(&output.stderr))),
    }
}

/// Puts `binary` and everything that goes with it where `places` says. `source` is the workspace.
///
/// # Errors
/// The first path that cannot be written. What was installed until then is in the list, and `uninstall` removes it.
pub(crate) fn install(source: &Path, binary: &Path, places: &Places) -> Result<(), String> {
    let before = Manifest::read(places)?.unwrap_or_default();
    let mut now = Manifest::default();
    // Directories and links that an earlier installation made are still ours.
    let kept = before.0.iter().filter(|(_, entry)| !matches!(entry, Entry::File(_)));
    now.0.extend(kept.map(|(path, entry)| (path.clone(), entry.clone())));
    let outcome = put_all(source, binary, places, &mut now);
    if let Some(dir) = places.manifest().parent() {
        now.dirs(places, dir)?;
    }
    now.write(places)?;
    outcome?;
    let stale = before.0.into_iter().filter(|(path, _)| !now.0.contains_key(path)).collect();
    Manifest(stale).remove(places)
}

fn put_all(source: &Path, binary: &Path, places: &Places, now: &mut Manifest) -> Result<(), String> {
    let content = fs::read(binary).map_err(say(binary))?;
    now.file(places, &places.sbindir.join("crust"), &content, 0o755)?;
    now.link(places, &places.sbindir.join("criu"), "crust")?;

    for (from, to) in [("system", &places.unitdir), ("user", &places.userunitdir)] {
        for (name, text) in texts(&source.join("packaging").join(from))? {
            let text = text.replace("@SBINDIR@", &places.sbindir.to_string_lossy());
            now.file(places, &to.join(name), text.as_bytes(), 0o644)?;
        }
    }

    let share = places.prefix.join("share");
    let man = share.join("man");
    now.file(places, &man.join("man8/crust.8"), &ask(binary, &["help-man"])?, 0o644)?;
    now.link(places, &man.join("man8/criu.8"), "crust.8")?;
    for (name, text) in texts(&source.join("packaging/man"))? {
        let section = name.rsplit('.').next().unwrap_or_default();
        now.file(places, &man.join(format!("man{section}")).join(&name), text.as_bytes(), 0o644)?;
    }
    for (shell, name, other) in [
        ("bash", "bash-completion/completions/crust", Some("criu")),
        ("zsh", "zsh/site-functions/_crust", None),
        ("fish", "fish/vendor_completions.d/crust.fish", Some("criu.fish")),
    ] {
        let path = share.join(name);
        now.file(places, &path, &ask(binary, &["help-completion", shell])?, 0o644)?;
        if let Some(other) = other {
            let target = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            now.link(places, &path.with_file_name(other), &target)?;
        }
    }
    Ok(())
}

/// The text files of a directory, by name.
pub(crate) fn texts(dir: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(say(dir))? {
        let path = entry.map_err(say(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, fs::read_to_string(&path).map_err(say(&path))?);
    }
    Ok(found)
}

/// Takes away what [`install`] put into the same places, and nothing else.
///
/// # Errors
/// Nothing is installed there, or something cannot be removed.
pub(crate) fn uninstall(places: &Places) -> Result<(), String> {
    let file = places.here(&places.manifest());
    let manifest = Manifest::read(places)?.ok_or_else(|| {
        format!("{} is not there: nothing was installed with these DESTDIR and PREFIX", file.display())
    })?;
    fs::remove_file(&file).map_err(say(&file))?;
    let outcome = manifest.remove(places);
    if outcome.is_err() {
        // What could not be removed now can be removed later.
        manifest.write(places)?;
    }
    outcome
}
