/*
 * Containers and their processes: fixed tables, and the life of an entry from launch to deletion.
 * table.c owns the tables, proc.c launches, reap.c tells what exited; container.c does what
 * concerns a container's cgroup.
 *
 *     LAUNCHING ──ready──▶ CREATED ──start──▶ STARTING ──execve──▶ RUNNING ──▶ EXITED ──delete──▶
 *
 * An exec is CREATED by AddProcess without a process; it passes LAUNCHING and STARTING inside
 * StartProcess. A launch that fails leaves no container, and an exec EXITED without an event.
 */
#ifndef VOID_PROC_H
#define VOID_PROC_H

#include "base.h"
#include "launch.h"
#include "loop.h"
#include "rpc.h"
#include "stdio.h"

#include <sys/types.h>

enum { PROCESSES_MAX = 256, CONTAINERS_MAX = 128 };

/* Exit statuses of processes that were never run, as shells use them. */
enum { EXIT_CANNOT_RUN = 126, EXIT_NOT_FOUND = 127, EXIT_SIGNAL_BASE = 128 };

enum phase {
    PHASE_FREE,
    PHASE_CREATED,
    PHASE_LAUNCHING,
    PHASE_STARTING,
    PHASE_RUNNING,
    PHASE_EXITED,
};

struct process {
    struct watch report; /* launched.control_fd */
    enum phase phase;
    struct container *container;
    char exec_id[ID_MAX]; /* empty: the container's first process */
    pid_t pid;            /* 0: none, or reaped */
    uint32_t shown_pid;   /* what the host was told; stays after the exit */
    uint32_t status;
    uint64_t exited_at_ns;
    bool failed;          /* the launch reported a failure; the exit is no event */
    struct call call;     /* the CreateContainer or StartProcess that waits, the former of a launch
                           * that failed until nothing is left of the container */
    struct launched launched;
    struct launch_io child_ends;
    struct stdio stdio;
    uint8_t *plan; /* an exec's ProcessPlan until it starts */
    size_t plan_size;
};

struct container {
    struct watch memory_events, cgroup_events;
    bool used;
    char id[ID_MAX];
    struct process *init;
    struct failure failure;    /* why it could not be created; init->call waits to hear it */
    uint64_t oom_kills;
    bool exit_held;            /* init is gone, but its exit waits for those of its execs */
    struct deadline held_until;
    struct call freeze_call;   /* the Freeze that waits */
    bool freeze_wanted;
    struct deadline freeze_until;
    struct call delete_call;   /* the DeleteProcess that waits for the cgroup to empty */
    bool deleting;
    struct deadline delete_retry;
    unsigned delete_tries;
};

/* Decoded head of every request that names a process: container_id = 1, exec_id = 2. */
struct process_ref {
    char container[ID_MAX], exec[ID_MAX];
};

/* False, and the call has been answered, when the request is malformed or names nothing. */
bool proc_read_ref(struct call call, struct pb_slice request, struct process_ref *ref);
struct container *proc_require_container(struct call call, const char *id);
struct process *proc_require_process(struct call call, const struct process_ref *ref);

/* Entries by name; NULL: there is none. New entries; NULL: the table is full. */
struct container *container_find(const char *id);
struct container *container_new(const char *id);
struct process *proc_find(const struct container *container, const char *exec_id);
struct process *proc_new(struct container *container, const char *exec_id);
struct process *proc_of_pid(pid_t pid);
struct process *proc_next(const struct container *container, struct process *after);
struct container *container_next(struct container *after);

/* Works off the launcher's reports of one process, as far as they have come. */
void proc_read_reports(struct process *process);
/* Answers the CreateContainer of a container that could not be created, if it still waits. */
void proc_answer_failed(struct container *container);
void proc_forget(struct process *process);
void container_forget(struct container *container);

void proc_handle_create(struct call call, struct pb_slice request);
void proc_handle_add(struct call call, struct pb_slice request);
void proc_handle_start(struct call call, struct pb_slice request);
void proc_handle_delete(struct call call, struct pb_slice request);

/* streams.c: the calls about standard streams, and HelloResponse.containers as field `field`. */
void proc_handle_read_stdio(struct call call, struct pb_slice request);
void proc_handle_write_stdio(struct call call, struct pb_slice request);
void proc_handle_resize(struct call call, struct pb_slice request);
void proc_put_states(struct pb_writer *writer, uint32_t field);

/* reap.c */
void reap_children(void);
void reap_kill_all(void);

/* container.c */
void container_watch(struct container *container);
void container_check_oom(struct container *container);
void container_init_died(struct container *container);
void container_exec_died(struct container *container);
void container_release(struct container *container, struct call call);
void container_handle_signal(struct call call, struct pb_slice request);
void container_handle_freeze(struct call call, struct pb_slice request);
void container_handle_update(struct call call, struct pb_slice request);

/* pids.c: every process in the container's cgroup and below it; the count, or -errno. */
ssize_t container_pids(struct container *container, pid_t *pids, size_t capacity);
void container_handle_list(struct call call, struct pb_slice request);

#endif
