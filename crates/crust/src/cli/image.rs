//! `crust image …`: the tools of the image crate.
use crate::exit::Exit;
use crate::out;
use crust_engine::images::{self, Source, TarInput};
use crust_engine::options::Tar;
use crust_engine::{Error, Kind, Object, Result};
use crust_image::tar::TarSet;
use crust_image::{ImageSet, tools};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

const USAGE: &str = "\
Usage:
  crust image show [--nopl] FILE              an image as JSON for people
  crust image decode [--pretty] [-i FILE] [-o FILE]
                                              an image as JSON (standard input and output by default)
  crust image encode [-i FILE] [-o FILE]      the image that such JSON stands for
  crust image info FILE                       kind and number of records
  crust image tree [--json|--html] DIR        a checkpoint at a glance
  crust image ps|fds|mems|rss DIR             processes, descriptors, mappings, saved pages
  crust image x DIR ps|fds|mems|rss           the same, as crit spells it
  crust image verify DIR                      check content, records and references; exit code 1 if not good
  crust image diff OLD NEW                    what differs between two checkpoints
  crust image pack DIR [-o FILE]              a checkpoint as a tar archive (standard output by default)
  crust image unpack ARCHIVE DIR              the other way; nothing appears unless all of it is there and whole
DIR may also be a tar archive, or `-` for one from standard input; ARCHIVE may be `-`, too.
";

/// Runs `crust image ARGS`.
pub(crate) fn run(args: &[OsString]) -> Exit {
    if args.iter().any(|a| a == "--help" || a == "-h") {
        out(USAGE);
        return Exit::Good;
    }
    match verb(args) {
        Ok(Some(exit)) => exit,
        Ok(None) => {
            log::error!("crust image: the arguments are not understood");
            out(USAGE);
            Exit::Failure
        }
        Err(e) => {
            log::error!("{e}");
            Exit::Failure
        }
    }
}

/// Input and output of `decode` and `encode`.
#[derive(Default)]
struct Streams<'a> {
    pretty: bool,
    input: Option<&'a OsStr>,
    output: Option<&'a OsStr>,
}

impl<'a> Streams<'a> {
    fn parse(args: &'a [OsString]) -> Option<Self> {
        let mut s = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("--pretty") => s.pretty = true,
                Some("-i" | "--in") => s.input = Some(args.next()?),
                Some("-o" | "--out") => s.output = Some(args.next()?),
                _ => return None,
            }
        }
        Some(s)
    }

    fn read(&self) -> Result<(String, Vec<u8>)> {
        match self.input {
            Some(path) => read(path),
            None => {
                let mut bytes = Vec::new();
                std::io::stdin().lock().read_to_end(&mut bytes).map_err(|e| failed("standard input", &e))?;
                Ok(("standard input".to_owned(), bytes))
            }
        }
    }

    /// To a terminal or pipe, text gets a newline; to a file, exactly what crit writes.
    fn write(&self, bytes: &[u8], is_text: bool) -> Result<()> {
        match self.output {
            Some(path) => std::fs::write(path, bytes).map_err(|e| failed(&path.to_string_lossy(), &e)),
            None => {
                let mut stdout = std::io::stdout().lock();
                let newline: &[u8] = if is_text { b"\n" } else { b"" };
                let done =
                    stdout.write_all(bytes).and_then(|()| stdout.write_all(newline)).and_then(|()| stdout.flush());
                done.map_err(|e| failed("standard output", &e))
            }
        }
    }
}

