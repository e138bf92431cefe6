//! The list of programs, in one place for the binary that runs them and the tests that take them on trips.

/// Calls `$then!` with a row per program: `circle name options;`.
/// Circles: `first` must work from the first release on, `beyond` may be on the list of expected failures,
/// `refused` holds something that no dump may accept. Options go to dump and restore.
#[macro_export]
macro_rules! programs {
    ($then:ident) => {
        $then! {
            first blocked_futex;
            first blocked_poll;
            first blocked_read;
            first brk_heap;
            first children_1000;
            first chroot_root;
            first comm_names;
            first counter;
            first creds_caps;
            first creds_ids;
            first creds_securebits;
            first creds_user;
            first dev_nodes;
            first epoll_basic;
            first epoll_nested;
            first eventfd;
            first fd_big;
            first fd_cloexec;
            first fd_dir;
            first fd_dup;
            first fd_fork_shared;
            first fd_path;
            first fd_twice;
            first fifo;
            first files_regular;
            first itimer_fires;
            first itimers;
            first leader_dead_group;
            first leader_dead_session;
            first mem_arena;
            first mem_file_private;
            first mem_file_shared;
            first mem_fork_cow;
            first mem_guard;
            first mem_madvise;
            first mem_mlock;
            first mem_private;
            first mem_shared_devzero;
            first mem_shared_fork;
            first mem_shared_parts;
            first nanosleep;
            first oom_score_adj;
            first orphans;
            first pending_shared;
            first pending_thread;
            first personality;
            first pipe_closed_end;
            first pipe_content;
            first pipe_size;
            first pipe_tasks;
            first posix_timer_thread;
            first posix_timers;
            first prctls;
            first registers_general;
            first registers_vector;
            first registers_x87;
            first rlimits;
            first robust_list;
            first rseq;
            first sched;
            first self_image;
            first sessions;
            first sigactions;
            first sigaltstack_used;
            first signal_masks;
            first stack_deep;
            first stack_grows;
            first stopped_task;
            first threads_500;
            first threads_tls;
            first tree_family;
            first umask_cwd;
            first vdso_clock;
            first vmas_5000;
            first zombies;
            beyond blocked_epoll;
            beyond ctty;
            beyond epoll_closed_target;
            beyond fd_table_shared;
            beyond eventfd_semaphore;
            beyond file_locks "--file-locks";
            beyond inotify;
            beyond memfd;
            beyond pidfd;
            beyond pipe_packets;
            beyond pty_pair;
            beyond sched_affinity;
            beyond seccomp_filter;
            beyond seccomp_strict;
            beyond seccomp_tsync;
            beyond signalfd;
            beyond tcp_listen;
            beyond timerfd;
            beyond unix_listen;
            beyond unix_pair;
            beyond unlinked_file;
            refused refused_dead_leader;
            refused refused_io_uring;
            refused refused_landlock;
            refused refused_perf;
            refused refused_shared_mm;
            refused refused_seccomp_listener;
            refused refused_socket;
            refused refused_traced;
            refused refused_userfaultfd;
            refused refused_vfork;
        }
    };
}
