//! Programs that people run, dumped and restored twice in a row, each seen to go on rightly from where it was.
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zoo::harness::{Case, End, Outcome, Proc, Room, expect_gone, routes, rule, skipped, step_limit};

/// One program: how to start it, and how to see that it goes on. `@` in an argument is the directory of the test.
struct Real<'a> {
    name: &'static str,
    argv: &'a [&'a str],
    /// Called before the first dump (round 0) and after each restore.
    goes_on: fn(&mut Room, u32) -> Outcome,
    /// Called at the end; the room kills what is left.
    end: fn(&mut Room, Proc) -> Outcome,
}

fn run(real: &Real<'_>) {
    // A shell that only becomes the program names it after its script.
    let program = real.argv.get(3).filter(|_| real.argv[0] == "sh").unwrap_or(&real.argv[0]);
    let on_path = |dir: std::path::PathBuf| dir.join(program).exists();
    if !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(on_path) {
        return skipped(real.name, &format!("{program} is not installed"));
    }
    let mut bad = String::new();
    for route in routes() {
        let on = format!("{}-{}", route.0.name, route.1.name);
        let rule = rule(real.name, &on);
        if let Some(rule) = rule.as_ref().filter(|r| !r.fails) {
            skipped(&format!("{} {on}", real.name), &rule.reason);
            continue;
        }
        let outcome = Room::open(real.name).and_then(|mut room| {
            let outcome = trip(real, &mut room, &route);
            room.close(outcome)
        });
        match (outcome, rule) {
            (Ok(()), Some(_)) => bad.push_str(&format!("{on} passes now: take it out of skips.txt\n")),
            (Err(_), Some(rule)) => skipped(&format!("{} {on}", real.name), &rule.reason),
            (Err(text), None) => bad.push_str(&format!("{} {on}: {text}\n", real.name)),
            (Ok(()), None) => {}
        }
    }
    assert!(bad.is_empty(), "{bad}");
}

fn trip(real: &Real<'_>, room: &mut Room, (dumper, restorer): &zoo::harness::Route) -> Outcome {
    let dir = room.dir.display().to_string();
    let argv: Vec<String> = real.argv.iter().map(|arg| arg.replace('@', &dir)).collect();
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let root = room.spawn(&argv, &[], "program.out")?;
    let case = Case::new(real.name);
    (real.goes_on)(room, 0).map_err(|e| format!("before any dump: {e}"))?;
    for n in 1..=2 {
        let images = format!("images.{n}");
        case.dump(room, root, dumper, &images, &[], &[])?;
        expect_gone(room, root)?;
        case.restore(room, restorer, &images)?;
        (real.goes_on)(room, n).map_err(|e| format!("after restore {n}: {e}"))?;
    }
    (real.end)(room, root)
}

