//! The tools behind `crust image`: each takes images and gives text. What crit has, looks as crit has it.
use crate::decode::{Style, count_records, decode_image, decode_text};
use crate::json::Json;
use crate::manifest::{MANIFEST_NAME, Manifest, TEXT_NAME, id_of, is_manifest, is_pages};
use crate::pagemap::{PAGE_BYTES, Pagemap};
use crate::proto::FdTypes;
use crate::set::ImageSet;
use crate::view::{MAP_GROWSDOWN, Parts, View, status};
use crate::{Error, ImageKind, Reader, Result, encode_image};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;

pub use crate::tree::{html, tree, tree_json};

/// Appends a line. Writing to a String cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => {{
        let done = writeln!($out, $($arg)*);
        debug_assert!(done.is_ok());
    }};
}
pub(crate) use line;

/// An image as JSON for people: crit's `show`. Raw images are described in a sentence. The manifest is shown, too.
///
/// # Errors
/// With the place that is not what it should be.
pub fn show(name: &str, bytes: &[u8], without_payload: bool) -> Result<String> {
    if is_manifest(name) {
        return Ok(Manifest::read(bytes)?.show());
    }
    if let Some((kind, _)) = ImageKind::of_file_name(name).filter(|(kind, _)| kind.is_raw()) {
        return Ok(format!("{name}: {} bytes of another format than CRIU's records ({kind:?})\n", bytes.len()));
    }
    Ok(decode_text(name, bytes, Style { pretty: true, without_payload })? + "\n")
}

/// An image as JSON on one line (or many, if `pretty`): crit's `decode`.
///
/// # Errors
/// With the place that is not what it should be.
pub fn decode(name: &str, bytes: &[u8], pretty: bool) -> Result<String> {
    decode_text(name, bytes, Style { pretty, without_payload: false })
}

/// The image that JSON in crit's shape stands for: crit's `encode`.
///
/// # Errors
/// With the member that does not fit.
pub fn encode(name: &str, text: &str) -> Result<Vec<u8>> {
    encode_image(name, &Json::parse(name, text)?)
}

/// Kind and number of records: crit's `info`.
///
/// # Errors
/// With the place that is not what it should be.
pub fn info(name: &str, bytes: &[u8]) -> Result<String> {
    let (kind, count) = count_records(name, bytes)?;
    let members = [("magic", Json::Str(kind.magic_name().to_owned())), ("count", Json::Int(count.into()))];
    Ok(Json::Object(members.map(|(n, v)| (n.to_owned(), v)).into()).to_pretty() + "\n")
}

/// The process tree: crit's `x DIR ps`.
///
/// # Errors
/// With the image that is missing or broken.
pub fn ps(set: &dyn ImageSet) -> Result<String> {
    let view = View::load_parts(set, Parts::default())?;
    let mut out = format!("{:>7}{:>7}{:>7}   {}\n", "PID", "PGID", "SID", "COMM");
    for (at, depth) in view.walk() {
        let Some(task) = view.tasks.get(at) else { continue };
        let e = &task.entry;
        line!(out, "{:7}{:7}{:7}   {:indent$}{}", e.pid, e.pgid, e.sid, "", task.comm(), indent = 4 * depth);
    }
    Ok(out)
}

