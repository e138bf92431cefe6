//! Refused without `--link-remap`: a file of an overlay's lower layer that was copied up, and lives on under another name only.
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::overlay::make(&mut zoo, || zoo::must(std::fs::write("t/lower/first", "content")));
    let file = zoo::must(std::fs::File::open("both/first"));
    zoo::must(std::fs::hard_link("both/first", "both/second"));
    zoo::must(std::fs::remove_file("both/first"));
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
    super::hold_refused(&mut zoo, fd.into(), "both/first is gone, but the file lives on under another name");
}
