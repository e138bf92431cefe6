//! `check --pid` says beforehand what a dump will say: for every program of the zoo the report and the dump agree, the
//! report names what is in the way, and asking changes nothing.
use zoo::harness::{Case, Outcome, Tool, check_round, finish, rule, skipped};

fn agree(case: &Case) -> Outcome {
    let (mut verdict, tool) = (Ok(()), Tool::ours());
    if tool.name != "ours" {
        skipped(case.program, "only crust has check --pid");
        return Ok(());
    }
    let rule = rule(case.program, "ours-check");
    if let Some(rule) = &rule {
        skipped(&format!("{} ours-check", case.program), &rule.reason);
    }
    if rule.as_ref().is_none_or(|r| r.fails) {
        verdict = asked(case, &tool);
    }
    match rule {
        Some(rule) if rule.fails && verdict.is_ok() => Err("passes now: take it out of skips.txt".to_owned()),
        Some(_) => Ok(()),
        None => verdict,
    }
}

fn asked(case: &Case, tool: &Tool) -> Outcome {
    let Some((mut room, root)) = case.start()? else { return Ok(()) };
    let outcome = (|| {
        let (before, path, pid) = (room.look()?, tool.path.display().to_string(), root.0.to_string());
        let mut argv = vec![path.as_str(), "check", "--pid", &pid];
        argv.extend(case.options);
        let can = room.run(&argv, &[], "check.out")? == 0;
        let volatile = rule(case.program, "ours-pure").is_some();
        if !volatile && before != room.look()? {
            return Err("asking changed the target".to_owned());
        }
        let said = room.read("check.out");
        for name in room.read("names").lines() {
            if !name.split('|').any(|word| said.contains(word)) {
                return Err(format!("the report does not name {name:?}:\n{said}"));
            }
        }
        let did = case.try_dump(&mut room, root, tool, "images.1", &["--leave-running"], &[])? == 0;
        if can != did {
            let verb = |yes| if yes { "can" } else { "cannot" };
            return Err(format!("the report says it {} be dumped, but it {}:\n{said}", verb(can), verb(did)));
        }
        check_round(&mut room, 1)?;
        finish(&mut room, root, 2)
    })();
    room.close(outcome)
}

macro_rules! tests {
    ($($circle:ident $program:ident $($option:literal)*;)*) => {
        $(tests!(@one $circle $program $($option)*);)*
    };
    (@one apart $program:ident $($option:literal)*) => {};
    (@one $circle:ident $program:ident $($option:literal)*) => {
        #[test]
        fn $program() {
            let outcome = agree(&Case::new(stringify!($program)).options(&[$($option),*]));
            outcome.unwrap_or_else(|text| panic!("{}: {text}", stringify!($program)));
        }
    };
}
zoo::programs!(tests);
