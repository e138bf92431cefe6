//! Looking changes nothing: a dump that leaves the program running leaves every mapping, descriptor, counter, queue,
//! timer and signal as it was, and the program finds itself unchanged too.
use zoo::harness::{Case, Outcome, Tool, check_round, finish, rule, skipped};

fn pure(case: &Case) -> Outcome {
    let tool = Tool::ours();
    let on = format!("{}-pure", tool.name);
    match rule(case.program, &on) {
        None => look_twice(case, &tool),
        Some(rule) => {
            skipped(&format!("{} {on}", case.program), &rule.reason);
            if rule.fails && look_twice(case, &tool).is_ok() {
                return Err(format!("{on} passes now: take it out of skips.txt"));
            }
            Ok(())
        }
    }
}

fn look_twice(case: &Case, tool: &Tool) -> Outcome {
    let Some((mut room, root)) = case.start()? else { return Ok(()) };
    let outcome = (|| {
        for n in 1..=case.cycles {
            room.await_file(&format!("ready.{n}"), &[])?;
            let (before, processes) = (room.look()?, room.ps()?);
            case.dump(&mut room, root, tool, &format!("images.{n}"), &["--leave-running"], &[])?;
            let after = room.look()?;
            if before != after {
                return Err(format!("dump {n} changed the target:\n{}", difference(&before, &after)));
            }
            if processes != room.ps()? {
                return Err(format!("dump {n} changed the processes {processes:#?} to {:#?}", room.ps()));
            }
            check_round(&mut room, n)?;
        }
        finish(&mut room, root, case.cycles + 1)
    })();
    room.close(outcome)
}

/// The lines that only one of the two has.
fn difference(before: &str, after: &str) -> String {
    let only = |a: &str, b: &str, mark: char| {
        let there: std::collections::HashSet<&str> = b.lines().collect();
        let lines = a.lines().filter(|l| !there.contains(l)).take(20);
        lines.map(|l| format!("  {mark} {l}\n")).collect::<String>()
    };
    only(before, after, '-') + &only(after, before, '+')
}

macro_rules! tests {
    ($($circle:ident $program:ident $($option:literal)*;)*) => {
        $(tests!(@one $circle $program $($option)*);)*
    };
    (@one first $program:ident $($option:literal)*) => {
        #[test]
        fn $program() {
            let outcome = pure(&Case::new(stringify!($program)).options(&[$($option),*]));
            outcome.unwrap_or_else(|text| panic!("{}: {text}", stringify!($program)));
        }
    };
    (@one $circle:ident $program:ident $($option:literal)*) => {};
}
zoo::programs!(tests);
