/*
 * Carrying out launch plans: containers and the processes that are added to them.
 *
 * A launch never blocks void-init. It clones the process at once and returns; everything that may
 * take time (waiting for a disk, mounts, reading the image) happens in the new process, which talks
 * back over `control_fd`, a SOCK_SEQPACKET socket that execve closes. The caller polls it:
 *
 *     launch_container() ──▶ POLLIN: launch_read() = LAUNCH_READY     (created; terminal_fd is there)
 *     launch_start()     ──▶ POLLIN: launch_read() = LAUNCH_STARTED   (execve has happened)
 *                        at any point:               LAUNCH_FAILED    (failure says which step, why)
 *
 * After LAUNCH_FAILED the process exits by itself, closes the control socket and is reaped like
 * any other child; its mounts die with its mount namespace, and launch_release() removes the rest.
 */
#ifndef VOID_LAUNCH_H
#define VOID_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "failure.h"
#include "pb.h"

enum { LAUNCH_PATH_MAX = 512 };

/* The child's ends of the process's streams, -1 for /dev/null. Borrowed: the caller closes them
 * after the launch call. With process.terminal they are ignored: the terminal is opened in the
 * container's own devpts (so that ttyname works there) and its master arrives with LAUNCH_READY. */
struct launch_io {
    int stdin_fd;
    int stdout_fd;
    int stderr_fd;
};

/* How a launch finds a container whose namespaces are to be joined. `pid_of` returns the pid of its
 * first process, which must not be reaped yet, or -ENOENT. */
struct launch_context {
    pid_t (*pid_of)(void *argument, struct pb_slice container_id);
    void *argument;
};

struct launched {
    pid_t pid;                                 /* as void-init counts; a direct child of void-init */
    int control_fd;                            /* poll for POLLIN; see above */
    int terminal_fd;                           /* master of the terminal after LAUNCH_READY, else -1 */
    int cgroup_fd;                             /* directory for the functions of cgroup.h; -1 for an exec */
    char cgroup_path[LAUNCH_PATH_MAX];         /* below the container cgroup root; empty for an exec */
    bool start_asked;
    char directory[LAUNCH_PATH_MAX];           /* where the guest keeps the container's mount points, or empty */
};

enum launch_phase {
    LAUNCH_PENDING, /* nothing new */
    LAUNCH_READY,   /* created, waits for launch_start() */
    LAUNCH_STARTED, /* execve succeeded; control_fd may be closed */
    LAUNCH_FAILED,  /* failure is filled in */
};

/* Creates the container of an encoded LaunchPlan. 0, or -errno with `failure` filled in; on failure
 * nothing is left behind (cgroup, process) and `launched` is untouched. */
int launch_container(struct pb_slice plan, const struct launch_io *io,
                     const struct launch_context *context, struct launched *launched,
                     struct failure *failure);

/* A running container that a process is added to. */
struct launch_target {
    pid_t init_pid; /* its first process, not reaped yet: whose namespaces to join */
    int cgroup_fd;
    struct pb_slice container_id;
};

/* Adds a process (an encoded ProcessPlan) to a running container: in its namespaces, its cgroup and
 * its session keyring. Otherwise as launch_container(); ESRCH: the first process is exiting. */
int launch_exec(const struct launch_target *target, struct pb_slice process,
                const struct launch_io *io, struct launched *launched, struct failure *failure);

/* Reads one report of the new process without blocking. */
enum launch_phase launch_read(struct launched *launched, struct failure *failure);

/* Lets a created process run. 0 or -errno (-EPIPE: it is gone). */
int launch_start(struct launched *launched);

/* Closes control_fd, cgroup_fd, and terminal_fd unless the caller took it over at LAUNCH_READY. A
 * process that still waits for launch_start() ends when its control socket closes. Safe to repeat. */
void launch_close(struct launched *launched);

/* launch_close(), then removes what a container leaves behind: kills what is left in its cgroup,
 * removes that, waiting at most `timeout_ms` for the last process, and its empty mount points.
 * 0 or -errno (-EBUSY: still populated; -EAGAIN: there is more to remove); may be called again. Nothing to do for an exec. */
int launch_release(struct launched *launched, int timeout_ms);

#endif
