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
    if !installed(program) {
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

/// On the path, or where Debian puts the servers of PostgreSQL.
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut dirs = std::env::split_paths(&path).chain(versions.map(|v| v.path().join("bin")));
    dirs.any(|dir| dir.join(program).exists())
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

/// Writes into a fifo of the room as soon as it has a reader.
fn feed(room: &Room, fifo: &str, text: &str) -> Outcome {
    let end = Instant::now() + step_limit();
    let mut writer = loop {
        // Without blocking, opening fails until there is a reader.
        match fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(room.dir.join(fifo)) {
            Ok(writer) => break writer,
            Err(e) if Instant::now() > end => return Err(format!("nobody reads {fifo}: {e}")),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    writer.write_all(text.as_bytes()).map_err(|e| e.to_string())
}

#[test]
fn sqlite_open_database() {
    /// Commands go through a fifo; a temporary table lives in the process only, the other one in the database file.
    fn ask(room: &mut Room, n: u32) -> Outcome {
        let sql = format!(
            "INSERT INTO kept SELECT value * 3 FROM generate_series(1, 1000);\nINSERT INTO own VALUES ({n});\n\
            .output part.{n}\nSELECT count(*), sum(x), (SELECT group_concat(x) FROM own) FROM kept;\n.output\n\
            .shell mv part.{n} told.{n}\n"
        );
        feed(room, "commands", &sql)?;
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

/// A server, and a session with a transaction that stays open over both dumps. What the session told last is what it sees
/// at the end, too.
#[test]
fn postgres_open_transaction() {
    fn inserts(room: &mut Room, n: u32) -> Outcome {
        let sql = format!(
            "INSERT INTO kept VALUES ({n}); \\o part.{n}\nSELECT sum(x), count(*), txid_current() = min(tx) FROM kept, began;\n\\o\n\
            \\! mv part.{n} told.{n}\n"
        );
        feed(room, "pg/commands", &sql)?;
        let told = room.await_file(&format!("pg/told.{n}"), &[])?;
        let want = format!("{}|{}|t", n * (n + 1) / 2, n + 1);
        if told.trim() == want { Ok(()) } else { Err(format!("told {told:?}, want {want:?}")) }
    }
    fn commits(room: &mut Room, _: Proc) -> Outcome {
        feed(room, "pg/commands", "COMMIT; SELECT count(*) FROM kept \\g part\n\\! mv part committed\n")?;
        match room.await_file("pg/committed", &[])?.trim() {
            "3" => stop(room),
            other => Err(format!("{other} rows are committed")),
        }
    }
    /// In good order: it has a segment of System V shared memory, which would outlive the room.
    fn stop(room: &mut Room) -> Outcome {
        const PID: &str = "pg/data/postmaster.pid";
        let pid = room.read(PID).lines().next().and_then(|pid| pid.parse().ok());
        room.kill(Proc(pid.ok_or("postmaster.pid has no pid")?), libc::SIGINT)?;
        let end = Instant::now() + step_limit();
        while room.dir.join(PID).exists() {
            if Instant::now() > end {
                return Err(format!("the server does not end; processes: {:#?}", room.ps()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    // The server refuses to be root's, and its user may be unable to reach the room by its own path. Its shared memory must not
    // stay where all see it when the room ends.
    let script = "mount -t tmpfs shm /dev/shm; mkdir @/pg; chown postgres @/pg; mount --bind @/pg /mnt; cd /mnt; \
        PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1):$PATH; export PATH HOME=/mnt; \
        exec setpriv --reuid=postgres --regid=postgres --clear-groups sh -c \"mkfifo commands; \
        initdb -D data -A trust -N -E UTF8 --locale=C >/dev/null; \
        postgres -D data -k /mnt -c listen_addresses= -c fsync=off & \
        until [ -S .s.PGSQL.5432 ] && psql -h /mnt -d postgres -qAt -c 'SELECT' </dev/null 2>/dev/null; do sleep 0.05; done; \
        psql -X -h /mnt -d postgres -qAt -c 'CREATE TABLE kept (x int); CREATE TABLE began (tx bigint)'; \
        (echo 'BEGIN; INSERT INTO began VALUES (txid_current());'; exec cat) <> commands | psql -X -h /mnt -d postgres -qAt\"";
    run(&Real {
        name: "postgres_open_transaction",
        argv: &["sh", "-c", script, "postgres"],
        goes_on: inserts,
        end: commits,
    });
}

#[test]
fn httpd_workers() {
    /// A port that nobody has, below those that the kernel gives away.
    fn port() -> u16 {
        let first = 2000 + (std::process::id() % 28_000) as u16;
        let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
        (first..30_000).find(free).unwrap_or(first)
    }
    /// Connections to `port` that have not ended, as /proc/net/tcp lists them.
    fn under_way(port: u16) -> usize {
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let mine = format!("0100007F:{port:04X}");
        let fields = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        fields.filter(|f| f.len() > 3 && (f[1] == mine || f[2] == mine) && !matches!(f[3], "0A" | "06")).count()
    }
    fn answers(room: &mut Room, n: u32) -> Outcome {
        let port: u16 = room.await_file("port", &[])?.trim().parse().map_err(|e| format!("port: {e}"))?;
        let end = Instant::now() + step_limit();
        for _ in 0..4 {
            let mut stream = loop {
                match std::net::TcpStream::connect(("127.0.0.1", port)) {
                    Ok(stream) => break stream,
                    Err(e) if Instant::now() > end => return Err(format!("nobody listens at {port}: {e}")),
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            };
            let mut told = String::new();
            let talk = stream.set_read_timeout(Some(step_limit()));
            let talk = talk.and_then(|()| stream.write_all(b"GET /a HTTP/1.0\r\n\r\n"));
            talk.and_then(|()| stream.read_to_string(&mut told)).map_err(|e| format!("{e} after {told:?}"))?;
            if !told.contains("Location: http://elsewhere/a\r\n") {
                return Err(format!("told {told:?} in round {n}"));
            }
        }
        while under_way(port) > 0 {
            if Instant::now() > end {
                return Err(format!("a connection to port {port} does not end"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    let script = format!(
        "cd @; echo {0} > port.new; mv port.new port; printf '%s\\n' 'ServerRoot /usr/lib/apache2' 'DefaultRuntimeDir @' 'PidFile @/pid' 'ErrorLog @/err' \
        'LoadModule mpm_event_module modules/mod_mpm_event.so' 'LoadModule alias_module modules/mod_alias.so' \
        'LoadModule authz_core_module modules/mod_authz_core.so' 'Listen 127.0.0.1:{0}' 'ServerName here' \
        'User www-data' 'Group www-data' 'StartServers 2' 'ThreadsPerChild 5' 'Redirect permanent / http://elsewhere/' \
        > conf; exec apache2 -DFOREGROUND -f @/conf",
        port()
    );
    run(&Real { name: "httpd_workers", argv: &["sh", "-c", &script, "apache2"], goes_on: answers, end: nothing });
}

/// The server of a terminal, with a shell in it, dumped from outside; its clients come and go.
#[test]
fn tmux_shell() {
    fn typed(room: &mut Room, n: u32) -> Outcome {
        // The interrupt ends the `sleep` that was in the foreground through the dump.
        let script = "cd $0; s=$(basename $0); [ $1 != 0 ] || \
            until tmux -N -S $s new-session -d -x 80 -y 24 'exec sh -i'; do sleep 0.05; done; tmux -S $s send-keys $2 \
            \"(tty; stty size; echo \\$PPID) > part; mv part told.$1; sleep 1000\" Enter; \
            until [ $(grep -c \" $s\\$\" /proc/net/unix) = 1 ]; do sleep 0.01; done";
        let dir = room.dir.display().to_string();
        let interrupt = if n == 0 { "" } else { "C-c" };
        match room.run(&["sh", "-c", script, &dir, &n.to_string(), interrupt], &[], &format!("client.{n}.log"))? {
            0 => {}
            code => return Err(format!("typing failed with {code}")),
        }
        let told = room.await_file(&format!("told.{n}"), &[])?;
        let end = Instant::now() + step_limit();
        while !room.ps()?.iter().any(|p| p.contains("sleep")) {
            if Instant::now() > end {
                return Err(format!("nothing in the foreground; processes: {:#?}", room.ps()));
            }
        }
        if told.lines().count() == 3 && told.contains("/dev/pts/") && told == room.read("told.0") {
            return Ok(());
        }
        Err(format!("told {told:?}, at first {:?}", room.read("told.0")))
    }
    let script = "cd @; exec tmux -D -S $(basename @) -f /dev/null";
    run(&Real { name: "tmux_shell", argv: &["sh", "-c", script, "tmux"], goes_on: typed, end: nothing });
}

#[test]
fn screen_vim() {
    /// Types into the editor, which stays in the foreground of one window, and at the shell in the other.
    fn typed(room: &mut Room, n: u32) -> Outcome {
        let script = r#"cd $0; export SCREENDIR=$0/s TERM=xterm; command() { screen -S zoo "$@" > /dev/null; }
            [ $1 != 0 ] || until command -X screen sh -i; do sleep 0.05; done
            [ $1 != 0 ] || command -p 0 -X stuff 'vim -u NONE -i NONE -N -n text^M'
            command -p 1 -X stuff "(tty; stty size) > part; mv part told.$1^M"
            until [ -f told.$1 ] && ps -e -o comm | grep -q vim; do sleep 0.05; done
            command -p 0 -X stuff "oround $1^[:w^M"
            until grep -qs "round $1" text && [ $(grep -c " $0/s/" /proc/net/unix) -le 1 ]; do sleep 0.05; done"#;
        let dir = room.dir.display().to_string();
        match room.run(&["sh", "-c", script, &dir, &n.to_string()], &[], &format!("client.{n}.log"))? {
            0 => {}
            code => return Err(format!("typing failed with {code}")),
        }
        let (told, first) = (room.read(&format!("told.{n}")), room.read("told.0"));
        if !told.contains("/dev/pts/") || told != first {
            return Err(format!("told {told:?}, at first {first:?}"));
        }
        let (text, wanted) = (room.read("text"), (0..=n).map(|i| format!("\nround {i}")).collect::<String>());
        if text.trim_end() == wanted { Ok(()) } else { Err(format!("the text is {text:?}")) }
    }
    let script = "cd @; mkdir -m 700 s; export SCREENDIR=@/s TERM=xterm; command -v vim || exit 1; \
        exec screen -ln -D -m -S zoo -c /dev/null sh -i";
    run(&Real { name: "screen_vim", argv: &["sh", "-c", script, "screen"], goes_on: typed, end: nothing });
}

#[test]
fn script_shell() {
    /// Types by the pipe that script(1) reads; what the shell says is in the record of the session.
    fn typed(room: &mut Room, n: u32) -> Outcome {
        room.await_file("record", &[])?;
        let line = format!("tty > part; mv part told.{n}; echo said $((1000 + {n}))\n");
        let open = fs::OpenOptions::new().write(true).open(room.dir.join("keys"));
        open.and_then(|mut keys| keys.write_all(line.as_bytes())).map_err(|e| format!("typing: {e}"))?;
        let (end, said) = (Instant::now() + step_limit(), format!("said {}", 1000 + n));
        while !room.read("record").contains(&said) {
            if Instant::now() > end {
                return Err(format!("the record is {:?}", room.read("record")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (told, first) = (room.await_file(&format!("told.{n}"), &[])?, room.read("told.0"));
        if told.contains("/dev/pts/") && told == first {
            Ok(())
        } else {
            Err(format!("told {told:?}, at first {first:?}"))
        }
    }
    let script = "cd @; mkfifo keys; exec script -q -f -c 'exec sh -i' record 0<>keys";
    run(&Real { name: "script_shell", argv: &["sh", "-c", script, "script"], goes_on: typed, end: nothing });
}

#[test]
fn java_threads() {
    let script = r#"cd @; cat > T.java <<'END'
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.atomic.AtomicLong;
public class T {
    public static void main(String[] args) throws Exception {
        AtomicLong sum = new AtomicLong();
        CyclicBarrier meet = new CyclicBarrier(51);
        for (int i = 0; i < 50; i++) {
            final int k = i;
            Thread t = new Thread(() -> {
                try {
                    byte[][] kept = new byte[20][];
                    for (int n = 0; ; n++) {
                        meet.await();
                        kept[n % 20] = new byte[20_000];
                        sum.addAndGet(k);
                        meet.await();
                    }
                } catch (Exception e) { System.exit(3); }
            });
            t.setDaemon(true);
            t.start();
        }
        try (java.io.FileWriter out = new java.io.FileWriter("count")) {
            for (long n = 1; ; n++) {
                meet.await();
                meet.await();
                if (sum.get() != 1225 * n) System.exit(4);
                out.write(n + "\n");
                out.flush();
                Thread.sleep(10);
            }
        }
    }
}
END
exec java -Xmx48m -XX:+UseG1GC -XX:+PerfDisableSharedMem T.java"#;
    run(&Real { name: "java_threads", argv: &["sh", "-c", script, "javac"], goes_on: counts_on, end: nothing });
}

/// Writes `main.go`: a thousand goroutines that sleep, one that makes garbage, and sums that are counted.
const GO_PROGRAM: &str = r#"cd @; cat > main.go <<'END'
package main

import (
    "fmt"
    "os"
    "runtime"
    "sync"
    "time"
)

func main() {
    for i := 0; i < 1000; i++ {
        go func() {
            for {
                time.Sleep(20 * time.Millisecond)
            }
        }()
    }
    go func() {
        for {
            var kept [][]byte
            for i := 0; i < 200; i++ {
                kept = append(kept, make([]byte, 20000))
                time.Sleep(time.Millisecond)
            }
            runtime.GC()
        }
    }()
    out, _ := os.Create("count")
    n := 0
    for range time.NewTicker(20 * time.Millisecond).C {
        n++
        var done sync.WaitGroup
        var sums [16]int
        for i := range sums {
            done.Add(1)
            go func(i int) {
                for j := 0; j < 10000; j++ {
                    sums[i] += j
                }
                done.Done()
            }(i)
        }
        done.Wait()
        for _, sum := range sums {
            if sum != 49995000 {
                os.Exit(3)
            }
        }
        fmt.Fprintln(out, n)
    }
}
END
"#;

fn go(name: &'static str, architecture: &str) {
    let env = format!("{architecture} HOME=$PWD GOCACHE=$PWD/cache GO111MODULE=off CGO_ENABLED=0");
    let script = format!("{GO_PROGRAM}export {env}; go build -o program main.go && exec ./program");
    run(&Real { name, argv: &["sh", "-c", &script, "go"], goes_on: counts_on, end: nothing });
}

#[test]
fn go_routines() {
    go("go_routines", "");
}

/// The same as a 32-bit program, which needs no C library.
#[test]
fn go_386() {
    go("go_386", "GOARCH=386");
}

/// Four jobs at a time, twelve in all: every round lets four of them end, and compilers for the next four start.
#[test]
fn make_jobs() {
    fn four_more(room: &mut Room, n: u32) -> Outcome {
        room.touch(&format!("go.{n}"))?;
        let (end, want) = (Instant::now() + step_limit(), 4 * (n as usize + 1));
        while room.read("built").lines().count() < want {
            if Instant::now() > end {
                return Err(format!("built: {:?}; processes: {:#?}", room.read("built"), room.ps()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    fn links(room: &mut Room, _: Proc) -> Outcome {
        match room.await_file("result", &["failed"])?.trim() {
            "78" => Ok(()),
            other => Err(format!("the program says {other:?}")),
        }
    }
    let script = r#"cd @; export TMPDIR=$PWD; all=; for i in 0 1 2 3 4 5 6 7 8 9 10 11; do all="$all f$i.o"
for k in $(seq 200); do echo "int f${i}_$k(int x) { int s = x; for (int j = 0; j < $k; j++) s += j * (s ^ x); return s; }"; done > f$i.c
echo "int f$i(void) { return $((i + 1)); }" >> f$i.c
printf 'f%s.o: f%s.c\n\tcc -O2 -c $<\n\tuntil [ -e go.%s ]; do sleep 0.02; done; echo f%s.o >> built\n' $i $i $((i / 4)) $i >> rules; done
{ echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'; for i in 0 1 2 3 4 5 6 7 8 9 10 11; do
echo "{ int f$i(void); s += f$i(); }"; done; echo 'printf("%d", s); return 0; }'; } > main.c
{ printf 'program:%s main.c\n\tcc -o program $^\n' "$all"; cat rules; } > Makefile
make -j4 && ./program > part && mv part result || touch failed; exec sleep 1000"#;
    run(&Real { name: "make_jobs", argv: &["sh", "-c", script, "make"], goes_on: four_more, end: links });
}

#[test]
fn rsync_directories() {
    fn copies(room: &mut Room, _: u32) -> Outcome {
        let count = |room: &Room| fs::read_dir(room.dir.join("b")).map_or(0, Iterator::count);
        let (from, end) = (count(room), Instant::now() + step_limit());
        while count(room) <= from && !room.dir.join("told").exists() {
            if Instant::now() > end {
                return Err(format!("stays at {from} files; processes: {:#?}", room.ps()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    fn whole(room: &mut Room, _: Proc) -> Outcome {
        match room.await_file("told", &[])?.trim() {
            "0" => Ok(()),
            code => Err(format!("rsync, or the comparison, ended with {code}")),
        }
    }
    let script = "cd @; mkdir a b; for i in $(seq 40); do head -c 200000 /dev/urandom > a/$i; done; \
        rsync -a --bwlimit=1500 a/ b/ && diff -r a b; echo $? > part; mv part told; exec sleep 1000";
    run(&Real { name: "rsync_directories", argv: &["sh", "-c", script, "rsync"], goes_on: copies, end: whole });
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
