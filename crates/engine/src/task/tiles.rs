//! AMX tiles: the room that the kernel has for them in threads that have used them. Their content goes with the registers,
//! the permission to use them with the settings of the process.
//!
//! Without that room neither ptrace(2) nor rt_sigreturn(2) gives a thread its tiles, and a signal frame that was made with it is
//! taken for one of x87 and SSE only. So a thread that had it uses a tile in its plan.
use super::regs;
use crate::Error;
use crust_image::proto::CoreEntry;
use crust_inject::plan::{PlanId, Program};
use crust_kernel::NsTid;
use std::sync::OnceLock;

/// The content of tiles, among the components of CPU state.
pub const DATA: u64 = 1 << 18;

/// Components of CPU state that processes may ask for here.
pub fn on_request() -> u64 {
    static SUPPORTED: OnceLock<u64> = OnceLock::new();
    *SUPPORTED.get_or_init(|| crust_kernel::ptrace_x86::supported_xstate().unwrap_or(0))
}

/// This CPU and this kernel have them.
pub fn are_here() -> bool {
    on_request() & DATA != 0
}

/// What there is to say where they are not.
pub fn not_here() -> Error {
    let what = "uses AMX tiles, or may, which this CPU or kernel does not have";
    Error::unsupported(what, "restore it where /proc/cpuinfo shows amx_tile")
}

/// Whether the kernel had room for the thread's tiles.
fn had_room(core: &CoreEntry) -> bool {
    let settings = core.thread_core.as_ref().and_then(|t| t.crust_settings.as_ref());
    settings.is_some_and(|s| s.tile_room()) || core.thread_info.as_ref().is_some_and(regs::has_tiles)
}

/// Gives a thread room for its tiles; its process may use them already.
pub fn plan_room(p: &mut Program, plan: PlanId, core: &CoreEntry) {
    if had_room(core) {
        p.tile_room(plan);
    }
}

/// What cannot be: threads with tiles in a process that may not use any.
pub fn check(pid: NsTid, cores: &[CoreEntry]) -> Option<Error> {
    let permission = cores.first()?.tc.as_ref()?.crust_settings.as_ref().map_or(0, |s| s.xstate_permission());
    (permission & DATA == 0 && cores.iter().any(had_room))
        .then(|| Error::bad_image(format!("core-{pid}.img"), "AMX tiles of a process that may not use them"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_image::proto::{CrustProcessSettings, CrustThreadSettings, TaskCoreEntry, ThreadCoreEntry};

    #[test]
    fn tiles_without_permission_are_refused() {
        let pid = NsTid::new(7).expect("a number");
        let of = |permission| {
            let settings = CrustProcessSettings { xstate_permission: permission, ..Default::default() };
            let tc = TaskCoreEntry { crust_settings: Some(settings), ..Default::default() };
            let settings = CrustThreadSettings { tile_room: Some(true), ..Default::default() };
            let thread = ThreadCoreEntry { crust_settings: Some(settings), ..Default::default() };
            [CoreEntry { tc: Some(tc.into()), thread_core: Some(thread), ..Default::default() }]
        };
        assert!(check(pid, &of(Some(DATA))).is_none());
        let e = check(pid, &of(None)).expect("refused");
        assert!(e.to_string().contains("may not use them"), "{e}");
    }
}
