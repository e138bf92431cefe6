//! The schema as tables, generated at build time from `proto/*.proto`, and the names of bits and values in them.

/// A message type.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) name: &'static str,
    /// Ordered by number.
    pub(crate) fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) ty: Type,
    pub(crate) label: Label,
    pub(crate) packed: bool,
    pub(crate) show: Show,
}

/// An enum type.
#[derive(Debug)]
pub(crate) struct Enum {
    pub(crate) name: &'static str,
    pub(crate) values: &'static [(i32, &'static str)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    Required,
    Optional,
    Repeated,
}

/// Type of a field. `Text` is a string on paper that may hold any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "protobuf's types; not every one is used by a record")]
pub(crate) enum Type {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    Text,
    Bytes,
    /// Index into [`MESSAGES`].
    Message(usize),
    /// Index into [`ENUMS`].
    Enum(usize),
}

/// How a field looks to people; see `proto/show.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Plain,
    Hex,
    Ip,
    Dev,
    OldDev,
    Quoted,
    Flags(&'static str),
    Values(&'static str),
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// A message type by its name in the schema.
pub(crate) fn message(name: &str) -> Option<&'static Message> {
    MESSAGES.iter().find(|m| m.name == name)
}

/// Names of bits.
pub(crate) fn flags(table: &str) -> &'static [(&'static str, u64)] {
    match table {
        "mmap.prot" => &[("PROT_READ", 1), ("PROT_WRITE", 2), ("PROT_EXEC", 4)],
        "mmap.flags" => &[
            ("MAP_SHARED", 0x1),
            ("MAP_PRIVATE", 0x2),
            ("MAP_DROPPABLE", 0x8),
            ("MAP_ANON", 0x20),
            ("MAP_GROWSDOWN", 0x100),
        ],
        "mmap.status" => &[
            ("VMA_AREA_REGULAR", 1 << 0),
            ("VMA_AREA_STACK", 1 << 1),
            ("VMA_AREA_VSYSCALL", 1 << 2),
            ("VMA_AREA_VDSO", 1 << 3),
            ("VMA_AREA_HEAP", 1 << 5),
            ("VMA_FILE_PRIVATE", 1 << 6),
            ("VMA_FILE_SHARED", 1 << 7),
            ("VMA_ANON_SHARED", 1 << 8),
            ("VMA_ANON_PRIVATE", 1 << 9),
            ("VMA_AREA_SYSVIPC", 1 << 10),
            ("VMA_AREA_SOCKET", 1 << 11),
            ("VMA_AREA_VVAR", 1 << 12),
            ("VMA_AREA_AIORING", 1 << 13),
            ("VMA_AREA_MEMFD", 1 << 14),
            ("VMA_AREA_SHSTK", 1 << 15),
            ("VMA_AREA_UPROBES", 1 << 17),
            ("VMA_UNSUPP", 1 << 31),
        ],
        "rfile.flags" => &[
            ("O_WRONLY", 0o1),
            ("O_RDWR", 0o2),
            ("O_CREAT", 0o100),
            ("O_EXCL", 0o200),
            ("O_NOCTTY", 0o400),
            ("O_TRUNC", 0o1000),
            ("O_APPEND", 0o2000),
            ("O_NONBLOCK", 0o4000),
            ("O_DSYNC", 0o1_0000),
            ("FASYNC", 0o2_0000),
            ("O_DIRECT", 0o4_0000),
            ("O_LARGEFILE", 0o10_0000),
            ("O_DIRECTORY", 0o20_0000),
            ("O_NOFOLLOW", 0o40_0000),
            ("O_NOATIME", 0o100_0000),
            ("O_CLOEXEC", 0o200_0000),
        ],
        "pmap.flags" => &[("PE_PARENT", 1), ("PE_LAZY", 2), ("PE_PRESENT", 4)],
        "seals.flags" => &[
            ("F_SEAL_SEAL", 1),
            ("F_SEAL_SHRINK", 2),
            ("F_SEAL_GROW", 4),
            ("F_SEAL_WRITE", 8),
            ("F_SEAL_FUTURE_WRITE", 16),
        ],
        _ => &[],
    }
}

/// Names of values.
pub(crate) fn values(table: &str) -> &'static [(u64, &'static str)] {
    match table {
        "task.task_state" => &[(1, "Alive"), (3, "Zombie"), (6, "Stopped")],
        "socket.family" => &[(1, "UNIX"), (2, "INET"), (10, "INET6"), (16, "NETLINK"), (17, "PACKET")],
        "socket.type" => &[(1, "STREAM"), (2, "DGRAM"), (3, "RAW"), (5, "SEQPACKET"), (10, "PACKET")],
        "socket.state" => &[
            (1, "ESTABLISHED"),
            (2, "SYN_SENT"),
            (3, "SYN_RECV"),
            (4, "FIN_WAIT1"),
            (5, "FIN_WAIT2"),
            (6, "TIME_WAIT"),
            (7, "CLOSE"),
            (8, "CLOSE_WAIT"),
            (9, "LAST_ACK"),
            (10, "LISTEN"),
        ],
        "socket.proto" => &[(0, "IP"), (6, "TCP"), (17, "UDP"), (136, "UDPLITE")],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageKind;

    #[test]
    fn every_kind_has_its_record_type() {
        for kind in ImageKind::all().filter(|k| !k.is_raw()) {
            assert!(message(kind.record_name()).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn every_table_of_names_exists() {
        for field in MESSAGES.iter().flat_map(|m| m.fields) {
            match field.show {
                Show::Flags(table) => assert!(!flags(table).is_empty(), "{}: {table}", field.name),
                Show::Values(table) => assert!(!values(table).is_empty(), "{}: {table}", field.name),
                _ => {}
            }
        }
        let sk = message("inet_sk_entry").unwrap();
        assert_eq!(sk.fields[2].show, Show::Values("socket.family"));
        assert_eq!(message("mm_entry").unwrap().fields[0].show, Show::Hex);
    }
}
