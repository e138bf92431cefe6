//! Refused: a descriptor with the highest number that the hard limit allows, above which a restore has no room for its own.
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    // A table of more would take a lot of memory for this one number.
    let Some(number) = i32::try_from(limit).ok().filter(|&n| n <= 1 << 20).map(|n| n - 1) else {
        zoo.skip("the hard limit of open files is too high here");
    };
    let all = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    zoo::must(rustix::process::setrlimit(rustix::process::Resource::Nofile, all));
    let null = zoo::must(std::fs::File::open("/dev/null"));
    let high = zoo::must(rustix::io::fcntl_dupfd_cloexec(&null, number));
    super::hold_refused(&mut zoo, std::os::fd::AsRawFd::as_raw_fd(&high).into(), "RLIMIT_NOFILE");
}
