//! The same work on many independent things, side by side: a dump looks at thousands of threads and descriptors while the
//! tree stands still and processors are idle. Only where nothing forks.
use crust_kernel::elsewhere;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewer things are not worth another thread.
pub(crate) const WORTH_A_THREAD: usize = 32;
/// Threads at most, the caller's among them.
const MOST: usize = 4;

/// Whether so many things are worth another thread.
pub(crate) fn pays(count: usize) -> bool {
    count >= WORTH_A_THREAD
}

/// How many threads share the work, the caller's among them.
pub(crate) fn hands() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(MOST))
}

/// `work` done by the caller and by another thread at the same time, to which both find their share. What the other says is
/// missing if no thread was to be had (a limit on threads, no memory): the caller's has done everything then.
pub(crate) fn by_two<T: Send>(work: impl Fn() -> T + Sync) -> (T, Option<std::thread::Result<T>>) {
    std::thread::scope(|scope| {
        let other = elsewhere::spawn(scope, "copy", &work).ok();
        (work(), other.map(std::thread::ScopedJoinHandle::join))
    })
}

/// `work` on `0..count`, done by the caller and as many helpers as there are processors left. Results in order.
pub(crate) fn each<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    with_help(count, work, || ()).0
}

/// As [`each`]. The caller does something else first, while helpers begin.
pub(crate) fn with_help<T: Send, R>(
    count: usize,
    work: impl Fn(usize) -> T + Sync,
    meanwhile: impl FnOnce() -> R,
) -> (Vec<T>, R) {
    let mut nothing = vec![(); if pays(count) { hands() } else { 1 }];
    let (results, other) = each_with(count, &mut nothing, |i, ()| work(i), meanwhile);
    // What a helper lost by a panic is done again, where the panic has somebody to tell.
    (results.into_iter().enumerate().map(|(i, r)| r.unwrap_or_else(|| work(i))).collect(), other)
}

/// As [`with_help`], by as many threads as there are tools, each with one of its own. `None` is what a helper lost by a panic.
pub(crate) fn each_with<T: Send, S: Send, R>(
    count: usize,
    tools: &mut [S],
    work: impl Fn(usize, &mut S) -> T + Sync,
    meanwhile: impl FnOnce() -> R,
) -> (Vec<Option<T>>, R) {
    let next = AtomicUsize::new(0);
    let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < count);
    let run = |tool: &mut S| std::iter::from_fn(|| take().map(|i| (i, work(i, tool)))).collect::<Vec<_>>();
    let mut results: Vec<Option<T>> = std::iter::repeat_with(|| None).take(count).collect();
    let Some((own, others)) = tools.split_first_mut() else { return (results, meanwhile()) };
    let (done, other) = std::thread::scope(|scope| {
        let run = &run;
        let helpers: Vec<_> =
            others.iter_mut().map_while(|tool| elsewhere::spawn(scope, "look", move || run(tool)).ok()).collect();
        let other = meanwhile();
        let mut done = run(own);
        done.extend(helpers.into_iter().flat_map(|h| h.join().unwrap_or_default()));
        (done, other)
    });
    for (i, result) in done {
        if let Some(place) = results.get_mut(i) {
            *place = Some(result);
        }
    }
    (results, other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_each_thing_is_done_once() {
        for count in [0, 1, WORTH_A_THREAD - 1, WORTH_A_THREAD, 5000] {
            let times: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let (results, other) = with_help(count, |i| (i * 3, times[i].fetch_add(1, Ordering::Relaxed)), || 7);
            assert_eq!(other, 7);
            assert_eq!(results, (0..count).map(|i| (i * 3, 0)).collect::<Vec<_>>());
        }
    }
}
