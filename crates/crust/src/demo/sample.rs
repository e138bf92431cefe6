//! The program that the demonstration checkpoints: it counts, and checks itself all the time.
//!
//! Its hash is a chain over the count, so that anybody can compute what it must be at a given count. If memory, a
//! register, the pipe or the file came back wrong, the next line says so.
use crate::exit::Exit;
use crust_kernel::signals;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Threads beside the first.
const THREADS: u64 = 4;
/// Memory that each of them hashes.
const WORDS: usize = 4 << 20 >> 3;
/// What lies in the pipe all the time.
const LETTER: &[u8; 32] = b"this lies in a pipe until I look";
/// Length of a status line; each one is written over the last.
pub(super) const LINE: usize = 160;

/// One step of the chain.
pub(super) fn step(hash: u64, count: u64) -> u64 {
    let mut z = hash ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Runs the sample: `demo-sample STATUS JOURNAL`.
pub(crate) fn run(args: &[OsString]) -> Exit {
    let outcome = match args {
        [status, journal] => work(status, journal),
        _ => Err(std::io::Error::other("two files are needed")),
    };
    match outcome {
        Ok(()) => Exit::Good,
        Err(e) => {
            log::error!("the sample failed: {e}");
            Exit::Failure
        }
    }
}

fn work(status: &OsString, journal: &OsString) -> std::io::Result<()> {
    rustix::process::setsid()?;
    signals::catch(&[libc::SIGTERM])?;
    let ticks = signals::tick_every(Duration::from_millis(10))?;
    let status = File::create(status)?;
    let mut journal = File::options().read(true).write(true).create(true).truncate(true).open(journal)?;
    let (mut reader, mut writer) = std::io::pipe()?;
    writer.write_all(LETTER)?;

    let rounds = Arc::new(AtomicU64::new(0));
    let broken = Arc::new(AtomicU64::new(0));
    for number in 0..THREADS {
        let (rounds, broken) = (Arc::clone(&rounds), Arc::clone(&broken));
        std::thread::spawn(move || hash_memory(number, &rounds, &broken));
    }

    let (mut count, mut hash) = (0u64, 0u64);
    let mut wrong = "";
    while signals::caught().is_none() {
        for _ in 0..1000 {
            count += 1;
            hash = step(hash, count);
        }
        let mut letter = [0; LETTER.len()];
        reader.read_exact(&mut letter)?;
        writer.write_all(&letter)?;
        if &letter != LETTER {
            wrong = "pipe";
        }
        // The position in the journal says how often we were here, if nobody moved it.
        if journal.stream_position()? != (count / 1000 - 1) * 8 {
            wrong = "file position";
        }
        journal.write_all(&hash.to_le_bytes())?;
        if broken.load(Ordering::Relaxed) != 0 {
            wrong = "memory";
        }
        let line = format!(
            "count {count} hash {hash:016x} rounds {} ticks {} state {}",
            rounds.load(Ordering::Relaxed),
            ticks.load(Ordering::Relaxed),
            if wrong.is_empty() { "good" } else { wrong },
        );
        status.write_all_at(format!("{line:<width$}\n", width = LINE - 1).as_bytes(), 0)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    // At the end the journal is read back and compared with the whole chain.
    journal.seek(SeekFrom::Start(0))?;
    let mut written = Vec::new();
    journal.read_to_end(&mut written)?;
    let (mut count, mut hash) = (0, 0);
    for entry in written.chunks_exact(8) {
        for _ in 0..1000 {
            count += 1;
            hash = step(hash, count);
        }
        if entry != hash.to_le_bytes() {
            return Err(std::io::Error::other(format!("the journal is wrong at count {count}")));
        }
    }
    match wrong {
        "" => Ok(()),
        what => Err(std::io::Error::other(format!("wrong: {what}"))),
    }
}

/// Keeps changing its memory and comparing all of it with a running sum, until the process ends.
fn hash_memory(number: u64, rounds: &AtomicU64, broken: &AtomicU64) {
    let mut memory: Vec<u64> = (0..WORDS as u64).map(|i| step(number, i)).collect();
    let mut sum = memory.iter().fold(0u64, |a, w| a.wrapping_add(*w));
    let mut at = number;
    loop {
        for _ in 0..4096 {
            at = step(at, number);
            let slot = usize::try_from(at % WORDS as u64).unwrap_or(0);
            if let Some(word) = memory.get_mut(slot) {
                let new = step(*word, at);
                sum = sum.wrapping_sub(*word).wrapping_add(new);
                *word = new;
            }
        }
        if memory.iter().fold(0u64, |a, w| a.wrapping_add(*w)) != sum {
            broken.fetch_add(1, Ordering::Relaxed);
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(3));
    }
}
