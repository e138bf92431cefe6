//! The verbs that do their work here and now: dump, restore, check and their kin.
use crate::cli::settings::Settings;
use crate::cli::{Invocation, Verb};
use crate::events::{CliEvents, Scripts};
use crate::exit::Exit;
use crate::{logging, out, rootless, stats};
use crust_engine::needs::{self, Need, Needs, Step};
use crust_engine::options::Tar;
use crust_engine::{Error, Kind, Object, OnObject, Result, ResultExt, check};
use crust_image::json::Json;
use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// Runs one verb to its end.
pub(crate) fn run(mut invocation: Invocation) -> Exit {
    if let Verb::Exec | Verb::Show = invocation.verb {
        log::error!("this verb was removed from CRIU; to read an image use `crust image show FILE`");
        return Exit::Minus1;
    }
    let outcome = prepare(&mut invocation).and_then(|()| match invocation.verb {
        Verb::Dump | Verb::PreDump => dump(invocation),
        Verb::Restore => restore(invocation),
        Verb::Check => check(&invocation.settings),
        Verb::CpuinfoDump | Verb::CpuinfoCheck => cpuinfo(invocation.verb, &invocation.settings).map(|()| Exit::Good),
        Verb::Cleanup => cleanup(&invocation.settings),
        Verb::PageServer => {
            Err(Error::unsupported("page-server is not supported yet", "dump to a directory both machines see"))
        }
        Verb::LazyPages => Err(Error::unsupported("lazy-pages is not supported yet", "restore without --lazy-pages")),
        Verb::Dedup => Err(Error::unsupported("dedup is not supported yet", "keep the images as they are")),
        Verb::Service | Verb::Swrk | Verb::Exec | Verb::Show => {
            Err(Error::new(Kind::Internal, "this verb is served elsewhere"))
        }
    });
    match outcome {
        Ok(exit) => exit,
        Err(e) => {
            report(&e);
            Exit::Failure
        }
    }
}

/// Tells an error where the log goes, and on standard error too if that is elsewhere.
pub(crate) fn report(e: &Error) {
    log::error!("{e}");
    if logging::goes_to_file() {
        let head = if std::io::stderr().is_terminal() { "\x1b[1;31merror\x1b[0m" } else { "Error" };
        let mut stderr = std::io::stderr().lock();
        let _lost = std::io::Write::write_all(&mut stderr, format!("{head}: {e}\n").as_bytes());
    }
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(Kind::BadRequest, what)
}

/// Opens a directory as CRIU does: by path, before anything else changes.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).during("opening the directory").on_path(&path.display().to_string())
}

/// Descriptors, directories, log, and the combinations that make no sense: all before the tree is looked at.
fn prepare(invocation: &mut Invocation) -> Result<()> {
    let (verb, s) = (invocation.verb, &mut invocation.settings);
    for fd in std::mem::take(&mut s.close_fds) {
        log::info!("Closing fd {fd}");
        match crust_kernel::inherited::take(fd) {
            Ok(fd) => drop(fd),
            Err(e) => log::warn!("--close {fd}: {e}"),
        }
    }
    // A script named from here stays that one after the change of directory; CRIU looks in the work directory only.
    for script in &mut s.action_scripts {
        if script.is_relative() && script.exists() {
            *script = std::path::absolute(&*script).unwrap_or_else(|_| script.clone());
        }
    }
    s.engine.images_tar = match &s.images_tar {
        Some(path) if path == Path::new("-") => Some(Tar::Fd(standard_stream(verb, s)?)),
        // From here, like the image directory, not from the work directory.
        Some(path) => Some(Tar::File(std::path::absolute(path).unwrap_or_else(|_| path.clone()))),
        None => None,
    };
    let mut dir = None;
    if verb != Verb::Check || (s.check_needs && s.images_dir.is_some()) {
        let path = s.images_dir.clone().unwrap_or_else(|| PathBuf::from("."));
        dir = Some(open_dir(&path).map_err(|e| e.help("create it first, or name another with --images-dir"))?);
        s.engine.images_dir_path = std::path::absolute(&path).unwrap_or(path);
    }
    if let Some(path) = s.work_dir.clone().or_else(|| s.images_dir.clone()) {
        std::env::set_current_dir(&path)
            .during("changing to the work directory")
            .on_path(&path.display().to_string())?;
    }
    s.engine.images_dir = dir;
    if verb != Verb::Check {
        s.engine.work_dir = Some(open_dir(Path::new("."))?);
    }
    open_log(s)?;
    validate(verb, s)
}

