//! By way of the RPC, at random moments: a client hangs up or is killed, a signal ends a worker or the service. As by command
//! line the tree runs on and there are no images, or all was done; a service that was not hit serves the next client.
use super::{Crash, Found, same_ids};
use std::time::{Duration, Instant};
use zoo::harness::{End, Outcome, Proc, bin_dir, expect_gone, step_limit};

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Client,
    Worker,
    Service,
}

/// One way to disturb a request.
#[derive(Clone, Copy, Debug)]
struct Shot {
    victim: Victim,
    /// `None`: a client hangs up by itself, and lives.
    signal: Option<i32>,
    /// Through a service with this --stop-timeout, else through the client's own `swrk`.
    service: Option<u32>,
    /// The client asks for notifications.
    notify: bool,
}

impl Shot {
    fn roll(crash: &mut Crash<'_>) -> Self {
        use Victim::{Client, Service, Worker};
        let (term, int, kill) = (Some(libc::SIGTERM), Some(libc::SIGINT), Some(libc::SIGKILL));
        let ways = [(Client, None), (Client, kill), (Worker, term), (Worker, int), (Worker, kill)];
        let also = [(Service, term), (Service, int), (Service, kill)];
        let stop = [None, Some(0), Some(60)][crash.dice.below(3)];
        let n = if stop.is_some() { ways.len() + also.len() } else { ways.len() };
        let n = crash.dice.below(n);
        let (victim, signal) = ways.iter().chain(&also).copied().nth(n).unwrap_or(ways[0]);
        Self { victim, signal, service: stop, notify: crash.dice.below(2) == 0 }
    }

    /// True if the worker had no moment to put anything back.
    fn kills_the_worker(self) -> bool {
        self.victim == Victim::Worker && self.signal == Some(libc::SIGKILL)
    }
}

const SOCKET: &str = "service.socket";
const PIDFILE: &str = "service.pid";

