//! Events of inotify(7).

/// What waits at an inotify: watch and mask of each event.
pub fn seen(fd: impl std::os::fd::AsFd) -> Vec<(i32, i32)> {
    let mut bytes = [0; 4096];
    let len = rustix::io::read(&fd, &mut bytes).unwrap_or(0);
    let (mut seen, mut at): (Vec<(i32, i32)>, usize) = (Vec::new(), 0);
    while at + 16 <= len {
        let word = |i: usize| i32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        seen.push((word(at), word(at + 4)));
        at += 16 + usize::try_from(word(at + 12)).unwrap_or(0);
    }
    seen
}