/// The file `count` holds 1, 2, 3 … one a line, and grows by five lines.
fn counts_on(room: &mut Room, _: u32) -> Outcome {
    let lines = |room: &Room| room.read("count").matches('\n').count();
    let (from, end) = (lines(room), Instant::now() + step_limit());
    while lines(room) < from + 5 {
        if Instant::now() > end {
            return Err(format!("stays at {from}; processes: {:#?}", room.ps()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = room.read("count");
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    match whole.lines().enumerate().find(|(i, line)| *line != (i + 1).to_string()) {
        Some((i, line)) => Err(format!("line {} of the count is {line:?}", i + 1)),
        None => Ok(()),
    }
}

/// The program answers `ask.N` with `told.N`, which holds the same text every time.
fn answers_the_same(room: &mut Room, n: u32) -> Outcome {
    counts_on(room, n)?;
    room.touch(&format!("ask.{n}"))?;
    let told = room.await_file(&format!("told.{n}"), &[])?;
    if told.is_empty() || told != room.read("told.0") {
        return Err(format!("told {told:?}, at first {:?}", room.read("told.0")));
    }
    Ok(())
}

fn nothing(_: &mut Room, _: Proc) -> Outcome {
    Ok(())
}

#[test]
fn bash_pipe() {
    let script =
        "cd @; (n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done) | while read x; do echo $x >> count; done";
    run(&Real { name: "bash_pipe", argv: &["bash", "-c", script], goes_on: counts_on, end: nothing });
}

#[test]
fn bash_child() {
    let script = "cd @; trap 'echo hup >> hups' HUP; sleep 1000 & p=$!; n=0; \
        while kill -0 $p; do n=$((n + 1)); echo $n >> count; read -t 0.02 < <(sleep 0.02); done";
    fn hup(room: &mut Room, root: Proc) -> Outcome {
        room.kill(root, libc::SIGHUP)?;
        room.await_file("hups", &[]).map(|_| ())
    }
    run(&Real { name: "bash_child", argv: &["bash", "-c", script], goes_on: counts_on, end: hup });
}

#[test]
fn busybox_ash() {
    let script = "cd @; sleep 1000 & n=0; while kill -0 $!; do n=$((n + 1)); echo $n >> count; usleep 20000; done";
    run(&Real { name: "busybox_ash", argv: &["busybox", "ash", "-c", script], goes_on: counts_on, end: nothing });
}

#[test]
fn perl() {
    let script = "chdir '@'; my %h = map { $_ => $_ * 3 } 1..20000; open my $out, '>', 'count'; $out->autoflush(1); \
        for (my $n = 1; ; $n++) { print $out \"$n\\n\"; select undef, undef, undef, 0.02; \
        while (my $ask = glob 'ask.*') { my $told = $ask =~ s/ask/told/r; next if -e $told; my $sum = 0; \
        $sum += $h{$_} for keys %h; open my $t, '>', 'part'; print $t $sum; close $t; rename 'part', $told; } }";
    run(&Real { name: "perl", argv: &["perl", "-MIO::Handle", "-e", script], goes_on: answers_the_same, end: nothing });
}

#[test]
fn python_threads_memory() {
    let script = r"
import glob, hashlib, os, random, threading, time
os.chdir('@')
random.seed(1)
block = random.randbytes(1 << 20)
memory = bytearray()
for i in range(256):
    memory += i.to_bytes(4, 'little') + block[4:]
counts = [0] * 8
def count(i):
    while True:
        counts[i] += 1
        time.sleep(0.005)
threads = [threading.Thread(target=count, args=(i,), daemon=True) for i in range(8)]
for t in threads: t.start()
out, n = open('count', 'w', buffering=1), 0
while True:
    before = list(counts)
    time.sleep(0.05)
    if all(a < b for a, b in zip(before, counts)):
        n += 1
        print(n, file=out)
    for ask in glob.glob('ask.*'):
        told = ask.replace('ask', 'told')
        if not os.path.exists(told):
            with open('part', 'w') as f: f.write(hashlib.sha256(memory).hexdigest())
            os.rename('part', told)
";
    run(&Real {
        name: "python_threads_memory",
        argv: &["python3", "-c", script],
        goes_on: answers_the_same,
        end: nothing,
    });
}

#[test]
fn node() {
    let script = "process.chdir('@'); const fs = require('fs'); const big = new Map(); \
        for (let i = 0; i < 50000; i++) big.set('k' + i, i * 3); let n = 0; \
        setInterval(() => { fs.appendFileSync('count', ++n + '\\n'); for (const f of fs.readdirSync('.')) { \
        const told = f.replace('ask', 'told'); if (!f.startsWith('ask.') || fs.existsSync(told) || fs.existsSync(told + '.part')) continue; \
        let sum = 0; for (const v of big.values()) sum += v; \
        fs.writeFile(told + '.part', '' + sum, () => fs.rename(told + '.part', told, () => 0)); } }, 30);";
    run(&Real { name: "node", argv: &["node", "-e", script], goes_on: answers_the_same, end: nothing });
}

#[test]
fn sqlite_open_database() {
    /// Commands go through a fifo; a temporary table lives in the process only, the other one in the database file.
    fn ask(room: &mut Room, n: u32) -> Outcome {
        let fifo = room.dir.join("commands");
        let end = Instant::now() + step_limit();
        let mut writer = loop {
            // Without blocking, opening fails until there is a reader.
            match fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo) {
                Ok(writer) => break writer,
                Err(e) if Instant::now() > end => return Err(format!("nobody reads the commands: {e}")),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let sql = format!(
            "INSERT INTO kept SELECT value * 3 FROM generate_series(1, 1000);\nINSERT INTO own VALUES ({n});\n\
            .output part.{n}\nSELECT count(*), sum(x), (SELECT group_concat(x) FROM own) FROM kept;\n.output\n\
            .shell mv part.{n} told.{n}\n"
        );
        writer.write_all(sql.as_bytes()).map_err(|e| e.to_string())?;
        let told = room.await_file(&format!("told.{n}"), &[])?;
        let own: Vec<String> = (0..=n).map(|i| i.to_string()).collect();
        let want = format!("{}|{}|{}", 1000 * (n + 1), 1_501_500 * (n + 1), own.join(","));
        if told.trim() == want { Ok(()) } else { Err(format!("told {told:?}, want {want:?}")) }
    }
    let script = "cd @; mkfifo commands; exec sqlite3 -cmd 'PRAGMA journal_mode=DELETE; CREATE TABLE kept (x); \
        CREATE TEMP TABLE own (x);' data.db <> commands";
    run(&Real { name: "sqlite_open_database", argv: &["sh", "-c", script], goes_on: ask, end: nothing });
}

/// Connects to the unix socket `name` of the room (its path may be too long for an address), asks, and reads to the end.
/// The end is seen when the server has closed its side, so the connection is in no dump.
fn converse(room: &mut Room, name: &str, ask: &[u8]) -> Result<String, String> {
    let dir = fs::File::open(&room.dir).map_err(|e| e.to_string())?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    let end = Instant::now() + step_limit();
    let mut stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(e) if Instant::now() > end => return Err(format!("nobody listens: {e}; processes: {:#?}", room.ps())),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut told = String::new();
    let talk = stream.set_read_timeout(Some(step_limit())).and_then(|()| stream.write_all(ask));
    talk.and_then(|()| stream.read_to_string(&mut told)).map_err(|e| format!("{e} after {told:?}"))?;
    Ok(told)
}

#[test]
fn redis_append_only() {
    fn counts(room: &mut Room, n: u32) -> Outcome {
        let told = converse(room, "s", b"INCR rounds\r\nQUIT\r\n")?;
        let want = format!(":{}\r\n+OK\r\n", n + 1);
        if told == want { Ok(()) } else { Err(format!("told {told:?}, want {want:?}")) }
    }
    fn wrote_all(room: &mut Room, _: Proc) -> Outcome {
        let end = Instant::now() + step_limit();
        let incr = || {
            let dir = fs::read_dir(room.dir.join("appendonlydir")).into_iter().flatten().flatten();
            let texts = dir.filter_map(|e| fs::read_to_string(e.path()).ok());
            texts.map(|t| t.matches("INCR").count()).sum::<usize>()
        };
        while incr() != 3 {
            if Instant::now() > end {
                return Err(format!("{} increments are in the append-only file", incr()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    let script = "cd @; exec redis-server --port 0 --unixsocket s --appendonly yes --save '' --daemonize no";
    run(&Real {
        name: "redis_append_only",
        argv: &["sh", "-c", script, "redis-server"],
        goes_on: counts,
        end: wrote_all,
    });
}

#[test]
fn nginx_workers() {
    fn answers(room: &mut Room, n: u32) -> Outcome {
        for _ in 0..4 {
            let told = converse(room, "s", b"GET / HTTP/1.0\r\n\r\n")?;
            if !told.ends_with("\r\n\r\nhello") {
                return Err(format!("told {told:?} in round {n}"));
            }
        }
        Ok(())
    }
    let script = "cd @; printf '%s' 'daemon off; worker_processes 3; user root; pid pid; error_log err; \
        events { worker_connections 64; } http { access_log off; client_body_temp_path t1; proxy_temp_path t2; \
        fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5; server { listen unix:s; lingering_close off; \
        return 200 hello; } }' > conf; exec nginx -p . -e err -c conf";
    run(&Real { name: "nginx_workers", argv: &["sh", "-c", script, "nginx"], goes_on: answers, end: nothing });
}

#[test]
fn python_pool() {
    let script = r"
import multiprocessing, os, time
from multiprocessing import shared_memory
def square(x):
    time.sleep(0.002)
    return x * x
def side(lock, queue, ready, name):
    memory = shared_memory.SharedMemory(name=name)
    ready.put(1)
    while True:
        n = queue.get()
        with lock:
            memory.buf[0] = (memory.buf[0] + n) % 256
os.chdir('@')
lock, queue = multiprocessing.Semaphore(2), multiprocessing.Queue()
memory = shared_memory.SharedMemory(create=True, size=4096)
ready = multiprocessing.SimpleQueue()
multiprocessing.Process(target=side, args=(lock, queue, ready, memory.name), daemon=True).start()
ready.get()
memory.unlink()
with multiprocessing.Pool(3) as pool, open('count', 'w', buffering=1) as out:
    n = 0
    while True:
        assert pool.map(square, range(12)) == [x * x for x in range(12)]
        queue.put(1)
        n += 1
        while memory.buf[0] != n % 256:
            time.sleep(0.002)
        print(n, file=out)
";
    run(&Real { name: "python_pool", argv: &["python3", "-c", script], goes_on: counts_on, end: nothing });
}

#[test]
fn sleep() {
    fn still_there(room: &mut Room, _: u32) -> Outcome {
        match room.ps()?.as_slice() {
            [one] if one.contains("sleep") => Ok(()),
            other => Err(format!("processes: {other:#?}")),
        }
    }
    fn ends_well(room: &mut Room, root: Proc) -> Outcome {
        match room.wait(root, step_limit())? {
            End::Exit(0) => Ok(()),
            other => Err(format!("sleep ended with {other:?}")),
        }
    }
    run(&Real { name: "sleep", argv: &["sleep", "8"], goes_on: still_there, end: ends_well });
}
