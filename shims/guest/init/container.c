/* What concerns a container as a whole: OOM kills, signals, freezing, its end. */
#include "proc.h"

#include "cgroup.h"
#include "events.h"
#include "log.h"

#include <signal.h>
#include <string.h>
#include <sys/epoll.h>

enum {
    HELD_EXIT_MS = 10000, /* execs that survive SIGKILL this long do not hold back init's exit */
    FREEZE_MS = 10000,
    DELETE_RETRY_MS = 5,
    DELETE_RETRIES = 1000,
    PIDS_MAX = 8192,
};

#define OWNER(member, pointer) \
    ((struct container *)((char *)(pointer) - offsetof(struct container, member)))

static int cgroup_of(const struct container *container) {
    return container->init->launched.cgroup_fd;
}

/* ---- OOM kills ------------------------------------------------------------------------------- */

void container_check_oom(struct container *container) {
    uint64_t kills = 0;
    if (cgroup_of(container) < 0 || cgroup_oom_kills(cgroup_of(container), &kills) < 0 ||
        kills <= container->oom_kills) {
        return;
    }
    container->oom_kills = kills;
    events_oom(container->id, kills);
}

/* kernfs announces a change once per reading of the descriptor that is watched. */
static void reread(int fd) {
    char ignored[256];
    ssize_t size = RETRY(pread(fd, ignored, sizeof ignored, 0));
    (void)size;
}

static void memory_events_ready(struct watch *watch, uint32_t events) {
    (void)events;
    reread(watch->fd);
    container_check_oom(OWNER(memory_events, watch));
}

static void frozen_changed(struct watch *watch, uint32_t events);
static void drop_freeze(struct container *container);

static void watch_file(struct watch *watch, int cgroup_fd, const char *file,
                       void (*ready)(struct watch *, uint32_t)) {
    AUTO_CLOSE int fd = cgroup_watch(cgroup_fd, file);
    if (fd < 0) {
        return; /* a kernel without the controller; freezing answers with its own error */
    }
    reread(fd);
    if (loop_add(watch, fd, EPOLLPRI, ready) == 0) {
        take_fd(&fd);
    }
}

void container_watch(struct container *container) {
    if (cgroup_of(container) < 0) {
        return;
    }
    watch_file(&container->memory_events, cgroup_of(container), "memory.events",
               memory_events_ready);
    watch_file(&container->cgroup_events, cgroup_of(container), "cgroup.events", frozen_changed);
}

/* ---- the end --------------------------------------------------------------------------------- */

static bool has_live_execs(struct container *container) {
    struct process *process = NULL;
    while ((process = proc_next(container, process)) != NULL) {
        if (process != container->init && process->pid != 0) {
            return true;
        }
    }
    return false;
}

static void announce_exit(struct container *container) {
    const struct process *init = container->init;
    loop_clear_deadline(&container->held_until);
    container->exit_held = false;
    if (!init->failed) {
        events_exited(container->id, "", (pid_t)init->shown_pid, init->status, init->exited_at_ns);
    }
}

static void held_too_long(struct deadline *deadline) {
    struct container *container = OWNER(held_until, deadline);
    log_error("%s: its execs do not die", container->id);
    announce_exit(container);
}

static void kill_execs(struct container *container) {
    struct process *process = NULL;
    while ((process = proc_next(container, process)) != NULL) {
        if (process->pid != 0) {
            kill(process->pid, SIGKILL);
        }
    }
}

/* With a pid namespace of its own the kernel has killed everybody already; without one we do. */
void container_init_died(struct container *container) {
    if (cgroup_of(container) >= 0) {
        cgroup_kill(cgroup_of(container));
    }
    kill_execs(container);
    drop_freeze(container);
    if (!has_live_execs(container)) {
        announce_exit(container);
        return;
    }
    container->exit_held = true;
    loop_set_deadline(&container->held_until, HELD_EXIT_MS, held_too_long);
}

void container_exec_died(struct container *container) {
    if (container->exit_held && !has_live_execs(container)) {
        announce_exit(container);
    }
}

static void try_release(struct container *container);

static void retry_release(struct deadline *deadline) {
    try_release(OWNER(delete_retry, deadline));
}

/* The last processes may still be on their way out: the cgroup goes as soon as they have. */
static void try_release(struct container *container) {
    int error = launch_release(&container->init->launched, 0);
    if (error == -EAGAIN) {
        loop_set_deadline(&container->delete_retry, 0, retry_release); /* after other calls */
        return;
    }
    if (error == -EBUSY && container->delete_tries++ < DELETE_RETRIES) {
        loop_set_deadline(&container->delete_retry, DELETE_RETRY_MS, retry_release);
        return;
    }
    if (error < 0) {
        log_error("%s: cannot be removed: %s", container->id, strerror(-error));
    }
    struct call call = container->delete_call;
    proc_answer_failed(container);
    drop_freeze(container);
    container_forget(container);
    rpc_done(call);
}

void container_release(struct container *container, struct call call) {
    container->deleting = true;
    if (!call_none(call)) {
        container->delete_call = call; /* a failed launch is released again when it is reaped */
    }
    if (cgroup_of(container) >= 0) {
        cgroup_kill(cgroup_of(container));
    }
    try_release(container);
}