/// Descriptors of all processes: crit's `x DIR fds`.
///
/// # Errors
/// With the image that is missing or broken.
pub fn fds(set: &dyn ImageSet) -> Result<String> {
    let view = View::load_parts(set, Parts { descriptors: true, ..Parts::default() })?;
    let mut out = String::new();
    for task in &view.tasks {
        line!(out, "{}", task.entry.pid);
        for fd in &task.fds {
            line!(out, "\t{:7}: {}", fd.fd, view.crit_name(fd.r#type, fd.id));
        }
        if let Some(fs) = &task.fs {
            line!(out, "\t{:>7}: {}", "cwd", view.crit_name(FdTypes::Reg as i32, fs.cwd_id));
            line!(out, "\t{:>7}: {}", "root", view.crit_name(FdTypes::Reg as i32, fs.root_id));
        }
    }
    Ok(out)
}

/// Mappings of all processes: crit's `x DIR mems`.
///
/// # Errors
/// With the image that is missing or broken.
pub fn mems(set: &dyn ImageSet) -> Result<String> {
    let view = View::load_parts(set, Parts { memory: true, ..Parts::default() })?;
    let mut shared: HashMap<u64, usize> = HashMap::new();
    let mut out = String::new();
    for task in &view.tasks {
        line!(out, "{}", task.entry.pid);
        let Some(mm) = &task.mm else { continue };
        line!(out, "\t{:<36}    {}", "exe", view.crit_name(FdTypes::Reg as i32, mm.exe_file_id));
        for vma in &mm.vmas {
            let s = vma.status;
            let mut number = |kind: &str| {
                let next = shared.len() + 1;
                format!(" {kind}[{:x}]", shared.entry(vma.shmid).or_insert(next))
            };
            let mut what = if s & status::SYSVIPC != 0 {
                number("ips")
            } else if s & status::ANON_SHARED != 0 {
                number("shmem")
            } else if s & status::SOCKET != 0 {
                number("packet")
            } else if s & (status::FILE_PRIVATE | status::FILE_SHARED) != 0 {
                let path = u32::try_from(vma.shmid).ok().and_then(|id| view.path(id));
                let offset = if vma.pgoff != 0 { format!(" + {:#x}", vma.pgoff) } else { String::new() };
                let mark = if s & status::FILE_SHARED != 0 { " (s)" } else { "" };
                format!(" {}{offset}{mark}", path.unwrap_or_else(|| "unknown path".to_owned()))
            } else if s & status::STACK != 0 {
                " [stack]".to_owned()
            } else if s & status::VSYSCALL != 0 {
                " [vsyscall]".to_owned()
            } else if s & status::VDSO != 0 {
                " [vdso]".to_owned()
            } else if vma.flags & MAP_GROWSDOWN != 0 {
                " [stack?]".to_owned()
            } else {
                String::new()
            };
            if s & status::REGULAR == 0 {
                what.push_str(" *");
            }
            line!(out, "\t{:<36}{}{what}", format!("{:08x}-{:08x}", vma.start, vma.end), prot(vma.prot));
        }
    }
    Ok(out)
}

/// `rwx` and hyphens.
pub(crate) fn prot(bits: u32) -> String {
    [(1, 'r'), (2, 'w'), (4, 'x')].iter().map(|&(bit, c)| if bits & bit != 0 { c } else { '-' }).collect()
}

/// Runs of saved pages and the mappings they are in: crit's `x DIR rss`.
///
/// # Errors
/// With the image that is missing or broken.
pub fn rss(set: &dyn ImageSet) -> Result<String> {
    let view = View::load_parts(set, Parts { memory: true, pages: true, ..Parts::default() })?;
    let mut out = String::new();
    for task in &view.tasks {
        line!(out, "{}", task.entry.pid);
        let Some(pagemap) = &task.pagemap else { continue };
        let vmas = task.vmas();
        let mut at = 0_usize;
        let mut shown = None;
        for run in pagemap.runs() {
            while vmas.get(at).is_some_and(|vma| vma.end <= run.vaddr) {
                at += 1;
            }
            let mut text = String::new();
            while let Some(vma) = vmas.get(at).filter(|vma| vma.start < run.end()) {
                if shown == Some(at) {
                    text.push_str(" ~");
                } else {
                    text.push_str(&format!(
                        " {:08x} / {:<8}",
                        vma.start,
                        vma.end.saturating_sub(vma.start) / PAGE_BYTES
                    ));
                    if vma.status & (status::FILE_PRIVATE | status::FILE_SHARED) != 0 {
                        let path = u32::try_from(vma.shmid).ok().and_then(|id| view.path(id));
                        text.push(' ');
                        text.push_str(&path.unwrap_or_else(|| "unknown path".to_owned()));
                    }
                    shown = Some(at);
                }
                text.push_str(&format!("\n\t{:23}", ""));
                at += 1;
            }
            at = at.saturating_sub(1);
            line!(out, "{:<24}{text}", format!("\t{:x} / {:<8}", run.vaddr, run.nr_pages));
        }
    }
    Ok(out)
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// What makes the checkpoint unusable, or not what was written.
    pub problems: Vec<String>,
    /// What could not be checked, or is worth knowing.
    pub notes: Vec<String>,
    /// Image files looked at.
    pub files: usize,
    /// Bytes of them together.
    pub bytes: u64,
}

impl Verified {
    /// One line each, and a summary.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for problem in &self.problems {
            line!(out, "BAD   {problem}");
        }
        for note in &self.notes {
            line!(out, "note  {note}");
        }
        let verdict = if self.problems.is_empty() { "good" } else { "NOT GOOD" };
        line!(out, "{verdict}: {} files, {} bytes", self.files, self.bytes);
        out
    }
}

