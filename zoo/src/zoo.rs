//! The program's side of the protocol: rounds, verdicts, and members (child processes and threads) that take part.
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the root waits for its members before it calls them lost.
const MEMBER_LIMIT: Duration = Duration::from_secs(60);

/// One process of a zoo program: the root, or a member made by [`Zoo::fork`].
#[derive(Debug)]
pub struct Zoo {
    /// The private directory as seen from here; "." unless the program changes its root or directory.
    base: PathBuf,
    /// Empty for the root.
    name: String,
    round: u32,
    members: Vec<String>,
    seats: Vec<Arc<Shared>>,
    faults: Vec<String>,
}

impl Zoo {
    /// Enters the private directory (`ZOO_DIR`, else the argument after the name) and becomes the root process.
    pub fn start() -> Self {
        let dir = std::env::var_os("ZOO_DIR").or_else(|| std::env::args_os().nth(2));
        let Some(dir) = dir else { leave("usage: ZOO_DIR=directory program") };
        if let Err(e) = std::env::set_current_dir(&dir) {
            leave(&format!("{}: {e}", Path::new(&dir).display()));
        }
        Self {
            base: PathBuf::from("."),
            name: String::new(),
            round: 0,
            members: Vec::new(),
            seats: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Tells where the private directory is after a chdir or chroot.
    pub fn base_is(&mut self, base: impl Into<PathBuf>) {
        self.base = base.into();
    }

    /// A file of the private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// The number of the current round; 1 in the first.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Ends one round and waits through the gap of the next; false when the program should leave.
    /// State must be set up before the call and is checked after it.
    pub fn gap(&mut self) -> bool {
        if self.round > 0 {
            self.verdict();
        }
        self.round += 1;
        let n = self.round;
        for seat in &self.seats {
            if !seat.wait_arrived(n) {
                leave(&format!("thread {} did not come to round {n}", seat.name));
            }
        }
        for member in &self.members {
            if wait_for(&self.path(&format!("at.{n}.{member}")), MEMBER_LIMIT).is_none() {
                leave(&format!("member {member} did not come to round {n}"));
            }
        }
        if self.name.is_empty() {
            self.write(&format!("ready.{n}"), "");
        } else {
            self.write(&format!("at.{n}.{}", self.name), "");
        }
        let (go, quit) = (self.path(&format!("go.{n}")), self.path("quit"));
        let mut nap = Duration::from_millis(2);
        let on = loop {
            if go.exists() {
                break true;
            }
            if quit.exists() {
                break false;
            }
            std::thread::sleep(nap);
            nap = (nap + nap / 2).min(Duration::from_millis(20));
        };
        for seat in &self.seats {
            seat.open(if on { n } else { u32::MAX });
        }
        on
    }

    /// Notes a fault unless the two are equal.
    pub fn eq<T: PartialEq + Debug>(&mut self, what: &str, got: T, want: T) {
        if got != want {
            self.faults.push(format!("{what}: got {got:?}, want {want:?}"));
        }
    }

    /// Notes a fault unless the condition holds.
    pub fn ok(&mut self, what: &str, holds: bool) {
        if !holds {
            self.faults.push(what.to_owned());
        }
    }

    /// The value, or its default and a fault.
    pub fn get<T: Default, E: Debug>(&mut self, what: &str, result: Result<T, E>) -> T {
        result.unwrap_or_else(|e| {
            self.faults.push(format!("{what}: {e:?}"));
            T::default()
        })
    }

    /// Leaves at once: this machine lacks what the program needs. The harness counts it as a skip.
    pub fn skip(&self, reason: &str) -> ! {
        self.write("skip", reason);
        leave(reason)
    }

    /// Forks a member that takes part in every round under `name`; returns its pid.
    pub fn fork(&mut self, name: &str, body: impl FnOnce(Zoo)) -> i32 {
        self.fork_sharing(0, name, body)
    }

    /// As [`Self::fork`], with `CLONE_FILES` or `CLONE_FS`.
    pub fn fork_sharing(&mut self, flags: i32, name: &str, body: impl FnOnce(Zoo)) -> i32 {
        self.expect(name);
        let (base, round, name) = (self.base.clone(), self.round, name.to_owned());
        crate::sys::fork_sharing(flags, || {
            body(Zoo { base, name, round, members: Vec::new(), seats: Vec::new(), faults: Vec::new() });
            0
        })
    }

    /// Makes the root wait for a member that another member forks.
    pub fn expect(&mut self, name: &str) {
        self.members.push(name.to_owned());
    }

    /// A thread that takes part in every round: it loops on [`Seat::gap`], blocked in a futex during the gap.
    pub fn thread(&mut self, name: &str, body: impl FnOnce(&mut Seat) + Send + 'static) {
        let shared = Arc::new(Shared { name: name.to_owned(), state: Mutex::default(), moved: Condvar::new() });
        self.seats.push(Arc::clone(&shared));
        let mut seat = Seat { shared, round: self.round, faults: Vec::new() };
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || body(&mut seat));
        if let Err(e) = thread {
            leave(&format!("thread {name}: {e}"));
        }
    }

    /// Writes a file for the harness or a member; it appears whole.
    pub fn tell(&self, name: &str, text: &str) {
        self.write(name, text);
    }

    /// Waits for a file that a member writes with [`Self::tell`].
    pub fn hear(&self, name: &str) -> Option<String> {
        wait_for(&self.path(name), MEMBER_LIMIT)
    }

    fn verdict(&mut self) {
        let n = self.round;
        let mut faults = std::mem::take(&mut self.faults);
        for seat in &self.seats {
            if !seat.wait_arrived(n + 1) {
                faults.push(format!("thread {} did not finish its checks", seat.name));
            }
            faults.append(&mut seat.take_faults());
        }
        for member in std::mem::take(&mut self.members) {
            match wait_for(&self.path(&format!("verdict.{n}.{member}")), MEMBER_LIMIT) {
                Some(text) if text.is_empty() => {}
                Some(text) => faults.push(format!("{member}: {text}")),
                None => faults.push(format!("{member} gave no verdict")),
            }
            self.members.push(member);
        }
        let text = faults.join("\n");
        if !self.name.is_empty() {
            self.write(&format!("verdict.{n}.{}", self.name), &text);
        } else if text.is_empty() {
            self.write(&format!("ok.{n}"), "");
        } else {
            self.write(&format!("fail.{n}"), &text);
        }
    }

    /// Writes a file so that it appears whole.
    fn write(&self, name: &str, text: &str) {
        let (part, whole) = (self.path(&format!("{name}.part")), self.path(name));
        if let Err(e) = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &whole)) {
            leave(&format!("{}: {e}", whole.display()));
        }
    }
}