/// Standard input for a restore, standard output for a dump, which nothing else may use then.
fn standard_stream(verb: Verb, s: &Settings) -> Result<OwnedFd> {
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().during("duplicating a descriptor");
    if verb == Verb::Restore {
        return own(std::io::stdin().as_fd());
    }
    if s.log_file.as_deref() == Some(Path::new("-")) || s.display_stats {
        return Err(bad("the archive goes to standard output, and so would the log or the statistics")
            .help("name a log file with --log-file, or an archive other than `-`"));
    }
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(bad("an archive is nothing for a terminal").help("redirect standard output, or name a file"));
    }
    own(stdout.as_fd())
}

fn open_log(s: &mut Settings) -> Result<()> {
    match s.log_file.as_deref() {
        None => {}
        Some(p) if p == Path::new("-") => logging::set_sink(logging::Sink::Stdout),
        Some(path) => {
            logging::open_file(path).during("opening the log file").on_path(&path.display().to_string())?;
            s.engine.log_file = path.to_str().map(str::to_owned);
        }
    }
    log::info!("Version: {} (crust {})", crate::CLAIMED_VERSION, env!("CARGO_PKG_VERSION"));
    Ok(())
}

/// Combinations that CRIU refuses, and what crust cannot do yet.
pub(crate) fn validate(verb: Verb, s: &mut Settings) -> Result<()> {
    let restore = verb == Verb::Restore;
    s.engine.restore_detached = s.detached;
    if s.engine.restore_sibling && !s.detached {
        return Err(bad("--restore-sibling only makes sense with --restore-detached"));
    }
    if s.engine.mntns_compat_mode && !restore {
        return Err(bad("--mntns-compat-mode is only valid on restore"));
    }
    if !s.engine.inherit_fds.is_empty() && !restore {
        return Err(bad("--inherit-fd is a restore-only option"));
    }
    // A number that was free may be one of our own files by now, and would be handed to the program.
    if let Some(missing) = s.engine.inherit_fds.iter().find(|i| !crust_kernel::inherited::was_given(i.fd)) {
        return Err(bad(format!(
            "--inherit-fd fd[{}]:{}: crust was started without a descriptor {0}",
            missing.fd, missing.key
        ))
        .help("open it for crust: what starts it may close descriptors (Python's subprocess does without pass_fds)"));
    }
    // Of the verbs here none writes to it, but who named it waits for something.
    if let Some(fd) = s.status_fd.filter(|fd| !crust_kernel::inherited::was_given(*fd)) {
        return Err(bad(format!("--status-fd {fd}: crust was started without a descriptor {fd}")).help(
            "open it for crust: what starts it may close descriptors (Python's subprocess does without pass_fds)",
        ));
    }
    if s.network_lock_given && restore {
        log::warn!("--network-lock is ignored by restore: the method of the dump is used");
    }
    if restore && s.engine.pid != 0 {
        log::warn!("-t means nothing to restore");
    }
    if verb == Verb::Check {
        return Ok(());
    }
    if s.tls {
        return Err(Error::unsupported("--tls is not supported yet", "use a tunnel, for instance ssh"));
    }
    if s.page_server || s.ps_socket.is_some() {
        return Err(Error::unsupported("--page-server is not supported yet", "dump to a directory both machines see"));
    }
    if s.engine.images_tar.is_some() && s.engine.stream {
        return Err(bad("--images-tar and --stream exclude each other"));
    }
    if verb == Verb::PreDump && (s.engine.images_tar.is_some() || s.engine.stream) {
        return Err(bad("a pre-dump needs an image directory that the dump can refer to"));
    }
    if s.engine.lazy_pages && verb == Verb::PreDump {
        return Err(bad("cannot pre-dump with --lazy-pages"));
    }
    if s.engine.lazy_pages {
        return Err(Error::unsupported("--lazy-pages is not supported yet", "leave it out: all pages come at once"));
    }
    plugins(s.libdir.as_deref().map(Path::to_owned).or_else(|| std::env::var_os("CRIU_LIBS_DIR").map(PathBuf::from)))
}