/// Checks a checkpoint: content against the manifest, every record against the schema, and that what refers to something
/// finds it.
///
/// # Errors
/// Only if the directory cannot be read; what is wrong with the checkpoint is the `Ok` value.
pub fn verify(set: &dyn ImageSet) -> Result<Verified> {
    let mut v = Verified::default();
    let names: BTreeSet<String> = set.names()?.into_iter().collect();
    let image = |name: &str| ImageKind::of_file_name(name).filter(|(kind, _)| !kind.is_service());

    let stored = match set.read(MANIFEST_NAME)? {
        None => set.read(TEXT_NAME)?,
        stored => stored,
    };
    match stored {
        None => v.notes.push(format!("no {MANIFEST_NAME}: changed bytes inside a record are not found")),
        Some(bytes) => match Manifest::read(&bytes) {
            Err(e) => v.problems.push(e.to_string()),
            Ok(manifest) => check_manifest(set, &manifest, &names, &mut v)?,
        },
    }
    for name in &names {
        let Some((kind, _)) = image(name) else { continue };
        v.files += 1;
        v.bytes += set.len_bytes(name)?.unwrap_or(0);
        if kind.is_raw() {
            continue;
        }
        let Some(bytes) = set.read(name)? else { continue };
        let style = Style { pretty: false, without_payload: true };
        if let Err(e) = decode_image(name, &bytes, style).and_then(|_| typed(name, &bytes, kind)) {
            v.problems.push(e.to_string());
        } else if matches!(kind, ImageKind::Pagemap | ImageKind::ShmemPagemap) {
            check_pages(set, name, &bytes, kind, &mut v)?;
        }
    }
    match View::load(set) {
        Ok(view) => check_references(&view, &names, &mut v),
        Err(e) if names.contains(&ImageKind::Inventory.file_name(0)) => v.problems.push(e.to_string()),
        Err(_) => v.problems.push("inventory.img: missing, so this is not a finished checkpoint".to_owned()),
    }
    Ok(v)
}

/// The typed reader must accept what the table-driven one does.
fn typed(name: &str, bytes: &[u8], kind: ImageKind) -> Result<()> {
    use crate::proto as p;
    let one = |r: &mut Reader<'_>| -> Result<bool> {
        Ok(match kind {
            ImageKind::Inventory => r.next::<p::InventoryEntry>()?.is_some(),
            ImageKind::Core => r.next::<p::CoreEntry>()?.is_some(),
            ImageKind::Mm => r.next::<p::MmEntry>()?.is_some(),
            ImageKind::Files => r.next::<p::FileEntry>()?.is_some(),
            ImageKind::Pstree => r.next::<p::PstreeEntry>()?.is_some(),
            ImageKind::Fdinfo => r.next::<p::FdinfoEntry>()?.is_some(),
            ImageKind::Mnts => r.next::<p::MntEntry>()?.is_some(),
            _ => false,
        })
    };
    let mut r = Reader::open_named(name, bytes, kind)?;
    while one(&mut r)? {}
    Ok(())
}

fn check_manifest(set: &dyn ImageSet, manifest: &Manifest, names: &BTreeSet<String>, v: &mut Verified) -> Result<()> {
    let mut found = manifest.files.clone();
    for file in &mut found {
        match (set.len_bytes(&file.name)?, file.hash) {
            (None, _) => v.problems.push(format!("{}: missing", file.name)),
            (Some(len), _) if len != file.len_bytes => {
                v.problems.push(format!("{}: {len} bytes, and {} were written", file.name, file.len_bytes));
            }
            (Some(_), None) => {
                v.notes.push(format!("{}: its content was never hashed, only its length is checked", file.name))
            }
            (Some(_), Some(kept)) => match set.hash(&file.name)? {
                Some(hash) if kept.fits(hash) => file.hash = Some(hash.into()),
                _ => v.problems.push(format!("{}: its content is not what was written", file.name)),
            },
        }
    }
    // Whatever changed so that what is kept of its hash fits.
    if v.problems.is_empty() && id_of(&found) != manifest.id() {
        v.problems.push("the content of some image is not what was written".to_owned());
    }
    for name in names.iter().filter(|n| ImageKind::of_file_name(n).is_some_and(|(kind, _)| !kind.is_service())) {
        if manifest.file(name).is_none() {
            v.notes.push(format!("{name}: not written by this dump"));
        }
    }
    Ok(())
}

fn check_pages(set: &dyn ImageSet, name: &str, bytes: &[u8], kind: ImageKind, v: &mut Verified) -> Result<()> {
    let map = match Pagemap::parse(name, bytes, kind) {
        Ok(map) => map,
        Err(e) => {
            v.problems.push(e.to_string());
            return Ok(());
        }
    };
    let pages = ImageKind::Pages.file_name(map.pages_id().into());
    match set.len_bytes(&pages)? {
        Some(len) if len < map.present_bytes() => {
            v.problems.push(format!("{pages}: {len} bytes, but {name} says that {} are in it", map.present_bytes()))
        }
        None if map.present_bytes() > 0 => v.problems.push(format!("{pages}: missing, and {name} needs it")),
        _ => {}
    }
    Ok(())
}