/* ---- signals --------------------------------------------------------------------------------- */

static int signal_all(struct container *container, int number) {
    static pid_t pids[PIDS_MAX];
    if (number == SIGKILL) {
        return cgroup_kill(cgroup_of(container));
    }
    ssize_t count = container_pids(container, pids, PIDS_MAX);
    for (ssize_t i = 0; i < count; i++) {
        kill(pids[i], number);
    }
    return count < 0 ? (int)count : 0;
}

void container_handle_signal(struct call call, struct pb_slice request) {
    struct process_ref ref;
    struct process *process;
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    uint64_t number = 0;
    bool all = false;
    if (!proc_read_ref(call, request, &ref)) {
        return;
    }
    while (pb_field(&reader, &field) > 0) {
        number = field.number == 3 ? field.varint : number;
        all = field.number == 4 ? field.varint != 0 : all;
    }
    if ((process = proc_require_process(call, &ref)) == NULL) {
        return;
    }
    if (process->pid == 0) {
        rpc_fail(call, RPC_NOT_FOUND, "process \"%s\" of \"%s\" does not run", ref.exec,
                 ref.container);
        return;
    }
    if (number > (uint64_t)SIGRTMAX) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "signal %llu does not exist",
                 (unsigned long long)number);
        return;
    }
    int error = all ? signal_all(process->container, (int)number)
                    : (kill(process->pid, (int)number) < 0 ? -errno : 0);
    if (error < 0) {
        rpc_fail_errno(call, error, "signal %d", (int)number);
    } else {
        rpc_done(call);
    }
}

/* ---- freezing -------------------------------------------------------------------------------- */

static void end_freeze(struct container *container, bool reached) {
    struct call call = container->freeze_call;
    loop_clear_deadline(&container->freeze_until);
    container->freeze_call = (struct call){0};
    if (reached) {
        rpc_done(call);
    } else {
        rpc_fail(call, RPC_DEADLINE_EXCEEDED, "container \"%s\" did not %s within %d s",
                 container->id, container->freeze_wanted ? "freeze" : "thaw", FREEZE_MS / 1000);
    }
}

/* Whoever waits for the freezing of a container that is at its end is told so. */
static void drop_freeze(struct container *container) {
    struct call call = container->freeze_call;
    loop_clear_deadline(&container->freeze_until);
    container->freeze_call = (struct call){0};
    rpc_fail(call, RPC_FAILED_PRECONDITION, "container \"%s\" has exited", container->id);
}

static bool freeze_reached(struct container *container) {
    uint64_t frozen = 0;
    return cgroup_read_key(cgroup_of(container), "cgroup.events", "frozen", &frozen) == 0 &&
           (frozen != 0) == container->freeze_wanted;
}

static void frozen_changed(struct watch *watch, uint32_t events) {
    struct container *container = OWNER(cgroup_events, watch);
    (void)events;
    reread(watch->fd);
    if (!call_none(container->freeze_call) && freeze_reached(container)) {
        end_freeze(container, true);
    }
}

static void freeze_too_long(struct deadline *deadline) {
    struct container *container = OWNER(freeze_until, deadline);
    if (container->freeze_wanted) {
        cgroup_freeze(cgroup_of(container), false); /* half frozen is worse than running */
    }
    end_freeze(container, false);
}

static void freeze(struct call call, struct container *container, bool frozen) {
    int error = cgroup_freeze(cgroup_of(container), frozen);
    if (error < 0) {
        rpc_fail_errno(call, error, "cgroup.freeze of \"%s\"", container->id);
        return;
    }
    container->freeze_call = call;
    container->freeze_wanted = frozen;
    if (freeze_reached(container)) {
        end_freeze(container, true);
    } else {
        loop_set_deadline(&container->freeze_until, FREEZE_MS, freeze_too_long);
    }
}

void container_handle_freeze(struct call call, struct pb_slice request) {
    struct process_ref ref; /* field 2 is a number here: it reads as no exec */
    struct container *container;
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    bool frozen = false;
    if (!proc_read_ref(call, request, &ref)) {
        return;
    }
    while (pb_field(&reader, &field) > 0) {
        frozen = field.number == 2 ? field.varint != 0 : frozen;
    }
    if ((container = proc_require_container(call, ref.container)) == NULL) {
        return;
    }
    if (rpc_live(container->freeze_call)) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "\"%s\" is being frozen or thawed", ref.container);
    } else if (container->init->pid == 0) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "container \"%s\" has exited", ref.container);
    } else {
        freeze(call, container, frozen);
    }
}

void container_handle_update(struct call call, struct pb_slice request) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    struct pb_slice id = {0};
    char name[ID_MAX], file[64] = "";
    struct container *container;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        id = field.number == 1 ? field.bytes : id;
    }
    if (more < 0 || pb_string(id, name, sizeof name) < 0) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "a malformed UpdateCgroup");
        return;
    }
    if ((container = proc_require_container(call, name)) == NULL) {
        return;
    }
    int error = cgroup_write_all(cgroup_of(container), request, 2, file);
    if (error < 0) {
        rpc_fail_errno(call, error, "%s of \"%s\"", file, name);
    } else {
        rpc_done(call);
    }
}
