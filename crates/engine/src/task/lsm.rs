//! Labels of security modules: SELinux's contexts and AppArmor's profiles, which the kernel shows and takes in `/proc/TID/attr`.
//!
//! The format has a place for each thread's own label and for that of sockets it makes (SELinux). A thread that has another
//! sort of label, or is about to get one, is refused. At restore a label other than our own is set by the thread itself, as long
//! as it may: SELinux's before a process has more than one thread, AppArmor's as the last thing but no_new_privs.
use crate::{Error, Kind, Result};
use crust_image::proto::{CredsEntry, Lsmtype};
use crust_inject::plan::{Expect, PlanId, Program};
use crust_kernel::HostTid;
use crust_kernel::procfs::ProcDir;
use std::sync::OnceLock;

/// A security module that gives labels to tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// Labels are `user:role:type:level`.
    Selinux,
    /// Labels are names of profiles.
    Apparmor,
    /// One that the format does not know, as Smack.
    Other,
}

/// The security module of this kernel.
#[derive(Clone, Debug)]
pub struct Machine {
    module: Module,
    /// Our own label; `None` for none that limits.
    own: Option<String>,
}

/// Reads an attribute by its path below a task's directory; `None` if it is not there or empty.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What it is called, for people.
fn name(module: Module) -> &'static str {
    match module {
        Module::Selinux => "SELinux",
        Module::Apparmor => "AppArmor",
        Module::Other => "a security module",
    }
}

/// Contexts have four parts; the last may have colons of its own.
fn is_context(label: &str) -> bool {
    label.split(':').count() >= 4 && !label.starts_with(':') && !label.contains(' ')
}

/// The name of an AppArmor profile without its mode; `None` if it limits nothing.
fn profile(label: &str) -> Option<String> {
    let name = label.rsplit_once(" (").map_or(label, |(name, _)| name);
    (name != "unconfined").then(|| name.to_owned())
}

impl Machine {
    fn look(read: Read<'_>) -> Option<Self> {
        if let Some(label) = read("attr/apparmor/current") {
            return Some(Self { module: Module::Apparmor, own: profile(&label) });
        }
        let label = read("attr/current")?;
        // Before Linux 5.8 AppArmor has no directory of its own.
        let is_profile = label == "unconfined" || label.ends_with(')');
        Some(match () {
            () if is_context(&label) => Self { module: Module::Selinux, own: Some(label) },
            () if is_profile => Self { module: Module::Apparmor, own: profile(&label) },
            () => Self { module: Module::Other, own: Some(label) },
        })
    }

    /// That of this kernel, if it has one that gives labels to tasks.
    pub fn here() -> Option<&'static Self> {
        static HERE: OnceLock<Option<Machine>> = OnceLock::new();
        HERE.get_or_init(|| Self::look(&|name| text(std::fs::read(format!("/proc/thread-self/{name}")).ok()?))).as_ref()
    }

    /// As the inventory has it.
    pub fn kind(&self) -> Lsmtype {
        match self.module {
            Module::Selinux => Lsmtype::Selinux,
            Module::Apparmor => Lsmtype::Apparmor,
            Module::Other => Lsmtype::NoLsm,
        }
    }

    /// Saves the labels of a thread. `process` reads those of its process.
    fn save(&self, creds: &mut CredsEntry, read: Read<'_>, process: Read<'_>) -> Result<()> {
        let refuse = |what: String, help: &str| Err(Error::unsupported(what, help));
        let read = |name: &str| match self.module {
            Module::Apparmor => read(&format!("attr/apparmor/{name}")).or_else(|| read(&format!("attr/{name}"))),
            _ => read(&format!("attr/{name}")),
        };
        let asked = ["exec", "fscreate", "keycreate"].map(|name| (name, read(name)));
        if let Some((name, label)) = asked.into_iter().find_map(|(name, label)| Some((name, label?))) {
            let what = format!("has asked for the label {label:?} ({name}), which the images have no place for");
            return refuse(what, "try again when the program has used it or taken it back");
        }
        let current = read("current");
        match (self.module, current) {
            (Module::Selinux, label) => {
                if label != process("attr/current") {
                    return Err(own_context(label.as_deref()));
                }
                creds.lsm_profile = label;
                creds.lsm_sockcreate = read("sockcreate");
            }
            (Module::Apparmor, label) => {
                let label = label.as_deref().and_then(profile);
                if let Some(label) = label.as_ref().filter(|l| l.starts_with(':') || l.contains("//&")) {
                    let what = format!("has the AppArmor profile {label:?} of a policy namespace, or several");
                    return refuse(what, "dump it from inside of its container, where that is one plain profile");
                }
                creds.lsm_profile = label;
            }
            // Whoever restores it gives it the same label, if that is ours.
            (Module::Other, label) if label == self.own => {}
            (Module::Other, label) => {
                let what = format!("has the label {:?} of a security module", label.unwrap_or_default());
                return refuse(
                    what,
                    "SELinux's and AppArmor's labels can be saved; others only if they are crust's own",
                );
            }
        }
        Ok(())
    }
}