impl Crash<'_> {
    /// Starts a service and waits until it listens.
    fn start_service(&mut self, stop: u32) -> Result<Proc, String> {
        for name in [SOCKET, PIDFILE] {
            match std::fs::remove_file(self.room.dir.join(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(format!("{name}: {e}")),
                _ => {}
            }
        }
        let (path, dir) = (self.tool.path.display().to_string(), self.room.dir.display().to_string());
        // A relative name is never too long for a socket's address.
        let stop = stop.to_string();
        let argv = [&path, "service", "-W", &dir, "--address", SOCKET, "--pidfile", PIDFILE, "--stop-timeout", &stop];
        let service = self.room.start(&argv, &[], "service.out")?;
        self.room.await_file(PIDFILE, &[])?;
        Ok(service)
    }

    /// Starts a client that hangs up after `limit`, if that is not zero.
    fn start_client(&mut self, shot: Shot, verb: &str, images: &str, leave: bool, limit: u64) -> Result<Proc, String> {
        let dir = self.room.dir.clone();
        std::fs::create_dir_all(dir.join(images)).map_err(|e| e.to_string())?;
        let server = if shot.service.is_some() { dir.join(SOCKET) } else { self.tool.path.clone() };
        let log = dir.join(format!("{images}.rpc.log"));
        let mut argv = vec![
            bin_dir().join("zoo-client").display().to_string(),
            server.display().to_string(),
            verb.to_owned(),
            limit.to_string(),
            self.root.0.to_string(),
            dir.join(images).display().to_string(),
            log.display().to_string(),
        ];
        argv.extend(shot.notify.then(|| "notify".to_owned()));
        argv.extend(leave.then(|| "leave".to_owned()));
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        self.room.start(&argv, &[], "client.out")
    }

    /// Sends a request and disturbs it after `wait`. How the client ended; neither it nor a worker is there then, and the
    /// service, if it was not hit itself, has served another client.
    fn disturb(
        &mut self,
        shot: Shot,
        verb: &str,
        (images, leave): (&str, bool),
        tree: &[String],
        wait: Duration,
    ) -> Result<End, String> {
        let service = shot.service.map(|stop| self.start_service(stop)).transpose()?;
        let limit = if shot.signal.is_none() { (wait.as_millis() as u64).max(1) } else { 0 };
        let client = self.start_client(shot, verb, images, leave, limit)?;
        if let Some(signal) = shot.signal {
            std::thread::sleep(wait);
            let server = service.unwrap_or(client);
            let victim = match shot.victim {
                Victim::Client => Some(client),
                Victim::Service => service,
                Victim::Worker => {
                    let child = format!(" ppid={} ", server.0);
                    let worker = self.room.ps()?.into_iter().find(|p| p.contains(&child));
                    worker.and_then(|p| super::pid_of(&p)).map(Proc)
                }
            };
            // It may have ended by itself.
            drop(victim.map(|victim| self.room.kill(victim, signal)));
        }
        let end = self.room.wait(client, step_limit())?;
        self.await_end_of_tools(tree, service)?;
        if let Some(service) = service {
            self.end_service(service, shot)?;
        }
        Ok(end)
    }

    /// Waits until nothing of ours is left but `service`.
    fn await_end_of_tools(&mut self, tree: &[String], service: Option<Proc>) -> Outcome {
        let of_tree: Vec<Option<i32>> = tree.iter().map(|p| super::pid_of(p)).collect();
        let until = Instant::now() + step_limit();
        loop {
            let is_tool = |p: &String| p.contains(" \"crust\" ") || p.contains(" \"zoo-client\" ");
            let of_ours = |pid: Option<i32>| !of_tree.contains(&pid) && pid != service.map(|s| s.0);
            let left: Vec<String> =
                self.room.ps()?.into_iter().filter(|p| is_tool(p) && of_ours(super::pid_of(p))).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("left over: {left:#?}"));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// A service that was not hit serves the next, and all end as they should.
    fn end_service(&mut self, service: Proc, shot: Shot) -> Outcome {
        let signal = if shot.victim == Victim::Service { shot.signal } else { None };
        if signal.is_none() {
            let other = Shot { notify: false, ..shot };
            let client = self.start_client(other, "version", "images.none", false, 0)?;
            let end = self.room.wait(client, step_limit())?;
            if end != End::Exit(0) {
                return Err(format!("the next client ended with {end:?}"));
            }
            self.room.kill(service, libc::SIGTERM)?;
        }
        let want = if signal == Some(libc::SIGKILL) { End::Signal(libc::SIGKILL) } else { End::Exit(0) };
        let end = self.room.wait(service, step_limit())?;
        if end == want { Ok(()) } else { Err(format!("the service ended with {end:?}")) }
    }
}

/// Disturbs one dump.
pub(super) fn one_dump(crash: &mut Crash<'_>, _: u32, leave: bool, wait: Duration) -> Outcome {
    let shot = Shot::roll(crash);
    dump(crash, shot, leave, wait).map_err(|e| format!("{shot:?}: {e}"))
}

fn dump(crash: &mut Crash<'_>, shot: Shot, leave: bool, wait: Duration) -> Outcome {
    let before = crash.room.ps()?;
    let images = format!("images.{}", crash.round);
    let end = crash.disturb(shot, "dump", (&images, leave), &before, wait)?;
    crash.hits += u32::from(end != End::Exit(0));
    let whole = crash.room.dir.join(&images).join("inventory.img").exists();
    if (end == End::Exit(0) && !whole) || (end == End::Exit(1) && whole) {
        return Err(format!("the client ended with {end:?}, and that there are images is {whole}"));
    }
    if shot.kills_the_worker() {
        if crash.settle(&before, whole && !leave)? == Found::All {
            return crash.expect_clean();
        }
        if !whole {
            return Err("the tree is gone, and its images are not whole".to_owned());
        }
        crash.kill_all()?;
        crash.forget_round()?;
        crash.bring_back(&before, &images)?;
        return crash.expect_clean();
    }
    if whole && !leave {
        expect_gone(&mut crash.room, crash.root)?;
        crash.bring_back(&before, &images)?;
        return crash.expect_clean();
    }
    if !whole {
        crash.expect_no_images(&images)?;
    }
    // At once: nobody is left stopped, dead or beside the tree.
    let now = crash.room.ps()?;
    if !same_ids(&before, &now) {
        return Err(format!("processes were\n{before:#?}\nand are\n{now:#?}"));
    }
    match crash.settle(&before, false)? {
        Found::All => crash.expect_clean(),
        _ => Err("the tree is gone".to_owned()),
    }
}

/// Disturbs one restore.
pub(super) fn one_restore(
    crash: &mut Crash<'_>,
    before: &[String],
    images: &str,
    _: u32,
    wait: Duration,
) -> Result<Found, String> {
    let shot = Shot::roll(crash);
    restore(crash, shot, before, images, wait).map_err(|e| format!("{shot:?}: {e}"))
}

fn restore(
    crash: &mut Crash<'_>,
    shot: Shot,
    before: &[String],
    images: &str,
    wait: Duration,
) -> Result<Found, String> {
    let end = crash.disturb(shot, "restore", (images, false), before, wait)?;
    crash.hits += u32::from(end != End::Exit(0));
    let found = crash.settle(before, false)?;
    if (end == End::Exit(0) && found != Found::All) || (end == End::Exit(1) && found != Found::Nothing) {
        return Err(format!("the client ended with {end:?}, and of the tree there is {found:?}"));
    }
    if found == Found::Nothing {
        crash.forget_round()?;
        drop(crash.room.wait(crash.root, Duration::ZERO));
    }
    crash.expect_clean().map(|()| found)
}