/// Refuses a tree that we are part of: we would stop ourselves.
pub(crate) fn not_ourselves(root: i32) -> Result<()> {
    let mut pid = i32::try_from(std::process::id()).unwrap_or(0);
    while pid > 0 {
        if pid == root {
            return Err(bad("The criu itself is within dumped tree")
                .help("call from outside the tree, or start the caller's dump with `setsid` from another parent"));
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in parentheses may hold anything, also parentheses: the parent is the second word after the last.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        pid = parent.unwrap_or(0);
    }
    Ok(())
}

/// CRIU loads every `*.so` of the plugin directory. We have no plugins, and say so rather than leave one out.
fn plugins(dir: Option<PathBuf>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    let name = dir.display().to_string();
    for entry in std::fs::read_dir(&dir).during("reading the plugin directory").on_path(&name)? {
        let path = entry.during("reading the plugin directory").on_path(&name)?.path();
        if path.extension().is_some_and(|e| e == "so") {
            return Err(Error::unsupported("CRIU's plugins cannot be loaded", "name an empty directory with --libdir")
                .on(Object::Path(path.display().to_string())));
        }
    }
    Ok(())
}

fn scripts(s: &mut Settings) -> Scripts {
    Scripts::new(std::mem::take(&mut s.action_scripts), s.engine.images_dir.as_ref().map(AsRawFd::as_raw_fd))
}

fn dump(invocation: Invocation) -> Result<Exit> {
    let (verb, mut s) = (invocation.verb, invocation.settings);
    if s.engine.pid <= 0 {
        return Err(bad("pid not specified").help("name the root of the tree with -t PID"));
    }
    not_ourselves(s.engine.pid)?;
    if let Some(job) = rootless::job_of(s.engine.pid) {
        log::info!("task {} is {} of a job without privileges: going on inside of it", s.engine.pid, job.inner);
        s.engine.pid = job.inner;
        let dir = open_dir(Path::new("."))?;
        return match job.inside(&dir, || dump_here(verb, s))? {
            0 => Ok(Exit::Good),
            255 => Ok(Exit::Minus1),
            _ => Ok(Exit::Failure),
        };
    }
    dump_here(verb, s)
}

fn dump_here(verb: Verb, mut s: Settings) -> Result<Exit> {
    let mut events = CliEvents::new(scripts(&mut s));
    let done = match verb {
        Verb::PreDump => crust_engine::pre_dump(&s.engine, &mut events),
        _ => crust_engine::dump(&s.engine, &mut events),
    };
    events.done();
    match done {
        Ok(report) => {
            stats::dumped(&s.engine, &report);
            if s.display_stats {
                out(&stats::dump_text(&report));
            }
            Ok(Exit::Good)
        }
        Err(e) => {
            report(&e);
            log::error!("Dumping FAILED.");
            Ok(if events.post_dump_refused { Exit::Minus1 } else { Exit::Failure })
        }
    }
}

fn restore(invocation: Invocation) -> Result<Exit> {
    let (mut s, command) = (invocation.settings, invocation.rest);
    // Who asks for --unprivileged has a capability for it, and wants the ids of this pid namespace.
    if !s.engine.unprivileged && rootless::is_needed() {
        return restore_rootless(s);
    }
    if s.exec_cmd {
        can_be_run(&command)?;
    }
    let goes_on = s.exec_cmd || !s.detached;
    let (restored, scripts) = match restore_tree(&mut s, goes_on) {
        Ok(done) => done,
        Err(e) => {
            report(&e);
            log::error!("Restoring FAILED.");
            return Ok(Exit::Failure);
        }
    };
    if s.exec_cmd {
        return Err(become_command(&command, &scripts));
    }
    if !s.detached {
        wait_for(restored.pid)?;
    }
    Ok(Exit::Good)
}

/// `goes_on`: this process has more to do than to exit if all goes well.
fn restore_tree(s: &mut Settings, goes_on: bool) -> Result<(crust_engine::RestoreReport, Scripts)> {
    let mut events = CliEvents::new(scripts(s));
    let done = crust_engine::restore(&s.engine, &mut events);
    if goes_on && done.is_ok() {
        events.done_but_goes_on();
    } else {
        events.done();
    }
    let restored = done?;
    stats::restored(&s.engine, &restored);
    if s.display_stats {
        out(&stats::restore_text(&restored));
    }
    Ok((restored, events.scripts))
}

/// Restores in a user, pid and mount namespace of our own.
fn restore_rootless(mut s: Settings) -> Result<Exit> {
    if s.exec_cmd || s.engine.restore_sibling {
        return Err(bad("--exec-cmd and --restore-sibling need the right to choose process ids here")
            .help("be root, or have CAP_CHECKPOINT_RESTORE and pass --unprivileged"));
    }
    log::info!("no right to choose process ids here: restoring in a user and pid namespace of our own");
    let (detached, pidfile) = (s.detached, s.engine.pidfile.take());
    let ended =
        rootless::job(detached, pidfile.as_deref(), || restore_tree(&mut s, true).map(|(restored, _)| restored.pid))?;
    // How the tree ends is its own affair.
    Ok(if ended.is_some() {
        Exit::Good
    } else {
        log::error!("Restoring FAILED.");
        Exit::Failure
    })
}

/// `cpuinfo dump` and `cpuinfo check`.
pub(crate) fn cpuinfo(verb: Verb, s: &Settings) -> Result<()> {
    use crust_engine::cpu;
    let dir = s.engine.images_dir.as_ref().ok_or_else(|| bad("no image directory was given"))?;
    if verb == Verb::CpuinfoDump {
        return cpu::write(dir.as_fd());
    }
    cpu::check_dir(dir.as_fd(), s.engine.cpu_cap)?;
    log::info!("this processor has what the image asks for");
    Ok(())
}

/// `crust cleanup`: what crashed runs left in the image directory, in tasks, and at `--address` and `--pidfile`.
fn cleanup(s: &Settings) -> Result<Exit> {
    use crust_engine::cleanup as of;
    let dir = s.engine.images_dir.as_ref().ok_or_else(|| bad("no image directory was given"))?;
    let mut found = of::images(dir.as_fd(), s.dry_run)?;
    found.extend(of::tasks((s.engine.pid > 0).then_some(s.engine.pid), s.dry_run)?);
    found.extend(of::groups(s.dry_run));
    found.extend(s.address.as_deref().and_then(|path| of::socket(path, s.dry_run)));
    found.extend(s.engine.pidfile.as_deref().and_then(|path| of::pidfile(path, s.dry_run)));
    let (mut text, mut exit) = (String::new(), Exit::Good);
    for thing in &found {
        let fate = match &thing.removed {
            None => "left there".to_owned(),
            Some(Ok(())) => "removed".to_owned(),
            Some(Err(e)) => {
                exit = Exit::Failure;
                format!("NOT removed: {}; {}", e.headline(), e.advice())
            }
        };
        let _infallible = writeln!(text, "{} ({fate})", thing.what);
    }
    if found.is_empty() {
        text.push_str("Nothing was left behind.\n");
    }
    out(&text);
    Ok(exit)
}

/// Waits until the restored root task has ended. Its status is its own affair, as with CRIU.
fn wait_for(pid: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| Error::new(Kind::Internal, "restore gave no pid"))?;
    let wait = || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    match rustix::io::retry_on_intr(wait) {
        Ok(_) => Ok(()),
        Err(e) => Err(e).during("waiting for the restored tree"),
    }
}

