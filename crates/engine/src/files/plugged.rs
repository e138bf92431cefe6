//! Descriptors that no kind here recognises and a plugin saves, and unix sockets whose other end is outside and that a plugin
//! joins again. The restore asks for all of them before anything is made.
use super::look::FdView;
use super::restore::{FileImages, Opener};
use super::table::{Records, send_range};
use super::{FdKind, alone};
use crate::images::{Partial, Source};
use crate::plugins::{self, Hook, Plugins, Saved};
use crate::{Error, Object, Result, ResultExt};
use crust_image::ImageKind;
use crust_image::proto::{CrustPlugin, ExtFileEntry, FdTypes, FileEntry};
use crust_kernel::pidfd::PidFd;
use crust_kernel::{HostTid, TargetFd};
use crust_rpc::plugin::Request;
use std::os::fd::{AsFd, OwnedFd};

/// Chosen by nobody's looks: what is left when all others have been asked.
pub(super) static KIND: FdKind =
    FdKind { name: "file of a plugin", fd_type: FdTypes::Ext, recognise: |_| false, dump, group: alone, open };

/// What a plugin gave to keep, by the file's id.
pub(super) type Kept = Vec<(u32, OwnedFd, u64)>;

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let request = Request {
        hook: Hook::DumpExtFile.into(),
        pid: Some(v.target.pid.as_raw()),
        fd: Some(v.carrier().0),
        id: Some(id),
        link: Some(v.link.clone()),
        ..Request::default()
    };
    let offered = out.plugins.as_ref().map_or(Ok(None), |plugins| plugins.offer(&request, v.copy()?));
    let Some(saved) = offered.map_err(|e| e.on(v.object()))? else { return Err(super::table::unknown(v)) };
    let ext = ExtFileEntry { id, fown: v.fown()?, crust_mqueue: None, crust_plugin: Some(keep(saved, id, out)) };
    Ok(FileEntry { ext: Some(ext.into()), ..FileEntry::default() })
}

fn keep(saved: Saved, id: u32, out: &mut Records<'_>) -> CrustPlugin {
    let has_data = saved.data.is_some();
    out.kept.extend(saved.data.map(|(fd, len)| (id, fd, len)));
    CrustPlugin { name: saved.plugin, data: has_data.then_some(true) }
}

/// Offers the tree's end of a connection to somebody outside. True if a plugin took it, as its record says then.
pub(super) fn offer_socket(ino: u32, at: &Object, out: &mut Records<'_>) -> Result<bool> {
    let (Some(plugins), &Object::Fd(pid, number)) = (out.plugins.clone(), at) else { return Ok(false) };
    let record = out.files.iter().position(|f| f.usk.as_ref().is_some_and(|s| s.ino == ino));
    let Some((record, pid)) = record.zip(HostTid::new(pid)) else { return Ok(false) };
    let id = out.files.get(record).map_or(0, |f| f.id);
    let pidfd = PidFd::open(pid).or_else(|_| PidFd::open_thread(pid)).during("pidfd_open")?;
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let copy = rustix::process::pidfd_getfd(pidfd.as_fd(), TargetFd(number).0.cast_signed(), flags);
    let copy = copy.during("copying the descriptor (pidfd_getfd)")?;
    let request = Request {
        hook: Hook::DumpUnixSk.into(),
        pid: Some(pid.as_raw()),
        fd: Some(number),
        id: Some(id),
        link: Some(format!("socket:[{ino}]").into_bytes()),
        ..Request::default()
    };
    let Some(saved) = plugins.offer(&request, copy.as_fd())? else { return Ok(false) };
    let kept = keep(saved, id, out);
    if let Some(socket) = out.files.get_mut(record).and_then(|f| f.usk.as_mut()) {
        socket.crust_plugin = Some(kept);
    }
    Ok(true)
}

/// Writes what plugins gave to keep.
pub(super) fn write(kept: &Kept, out: &Partial) -> Result<()> {
    for (id, data, len) in kept {
        let name = ImageKind::PluginData.file_name(u64::from(*id));
        let mut file = out.outlet(&name)?;
        file.expect(*len)?;
        send_range(data, 0, *len, &mut file).map_err(|e| e.on(Object::Image(name)))?;
        out.close(file)?;
    }
    Ok(())
}

/// The plugin that saved a file, the hook that brings it back, and under which name it is given then.
fn of(e: &FileEntry) -> Option<(&CrustPlugin, Hook, String)> {
    if let Some(socket) = &e.usk {
        return Some((socket.crust_plugin.as_ref()?, Hook::RestoreUnixSk, format!("socket:[{}]", socket.ino)));
    }
    Some((e.ext.as_ref()?.crust_plugin.as_ref()?, Hook::RestoreExtFile, key(e.id)))
}

fn key(id: u32) -> String {
    format!("plugin[{id}]")
}

/// A file whose plugin is not there.
pub(super) fn check(e: &FileEntry, plugins: &Plugins) -> Option<Error> {
    let name = match of(e) {
        Some((plugin, ..)) if plugins.has(&plugin.name) => return None,
        Some((plugin, ..)) => Some(plugin.name.as_str()),
        None if e.ext.as_ref().is_some_and(|ext| ext.crust_mqueue.is_none()) => None,
        None => return None,
    };
    Some(plugins::missing(name).on(Object::Path(format!("file {} of files.img", e.id))))
}

impl FileImages {
    /// Has plugins bring back what they saved, to be put into its places later.
    ///
    /// # Errors
    /// A plugin that fails.
    pub fn ask_plugins(&mut self, plugins: &Plugins, source: &Source) -> Result<()> {
        let mut given = Vec::new();
        for (id, entry) in self.files() {
            let Some((plugin, hook, key)) = of(entry) else { continue };
            let name = ImageKind::PluginData.file_name(u64::from(*id));
            let data = if plugin.data == Some(true) { source.open_file(&name)? } else { None };
            if data.is_none() && plugin.data == Some(true) {
                return Err(Error::bad_image(&name, format!("is missing: file {id} was saved in it")));
            }
            let request = Request { hook: hook.into(), id: Some(*id), ..Request::default() };
            let fd = plugins.bring(&plugin.name, &request, data.as_ref().map(AsFd::as_fd));
            let on = |e: Error| match self.holder_of(*id) {
                Some(holder) => e.held_by(holder),
                None => e,
            };
            given.push((key, fd.map_err(on)?));
        }
        given.into_iter().try_for_each(|(key, fd)| self.give(key, &fd))
    }
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let ext = cx.body(e, e.ext.as_ref())?;
        let fd = cx.inherited(&key(e.id))?.ok_or_else(|| plugins::missing(None))?;
        cx.set_owner(&fd, &ext.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}
