//! Checkpoints a process and lets it run on: `cargo run -p crust-client --example checkpoint -- PID DIR [SOCKET]`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to people")]
use crust_client::{Answer, Crust, Dump, Error, Kind, Log, Notice, SERVICE_SOCKET};
use std::fs::File;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(Ok(pid)), Some(dir)) = (args.first().map(|pid| pid.parse()), args.get(1)) else {
        eprintln!("usage: checkpoint PID DIR [SOCKET]");
        return ExitCode::FAILURE;
    };
    let images = match File::open(dir) {
        Ok(images) => images,
        Err(e) => {
            eprintln!("{dir}: {e}");
            return ExitCode::FAILURE;
        }
    };
    let socket = args.get(2).map_or(SERVICE_SOCKET, String::as_str);
    let crust = Crust::service_at(socket).limit(Duration::from_secs(60));

    let dump = Dump::of(pid, &images).leave_running(true).shell_job(true).log("dump.log", Log::Debug);
    let outcome = crust.version().and_then(|version| {
        println!("talking to version {}.{}", version.major, version.minor);
        crust.dump_with(&dump, |notice| {
            println!("{notice:?}");
            match notice {
                // Here a program would save what belongs to the checkpoint but is no part of the tree.
                Notice::PostDump => Answer::Go,
                _ => Answer::Go,
            }
        })
    });
    match outcome {
        Ok(_) => {
            println!("the checkpoint is in {dir}; process {pid} runs on");
            ExitCode::SUCCESS
        }
        Err(Error::Refused(refusal)) if refusal.kind() == Kind::NoSuchTask => {
            eprintln!("there is no process {pid}");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