/// Becomes the command after `--`. Returns only if that failed.
fn become_command(command: &[OsString], scripts: &Scripts) -> Error {
    let Some((program, args)) = command.split_first() else { return bad("--exec-cmd requires a command") };
    let e = std::process::Command::new(program).args(args).envs(scripts.environment()).exec();
    let failed = std::result::Result::<(), _>::Err(e).during("running the command of --exec-cmd");
    match failed.on_path(&program.to_string_lossy()) {
        Err(e) => e.help(NAME_A_PROGRAM).state("the tree is restored and runs"),
        Ok(()) => Error::new(Kind::Internal, "exec returned"),
    }
}

const NAME_A_PROGRAM: &str = "name a program that can be run, by its path or by a name that is found in PATH";

/// Whether there is such a program: asked before a tree is restored, since nobody would be its parent else.
pub(crate) fn can_be_run(command: &[OsString]) -> Result<()> {
    let Some(program) = command.first() else { return Err(bad("--exec-cmd requires a command")) };
    let is_program = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    let path = Path::new(program);
    let found = if program.as_encoded_bytes().contains(&b'/') {
        is_program(path)
    } else {
        let places = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
        std::env::split_paths(&places).any(|place| is_program(&place.join(path)))
    };
    if found {
        return Ok(());
    }
    Err(bad("the command of --exec-cmd cannot be run")
        .on(Object::Path(path.display().to_string()))
        .help(NAME_A_PROGRAM))
}