fn text(bytes: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(bytes).ok()?;
    Some(text.trim_end_matches(['\n', '\0']).to_owned()).filter(|t| !t.is_empty())
}

/// Saves the labels of a thread, where the kernel has any.
///
/// # Errors
/// `Unsupported` for labels that would not come back.
pub fn save(creds: &mut CredsEntry, proc: &ProcDir, tid: HostTid) -> Result<()> {
    let Some(machine) = Machine::here() else { return Ok(()) };
    let read = |name: &str| text(proc.read_small(&format!("task/{tid}/{name}")).ok()?);
    machine.save(creds, &read, &|name| text(proc.read_small(name).ok()?))
}

/// What a restore is to give its threads.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Of the dump.
    kind: Lsmtype,
    /// One label for all (`--lsm-profile`): that of a module, or none.
    instead: Option<Option<(Module, String)>>,
}

impl Wish {
    /// `option` is `apparmor:NAME`, `selinux:CONTEXT` or `none:`.
    ///
    /// # Errors
    /// `BadRequest` for another option.
    pub fn new(kind: Lsmtype, option: Option<&str>) -> Result<Self> {
        let parse = |text: &str| match text.split_once(':') {
            Some(("apparmor", label)) => Ok(Some((Module::Apparmor, label.to_owned()))),
            Some(("selinux", label)) => Ok(Some((Module::Selinux, label.to_owned()))),
            Some(("none", _)) => Ok(None),
            _ => Err(Error::new(Kind::BadRequest, format!("--lsm-profile {text}: neither apparmor, selinux nor none"))),
        };
        Ok(Self { kind, instead: option.map(parse).transpose()? })
    }

    /// Puts into `creds` what the thread is to have here, and says why it cannot.
    pub fn settle(&self, creds: &mut CredsEntry, here: Option<&Machine>) -> Option<Error> {
        let module = match (&self.instead, self.kind) {
            (Some(None), _) => {
                (creds.lsm_profile, creds.lsm_sockcreate) = (None, None);
                return None;
            }
            (Some(Some((module, label))), _) => {
                creds.lsm_profile = Some(label.clone());
                *module
            }
            (None, Lsmtype::Selinux) => Module::Selinux,
            (None, Lsmtype::Apparmor) => Module::Apparmor,
            // CRIU takes such labels for those of the machine that it runs on.
            (None, Lsmtype::NoLsm) => here.map_or(Module::Other, |m| m.module),
        };
        let what = match (&creds.lsm_profile, &creds.lsm_sockcreate) {
            (Some(label), _) => format!("has the label {label:?} of {}", name(module)),
            (None, Some(label)) => format!("makes sockets with the label {label:?} of {}", name(module)),
            (None, None) => return None,
        };
        if here.is_some_and(|m| m.module == module) {
            return None;
        }
        let has = here.map_or("none", |m| name(m.module));
        let help = "restore it where that module is at work (boot parameter lsm=), or with another label (--lsm-profile \
                    TYPE:LABEL; none: crust's own)";
        Some(Error::unsupported(format!("{what}, and the security module of this kernel is {has}"), help))
    }
}

/// Why the threads of one process, leader first, cannot have these labels.
pub fn check_threads<'a>(mut all: impl Iterator<Item = &'a CredsEntry>, here: Option<&Machine>) -> Option<Error> {
    let leader = all.next().filter(|_| here.is_some_and(|m| m.module == Module::Selinux))?;
    all.find(|c| c.lsm_profile != leader.lsm_profile).map(|c| own_context(c.lsm_profile.as_deref()))
}

