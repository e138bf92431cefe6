//! Completion scripts for bash, zsh and fish, made from the option table like the help.
use super::help::VERBS;
use super::options::{Arg, OPTIONS, OptionDef};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What `crust image` does.
const IMAGE: &str = "show decode encode info tree ps fds mems rss x verify diff pack unpack";
/// What `crust cpuinfo` does.
const CPUINFO: &str = "dump check";

/// The script for `shell`, if it is one that we know.
pub(crate) fn script(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

/// First words of command lines, each once, with what the first of its forms does.
fn verbs() -> BTreeMap<&'static str, &'static str> {
    let mut verbs = BTreeMap::new();
    for (verb, what) in VERBS {
        verbs.entry(verb.split(' ').next().unwrap_or(verb)).or_insert(what);
    }
    verbs
}

/// What a value looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    Dir,
    File,
    Pid,
    Other,
}

fn value(def: &OptionDef) -> Option<Value> {
    match def.arg {
        Arg::Required("DIR") => Some(Value::Dir),
        Arg::Required("FILE" | "PATH") => Some(Value::File),
        Arg::Required("PID") => Some(Value::Pid),
        Arg::Required(_) => Some(Value::Other),
        Arg::None | Arg::Optional(_) => None,
    }
}

fn bash() -> String {
    let with = |kind| {
        let names = OPTIONS.iter().filter(|d| value(d) == Some(kind));
        let names = names.flat_map(|d| [Some(format!("--{}", d.long)), d.short.map(|c| format!("-{c}"))]);
        names.flatten().collect::<Vec<_>>().join("|")
    };
    let mut options = String::new();
    for def in OPTIONS {
        let _infallible = write!(options, " --{}", def.long);
        if def.negatable() {
            let _infallible = write!(options, " --no-{}", def.long);
        }
    }
    let verbs = verbs().into_keys().collect::<Vec<_>>().join(" ");
    let (dir, file, pid, other) = (with(Value::Dir), with(Value::File), with(Value::Pid), with(Value::Other));
    format!(
        r#"# Completion of crust for bash, made by `crust help-completion bash`.
_crust() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb="" i
    COMPREPLY=()
    case $before in
    {dir}) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    {file}) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    {pid}) mapfile -t COMPREPLY < <(compgen -W "$(cd /proc && echo [0-9]*)" -- "$word"); return ;;
    {other}) return ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "{}" -- "$word")
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        {dir}|{file}|{pid}|{other}) ((i++)) ;;
        -*) ;;
        *) verb=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    case $verb in
    "") mapfile -t COMPREPLY < <(compgen -W "{verbs}" -- "$word") ;;
    cpuinfo) mapfile -t COMPREPLY < <(compgen -W "{CPUINFO}" -- "$word") ;;
    image)
        if ((COMP_CWORD == i + 1)); then
            mapfile -t COMPREPLY < <(compgen -W "{IMAGE}" -- "$word")
        else
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
        fi ;;
    esac
}}
complete -F _crust crust criu
"#,
        options.trim_start()
    )
}

fn zsh() -> String {
    let mut text = String::from(
        "#compdef crust criu\n# Completion of crust for zsh, made by `crust help-completion zsh`.\n_arguments -s -S \\\n",
    );
    for def in OPTIONS {
        let help = def.help.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
        let after = match (def.arg, value(def)) {
            (_, Some(Value::Dir)) => ":directory:_directories".to_owned(),
            (_, Some(Value::File)) => ":file:_files".to_owned(),
            (_, Some(Value::Pid)) => ":pid:_pids".to_owned(),
            (Arg::Required(name), _) => format!(":{}:", name.replace(':', "\\:")),
            (Arg::Optional(name), _) => format!("::{}:", name.replace(':', "\\:")),
            (Arg::None, _) => String::new(),
        };
        let (short, long) = match def.arg {
            Arg::None => ("", ""),
            Arg::Required(_) => ("+", "="),
            Arg::Optional(_) => ("-", "=-"),
        };
        if let Some(c) = def.short {
            let _infallible = writeln!(text, "  '*-{c}{short}[{help}]{after}' \\");
        }
        let _infallible = writeln!(text, "  '*--{}{long}[{help}]{after}' \\", def.long);
        if def.negatable() {
            let _infallible = writeln!(text, "  '*--no-{}[not\\: {help}]' \\", def.long);
        }
    }
    text.push_str("  '1:verb:((");
    for (verb, what) in verbs() {
        let _infallible = write!(text, "{verb}\\:\"{}\" ", what.replace('\'', "'\\''").replace(':', "\\:"));
    }
    text.push_str("))' \\\n  '*:file:_files'\n");
    text
}

fn fish() -> String {
    let mut text = String::from("# Completion of crust for fish, made by `crust help-completion fish`.\n");
    let quoted = |s: &str| s.replace('\\', "\\\\").replace('\'', "\\'");
    for name in ["crust", "criu"] {
        for (verb, what) in verbs() {
            let what = quoted(what);
            let _infallible = writeln!(text, "complete -c {name} -f -n __fish_use_subcommand -a {verb} -d '{what}'");
        }
        for (verb, words) in [("image", IMAGE), ("cpuinfo", CPUINFO)] {
            let _infallible = writeln!(
                text,
                "complete -c {name} -f -n '__fish_seen_subcommand_from {verb}; and not __fish_seen_subcommand_from {words}' -a '{words}'"
            );
        }
        for def in OPTIONS {
            let short = def.short.map(|c| format!(" -s {c}")).unwrap_or_default();
            let after = match value(def) {
                Some(Value::Dir) => " -x -a '(__fish_complete_directories)'",
                Some(Value::File) => " -r -F",
                Some(Value::Pid) => " -x -a '(__fish_complete_pids)'",
                Some(Value::Other) => " -x",
                None => "",
            };
            let help = quoted(def.help);
            let _infallible = writeln!(text, "complete -c {name}{short} -l {}{after} -d '{help}'", def.long);
            if def.negatable() {
                let _infallible = writeln!(text, "complete -c {name} -l no-{} -d 'not: {help}'", def.long);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_in_every_script() {
        for shell in ["bash", "zsh", "fish"] {
            let text = script(shell).unwrap();
            for def in OPTIONS {
                assert!(text.contains(def.long), "{shell}: {}", def.long);
            }
            for verb in verbs().into_keys() {
                assert!(text.contains(verb), "{shell}: {verb}");
            }
        }
        assert_eq!(script("tcsh"), None);
    }
}