/// `crust check`: the host, one feature, or a tree.
fn check(s: &Settings) -> Result<Exit> {
    if let Some(name) = &s.feature {
        return match check::feature(name) {
            None => Err(bad(format!("unknown feature {name}")).help("`crust check --all` lists what is known")),
            Some(true) => {
                out("Looks good.\n");
                Ok(Exit::Good)
            }
            Some(false) => {
                log::warn!("{name} is not supported by this kernel");
                Ok(Exit::Failure)
            }
        };
    }
    if s.check_needs {
        return check_needs(s);
    }
    if s.engine.pid > 0 {
        return check_tree(s);
    }
    let mut missing = 0;
    for feature in check::host() {
        let asked = feature.required || s.check_extra || s.check_experimental;
        match (feature.present, feature.required) {
            (true, _) => log::info!("{}: present", feature.name),
            (false, true) => log::error!("{} is missing: {}", feature.name, feature.help),
            (false, false) if asked => log::warn!("{} is missing: {}", feature.name, feature.help),
            (false, false) => log::info!("{} is missing: {}", feature.name, feature.help),
        }
        missing += usize::from(asked && !feature.present);
    }
    if missing == 0 {
        out("Looks good.\n");
        Ok(Exit::Good)
    } else {
        out(&format!("Does not look good: {missing} missing, see above.\n"));
        Ok(Exit::Failure)
    }
}

fn check_needs(s: &Settings) -> Result<Exit> {
    let needs = match s.engine.pid {
        pid if pid > 0 => needs::of_tree(pid)?,
        _ if s.engine.images_dir.is_some() => needs::of_images(&s.engine)?,
        _ => return Err(bad("--needs of what?").help("name a tree (--pid PID) or a checkpoint (--images-dir DIR)")),
    };
    out(&if s.check_json { needs_json(&needs).to_pretty() + "\n" } else { needs_text(&needs) });
    Ok(if needs.enough() { Exit::Good } else { Exit::Failure })
}

fn needs_text(needs: &Needs) -> String {
    let mut text = String::new();
    for (step, title) in [(Step::Dump, "To dump it:"), (Step::Restore, "To restore it here:")] {
        let of_step: Vec<&Need> = needs.needs.iter().filter(|n| n.step == step).collect();
        if !of_step.is_empty() {
            text += title;
            text.push('\n');
        }
        for n in of_step {
            let tasks = match n.tasks.as_slice() {
                [] => String::new(),
                [one] => format!("process {one} "),
                [first, rest @ ..] => format!("process {first} and {} others: ", rest.len()),
            };
            let state = match (n.held, n.without) {
                (true, _) => "held".to_owned(),
                (false, Some(what)) => format!("missing; without it {what}"),
                (false, None) => "MISSING".to_owned(),
            };
            let _infallible = writeln!(text, "- {} [{state}]: {tasks}{}", n.right, n.why);
        }
    }
    for note in &needs.notes {
        let _infallible = writeln!(text, "Note: {note}.");
    }
    text +=
        if needs.enough() { "Nothing that is necessary is missing.\n" } else { "Necessary privileges are missing.\n" };
    text
}

fn needs_json(needs: &Needs) -> Json {
    let text = |t: &str| Json::Str(t.to_owned());
    let one = |n: &Need| {
        let step = match n.step {
            Step::Dump => "dump",
            Step::Restore => "restore",
        };
        let tasks = n.tasks.iter().map(|&t| Json::Int(t.into())).collect();
        let members = [
            ("for", text(step)),
            ("privilege", text(n.right)),
            ("why", text(&n.why)),
            ("processes", Json::Array(tasks)),
            ("held", Json::Bool(n.held)),
            ("without", n.without.map_or(Json::Null, text)),
        ];
        Json::Object(members.map(|(name, value)| (name.to_owned(), value)).into())
    };
    let members = [
        ("enough", Json::Bool(needs.enough())),
        ("needs", Json::Array(needs.needs.iter().map(one).collect())),
        ("notes", Json::Array(needs.notes.iter().map(|n| text(n)).collect())),
    ];
    Json::Object(members.map(|(name, value)| (name.to_owned(), value)).into())
}

fn check_tree(s: &Settings) -> Result<Exit> {
    let blockers = check::tree(s.engine.pid, &s.engine)?;
    if blockers.is_empty() {
        out(&format!("The tree below {} can be dumped.\n", s.engine.pid));
        return Ok(Exit::Good);
    }
    let count = if blockers.len() == 1 { "one obstacle".to_owned() } else { format!("{} obstacles", blockers.len()) };
    let mut text = format!("The tree below {} cannot be dumped, {count}:\n", s.engine.pid);
    for e in &blockers {
        let _infallible = writeln!(text, "- {}\n  help: {}", e.headline(), e.advice());
    }
    out(&text);
    Ok(Exit::Failure)
}
