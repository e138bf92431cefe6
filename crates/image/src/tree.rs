//! A checkpoint at a glance: processes, memory, descriptors, namespaces, sizes; as text, as JSON, as one HTML page.
use crate::json::Json;
use crate::proto::VmaEntry;
use crate::set::ImageSet;
use crate::tools::{line, prot};
use crate::view::{Task, View};
use crate::{ImageKind, Result};
use std::fmt::Write;

/// Sizes of the image files together.
struct Sizes {
    files: usize,
    bytes: u64,
    pages: u64,
}

fn sizes(set: &dyn ImageSet) -> Result<Sizes> {
    let mut s = Sizes { files: 0, bytes: 0, pages: 0 };
    for name in set.names()? {
        let Some((kind, _)) = ImageKind::of_file_name(&name).filter(|(k, _)| !k.is_service()) else { continue };
        let len = set.len_bytes(&name)?.unwrap_or(0);
        s.files += 1;
        s.bytes += len;
        if kind == ImageKind::Pages {
            s.pages += len;
        }
    }
    Ok(s)
}

/// Bytes with a unit, at most three digits before the point.
pub(crate) fn human(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if size.fract() == 0.0 { format!("{size:.0} {unit}") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

/// A mapping's bytes that are in the image or a parent.
fn saved(task: &Task, vma: &VmaEntry) -> u64 {
    let Some(map) = &task.pagemap else { return 0 };
    let runs = map.runs();
    let first = runs.partition_point(|run| run.end() <= vma.start);
    let inside = runs.iter().skip(first).take_while(|run| run.vaddr < vma.end);
    inside.map(|run| run.end().min(vma.end).saturating_sub(run.vaddr.max(vma.start))).sum()
}

/// Namespaces of a process that are not the ones the dump was made in.
fn namespaces(view: &View, task: &Task) -> Vec<&'static str> {
    let (Some(ids), Some(host)) = (&task.ids, &view.inventory.root_ids) else { return Vec::new() };
    [
        ("pid", ids.pid_ns_id, host.pid_ns_id),
        ("net", ids.net_ns_id, host.net_ns_id),
        ("ipc", ids.ipc_ns_id, host.ipc_ns_id),
        ("uts", ids.uts_ns_id, host.uts_ns_id),
        ("mnt", ids.mnt_ns_id, host.mnt_ns_id),
        ("user", ids.user_ns_id, host.user_ns_id),
        ("cgroup", ids.cgroup_ns_id, host.cgroup_ns_id),
        ("time", ids.time_ns_id, host.time_ns_id),
    ]
    .into_iter()
    .filter(|(_, own, host)| own.is_some() && own != host)
    .map(|(name, ..)| name)
    .collect()
}

fn mapped(task: &Task) -> u64 {
    task.vmas().iter().map(|vma| vma.end.saturating_sub(vma.start)).fold(0, u64::saturating_add)
}

fn saved_total(task: &Task) -> u64 {
    task.pagemap.as_ref().map_or(0, |map| map.runs().iter().map(|r| r.len_bytes()).fold(0, u64::saturating_add))
}

/// Text from a checkpoint, safe for a terminal: no control characters.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The checkpoint as an indented tree. `colour`: for a terminal.
///
/// # Errors
/// With the image that is missing or broken.
pub fn tree(set: &dyn ImageSet, colour: bool) -> Result<String> {
    let view = View::load(set)?;
    let s = sizes(set)?;
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut out = String::new();
    let threads: usize = view.tasks.iter().map(|t| t.entry.threads.len().max(1)).sum();
    line!(
        out,
        "{}, {}, {} in {} files ({} of it pages)",
        count(view.tasks.len(), "process", "processes"),
        count(threads, "thread", "threads"),
        human(s.bytes),
        s.files,
        human(s.pages)
    );
    for (at, depth) in view.walk() {
        let Some(task) = view.tasks.get(at) else { continue };
        let pad = "  ".repeat(depth);
        let state = task.state();
        let mut head = format!("{} {}", paint("1;33", &task.entry.pid.to_string()), paint("1", &clean(&task.comm())));
        if state != "Alive" {
            head.push_str(&format!(" {}", paint("31", &state.to_lowercase())));
        }
        if task.entry.threads.len() > 1 {
            head.push_str(&format!(", {} threads", task.entry.threads.len()));
        }
        let own = namespaces(&view, task);
        if !own.is_empty() {
            head.push_str(&format!(", own namespaces: {}", own.join(" ")));
        }
        line!(out, "{pad}{head}");
        if let Some(mm) = &task.mm {
            let exe = view.path(mm.exe_file_id).unwrap_or_default();
            line!(out, "{pad}  {} {}", paint("2", "exe   "), clean(&exe));
            line!(
                out,
                "{pad}  {} {} in {} mappings, {} saved",
                paint("2", "memory"),
                human(mapped(task)),
                mm.vmas.len(),
                human(saved_total(task))
            );
            let mut biggest: Vec<(u64, &VmaEntry)> = mm.vmas.iter().map(|vma| (saved(task, vma), vma)).collect();
            biggest.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
            for (bytes, vma) in biggest.into_iter().take(3).filter(|(bytes, _)| *bytes > 0) {
                let name = clean(&view.mapping(vma));
                line!(out, "{pad}         {:>9}  {:x} {} {name}", human(bytes), vma.start, prot(vma.prot));
            }
        }
        for fd in &task.fds {
            line!(
                out,
                "{pad}  {} {}",
                paint("36", &format!("fd {:<3}", fd.fd)),
                clean(&view.describe(fd.r#type, fd.id))
            );
        }
    }
    Ok(out)
}

/// The same for scripts.
///
/// # Errors
/// With the image that is missing or broken.
pub fn tree_json(set: &dyn ImageSet) -> Result<Json> {
    let view = View::load(set)?;
    let s = sizes(set)?;
    let int = |n: u64| Json::Int(n.into());
    let text = |t: String| Json::Str(t);
    let object =
        |members: Vec<(&str, Json)>| Json::Object(members.into_iter().map(|(n, v)| (n.to_owned(), v)).collect());
    let tasks = view.tasks.iter().map(|task| {
        let fds = task.fds.iter().map(|fd| {
            object(vec![
                ("fd", int(fd.fd.into())),
                ("file_id", int(fd.id.into())),
                ("what", text(view.describe(fd.r#type, fd.id))),
            ])
        });
        let vmas = task.vmas().iter().map(|vma| {
            object(vec![
                ("start", int(vma.start)),
                ("end", int(vma.end)),
                ("prot", text(prot(vma.prot))),
                ("what", text(view.mapping(vma))),
                ("saved_bytes", int(saved(task, vma))),
            ])
        });
        let exe = task.mm.as_ref().and_then(|mm| view.path(mm.exe_file_id)).unwrap_or_default();
        object(vec![
            ("pid", int(task.entry.pid.into())),
            ("ppid", int(task.entry.ppid.into())),
            ("pgid", int(task.entry.pgid.into())),
            ("sid", int(task.entry.sid.into())),
            ("comm", text(task.comm())),
            ("state", text(task.state())),
            ("exe", text(exe)),
            ("threads", Json::Array(task.entry.threads.iter().map(|t| int((*t).into())).collect())),
            ("namespaces", Json::Array(namespaces(&view, task).iter().map(|n| text((*n).to_owned())).collect())),
            ("mapped_bytes", int(mapped(task))),
            ("saved_bytes", int(saved_total(task))),
            ("fds", Json::Array(fds.collect())),
            ("mappings", Json::Array(vmas.collect())),
        ])
    });
    Ok(object(vec![
        ("image_files", int(s.files as u64)),
        ("image_bytes", int(s.bytes)),
        ("pages_bytes", int(s.pages)),
        ("processes", Json::Array(tasks.collect())),
    ]))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;\
color:#1c2430;background:#fff}h1{font-size:1.4rem;margin:0 0 .2rem}p{margin:.2rem 0 1rem;color:#566}\
details{border-left:2px solid #d5dbe3;padding:.15rem 0 .15rem .8rem;margin:.15rem 0}\
summary{cursor:pointer}b{font-weight:600}.pid{font-variant-numeric:tabular-nums;color:#a15c00;margin-right:.4rem}\
.dim{color:#667}.dead{color:#b3261e}table{border-collapse:collapse;margin:.3rem 0 .6rem}\
td,th{padding:.1rem .7rem .1rem 0;text-align:left;vertical-align:top}th{color:#667;font-weight:500}\
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}code{font:12px ui-monospace,monospace}\
svg{display:block;margin:.3rem 0;border:1px solid #d5dbe3}.key span{display:inline-block;margin-right:1rem}\
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em;vertical-align:-.05em}\
@media(prefers-color-scheme:dark){body{color:#dde3ea;background:#14181d}p,.dim,th{color:#93a0ae}\
details,svg{border-color:#333d48}.pid{color:#e8a33d}.dead{color:#f2857c}}";

/// Colour of a mapping in the picture, and what it stands for.
fn colour_of(vma: &VmaEntry) -> (&'static str, &'static str) {
    use crate::view::status as s;
    match vma.status {
        _ if vma.prot & 4 != 0 => ("#4c78a8", "code"),
        v if v & (s::FILE_PRIVATE | s::FILE_SHARED) != 0 => ("#72b7b2", "file"),
        v if v & (s::ANON_SHARED | s::SYSVIPC) != 0 => ("#b279a2", "shared"),
        v if v & s::STACK != 0 || vma.flags & crate::view::MAP_GROWSDOWN != 0 => ("#e45756", "stack"),
        v if v & s::HEAP != 0 => ("#54a24b", "heap"),
        _ => ("#eeca3b", "anonymous"),
    }
}

/// A picture of the address space: each mapping as wide as the square root of its size, filled as far as it is saved.
fn picture(task: &Task, view: &View) -> String {
    const WIDTH: f64 = 1000.0;
    let vmas: Vec<&VmaEntry> = task.vmas().iter().filter(|vma| vma.end > vma.start).collect();
    let weight = |vma: &VmaEntry| ((vma.end - vma.start) as f64).sqrt();
    let total: f64 = vmas.iter().map(|vma| weight(vma)).sum();
    if total <= 0.0 {
        return String::new();
    }
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} 46\" width=\"100%\" height=\"46\" preserveAspectRatio=\"none\" role=\"img\">"
    );
    let mut x = 0.0;
    for vma in vmas {
        let width = weight(vma) / total * WIDTH;
        let bytes = saved(task, vma);
        let height = 46.0 * bytes as f64 / (vma.end - vma.start) as f64;
        let (fill, _) = colour_of(vma);
        let title = format!(
            "{:x}-{:x} {} {} ({}, {} saved)",
            vma.start,
            vma.end,
            prot(vma.prot),
            view.mapping(vma),
            human(vma.end - vma.start),
            human(bytes)
        );
        out.push_str(&format!(
            "<g><title>{}</title><rect x=\"{x:.2}\" y=\"0\" width=\"{width:.2}\" height=\"46\" fill=\"{fill}\" \
             fill-opacity=\".25\"/><rect x=\"{x:.2}\" y=\"{:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" \
             fill=\"{fill}\"/></g>",
            escape(&title),
            46.0 - height
        ));
        x += width;
    }
    out.push_str("</svg>");
    out
}

/// One page that needs nothing else: the process tree, each process with a picture of its memory and its descriptors.
///
/// # Errors
/// With the image that is missing or broken.
pub fn html(set: &dyn ImageSet) -> Result<String> {
    let view = View::load(set)?;
    let s = sizes(set)?;
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Checkpoint</title><style>{STYLE}</style></head><body><h1>Checkpoint</h1>"
    );
    line!(
        out,
        "<p>{}, {} in {} files, {} of it pages</p>",
        count(view.tasks.len(), "process", "processes"),
        human(s.bytes),
        s.files,
        human(s.pages)
    );
    out.push_str("<p class=\"key\">Memory, low addresses left, filled as far as saved: ");
    for (fill, name) in [
        ("#4c78a8", "code"),
        ("#72b7b2", "file"),
        ("#54a24b", "heap"),
        ("#eeca3b", "anonymous"),
        ("#b279a2", "shared"),
        ("#e45756", "stack"),
    ] {
        out.push_str(&format!("<span><i style=\"background:{fill}\"></i>{name}</span>"));
    }
    out.push_str("</p>\n");
    let mut open = 0_usize;
    for (at, depth) in view.walk() {
        let Some(task) = view.tasks.get(at) else { continue };
        while open > depth {
            out.push_str("</details>\n");
            open -= 1;
        }
        process(&view, task, view.tasks.len() <= UNFOLDED || depth < 1, &mut out);
        open += 1;
    }
    out.push_str(&"</details>\n".repeat(open));
    out.push_str("</body></html>\n");
    Ok(out)
}

/// Trees up to this many processes are shown unfolded; of larger ones the first levels.
const UNFOLDED: usize = 50;

/// A number with its noun.
fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn process(view: &View, task: &Task, open: bool, out: &mut String) {
    let state = task.state();
    let dead =
        if state == "Alive" { String::new() } else { format!(" <span class=\"dead\">{}</span>", escape(&state)) };
    let own = namespaces(view, task);
    let own = if own.is_empty() { String::new() } else { format!(", own namespaces: {}", own.join(" ")) };
    line!(
        out,
        "<details{}><summary><span class=\"pid\">{}</span><b>{}</b>{dead} <span class=\"dim\">{}, {} mapped, \
         {} saved{own}</span></summary>",
        if open { " open" } else { "" },
        task.entry.pid,
        escape(&task.comm()),
        count(task.entry.threads.len(), "thread", "threads"),
        human(mapped(task)),
        human(saved_total(task))
    );
    if let Some(mm) = &task.mm {
        line!(out, "<code>{}</code>", escape(&view.path(mm.exe_file_id).unwrap_or_default()));
        line!(out, "{}", picture(task, view));
        line!(out, "<details><summary class=\"dim\">{} mappings</summary><table>", mm.vmas.len());
        for vma in &mm.vmas {
            line!(
                out,
                "<tr><td><code>{:x}-{:x}</code></td><td><code>{}</code></td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td>{}</td></tr>",
                vma.start,
                vma.end,
                prot(vma.prot),
                human(vma.end.saturating_sub(vma.start)),
                human(saved(task, vma)),
                escape(&view.mapping(vma))
            );
        }
        line!(out, "</table></details>");
    }
    if !task.fds.is_empty() {
        line!(out, "<details><summary class=\"dim\">{} descriptors</summary><table>", task.fds.len());
        for fd in &task.fds {
            line!(out, "<tr><td class=\"n\">{}</td><td>{}</td></tr>", fd.fd, escape(&view.describe(fd.r#type, fd.id)));
        }
        line!(out, "</table></details>");
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