fn verb(args: &[OsString]) -> Result<Option<Exit>> {
    let Some((verb, rest)) = args.split_first() else { return Ok(None) };
    let print = |text: String| {
        out(&text);
        Ok(Some(Exit::Good))
    };
    // Options and verbs are plain words; file names may be any bytes.
    let word = |at: usize| rest.get(at).and_then(|a| a.to_str()).unwrap_or_default();
    match (verb.to_str().unwrap_or_default(), rest) {
        ("show", [path, _] | [_, path]) if word(0) == "--nopl" || word(1) == "--nopl" => {
            let path = if word(0) == "--nopl" { rest.get(1).unwrap_or(path) } else { rest.first().unwrap_or(path) };
            let (name, bytes) = read(path)?;
            print(tools::show(&name, &bytes, true)?)
        }
        ("show", [path]) => {
            let (name, bytes) = read(path)?;
            print(tools::show(&name, &bytes, false)?)
        }
        ("info", [path]) => {
            let (name, bytes) = read(path)?;
            print(tools::info(&name, &bytes)?)
        }
        ("decode", ..) => {
            let Some(streams) = Streams::parse(rest) else { return Ok(None) };
            let (name, bytes) = streams.read()?;
            streams.write(tools::decode(&name, &bytes, streams.pretty)?.as_bytes(), true)?;
            Ok(Some(Exit::Good))
        }
        ("encode", ..) => {
            let Some(streams) = Streams::parse(rest) else { return Ok(None) };
            let (name, bytes) = streams.read()?;
            let text = String::from_utf8(bytes).map_err(|_| {
                Error::bad_image(&name, "JSON expected, but this is not text").help("decode it instead")
            })?;
            streams.write(&tools::encode(&name, &text)?, false)?;
            Ok(Some(Exit::Good))
        }
        ("ps", [dir]) => print(tools::ps(&*open(dir, false)?)?),
        ("fds", [dir]) => print(tools::fds(&*open(dir, false)?)?),
        ("mems", [dir]) => print(tools::mems(&*open(dir, false)?)?),
        ("rss", [dir]) => print(tools::rss(&*open(dir, false)?)?),
        ("x", [dir, what]) => self::verb(&[what.clone(), dir.clone()]),
        ("tree", [dir]) => print(tools::tree(&*open(dir, false)?, std::io::stdout().is_terminal())?),
        ("tree", [_, dir]) if word(0) == "--json" => print(tools::tree_json(&*open(dir, false)?)?.to_pretty() + "\n"),
        ("tree", [_, dir]) if word(0) == "--html" => print(tools::html(&*open(dir, false)?)?),
        ("diff", [old, new]) => print(tools::diff(&*open(old, true)?, &*open(new, true)?)?),
        ("verify", [dir]) => {
            let verified = tools::verify(&*open(dir, true)?)?;
            out(&verified.to_text());
            Ok(Some(if verified.problems.is_empty() { Exit::Good } else { Exit::Failure }))
        }
        ("pack", [dir]) => {
            let stdout = std::io::stdout();
            if stdout.is_terminal() {
                return Err(Error::new(Kind::BadRequest, "an archive is nothing for a terminal")
                    .help("redirect standard output, or name a file with -o"));
            }
            let fd = stdout.as_fd().try_clone_to_owned().map_err(|e| failed("standard output", &e))?;
            pack(dir, Tar::Fd(fd))
        }
        ("pack", [dir, _, file]) if matches!(word(1), "-o" | "--out") => pack(dir, Tar::File(file.into())),
        ("unpack", [archive, dir]) => {
            let file = File::open(dir).map_err(|e| failed(&dir.to_string_lossy(), &e))?;
            let place = if archive == "-" { Tar::Fd(stdin()?) } else { Tar::File(archive.into()) };
            let count = images::unpack_into(&place, file.as_fd(), true)?;
            log::info!("{count} files unpacked");
            Ok(Some(Exit::Good))
        }
        _ => Ok(None),
    }
}

fn pack(dir: &OsStr, place: Tar) -> Result<Option<Exit>> {
    let file = File::open(dir).map_err(|e| failed(&dir.to_string_lossy(), &e))?;
    images::pack(&Source::open(file.as_fd())?, &place, true)?;
    Ok(Some(Exit::Good))
}

fn stdin() -> Result<OwnedFd> {
    std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| failed("standard input", &e))
}

fn failed(path: &str, e: &std::io::Error) -> Error {
    let errno = e.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error);
    Error::kernel("cannot be read or written", errno).on(Object::Path(path.to_owned())).kind_is(Kind::BadRequest)
}

/// A file, and its name without the directories: the name tells what kind of image it is.
fn read(path: &OsStr) -> Result<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).map_err(|e| failed(&path.to_string_lossy(), &e))?;
    let name = Path::new(path).file_name().unwrap_or(path);
    Ok((name.to_string_lossy().into_owned(), bytes))
}

/// A directory, or an archive read to its end. `hashes`: the bytes of pages are asked for.
fn open(path: &OsStr, hashes: bool) -> Result<Box<dyn ImageSet>> {
    let file = if path == "-" {
        File::from(stdin()?)
    } else {
        File::open(path).map_err(|e| failed(&path.to_string_lossy(), &e))?
    };
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Ok(Box::new(Source::open_dir(OwnedFd::from(file))?));
    }
    Ok(Box::new(TarSet::read(TarInput::new(file), hashes)?))
}
