//! Where images come from and go to: directories on small disks, tar streams, criu-image-streamer. Each test dumps and restores
//! the demonstration's sample in a pid namespace of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers outside of #[test] functions too")]
mod common;

use common::{CRUST, Sample, output_text};
use crust_image::streamer;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

/// Inside of new pid and mount namespaces.
fn inside(name: &str) -> bool {
    common::inside_with(name, &["-m"])
}

impl Sample {
    /// `crust VERB -D images MORE`, below the sample's directory.
    fn crust(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(CRUST);
        command.current_dir(&self.dir.0).arg(verb).args(["-D", "images", "--shell-job"]).args(more);
        command.stdin(Stdio::null());
        command
    }

    fn dump(&self, more: &[&str]) -> Command {
        let mut command = self.crust("dump", more);
        command.args(["-t", &self.pid.to_string()]);
        command
    }

    /// Waits until the dumped sample is gone, by reaping it: we are its parent, or the first process of its namespace.
    fn reap(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    }
}

fn good(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    output
}

#[test]
fn a_dump_without_room_stops_nothing() {
    if !inside("a_dump_without_room_stops_nothing") {
        return;
    }
    let sample = Sample::start("noroom");
    let small = sample.dir.path("images");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&small).status().unwrap();
    assert!(mounted.success());
    let output = sample.dump(&[]).output().unwrap();
    assert!(!output.status.success());
    let said = output_text(&output);
    assert!(said.contains("the images need about") && said.contains("are free in the image directory"), "{said}");
    assert!(said.contains("nothing was touched"), "{said}");
    assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
    sample.goes_on();
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
}