fn own_context(label: Option<&str>) -> Error {
    let what = format!("a thread has an SELinux context of its own: {:?}", label.unwrap_or_default());
    Error::unsupported(what, "a context can be set only while a process has one thread")
}

/// Gives a process its SELinux context, and its sockets theirs. It has one thread yet.
pub fn plan_process(p: &mut Program, plan: PlanId, want: &CredsEntry) {
    if let Some(here) = Machine::here().filter(|m| m.module == Module::Selinux) {
        set(p, plan, "current", want.lsm_profile.as_ref().filter(|&l| Some(l) != here.own.as_ref()), "");
        set(p, plan, "sockcreate", want.lsm_sockcreate.as_ref(), "");
    }
}

/// Gives a thread its AppArmor profile. What it may not do from then on it must have done.
pub fn plan_thread(p: &mut Program, plan: PlanId, want: &CredsEntry) {
    if let Some(here) = Machine::here().filter(|m| m.module == Module::Apparmor) {
        let label = want.lsm_profile.as_ref().filter(|&l| Some(l) != here.own.as_ref());
        set(p, plan, "current", label, "changeprofile ");
    }
}

fn set(p: &mut Program, plan: PlanId, attribute: &str, label: Option<&String>, command: &str) {
    let Some(label) = label else { return };
    let path = p.cstr(format!("/proc/thread-self/attr/{attribute}").as_bytes());
    let text = format!("{command}{label}");
    let (bytes, len) = (p.data(text.as_bytes()), text.len() as u64);
    let what =
        |step: &str| format!("{step} of the security label {label:?} ({attribute}; --lsm-profile none gives it up)");
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    let args = [libc::AT_FDCWD.into(), path.into(), flags.into(), 0.into()];
    let fd = p.syscall_slot(plan, what("open"), libc::SYS_openat, &args, Expect::Ok);
    let args = [fd.into(), bytes.into(), len.into()];
    p.syscall_expect(plan, what("write"), libc::SYS_write, &args, Expect::Equals(len));
    p.syscall(plan, what("close"), libc::SYS_close, &[fd.into()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const CONTEXT: &str = "system_u:system_r:httpd_t:s0-s0:c0.c1023";

    /// A task's directory with these attributes.
    fn attributes(name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("crust-lsm-{name}-{}", std::process::id()));
        for (file, content) in files {
            let file = dir.join("attr").join(file);
            fs::create_dir_all(file.parent().expect("a directory")).expect("made");
            fs::write(file, content).expect("written");
        }
        dir
    }

    fn with<T>(name: &str, files: &[(&str, &str)], test: impl FnOnce(Read<'_>) -> T) -> T {
        let dir = attributes(name, files);
        let got = test(&|name: &str| text(fs::read(Path::new(&dir).join(name)).ok()?));
        fs::remove_dir_all(dir).expect("removed");
        got
    }

    fn machine(module: Module, own: Option<&str>) -> Machine {
        Machine { module, own: own.map(str::to_owned) }
    }

    fn saved(on: &Machine, name: &str, files: &[(&str, &str)]) -> Result<(Option<String>, Option<String>)> {
        with(name, files, |read| {
            let mut creds = CredsEntry::default();
            on.save(&mut creds, read, read).map(|()| (creds.lsm_profile, creds.lsm_sockcreate))
        })
    }

    #[test]
    fn the_module_is_known_by_its_attributes() {
        let look = |name: &str, files: &[(&str, &str)]| with(name, files, |read| Machine::look(read));
        let which = |m: Option<Machine>| m.map(|m| (m.module, m.own));
        assert_eq!(which(look("none", &[("current", "")])), None);
        let selinux = Some((Module::Selinux, Some(CONTEXT.to_owned())));
        assert_eq!(which(look("selinux", &[("current", &format!("{CONTEXT}\0"))])), selinux);
        let files = [("current", "_"), ("apparmor/current", "unconfined\n")];
        assert_eq!(which(look("apparmor", &files)), Some((Module::Apparmor, None)));
        let old = Some((Module::Apparmor, Some("/usr/sbin/named".to_owned())));
        assert_eq!(which(look("old", &[("current", "/usr/sbin/named (enforce)\n")])), old);
        assert_eq!(which(look("smack", &[("current", "User")])), Some((Module::Other, Some("User".to_owned()))));
    }

    #[test]
    fn labels_are_saved_or_refused_by_name() {
        let apparmor = machine(Module::Apparmor, None);
        let selinux = machine(Module::Selinux, Some(CONTEXT));
        let profile = Some("lxc-default".to_owned());
        let got = saved(&apparmor, "a", &[("apparmor/current", "lxc-default (complain)\n")]);
        assert_eq!(got.expect("saved"), (profile, None));
        let got = saved(&apparmor, "b", &[("apparmor/current", "unconfined\n")]);
        assert_eq!(got.expect("saved"), (None, None));
        let files = [("current", CONTEXT), ("sockcreate", "a:b:c:d"), ("exec", "")];
        let want = (Some(CONTEXT.to_owned()), Some("a:b:c:d".to_owned()));
        assert_eq!(saved(&selinux, "c", &files).expect("saved"), want);
        let smack = machine(Module::Other, Some("_"));
        let refused = [
            (&selinux, vec![("current", CONTEXT), ("fscreate", "w:x:y:z")], "w:x:y:z"),
            (&apparmor, vec![("apparmor/current", "unconfined\n"), ("apparmor/exec", "next (enforce)")], "next"),
            (&apparmor, vec![("apparmor/current", ":lxd-c1:<lxd>//&:unconfined (mixed)\n")], "lxd-c1"),
            (&smack, vec![("current", "User")], "User"),
        ];
        for (i, (on, files, named)) in refused.into_iter().enumerate() {
            let error = saved(on, &format!("refused-{i}"), &files).expect_err(named);
            assert!(error.kind() == Kind::Unsupported && error.to_string().contains(named), "{error}");
        }
        let own = machine(Module::Other, Some("User"));
        assert_eq!(saved(&own, "own", &[("current", "User")]).expect("our own"), (None, None));
    }

    #[test]
    fn a_label_needs_its_module() {
        let settle = |kind, option: Option<&str>, label: Option<&str>, here: Option<&Machine>| {
            let mut creds = CredsEntry { lsm_profile: label.map(str::to_owned), ..Default::default() };
            let error = Wish::new(kind, option).expect("an option").settle(&mut creds, here);
            (creds.lsm_profile, error.map(|e| e.to_string()))
        };
        let apparmor = machine(Module::Apparmor, None);
        let (kept, error) = settle(Lsmtype::Apparmor, None, Some("p"), None);
        assert!(kept.is_some() && error.as_ref().is_some_and(|e| e.contains("\"p\" of AppArmor")), "{error:?}");
        let (_, error) = settle(Lsmtype::Selinux, None, Some(CONTEXT), Some(&apparmor));
        assert!(error.is_some_and(|e| e.contains("SELinux") && e.contains("is AppArmor")));
        assert_eq!(settle(Lsmtype::Apparmor, None, Some("p"), Some(&apparmor)), (Some("p".to_owned()), None));
        assert_eq!(settle(Lsmtype::Apparmor, None, None, None), (None, None));
        assert_eq!(settle(Lsmtype::Apparmor, Some("none:"), Some("p"), None), (None, None));
        let other = (Some("q".to_owned()), None);
        assert_eq!(settle(Lsmtype::Selinux, Some("apparmor:q"), Some(CONTEXT), Some(&apparmor)), other);
        let (_, error) = settle(Lsmtype::NoLsm, Some("selinux:a:b:c:d"), None, Some(&apparmor));
        assert!(error.is_some_and(|e| e.contains("\"a:b:c:d\" of SELinux")));
        assert!(Wish::new(Lsmtype::NoLsm, Some("smack:x")).is_err());
        let threads = ["a", "b"].map(|l| CredsEntry { lsm_profile: Some(l.to_owned()), ..Default::default() });
        assert!(check_threads(threads.iter(), Some(&apparmor)).is_none());
        assert!(check_threads(threads.iter(), Some(&machine(Module::Selinux, None))).is_some());
    }

    #[test]
    fn a_label_is_set_in_three_steps() {
        let mut p = Program::new();
        let main = p.plan("x");
        set(&mut p, main, "current", None, "changeprofile ");
        assert_eq!(p.len(main), 0);
        set(&mut p, main, "current", Some(&"p".to_owned()), "changeprofile ");
        assert_eq!(p.len(main), 3);
    }
}
