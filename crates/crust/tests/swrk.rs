//! `crust swrk` against everything that clients may send, wrong as well as right.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{CRUST, Dir, failure, opts, request, send_raw, swrk};
use crust_rpc::{Error, Features, Opts, RequestType};
use std::fs;
use std::process::Command;

#[test]
fn version_and_features_and_their_exit_codes() {
    let dir = Dir::new("version");
    let (mut client, mut process) = swrk(&dir, &[]);
    let version = client.version().unwrap();
    assert_eq!((version.major_number, version.minor_number, version.gitid), (4, 2, None));
    assert_eq!(process.code(), Some(0));

    let (mut client, mut process) = swrk(&dir, &[]);
    let none = client.feature_check(Features::default()).unwrap();
    assert_eq!(none, Features { mem_track: Some(false), lazy_pages: Some(false), pidfd_store: Some(false) });
    assert_eq!(process.code(), Some(0));

    // What `check --feature` says, which clients ask as well.
    let (mut client, _process) = swrk(&dir, &[]);
    let all = Features { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) };
    let can = client.feature_check(all).unwrap();
    for (name, answer) in
        [("mem_dirty_track", can.mem_track), ("uffd-noncoop", can.lazy_pages), ("pidfd_store", can.pidfd_store)]
    {
        let said = Command::new(CRUST).args(["check", "--feature", name]).output().unwrap();
        assert_eq!(said.status.success(), answer == Some(true), "{name}");
    }

    let (mut client, mut process) = swrk(&dir, &[]);
    let mut without = request(RequestType::FeatureCheck, None);
    without.features = None;
    assert_eq!(failure(client.call(without, |_| true)).errno, Some(libc::EBADRQC));
    assert_eq!(process.code(), Some(1));
}

#[test]
fn keep_open_keeps_open_where_it_may() {
    let dir = Dir::new("keep");
    let (mut client, mut process) = swrk(&dir, &[]);
    for _ in 0..3 {
        let mut ask = request(RequestType::Version, None);
        ask.keep_open = Some(true);
        assert!(client.call(ask, |_| true).unwrap().version.is_some());
    }
    assert!(client.version().is_ok());
    assert_eq!(process.code(), Some(0));

    let (mut client, mut process) = swrk(&dir, &[]);
    let mut ask = request(RequestType::Check, None);
    ask.keep_open = Some(true);
    failure(client.call(ask, |_| true));
    assert_eq!(process.code(), Some(255));
}

#[test]
fn a_client_that_leaves_ends_it() {
    let dir = Dir::new("leave");
    let (client, mut process) = swrk(&dir, &[]);
    drop(client);
    assert_eq!(process.code(), Some(255));
}

#[test]
fn garbage_gets_no_reply() {
    let dir = Dir::new("garbage");
    // Truncated varint, truncated message, wrong wire type, a length beyond the end, and a good request cut short.
    for bytes in [&b"\xff\xff"[..], b"\x08", b"\x0a\x05abc", b"\x12\xff\xff\xff\xff\x0f", b"\x08\x01\x12\x04\x08"] {
        let (mut client, mut process) = swrk(&dir, &[]);
        send_raw(client.connection(), bytes);
        assert!(matches!(client.connection().receive::<crust_rpc::Response>().unwrap(), crust_rpc::Packet::Closed));
        assert_eq!(process.code(), Some(255), "{bytes:?}");
        assert!(client.version().is_err());
    }
}

#[test]
fn ten_thousand_random_packets_never_crash_the_decoder() {
    let mut x = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..10_000 {
        let len = (next() % 64) as usize;
        let bytes: Vec<u8> =
            (0..len).map(|_| if next() % 3 == 0 { (next() % 24) as u8 } else { next() as u8 }).collect();
        let _any = <crust_rpc::Request as prost::Message>::decode(bytes.as_slice());
    }
}

