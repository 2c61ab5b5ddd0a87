#include "proc.h"

#include "events.h"
#include "log.h"

#include <signal.h>
#include <string.h>
#include <sys/epoll.h>

enum { PLAN_CONTAINER_ID = 1, PLAN_PROCESS = 6 };

/* ---- launching ------------------------------------------------------------------------------- */

static void answer_pid(struct process *process) {
    struct reply reply;
    struct call call = process->call;
    process->call = (struct call){0};
    if (rpc_begin(&reply, call, 16)) {
        pb_put_varint(&reply.writer, 1, process->shown_pid);
        rpc_end(&reply);
    }
}

/* What a plan asked for and did not get is the plan's fault unless the errno says otherwise; a
 * missing program must not read like a missing container. */
static enum rpc_code code_of_failure(int error) {
    switch (error) {
    case ENOMEM:
    case ENOSPC:
    case EAGAIN:
        return RPC_RESOURCE_EXHAUSTED;
    case ETIMEDOUT:
        return RPC_DEADLINE_EXCEEDED;
    case ESRCH: /* the container that it should join is on its way out */
        return RPC_FAILED_PRECONDITION;
    case ENOSYS:
    case EOPNOTSUPP:
        return RPC_UNIMPLEMENTED;
    case EIO:
    case EPIPE:
        return RPC_INTERNAL;
    default:
        return RPC_INVALID_ARGUMENT;
    }
}

static void answer_failure(struct process *process, const struct failure *failure) {
    struct call call = process->call;
    process->call = (struct call){0};
    rpc_fail(call, code_of_failure(failure->error), "%s", failure->text);
}

void proc_answer_failed(struct container *container) {
    answer_failure(container->init, &container->failure);
}

static void launch_failed(struct process *process, const struct failure *failure) {
    log_info("%s/%s: %s", process->container->id, process->exec_id, failure->text);
    process->failed = true;
    process->status = failure->error == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN;
    stdio_never_started(&process->stdio);
    if (process == process->container->init && process->phase == PHASE_LAUNCHING) {
        /* The answer says that nothing is left: container.c gives it when that is so. Killed,
         * because a process that was frozen meanwhile does not exit by itself. */
        process->container->failure = *failure;
        kill(process->pid, SIGKILL);
        return;
    }
    answer_failure(process, failure);
}

static void launch_ready(struct process *process) {
    int error = 0;
    if (process->launched.terminal_fd >= 0) {
        error = stdio_attach_terminal(&process->stdio, take_fd(&process->launched.terminal_fd));
    }
    if (error < 0) {
        log_warn("%s/%s: terminal: %s", process->container->id, process->exec_id, strerror(-error));
    }
    if (process->exec_id[0] == 0) {
        process->phase = PHASE_CREATED;
        answer_pid(process);
        return;
    }
    process->phase = PHASE_STARTING;
    launch_start(&process->launched); /* if it is gone already, its exit says so */
}

void proc_read_reports(struct process *process) {
    struct failure failure = {0};
    while (process->launched.control_fd >= 0) {
        switch (launch_read(&process->launched, &failure)) {
        case LAUNCH_PENDING:
            return;
        case LAUNCH_READY:
            launch_ready(process);
            break;
        case LAUNCH_STARTED:
            process->phase = PHASE_RUNNING;
            answer_pid(process);
            loop_remove(&process->report);
            close_fd(&process->launched.control_fd);
            return;
        case LAUNCH_FAILED:
            /* One that waits for its start has nothing to fail at: it was killed, and its exit says
             * so like any other. */
            if (process->phase != PHASE_CREATED) {
                launch_failed(process, &failure);
            }
            loop_remove(&process->report);
            close_fd(&process->launched.control_fd);
            return;
        }
    }
}

static void report_ready(struct watch *watch, uint32_t events) {
    (void)events;
    proc_read_reports((struct process *)watch); /* its first member */
}

/* The launcher has cloned: from here on the process is known by its pid and its reports. */
static void launched(struct process *process, struct call call) {
    stdio_close_child_ends(&process->child_ends);
    process->pid = process->launched.pid;
    process->shown_pid = (uint32_t)process->launched.pid;
    process->phase = PHASE_LAUNCHING;
    process->call = call;
    int error = loop_add(&process->report, process->launched.control_fd, EPOLLIN, report_ready);
    if (error < 0) {
        log_error("cannot watch a launch: %s", strerror(-error));
    }
}

static pid_t init_pid_of(void *argument, struct pb_slice id) {
    char name[ID_MAX];
    (void)argument;
    struct container *container = NULL;
    if (pb_string(id, name, sizeof name) == 0) {
        container = container_find(name);
    }
    if (container == NULL || container->init == NULL || container->init->pid == 0) {
        return -ENOENT;
    }
    return container->init->pid;
}

static bool room_for_one_more(struct call call) {
    if (events_have_room()) {
        return true;
    }
    rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "too many events wait to be fetched");
    return false;
}

