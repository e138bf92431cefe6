//! Directories and umask that three generations share (`CLONE_FS`), beside a child that has its own: who changes them does so
//! for all of them.
fn state() -> String {
    let umask = zoo::proc::field("status", "Umask:");
    let link = |name: &str| std::fs::read_link(format!("/proc/self/{name}")).unwrap_or_default();
    format!("{} {} {umask}", link("cwd").display(), link("root").display())
}

/// Each round: tells where it is at the start, and again when the root has moved.
fn look(zoo: &mut zoo::Zoo, name: &str) {
    let n = zoo.round();
    zoo.tell(&format!("before.{n}.{name}"), &state());
    zoo.ok("the root goes on", zoo.hear(&format!("moved.{n}")).is_some());
    zoo.tell(&format!("after.{n}.{name}"), &state());
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let base = zoo::must(std::env::current_dir());
    zoo.base_is(&base);
    let others = ["child", "grandchild"];
    for name in ["grandchild", "stranger"] {
        zoo.expect(name);
    }
    zoo.fork_sharing(libc::CLONE_FS, "child", |mut zoo| {
        // With a descriptor table as well, which is the child's own and not the root's.
        zoo.fork_sharing(libc::CLONE_FS | libc::CLONE_FILES, "grandchild", |mut zoo| {
            while zoo.gap() {
                look(&mut zoo, "grandchild");
            }
        });
        zoo.fork("stranger", |mut zoo| {
            let mine = state();
            while zoo.gap() {
                zoo.eq("the stranger's", state(), mine.clone());
            }
        });
        zoo.tell("stranger.born", "");
        while zoo.gap() {
            look(&mut zoo, "child");
        }
    });
    zoo.ok("the stranger is born", zoo.hear("stranger.born").is_some());
    zoo::must(std::fs::create_dir("start"));
    zoo::must(std::env::set_current_dir("start"));
    rustix::process::umask(rustix::fs::Mode::from_bits_retain(0o27));
    while zoo.gap() {
        let n = zoo.round();
        let ours = state();
        for other in others {
            let theirs = zoo.hear(&format!("before.{n}.{other}")).unwrap_or_default();
            zoo.eq(&format!("where the {other} is"), theirs, ours.clone());
        }
        let dir = base.join(format!("dir.{n}"));
        zoo::must(std::fs::create_dir(&dir));
        zoo::must(std::env::set_current_dir(&dir));
        rustix::process::umask(rustix::fs::Mode::from_bits_retain(n & 0o77));
        let ours = state();
        zoo.ok("we have moved", ours.contains(&format!("/dir.{n} ")));
        zoo.tell(&format!("moved.{n}"), "");
        for other in others {
            let theirs = zoo.hear(&format!("after.{n}.{other}")).unwrap_or_default();
            zoo.eq(&format!("where the {other} is then"), theirs, ours.clone());
        }
    }
}
