/*
 * The life of a launched process between clone and execve, and the reports that it sends home over
 * its control socket: TERMINAL (with a descriptor, if the plan wants a terminal), then READY, then
 * nothing (execve closes the socket) or FAILED.
 */
#ifndef VOID_CHILD_H
#define VOID_CHILD_H

#include <sys/types.h>

#include "failure.h"
#include "launch.h"
#include "plan.h"

enum report_kind { REPORT_TERMINAL = 1, REPORT_READY = 2, REPORT_FAILED = 3 };

struct report {
    enum report_kind kind;
    struct failure failure;
};

/* Either `plan` (the first process of a container) or `init_pidfd` (an exec) is set. The latter is a
 * descriptor because the process that joins no longer counts pids as void-init does. */
struct child {
    const struct launch_plan *plan;
    pid_t joins[PLAN_NAMESPACES_MAX]; /* by index of plan->namespaces: whose to join, or 0 */
    int init_pidfd;
    const struct process_plan *process;
    struct pb_slice container_id;
    struct launch_io io;
    int control_fd;
    int cgroup_fd;
    int filter_fd; /* the device filter `loaded_filter`, or -1 */
    struct pb_slice loaded_filter;
};

/* Runs in the new process; never returns. */
void child_run(struct child *child) __attribute__((noreturn));

#endif
