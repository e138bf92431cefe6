//! How the demonstration looks: coloured on a terminal, plain in a pipe.
use super::Status;
use crate::out;
use crust_engine::Error;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

/// Writes for people.
pub(super) struct Show {
    colour: bool,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "1;32";
const RED: &str = "1;31";
const CYAN: &str = "36";

impl Show {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { colour: wanted && std::io::stdout().is_terminal() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn title(&self, text: &str) {
        out(&format!("\n{}\n", self.paint(BOLD, text)));
    }

    pub(super) fn note(&self, text: &str) {
        out(&format!("{}\n", self.paint(DIM, text)));
    }

    pub(super) fn fact(&self, name: &str, text: &str) {
        out(&format!("   {} {text}\n", self.paint(DIM, &format!("{name:<8}"))));
    }

    pub(super) fn progress(&self, status: &Status) {
        self.fact(
            "says",
            &format!(
                "count {:>9}   hash {}   memory checks {:>5}   timer ticks {:>5}",
                status.count,
                self.paint(CYAN, &format!("{:016x}", status.hash)),
                status.rounds,
                status.ticks,
            ),
        );
    }

    /// Steps with their times and a bar for each, then the whole.
    pub(super) fn table(&self, phases: &[(String, Duration)], whole: Duration, what: &str) {
        const WIDTH: u128 = 30;
        let longest = phases.iter().map(|(_, t)| t.as_micros()).max().unwrap_or(0).max(1);
        let mut text = String::new();
        for (name, time) in phases {
            let cells = usize::try_from(time.as_micros() * WIDTH / longest).unwrap_or(0).max(1);
            let bar = self.paint(CYAN, &"▇".repeat(cells));
            let _infallible = writeln!(text, "   {name:<22}{:>10}  {bar}", milliseconds(*time));
        }
        let _infallible =
            writeln!(text, "   {:<22}{:>10}  {}", "all", milliseconds(whole), self.paint(DIM, &format!("({what})")));
        out(&text);
    }

    pub(super) fn done(&self) {
        out(&format!("\n{}\n", self.paint(GREEN, "Checkpointed, gone, restored, and right.")));
    }

    pub(super) fn failed(&self, e: &Error) {
        out(&format!("\n{}\n", self.paint(RED, "The demonstration failed.")));
        log::error!("{e}");
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{}.{:02} ms", time.as_millis(), time.subsec_micros() % 1000 / 10)
}