static void create(struct call call, struct pb_slice plan, const char *id,
                   struct pb_slice process_plan) {
    static const struct launch_context context = {.pid_of = init_pid_of};
    struct failure failure = {0};
    struct container *container = container_new(id);
    struct process *process = container != NULL ? proc_new(container, "") : NULL;
    if (process == NULL) {
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "this VM runs %d containers or %d processes already",
                 CONTAINERS_MAX, PROCESSES_MAX);
        if (container != NULL) {
            container->used = false;
        }
        return;
    }
    container->init = process;
    int error = stdio_open(&process->stdio, process_plan, &process->child_ends);
    if (error < 0) {
        rpc_fail_errno(call, error, "pipes of container \"%s\"", id);
        container_forget(container);
        return;
    }
    if (launch_container(plan, &process->child_ends, &context, &process->launched, &failure) < 0) {
        rpc_fail(call, code_of_failure(failure.error), "%s", failure.text);
        container_forget(container);
        return;
    }
    launched(process, call);
    container_watch(container);
}

void proc_handle_create(struct call call, struct pb_slice request) {
    struct pb_slice plan = {0}, process_plan = {0};
    char id[ID_MAX] = "";
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    int more, error = 0;
    while ((more = pb_field(&reader, &field)) > 0) {
        plan = field.number == 1 ? field.bytes : plan;
    }
    if (more == 0) {
        reader = pb_read(plan);
        while ((more = pb_field(&reader, &field)) > 0 && error == 0) {
            if (field.number == PLAN_CONTAINER_ID) {
                error = pb_string(field.bytes, id, sizeof id);
            } else if (field.number == PLAN_PROCESS) {
                process_plan = field.bytes;
            }
        }
    }
    if (more < 0 || error < 0 || id[0] == 0) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "the launch plan has no usable container_id");
    } else if (container_find(id) != NULL) {
        rpc_fail(call, RPC_ALREADY_EXISTS, "container \"%s\" exists", id);
    } else if (room_for_one_more(call)) {
        create(call, plan, id, process_plan);
    }
}

/* ---- execs ----------------------------------------------------------------------------------- */

static void add(struct call call, struct container *container, const char *exec_id,
                struct pb_slice plan) {
    struct process *process = proc_new(container, exec_id);
    if (process == NULL) {
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "this VM runs %d processes already", PROCESSES_MAX);
        return;
    }
    process->plan = malloc(plan.size + 1);
    int error = process->plan == NULL ? -ENOMEM
                                      : stdio_open(&process->stdio, plan, &process->child_ends);
    if (error < 0) {
        rpc_fail_errno(call, error, "process \"%s\"", exec_id);
        proc_forget(process);
        return;
    }
    if (plan.size > 0) {
        memcpy(process->plan, plan.data, plan.size);
    }
    process->plan_size = plan.size;
    rpc_done(call);
}

void proc_handle_add(struct call call, struct pb_slice request) {
    struct process_ref ref;
    struct pb_slice plan = {0};
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    if (!proc_read_ref(call, request, &ref)) {
        return;
    }
    while (pb_field(&reader, &field) > 0) {
        plan = field.number == 3 ? field.bytes : plan;
    }
    struct container *container = proc_require_container(call, ref.container);
    if (container == NULL) {
        return;
    }
    if (ref.exec[0] == 0) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "exec_id is empty");
    } else if (proc_find(container, ref.exec) != NULL) {
        rpc_fail(call, RPC_ALREADY_EXISTS, "process \"%s\" exists", ref.exec);
    } else if (container->init->phase == PHASE_EXITED) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "container \"%s\" has exited", ref.container);
    } else if (room_for_one_more(call)) {
        add(call, container, ref.exec, plan);
    }
}

static void start_exec(struct call call, struct process *process) {
    struct failure failure = {0};
    struct process *init = process->container->init;
    struct pb_slice plan = {process->plan, process->plan_size};
    if (init->phase != PHASE_RUNNING || init->pid == 0) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "container \"%s\" is not running",
                 process->container->id);
        return;
    }
    const char *id = process->container->id;
    struct launch_target target = {
        .init_pid = init->pid,
        .cgroup_fd = init->launched.cgroup_fd,
        .container_id = {(const uint8_t *)id, strlen(id)},
    };
    int error =
        launch_exec(&target, plan, &process->child_ends, &process->launched, &failure);
    if (error < 0) {
        process->call = call;
        launch_failed(process, &failure);
        stdio_close_child_ends(&process->child_ends);
        process->phase = PHASE_EXITED;
        return;
    }
    launched(process, call);
}

void proc_handle_start(struct call call, struct pb_slice request) {
    struct process_ref ref;
    struct process *process;
    if (!proc_read_ref(call, request, &ref) ||
        (process = proc_require_process(call, &ref)) == NULL) {
        return;
    }
    if (process->phase != PHASE_CREATED) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "process \"%s\" of \"%s\" was started before",
                 ref.exec, ref.container);
        return;
    }
    if (process->exec_id[0] != 0) {
        start_exec(call, process);
        return;
    }
    process->call = call;
    process->phase = PHASE_STARTING;
    launch_start(&process->launched); /* if it is gone already, its exit says so */
}

void proc_handle_delete(struct call call, struct pb_slice request) {
    struct process_ref ref;
    struct process *process;
    if (!proc_read_ref(call, request, &ref) ||
        (process = proc_require_process(call, &ref)) == NULL) {
        return;
    }
    struct container *container = process->container;
    /* One that could not be launched is on its way out and has no exit to wait for. */
    if ((process->pid != 0 && !process->failed) || container->exit_held) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "process \"%s\" of \"%s\" has not exited", ref.exec,
                 ref.container);
    } else if (process == container->init) {
        container_release(container, call);
    } else {
        proc_forget(process);
        rpc_done(call);
    }
}
