//! Capability sets that all differ: permitted, effective, inheritable, bounding, ambient.
use rustix::thread::{
    CapabilitySet as Cap, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities,
};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let steps = remove_capability_from_bounding_set(Cap::SYS_BOOT)
        .and_then(|()| remove_capability_from_bounding_set(Cap::SYS_TIME))
        .and_then(|()| {
            let permitted = Cap::CHOWN | Cap::KILL | Cap::NET_ADMIN | Cap::DAC_OVERRIDE;
            let inheritable = Cap::CHOWN | Cap::SETUID;
            set_capabilities(
                None,
                CapabilitySets {
                    permitted: permitted | Cap::SETUID,
                    effective: Cap::KILL | Cap::DAC_OVERRIDE,
                    inheritable,
                },
            )
        })
        .and_then(|()| configure_capability_in_ambient_set(Cap::CHOWN, true));
    zoo.get("set", steps);
    let look = || zoo::proc::status(&["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid"]);
    let before = look();
    while zoo.gap() {
        zoo.eq("sets", look(), before.clone());
    }
}
