/* The tables of containers and processes, and how requests name their entries. */
#include "proc.h"

#include <string.h>

/* Entries are all zero until they are used: a fresh VM has not touched their memory. */
static struct process processes[PROCESSES_MAX];
static struct container containers[CONTAINERS_MAX];

struct container *container_find(const char *id) {
    struct container *at = NULL;
    while ((at = container_next(at)) != NULL) {
        if (strcmp(at->id, id) == 0) {
            return at;
        }
    }
    return NULL;
}

struct container *container_next(struct container *after) {
    for (struct container *at = after ? after + 1 : containers; at < containers + CONTAINERS_MAX;
         at++) {
        if (at->used) {
            return at;
        }
    }
    return NULL;
}

struct process *proc_next(const struct container *container, struct process *after) {
    for (struct process *at = after ? after + 1 : processes; at < processes + PROCESSES_MAX; at++) {
        if (at->phase != PHASE_FREE && (container == NULL || at->container == container)) {
            return at;
        }
    }
    return NULL;
}

struct process *proc_of_pid(pid_t pid) {
    struct process *at = NULL;
    while ((at = proc_next(NULL, at)) != NULL) {
        if (at->pid == pid) {
            return at;
        }
    }
    return NULL;
}

struct process *proc_find(const struct container *container, const char *exec_id) {
    struct process *at = NULL;
    while ((at = proc_next(container, at)) != NULL) {
        if (strcmp(at->exec_id, exec_id) == 0) {
            return at;
        }
    }
    return NULL;
}

struct process *proc_new(struct container *container, const char *exec_id) {
    for (struct process *at = processes; at < processes + PROCESSES_MAX; at++) {
        if (at->phase != PHASE_FREE) {
            continue;
        }
        memset(at, 0, sizeof *at);
        at->phase = PHASE_CREATED;
        at->container = container;
        at->report.fd = -1;
        at->launched = (struct launched){.control_fd = -1, .terminal_fd = -1, .cgroup_fd = -1};
        at->child_ends = (struct launch_io){.stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1};
        strcpy(at->exec_id, exec_id); /* both are ID_MAX */
        stdio_init(&at->stdio);
        return at;
    }
    return NULL;
}

struct container *container_new(const char *id) {
    for (struct container *at = containers; at < containers + CONTAINERS_MAX; at++) {
        if (at->used) {
            continue;
        }
        memset(at, 0, sizeof *at);
        at->used = true;
        at->memory_events.fd = at->cgroup_events.fd = -1;
        strcpy(at->id, id);
        return at;
    }
    return NULL;
}

void proc_forget(struct process *process) {
    loop_remove(&process->report);
    stdio_close_child_ends(&process->child_ends);
    stdio_close(&process->stdio);
    launch_close(&process->launched);
    free(process->plan);
    memset(process, 0, sizeof *process);
}

void container_forget(struct container *container) {
    struct process *at = NULL;
    while ((at = proc_next(container, at)) != NULL) {
        proc_forget(at);
    }
    int fds[] = {container->memory_events.fd, container->cgroup_events.fd};
    loop_remove(&container->memory_events);
    loop_remove(&container->cgroup_events);
    close_fd(&fds[0]);
    close_fd(&fds[1]);
    loop_clear_deadline(&container->held_until);
    loop_clear_deadline(&container->freeze_until);
    loop_clear_deadline(&container->delete_retry);
    container->used = false;
}

/* ---- names in requests ----------------------------------------------------------------------- */

bool proc_read_ref(struct call call, struct pb_slice request, struct process_ref *ref) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    int more, error = 0;
    ref->container[0] = ref->exec[0] = 0;
    while ((more = pb_field(&reader, &field)) > 0 && error == 0) {
        if (field.number == 1) {
            error = pb_string(field.bytes, ref->container, sizeof ref->container);
        } else if (field.number == 2) {
            error = pb_string(field.bytes, ref->exec, sizeof ref->exec);
        }
    }
    if (more < 0 || error < 0) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "a malformed request, or an id over %d bytes",
                 ID_MAX - 1);
        return false;
    }
    return true;
}

struct container *proc_require_container(struct call call, const char *id) {
    struct container *container = container_find(id);
    if (container == NULL || container->deleting) {
        rpc_fail(call, RPC_NOT_FOUND, "no container \"%s\"", id);
        return NULL;
    }
    return container;
}

struct process *proc_require_process(struct call call, const struct process_ref *ref) {
    struct container *container = proc_require_container(call, ref->container);
    if (container == NULL) {
        return NULL;
    }
    struct process *process = proc_find(container, ref->exec);
    if (process == NULL) {
        rpc_fail(call, RPC_NOT_FOUND, "no process \"%s\" in container \"%s\"", ref->exec,
                 ref->container);
    }
    return process;
}
