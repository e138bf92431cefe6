//! The steps that a server tells its client of, and the client's answers.
use crust_rpc::{Ack, Notification};
use std::os::fd::OwnedFd;

/// A step that is about to be taken, or was taken just now. The server waits for the answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice {
    /// Dump: nothing is stopped yet.
    PreDump,
    /// The tree is stopped; its network connections are to be held.
    NetworkLock,
    /// Which of the tree's resources are to be treated as external ([`Answer::Externals`]).
    QueryExternalFiles,
    /// Dump: the images are written and the tree is still stopped. The last moment to say no.
    PostDump,
    /// Connections may go on.
    NetworkUnlock,
    /// Restore: nothing is created yet.
    PreRestore,
    /// The tree's namespaces exist.
    SetupNamespaces {
        /// The root task.
        pid: Option<i32>,
    },
    /// They are filled.
    PostSetupNamespaces,
    /// The master of a terminal whose slave the tree holds. It lives as long as somebody keeps it.
    OrphanPtyMaster {
        /// The terminal's master.
        master: Option<OwnedFd>,
    },
    /// Restore: the tree is there and stopped. The last moment to say no.
    PostRestore {
        /// The root task.
        pid: Option<i32>,
    },
    /// The tree is about to run.
    PreResume,
    /// The tree runs.
    PostResume,
    /// A page server listens.
    StatusReady,
    /// A step this library does not know.
    Other {
        /// CRIU's name for it.
        script: String,
        /// The task it is about.
        pid: Option<i32>,
    },
}

impl From<Notification> for Notice {
    fn from(n: Notification) -> Self {
        let pid = n.pid;
        match n.script.as_str() {
            "pre-dump" => Self::PreDump,
            "network-lock" => Self::NetworkLock,
            "query-ext-files" => Self::QueryExternalFiles,
            "post-dump" => Self::PostDump,
            "network-unlock" => Self::NetworkUnlock,
            "pre-restore" => Self::PreRestore,
            "setup-namespaces" => Self::SetupNamespaces { pid },
            "post-setup-namespaces" => Self::PostSetupNamespaces,
            "orphan-pts-master" => Self::OrphanPtyMaster { master: n.fd },
            "post-restore" => Self::PostRestore { pid },
            "pre-resume" => Self::PreResume,
            "post-resume" => Self::PostResume,
            "status-ready" => Self::StatusReady,
            _ => Self::Other { script: n.script, pid },
        }
    }
}

/// What a client says to a [`Notice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go on.
    Go,
    /// Go on, and treat these as external as well. Heard at [`Notice::QueryExternalFiles`] only.
    Externals(Vec<String>),
    /// No: the request fails, as long as it still can.
    Stop,
}

impl From<Answer> for Ack {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Go => Self { success: true, external: Vec::new() },
            Answer::Externals(external) => Self { success: true, external },
            Answer::Stop => Self { success: false, external: Vec::new() },
        }
    }
}
