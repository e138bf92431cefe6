//! AIO contexts: an empty one, one with completed events that wait, and one whose ring has gone round once.
use std::fs::File;
use zoo::calls::{Aio, IoEvent};

fn data(events: &[IoEvent]) -> Vec<u64> {
    events.iter().map(|e| e.data).collect()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let null = zoo::must(File::options().write(true).open("/dev/null"));
    let setup = |requests| Aio::setup(requests);
    let empty = match setup(1) {
        Ok(aio) => aio,
        Err(e) => zoo.skip(&format!("no AIO here: {e}")),
    };
    let (waiting, round) = (zoo::must(setup(64)), zoo::must(setup(100)));
    let nr = zoo::must(round.ring().ok_or("no ring")).nr;
    // Once round and 3 more, with 5 left to be read: the head stands behind the tail.
    for n in 0..u64::from(nr) + 3 {
        zoo::must(round.write(&null, n));
        if n >= 5 {
            zoo.eq("events in order", data(&zoo::must(round.take(1))), vec![n - 5]);
        }
    }
    let mut next = u64::from(nr) + 3;
    for n in 0..7 {
        zoo::must(waiting.write(&null, n));
    }
    zoo.eq("two taken", data(&zoo::must(waiting.take(2))), vec![0, 1]);
    let mut left: Vec<u64> = (2..7).collect();
    while zoo.gap() {
        let n = u64::from(zoo.round());
        zoo.eq("nothing in the empty one", empty.take(4).ok(), Some(vec![]));
        zoo.eq("write with the empty one", empty.write(&null, n).ok(), Some(()));
        zoo.eq("and read", empty.take(4).ok().as_deref().map(data), Some(vec![n]));
        let ring = round.ring();
        zoo.ok(&format!("gone round: {ring:?}"), ring.is_some_and(|r| r.nr == nr && r.tail < nr && r.head < nr));
        zoo.eq("one more", round.write(&null, next).ok(), Some(()));
        next += 1;
        zoo.eq("the oldest", round.take(1).ok().as_deref().map(data), Some(vec![next - 6]));
        zoo.eq("one more that waits", waiting.write(&null, 100 + n).ok(), Some(()));
        left.push(100 + n);
        if n == 2 {
            let got = zoo::must(waiting.take(64));
            zoo.eq("all that waited", data(&got), std::mem::take(&mut left));
            zoo.ok("each wrote one byte", got.iter().all(|e| e.res == 1 && e.res2 == 0));
            zoo.eq("all of the other", data(&zoo::must(round.take(64))), (next - 5..next).collect());
        }
    }
}