/// A thread's place in the rounds.
#[derive(Debug)]
pub struct Seat {
    shared: Arc<Shared>,
    round: u32,
    faults: Vec<String>,
}

impl Seat {
    /// As [`Zoo::gap`], for a thread.
    pub fn gap(&mut self) -> bool {
        self.round += 1;
        let mut state = self.shared.lock();
        state.arrived = self.round;
        state.faults.append(&mut self.faults);
        self.shared.moved.notify_all();
        while state.open < self.round {
            state = self.shared.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.open != u32::MAX
    }

    /// As [`Zoo::eq`].
    pub fn eq<T: PartialEq + Debug>(&mut self, what: &str, got: T, want: T) {
        if got != want {
            self.faults.push(format!("thread {}: {what}: got {got:?}, want {want:?}", self.shared.name));
        }
    }

    /// As [`Zoo::ok`].
    pub fn ok(&mut self, what: &str, holds: bool) {
        if !holds {
            self.faults.push(format!("thread {}: {what}", self.shared.name));
        }
    }
}

#[derive(Debug)]
struct Shared {
    name: String,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    arrived: u32,
    open: u32,
    faults: Vec<String>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_arrived(&self, round: u32) -> bool {
        let end = Instant::now() + MEMBER_LIMIT;
        let mut state = self.lock();
        while state.arrived < round {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn open(&self, round: u32) {
        self.lock().open = round;
        self.moved.notify_all();
    }

    fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().faults)
    }
}

fn wait_for(path: &Path, limit: Duration) -> Option<String> {
    let end = Instant::now() + limit;
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return Some(text);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ends a program that cannot play: the text reaches the log that the harness shows.
fn leave(text: &str) -> ! {
    #![allow(clippy::print_stderr, clippy::exit, reason = "a zoo program is a process of its own")]
    eprintln!("zoo: {text}");
    std::process::exit(70)
}
