//! A client of the RPC for tests that end it, its worker or its service at random moments.
//!
//! `zoo-client SERVER VERB LIMIT PID IMAGES LOG [notify] [leave]`: SERVER is the path of a service's socket, or of a binary whose
//! `swrk` it starts. VERB is `version`, `dump` or `restore`. After LIMIT milliseconds (0: never) it hangs up. Exits with 0 if the
//! request was served, 1 if it was refused, 2 if the connection ended before that, 3 if it hung up itself.
use crust_rpc::{Client, Error, Opts, client::request};
use crust_rpc::{Request, RequestType};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let word = |i: usize| args.get(i).map_or("", String::as_str);
    let asked = args.get(7..).unwrap_or_default();
    let has = |what: &str| asked.iter().any(|a| a == what);
    match serve(Path::new(word(1)), word(2), word(3), &args, has("notify"), has("leave")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::TimedOut(_)) => ExitCode::from(3),
        Err(Error::Failed(failure)) => {
            say(&format!("{failure:?}"));
            ExitCode::from(1)
        }
        Err(e) => {
            say(&e.to_string());
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) {
    drop(std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes()));
}

fn serve(server: &Path, verb: &str, limit: &str, args: &[String], notify: bool, leave: bool) -> Result<(), Error> {
    let mut client = match (std::fs::metadata(server)?.file_type().is_socket(), server.parent(), server.file_name()) {
        (true, Some(dir), Some(name)) => {
            // Relative: never too long for a socket's address.
            std::env::set_current_dir(dir)?;
            Client::connect(Path::new(name))?
        }
        _ => Client::spawn_swrk(server)?,
    };
    let limit = Duration::from_millis(limit.parse().unwrap_or(0));
    client.set_limit((!limit.is_zero()).then_some(limit))?;
    let (images, work_dir);
    let request: Request = match verb {
        "version" => request(RequestType::Version, None),
        _ => {
            let log = Path::new(&args[6]);
            images = std::fs::File::open(&args[5])?;
            work_dir = std::fs::File::open(log.parent().unwrap_or(Path::new(".")))?;
            let opts = Opts {
                images_dir_fd: Some(images.as_raw_fd()),
                pid: args[4].parse().ok(),
                work_dir_fd: Some(work_dir.as_raw_fd()),
                log_file: log.file_name().map(|name| name.as_encoded_bytes().to_owned()),
                log_level: Some(4),
                leave_running: Some(leave),
                notify_scripts: Some(notify),
                ..Opts::default()
            };
            request(if verb == "dump" { RequestType::Dump } else { RequestType::Restore }, Some(opts))
        }
    };
    let outcome = client.call(request, |_| true).map(drop);
    // Hangs up here; an own worker is waited for.
    let _code_of_swrk = client.finish()?;
    outcome
}
