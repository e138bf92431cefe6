//! Control groups of host tasks: who is in which, the directories with their settings, and the freezer.
//!
//! Everything goes by what /proc/PID/cgroup says: one line per hierarchy, version 1, named or 2. Paths are relative to the
//! root of our own cgroup namespace, and so are the hierarchies that we open.
pub(crate) mod freezer;
mod hierarchy;
pub(crate) mod look;
pub(crate) mod mark;
mod props;
pub(crate) mod rebuild;