#[test]
fn unknown_types_are_answered_as_empty() {
    let dir = Dir::new("types");
    for raw in [0, 6, 14, 99, -1, i32::MAX] {
        let (mut client, mut process) = swrk(&dir, &[]);
        let mut ask = request(RequestType::Empty, None);
        ask.r#type = raw;
        client.connection().send(&ask, None).unwrap();
        match client.connection().receive::<crust_rpc::Response>().unwrap() {
            crust_rpc::Packet::Message(reply, None) => {
                assert_eq!((reply.r#type, reply.success), (0, false), "{raw}");
                assert!(reply.cr_errmsg.is_some());
            }
            other => panic!("{raw}: {other:?}"),
        }
        assert_eq!(process.code(), Some(255));
        assert!(client.version().is_err());
    }
    // No type at all: required in the schema, and the same as EMPTY.
    let (client, mut process) = swrk(&dir, &[]);
    send_raw(client.connection(), b"\x18\x01");
    assert!(matches!(client.connection().receive::<crust_rpc::Response>().unwrap(), crust_rpc::Packet::Message(..)));
    assert_eq!(process.code(), Some(255));
}

#[test]
fn requests_without_what_they_need_are_refused_with_a_reason() {
    let dir = Dir::new("needs");
    for kind in [RequestType::Dump, RequestType::Restore, RequestType::PreDump, RequestType::SinglePreDump] {
        for body in [None, Some(Opts::default()), Some(Opts { images_dir_fd: Some(-1), ..Opts::default() })] {
            let (mut client, mut process) = swrk(&dir, &[]);
            let f = failure(client.call(request(kind, body.clone()), |_| true));
            assert_eq!(f.errno, Some(libc::EBADRQC), "{kind:?} {body:?} {f:?}");
            assert!(matches!(process.code(), Some(1 | 255)));
        }
    }
    for kind in [RequestType::PageServer, RequestType::PageServerChld] {
        let (mut client, _process) = swrk(&dir, &[]);
        let images = dir.open();
        assert_eq!(failure(client.call(request(kind, Some(opts(&images))), |_| true)).errno, Some(libc::ENOTSUP));
    }
    let (mut client, _process) = swrk(&dir, &[]);
    failure(client.call(request(RequestType::WaitPid, None), |_| true));
    let (mut client, _process) = swrk(&dir, &[]);
    let mut ask = request(RequestType::WaitPid, None);
    ask.pid = Some(999_999_999);
    assert_eq!(failure(client.call(ask, |_| true)).errno, Some(libc::ESRCH));
}

#[test]
fn wrong_descriptors_are_refused() {
    let dir = Dir::new("fds");
    let file = fs::File::create(dir.path("plain")).unwrap();
    use std::os::fd::AsRawFd;
    let images = dir.open();
    let wrong = |change: &dyn Fn(&mut Opts)| {
        let mut o = opts(&images);
        o.pid = Some(999_999_999);
        change(&mut o);
        let (mut client, mut process) = swrk(&dir, &[]);
        let f = failure(client.dump(o, |_| true));
        assert_eq!(f.errno, Some(libc::EBADRQC), "{f:?}");
        assert_eq!(process.code(), Some(1));
        f.message.unwrap()
    };
    assert!(wrong(&|o| o.images_dir_fd = Some(file.as_raw_fd())).contains("images_dir_fd"));
    assert!(wrong(&|o| o.work_dir_fd = Some(file.as_raw_fd())).contains("work_dir_fd"));
    assert!(wrong(&|o| o.images_dir_fd = Some(54_321)).contains("54321"));
    assert!(
        wrong(&|o| (o.images_dir_fd, o.images_dir) = (None, Some(b"/no/such/dir".to_vec()))).contains("/no/such/dir")
    );
    assert!(wrong(&|o| o.log_file = Some(b"sub/dir.log".to_vec())).contains("No subdirs are allowed in log_file name"));
    assert!(wrong(&|o| o.log_file = Some(b"..".to_vec())).contains(".."));
    assert!(wrong(&|o| o.pid = Some(-7)).contains("-7"));
    assert!(wrong(&|o| o.network_lock = Some(9)).contains("network_lock 9"));
    assert!(wrong(&|o| o.pre_dump_mode = Some(9)).contains("pre_dump_mode 9"));
    assert!(wrong(&|o| o.manage_cgroups_mode = Some(9)).contains("manage_cgroups_mode 9"));
    assert!(wrong(&|o| o.empty_ns = Some(1)).contains("empty_ns"));
    assert!(wrong(&|o| o.lsm_profile = Some("smack:x".into())).contains("smack"));
    std::os::unix::fs::symlink("/etc/hostname", dir.path("link.log")).unwrap();
    assert!(wrong(&|o| o.log_file = Some(b"link.log".to_vec())).contains("link.log"));
}

#[test]
fn the_log_lies_in_the_work_directory() {
    let (dir, work) = (Dir::new("log"), Dir::new("log-work"));
    let (images, work_fd) = (dir.open(), work.open());
    use std::os::fd::AsRawFd;
    let mut o = opts(&images);
    o.pid = Some(999_999_999);
    let (mut client, mut process) = swrk(&dir, &[]);
    failure(client.dump(o.clone(), |_| true));
    assert_eq!(process.code(), Some(1));
    assert!(fs::read_to_string(dir.path("criu.log")).unwrap().contains("Error ("));

    o.work_dir_fd = Some(work_fd.as_raw_fd());
    o.log_file = Some(b"dump.log".to_vec());
    let (mut client, _process) = swrk(&dir, &[]);
    failure(client.dump(o, |_| true));
    assert!(fs::read_to_string(work.path("dump.log")).unwrap().contains("Error ("));
}

#[test]
fn configuration_files_by_rpc() {
    let dir = Dir::new("rpcconf");
    let images = dir.open();
    let conf = dir.path("runc.conf");
    let ask = |text: Option<&str>| {
        match text {
            Some(text) => fs::write(&conf, text).unwrap(),
            None => fs::remove_file(&conf).unwrap_or(()),
        }
        let mut o = opts(&images);
        o.pid = Some(999_999_999);
        o.log_file = Some(b"rpc.log".to_vec());
        o.config_file = Some(conf.to_str().unwrap().into());
        let (mut client, _process) = swrk(&dir, &[]);
        failure(client.dump(o, |_| true))
    };
    ask(None);
    assert!(dir.path("rpc.log").exists(), "a missing file is ignored");
    ask(Some("log-file=conf.log\nverbosity=0\n"));
    let text = fs::read_to_string(dir.path("conf.log")).unwrap();
    assert!(text.contains("Error ("), "log_level wins over the file's verbosity: {text}");
    let f = ask(Some("no-such-option\n"));
    assert_eq!(f.errno, Some(libc::EBADRQC));
    assert!(f.message.unwrap().contains("no-such-option"));
}

#[test]
fn a_bad_environment_file_ends_swrk_before_it_reads() {
    let dir = Dir::new("envconf");
    fs::write(dir.path("bad.conf"), "nonsense\n").unwrap();
    let conf = dir.path("bad.conf");
    let (mut client, mut process) = swrk(&dir, &["--config", conf.to_str().unwrap()]);
    assert_eq!(process.code(), Some(1));
    assert!(matches!(client.version(), Err(Error::Io(_) | Error::Closed)));
}

#[test]
fn the_caller_itself_is_refused_when_we_are_its_child() {
    let dir = Dir::new("self");
    let images = dir.open();
    let (mut client, mut process) = swrk(&dir, &[]);
    let f = failure(client.dump(opts(&images), |_| true));
    assert!(f.message.unwrap().contains("The criu itself is within dumped tree"));
    assert_eq!(process.code(), Some(1));
}

#[test]
fn descriptors_sent_along_are_not_kept() {
    use std::os::fd::AsFd;
    let dir = Dir::new("rights");
    let (mut client, mut process) = swrk(&dir, &[]);
    let file = dir.open();
    let mut ask = request(RequestType::Version, None);
    ask.keep_open = Some(true);
    let open = || fs::read_dir(format!("/proc/{}/fd", process.0.id())).unwrap().count();
    let mut before = None;
    for _ in 0..5 {
        client.connection().send(&ask, Some(file.as_fd())).unwrap();
        assert!(matches!(
            client.connection().receive::<crust_rpc::Response>().unwrap(),
            crust_rpc::Packet::Message(..)
        ));
        assert_eq!(*before.get_or_insert_with(open), open());
    }
    assert!(client.version().is_ok());
    assert_eq!(process.code(), Some(0));
}

#[test]
fn a_check_without_opts_opens_nothing() {
    let dir = Dir::new("check");
    let (mut client, mut process) = swrk(&dir, &[]);
    let _either = client.check();
    assert_eq!(process.code(), Some(0), "a failed check is a good answer");
    assert!(!dir.path("criu.log").exists());

    let (mut client, _process) = swrk(&dir, &[]);
    let o = Opts { images_dir_fd: Some(-1), log_file: Some(b"a/b".to_vec()), ..Opts::default() };
    let f = failure(client.call(request(RequestType::Check, Some(o)), |_| true));
    assert!(f.message.unwrap().contains("No subdirs are allowed in log_file name"));

    let (mut client, _process) = swrk(&dir, &[]);
    let o = Opts { images_dir_fd: Some(-1), log_file: Some(b"check.log".to_vec()), ..Opts::default() };
    let f = failure(client.call(request(RequestType::Check, Some(o)), |_| true));
    assert!(f.message.unwrap().contains("neither images_dir_fd nor images_dir is set"), "a log needs a place");
}

#[test]
fn the_processor_is_written_and_compared() {
    use crust_image::{ImageKind, encode_one, proto::CpuinfoEntry};
    let dir = Dir::new("cpuinfo");
    let images = dir.open();
    let ask = |kind, change: &dyn Fn(&mut Opts)| {
        let mut o = opts(&images);
        o.log_file = Some(b"cpuinfo.log".to_vec());
        change(&mut o);
        let mut ask = request(kind, Some(o));
        ask.keep_open = Some(true);
        ask
    };
    let (mut client, mut process) = swrk(&dir, &[]);
    // Nothing is there yet.
    let missing = failure(client.call(ask(RequestType::CpuinfoCheck, &|_| ()), |_| true));
    assert!(missing.message.unwrap().contains("cpuinfo.img"));
    for kind in [RequestType::CpuinfoDump, RequestType::CpuinfoCheck] {
        let reply = client.call(ask(kind, &|_| ()), |_| true).unwrap();
        assert_eq!((reply.r#type(), reply.success, reply.cr_errno), (kind, true, None));
    }
    assert!(client.version().is_ok());
    assert_eq!(process.code(), Some(0));

    // Another processor: one register set more than any has.
    let file = dir.path("cpuinfo.img");
    let mut entry: CpuinfoEntry =
        crust_image::read_one("cpuinfo.img", &fs::read(&file).unwrap(), ImageKind::Cpuinfo).unwrap();
    let there = &mut entry.x86_entry[0];
    there.xfeatures_mask = Some(there.xfeatures_mask.unwrap_or(0) | 1 << 40);
    fs::write(&file, encode_one(ImageKind::Cpuinfo, &entry).unwrap()).unwrap();
    let (mut client, _process) = swrk(&dir, &[]);
    let lacks = failure(client.call(ask(RequestType::CpuinfoCheck, &|_| ()), |_| true));
    // CRIU's ENOTSUP is for architectures that have no such thing.
    assert_eq!(lacks.errno, None, "{lacks:?}");
    assert!(lacks.message.unwrap().contains("XSAVE components 0x10000000000"));
    // Whoever does not care about it is content.
    assert!(client.call(ask(RequestType::CpuinfoCheck, &|o| o.cpu_cap = Some(0)), |_| true).is_ok());
    let (mut client, mut process) = swrk(&dir, &[]);
    let mut once = ask(RequestType::CpuinfoCheck, &|_| ());
    once.keep_open = None;
    failure(client.call(once, |_| true));
    assert_eq!(process.code(), Some(1));
    // It needs its directory as any other request does.
    let (mut client, _process) = swrk(&dir, &[]);
    assert_eq!(failure(client.call(request(RequestType::CpuinfoDump, None), |_| true)).errno, Some(libc::EBADRQC));
}