#[test]
fn verify_finds_a_changed_byte_in_any_file() {
    if !inside("verify_finds_a_changed_byte_in_any_file") {
        return;
    }
    let sample = Sample::start("verify");
    good(sample.dump(&["--leave-running"]));
    sample.goes_on();
    let images = sample.dir.path("images");
    let verify = || Command::new(CRUST).args(["image", "verify"]).arg(&images).output().unwrap();
    let text = output_text(&verify());
    assert!(text.contains("good: ") && !text.contains("never hashed"), "{text}");
    let mut large = 0;
    for entry in fs::read_dir(&images).unwrap() {
        let path = entry.unwrap().path();
        // Statistics are no part of the checkpoint.
        if path.file_name().is_some_and(|name| name == "stats-dump") {
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        large += u32::from(bytes.len() > 1 << 20);
        for at in [bytes.len() / 2, bytes.len() - 2] {
            bytes[at] ^= 4;
            fs::write(&path, &bytes).unwrap();
            let output = verify();
            assert!(!output.status.success(), "byte {at} of {}: {}", path.display(), output_text(&output));
            bytes[at] ^= 4;
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(large > 0, "no large file was there");
    assert!(verify().status.success());
}

/// Waits until a pipe is empty, or is not.
fn await_in_pipe(pipe: &impl std::os::fd::AsFd, empty: bool) {
    let start = std::time::Instant::now();
    while (rustix::io::ioctl_fionread(pipe).unwrap() == 0) != empty {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "nobody is at the pipe");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Ends by SIGTERM what waits for somebody else; what it said.
fn cancelled(child: std::process::Child) -> String {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    failed(child)
}

fn failed(child: std::process::Child) -> String {
    let start = std::time::Instant::now();
    let mut child = common::Process(child);
    assert_eq!(child.code(), Some(1));
    assert!(start.elapsed() < std::time::Duration::from_secs(100), "as long as a stream's patience lasts");
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

/// Neither is waited for longer than somebody wants: a reader that takes nothing, a writer that sends nothing.
#[test]
fn a_stream_that_stands_still_is_given_up_when_it_is_not_wanted_any_more() {
    if !inside("a_stream_that_stands_still_is_given_up_when_it_is_not_wanted_any_more") {
        return;
    }
    let sample = Sample::start("stuck");
    let dump = |more: &[&str]| {
        let mut dump = sample.dump(&[&["--images-tar", "-"], more].concat());
        dump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = dump(&[]);
    let pipe = child.stdout.take().unwrap();
    await_in_pipe(&pipe, false);
    let said = cancelled(child);
    assert!(said.contains("the request was cancelled"), "{said}");
    sample.goes_on();
    drop(pipe);

    let mut child = dump(&["--timeout", "1"]);
    let pipe = child.stdout.take().unwrap();
    let said = failed(child);
    assert!(said.contains("the dump was not complete within 1s"), "{said}");
    sample.goes_on();
    drop(pipe);

    let restore = |more: &[&str]| {
        let mut restore = sample.crust("restore", &[&["-d", "--images-tar", "-"], more].concat());
        restore.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = restore(&[]);
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(b"the first bytes").unwrap();
    await_in_pipe(&pipe, true);
    let said = cancelled(child);
    assert!(said.contains("the request was cancelled"), "{said}");
    drop(pipe);

    let mut child = restore(&["--timeout", "1"]);
    let pipe = child.stdin.take().unwrap();
    let said = failed(child);
    assert!(said.contains("the restore was not complete within 1s"), "{said}");
    drop(pipe);
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn through_an_archive_and_through_pipes() {
    if !inside("through_an_archive_and_through_pipes") {
        return;
    }
    let sample = Sample::start("tar");
    good(sample.dump(&["--images-tar", "a.tar"]));
    sample.reap();
    // The name is relative to where the command was given, the image directory gets statistics only.
    assert_eq!(names(&sample.dir.path("images")), BTreeSet::from(["stats-dump".to_owned()]));
    let archive = sample.dir.path("a.tar");
    let verify = Command::new(CRUST).args(["image", "verify"]).arg(&archive).output().unwrap();
    assert!(verify.status.success() && !output_text(&verify).contains("never hashed"), "{}", output_text(&verify));
    let mut tree = Command::new(CRUST);
    tree.args(["image", "tree", "-"]).stdin(File::open(&archive).unwrap());
    assert!(output_text(&good(tree)).contains("crust"));
    good(sample.crust("restore", &["-d", "--images-tar", "a.tar"]));
    sample.goes_on();

    // One pass each way, through pipes that hold little.
    let mut dump = sample.dump(&["--images-tar", "-"]);
    let mut child = dump.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut bytes = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    sample.reap();
    let mut restore = sample.crust("restore", &["-d", "--images-tar", "-"]);
    let mut child = restore.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    sample.goes_on();

    // A pipe by its descriptor's path; and its reader goes away: nothing is lost by it.
    let (read, write) = rustix::pipe::pipe().unwrap();
    drop(read);
    let mut dump = sample.dump(&["--images-tar", "/proc/self/fd/0"]);
    let output = dump.stdin(Stdio::from(write)).output().unwrap();
    assert!(!output.status.success());
    sample.goes_on();
}

#[test]
fn damaged_and_hostile_archives_bring_nothing_to_life() {
    if !inside("damaged_and_hostile_archives_bring_nothing_to_life") {
        return;
    }
    let sample = Sample::start("hostile");
    let archive = sample.dir.path("a.tar");
    good(sample.dump(&["--images-tar", "a.tar"]));
    sample.reap();
    let bytes = fs::read(&archive).unwrap();
    let refused = |what: &str, bytes: &[u8], expected: &str| {
        fs::write(&archive, bytes).unwrap();
        let output = sample.crust("restore", &["-d", "--images-tar", "a.tar"]).output().unwrap();
        assert!(
            !output.status.success() && output_text(&output).contains(expected),
            "{what}: {}",
            output_text(&output)
        );
        let unpacked = sample.dir.path("unpacked");
        fs::create_dir_all(&unpacked).unwrap();
        let output = Command::new(CRUST).args(["image", "unpack"]).args([&archive, &unpacked]).output().unwrap();
        assert!(!output.status.success(), "{what}: {}", output_text(&output));
        assert_eq!(names(&unpacked), BTreeSet::new(), "{what}");
        assert!(!Path::new(&format!("/proc/{}", sample.pid)).exists(), "{what}: somebody runs");
    };
    refused("cut", &bytes[..bytes.len() / 2], "the file ends inside");
    refused("its end cut", &bytes[..bytes.len() - 2048], "the file ends inside");
    let pages = bytes.windows(11).position(|w| w == b"pages-1.img").unwrap();
    let mut changed = bytes.clone();
    changed[pages + 512 + 5000] ^= 1;
    refused("a changed page", &changed, "its content is not what was written");
    let evil = |name: &str, kind: u8, link: &str| {
        let mut block = crust_image::tar::header("core-7.img", 0, 0).unwrap();
        block[..100].fill(0);
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        [&block[..], &bytes].concat()
    };
    refused("an absolute path", &evil("/etc/core-7.img", b'0', ""), "no path inside");
    refused("a way up", &evil("../core-7.img", b'0', ""), "no path inside");
    refused("a link", &evil("core-7.img", b'2', "/etc/passwd"), "is a link");
    refused("a hard link", &evil("core-7.img", b'1', "/etc/passwd"), "is a link");
    refused("a device", &evil("core-7.img", b'3', ""), "is a device");
    refused("a file twice", &evil("inventory.img", b'0', ""), "there twice");
    fs::write(&archive, &bytes).unwrap();
    good(sample.crust("restore", &["-d", "--images-tar", "a.tar"]));
    sample.goes_on();
}

#[test]
fn packed_and_unpacked_is_the_same() {
    if !inside("packed_and_unpacked_is_the_same") {
        return;
    }
    let sample = Sample::start("pack");
    good(sample.dump(&[]));
    sample.reap();
    let (images, again) = (sample.dir.path("images"), sample.dir.path("again"));
    fs::create_dir(&again).unwrap();
    let mut pack = Command::new(CRUST);
    pack.args(["image", "pack"]).arg(&images);
    let packed = good(pack).stdout;
    let mut unpack = Command::new(CRUST);
    unpack.args(["image", "unpack", "-"]).arg(&again).stdin(Stdio::piped());
    let mut child = unpack.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&packed).unwrap();
    assert!(child.wait().unwrap().success());
    let mut expected = names(&images);
    expected.remove("stats-dump");
    assert_eq!(names(&again), expected);
    for name in &expected {
        assert!(fs::read(images.join(name)).unwrap() == fs::read(again.join(name)).unwrap(), "{name}");
    }
    fs::remove_dir_all(&images).unwrap();
    fs::rename(&again, &images).unwrap();
    good(sample.crust("restore", &["-d"]));
    sample.goes_on();
}

/// The descriptor that comes with a byte.
fn receive(socket: &UnixStream) -> File {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fds: Vec<OwnedFd> = control
        .drain()
        .flat_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { fds.collect() } else { Vec::new() })
        .collect();
    File::from(fds.into_iter().next().unwrap())
}

/// Takes a dump's files as criu-image-streamer does. After `most` of them it goes away.
fn capture(dir: &Path, most: usize) -> JoinHandle<BTreeMap<String, Vec<u8>>> {
    let listener = UnixListener::bind(dir.join(streamer::CAPTURE_SOCKET)).unwrap();
    std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        let mut readers = Vec::new();
        while let Some(name) = streamer::read_request(&mut socket).unwrap() {
            let mut pipe = receive(&socket);
            if readers.len() == most {
                break;
            }
            readers.push(std::thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).unwrap();
                (name, bytes)
            }));
        }
        drop(socket);
        readers.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

/// Gives a restore its files, each once. Returns the names asked for, in order.
fn serve(dir: &Path, mut files: BTreeMap<String, Vec<u8>>) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(dir.join(streamer::SERVE_SOCKET)).unwrap();
    std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        let mut asked = Vec::new();
        while let Some(name) = streamer::read_request(&mut socket).unwrap() {
            assert!(!asked.contains(&name), "{name} is asked for twice");
            let content = files.remove(&name);
            socket.write_all(&streamer::reply(content.is_some())).unwrap();
            if let Some(content) = content {
                receive(&socket).write_all(&content).unwrap();
            }
            asked.push(name);
        }
        asked
    })
}

#[test]
fn through_an_image_streamer() {
    if !inside("through_an_image_streamer") {
        return;
    }
    let sample = Sample::start("streamer");
    let images = sample.dir.path("images");
    let output = sample.dump(&["--stream"]).output().unwrap();
    assert!(
        !output.status.success() && output_text(&output).contains("criu-image-streamer"),
        "{}",
        output_text(&output)
    );
    sample.goes_on();

    // A streamer that goes away early: the sample runs on.
    let streamer = capture(&images, 3);
    let output = sample.dump(&["--stream"]).output().unwrap();
    assert!(
        !output.status.success() && output_text(&output).contains("whoever reads the stream has gone"),
        "{}",
        output_text(&output)
    );
    assert!(!streamer.join().unwrap().contains_key("inventory.img"));
    sample.goes_on();
    fs::remove_file(images.join(streamer::CAPTURE_SOCKET)).unwrap();

    let streamer = capture(&images, usize::MAX);
    good(sample.dump(&["--stream"]));
    let files = streamer.join().unwrap();
    sample.reap();
    assert!(files.contains_key("inventory.img") && files.contains_key("pages-1.img"), "{:?}", files.keys());
    let streamer = serve(&images, files.clone());
    good(sample.crust("restore", &["-d", "--stream"]));
    let asked = streamer.join().unwrap();
    assert!(asked.len() >= files.len(), "{asked:?}");
    sample.goes_on();

    // What CRIU sends has no manifest: names are asked for one by one.
    good(sample.dump(&["--images-tar", "a.tar"]));
    sample.reap();
    fs::remove_file(images.join(streamer::SERVE_SOCKET)).unwrap();
    let mut plain = BTreeMap::new();
    let archive = fs::read(sample.dir.path("a.tar")).unwrap();
    crust_image::tar::read(archive.as_slice(), |file| {
        plain.insert(file.name.clone(), file.read_all(1 << 30)?);
        Ok::<_, crust_image::Error>(())
    })
    .unwrap();
    plain.remove(crust_image::manifest::MANIFEST_NAME);
    let streamer = serve(&images, plain);
    good(sample.crust("restore", &["-d", "--stream"]));
    streamer.join().unwrap();
    sample.goes_on();
}

/// Errors that a disk may answer with, one after the other.
const ERRNOS: [i32; 4] = [libc::ENOSPC, libc::EIO, libc::EDQUOT, libc::EROFS];

/// Whichever call on an archive or a streamer fails, the sample runs on, and there is no checkpoint that looks good.
#[test]
fn errors_while_it_streams_cost_nothing() {
    // Failure on demand is in debug builds only.
    if !cfg!(debug_assertions) || !inside("errors_while_it_streams_cost_nothing") {
        return;
    }
    let sample = Sample::start("faults");
    let images = sample.dir.path("images");
    let fault = |nth: u32, round: usize| format!("{nth}:{}", ERRNOS[round % ERRNOS.len()]);
    // Calls at growing distances, and then the last ones: the archive's end, its sync, its name, its directory's sync.
    let (mut nth, mut rounds, mut good_at) = (1, 0, None);
    let mut failed_at = 0;
    while good_at.is_none_or(|good| good > failed_at + 1) {
        let mut dump = sample.dump(&["--images-tar", "a.tar", "--leave-running"]);
        let output = dump.env("CRUST_FAULT_IO", fault(nth, rounds)).output().unwrap();
        rounds += 1;
        if output.status.success() {
            good_at = Some(nth);
            fs::remove_file(sample.dir.path("a.tar")).unwrap();
        } else {
            assert!(output_text(&output).contains("Error"), "call {nth}: {}", output_text(&output));
            let left: Vec<String> = names(&sample.dir.0).into_iter().filter(|name| name.contains("a.tar")).collect();
            assert!(left.is_empty(), "call {nth}: {left:?}");
            failed_at = failed_at.max(nth);
        }
        sample.goes_on();
        nth = match good_at {
            None => nth * 3,
            Some(good) => failed_at + (good - failed_at).div_ceil(2).min(good - failed_at - 1).max(1),
        };
    }
    assert!(failed_at > 20, "only {failed_at} calls can fail");
    for nth in failed_at - 4..=failed_at {
        let mut dump = sample.dump(&["--images-tar", "a.tar", "--leave-running"]);
        let output = dump.env("CRUST_FAULT_IO", fault(nth, nth as usize)).output().unwrap();
        // How many there are depends on what the sample had in memory.
        match output.status.success() {
            true => fs::remove_file(sample.dir.path("a.tar")).unwrap(),
            false => assert!(!names(&sample.dir.0).iter().any(|name| name.contains("a.tar")), "call {nth}"),
        }
        sample.goes_on();
    }

    for (round, nth) in [1, 2, 3, 9, 20].into_iter().enumerate() {
        let streamer = capture(&images, usize::MAX);
        let mut dump = sample.dump(&["--stream", "--leave-running"]);
        let output = dump.env("CRUST_FAULT_IO", fault(nth, round)).output().unwrap();
        assert!(!output.status.success(), "call {nth}");
        // If the dump failed before it connected, somebody else must.
        let _connected = UnixStream::connect(images.join(streamer::CAPTURE_SOCKET));
        // What the streamer got is cut off anywhere: between a name and its pipe, too.
        if let Ok(files) = streamer.join() {
            assert!(!files.contains_key("inventory.img"), "call {nth}");
        }
        fs::remove_file(images.join(streamer::CAPTURE_SOCKET)).unwrap();
        sample.goes_on();
    }

    // Writes that take a little at a time are no error.
    let mut dump = sample.dump(&["--images-tar", "a.tar"]);
    dump.env("CRUST_FAULT_IO", "0:0");
    good(dump);
    sample.reap();
    good(sample.crust("restore", &["-d", "--images-tar", "a.tar"]));
    sample.goes_on();
    let streamer = capture(&images, usize::MAX);
    let mut dump = sample.dump(&["--stream"]);
    dump.env("CRUST_FAULT_IO", "0:0");
    good(dump);
    sample.reap();
    let streamer = serve(&images, streamer.join().unwrap());
    good(sample.crust("restore", &["-d", "--stream"]));
    streamer.join().unwrap();
    sample.goes_on();
}