fn check_references(view: &View, names: &BTreeSet<String>, v: &mut Verified) {
    let mut reported = HashSet::new();
    let mut need = |who: &str, id: u32, problems: &mut Vec<String>| {
        if !view.has_file(id) && reported.insert((who.to_owned(), id)) {
            problems.push(format!("{who}: refers to file {id}, which no image has"));
        }
    };
    for task in &view.tasks {
        let pid = task.entry.pid;
        // CRIU writes whatever lay in memory as the thread of a dead process.
        for thread in task.entry.threads.iter().filter(|_| task.mm.is_some()) {
            let core = ImageKind::Core.file_name((*thread).into());
            if !names.contains(&core) {
                v.problems.push(format!("{core}: missing, and process {pid} has this thread"));
            }
        }
        for fd in &task.fds {
            need(&format!("descriptor {} of process {pid}", fd.fd), fd.id, &mut v.problems);
        }
        if let Some(mm) = &task.mm {
            need(&ImageKind::Mm.file_name(pid.into()), mm.exe_file_id, &mut v.problems);
        }
        for vma in task.vmas().iter().filter(|vma| vma.status & (status::FILE_PRIVATE | status::FILE_SHARED) != 0) {
            let who = format!("mapping {:x}-{:x} of process {pid}", vma.start, vma.end);
            need(&who, u32::try_from(vma.shmid).unwrap_or(u32::MAX), &mut v.problems);
        }
        if let Some(fs) = &task.fs {
            let who = ImageKind::Fs.file_name(pid.into());
            need(&who, fs.cwd_id, &mut v.problems);
            need(&who, fs.root_id, &mut v.problems);
        }
    }
}

/// What differs between two checkpoints, one line for each value: `FILE entries[N].member: old -> new`.
///
/// # Errors
/// With the image that is broken.
pub fn diff(old: &dyn ImageSet, new: &dyn ImageSet) -> Result<String> {
    let names = |set: &dyn ImageSet| -> Result<BTreeSet<String>> {
        let all = set.names()?;
        Ok(all.into_iter().filter(|n| ImageKind::of_file_name(n).is_some_and(|(k, _)| !k.is_service())).collect())
    };
    let (before, after) = (names(old)?, names(new)?);
    let mut out = String::new();
    for name in before.union(&after) {
        match (before.contains(name), after.contains(name)) {
            (true, false) => line!(out, "- {name}"),
            (false, true) => line!(out, "+ {name}"),
            _ if old.len_bytes(name)? == new.len_bytes(name)? && old.hash(name)? == new.hash(name)? => {}
            _ if is_pages(name) || ImageKind::of_file_name(name).is_some_and(|(k, _)| k.is_raw()) => {
                let len = |set: &dyn ImageSet| set.len_bytes(name).map(|l| l.unwrap_or(0));
                line!(out, "~ {name}: content differs ({} and {} bytes)", len(old)?, len(new)?);
            }
            _ => {
                let json = |set: &dyn ImageSet| -> Result<Json> {
                    let bytes = set.read(name)?.ok_or_else(|| Error::text(name, "vanished"))?;
                    decode_image(name, &bytes, Style { pretty: true, without_payload: false })
                };
                let (a, b) = (json(old)?, json(new)?);
                let mut changes = Vec::new();
                compare("", a.get("entries"), b.get("entries"), &mut changes);
                for change in changes {
                    line!(out, "~ {name} entries{change}");
                }
            }
        }
    }
    Ok(out)
}

fn compare(path: &str, old: Option<&Json>, new: Option<&Json>, out: &mut Vec<String>) {
    match (old, new) {
        (Some(a), Some(b)) if a == b => {}
        (Some(Json::Object(a)), Some(Json::Object(b))) => {
            let names: Vec<&String> = a.iter().chain(b).map(|(n, _)| n).collect();
            let mut seen = HashSet::new();
            for name in names.into_iter().filter(|n| seen.insert(*n)) {
                let member = |of: &'_ [(String, Json)]| of.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
                compare(&format!("{path}.{name}"), member(a).as_ref(), member(b).as_ref(), out);
            }
        }
        (Some(Json::Array(a)), Some(Json::Array(b))) => {
            for at in 0..a.len().max(b.len()) {
                compare(&format!("{path}[{at}]"), a.get(at), b.get(at), out);
            }
        }
        (old, new) => {
            let short = |json: Option<&Json>| {
                let text = json.map_or_else(|| "nothing".to_owned(), Json::to_line);
                if text.chars().count() > 100 { text.chars().take(97).collect::<String>() + "..." } else { text }
            };
            out.push(format!("{path}: {} -> {}", short(old), short(new)));
        }
    }
}
