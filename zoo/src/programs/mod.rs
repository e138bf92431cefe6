//! One module per program. A new one costs a file, a line here, and a row in `table.rs`.
mod aio;
mod blocked_epoll;
mod blocked_futex;
mod blocked_poll;
mod blocked_read;
mod bpf_maps;
mod bpf_maps_more;
mod brk_heap;
mod cgroups;
mod children_1000;
mod chroot_root;
mod comm_names;
mod console_vt;
mod counter;
mod creds_caps;
mod creds_ids;
mod creds_securebits;
mod creds_user;
mod ctty;
mod ctty_bare;
mod dev_nodes;
mod dir_deleted;
mod epoll_basic;
mod epoll_closed_target;
mod epoll_nested;
mod eventfd;
mod eventfd_semaphore;
mod fanotify;
mod fd_big;
mod fd_cloexec;
mod fd_dir;
mod fd_dup;
mod fd_fork_shared;
mod fd_path;
mod fd_table_family;
mod fd_table_shared;
mod fd_twice;
mod fifo;
mod fifo_deleted;
mod file_locks;
mod files_regular;
mod fork_storm;
mod fs_shared;
mod futex_pi;
mod ghost_attributes;
mod ghost_holes;
mod held_file;
mod held_pipe;
mod hugetlb;
mod in_flight;
mod inotify;
mod inotify_deleted;
mod itimer_fires;
mod itimers;
mod leader_dead_group;
mod leader_dead_session;
mod leader_thread_ended;
mod leases;
mod link_remap;
mod mem_arena;
mod mem_file_private;
mod mem_file_shared;
mod mem_fork_cow;
mod mem_fork_reshaped;
mod mem_fork_shares;
mod mem_guard;
mod mem_madvise;
mod mem_mlock;
mod mem_private;
mod mem_shared_devzero;
mod mem_shared_fork;
mod mem_shared_parts;
mod mem_twins;
mod memfd;
mod mptcp_listen;
mod mqueue;
mod multicast;
mod nanosleep;
mod netlink;
mod oom_score_adj;
mod orphans;
mod packet_sockets;
mod pending_pause;
mod pending_shared;
mod pending_thread;
mod personality;
mod pidfd;
mod pipe_closed_end;
mod pipe_content;
mod pipe_packets;
mod pipe_size;
mod pipe_tasks;
mod posix_timer_thread;
mod posix_timers;
mod prctls;
mod proc_files;
mod pty_bytes;
mod pty_pair;
mod raw_sockets;
mod refused_bpf_program;
mod refused_inotify_events;
mod refused_io_uring;
mod refused_landlock;
mod refused_mqueue;
mod refused_perf;
mod refused_pidfd_outside;
mod refused_seccomp_listener;
mod refused_shared_mm;
mod refused_shm_outside;
mod refused_socket;
mod refused_syscall_dispatch;
mod refused_tcp_waiting;
mod refused_thread_files;
mod refused_time_for_children;
mod refused_traced;
mod refused_unix_waiting;
mod refused_userfaultfd;
mod refused_vfork;
mod registers_general;
mod registers_vector;
mod registers_x87;
mod rlimits;
mod robust_list;
mod rseq;
mod sched;
mod sched_affinity;
mod seccomp_filter;
mod seccomp_strict;
mod seccomp_tsync;
mod self_image;
mod sessions;
mod settings;
mod shm_sysv;
mod shmem_fd;
mod sigactions;
mod sigaltstack_none;
mod sigaltstack_used;
mod signal_masks;
mod signal_owners;
mod signalfd;
mod socket_options;
mod socket_options_all;
mod stack_deep;
mod stack_grows;
mod stopped_task;
mod tcp_closed;
mod tcp_listen;
mod threads_500;
mod threads_tls;
mod timed_waits;
mod timed_waits_eintr;
mod timerfd;
mod tree_deep;
mod tree_family;
mod udp_places;
mod udp_shut;
mod udp_waiting;
mod umask_cwd;
mod unix_empty;
mod unix_listen;
mod unix_names_gone;
mod unix_names_kept;
mod unix_pair;
mod unix_rights;
mod unix_rights_nested;
mod unix_waiting;
mod unix_waiting_order;
mod unlinked_file;
mod vdso_clock;
mod vfork_ends;
mod vmas_5000;
mod waits_left;
mod zombies;

macro_rules! dispatch {
    ($($circle:ident $program:ident $($option:literal)*;)*) => {
        /// Runs the program; false if there is none of that name.
        pub(crate) fn run(name: &str) -> bool {
            match name {
                $(stringify!($program) => $program::main(),)*
                _ => return false,
            }
            true
        }
    };
}
zoo::programs!(dispatch);

/// Holds a descriptor that no dump may accept, and checks that it is still the same one.
fn hold_refused(zoo: &mut zoo::Zoo, fd: i64, object: &str) {
    let Ok(fd @ 0..) = i32::try_from(fd) else { zoo.skip(&format!("this kernel gives no {object}")) };
    zoo.tell("names", &format!("task {}\nfd {fd}\n{object}", zoo::sys::getpid()));
    let before = zoo::proc::fd_link(fd);
    while zoo.gap() {
        zoo.eq("descriptor", zoo::proc::fd_link(fd), before.clone());
    }
}
