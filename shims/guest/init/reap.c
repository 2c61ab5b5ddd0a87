/*
 * What exited, and in which order the host hears of it: an OOM kill before the exit that it caused,
 * the exit of a container's first process after those of its execs.
 */
#include "proc.h"

#include "events.h"
#include "log.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>

static uint32_t status_of(int wait_status) {
    if (WIFSIGNALED(wait_status)) {
        return EXIT_SIGNAL_BASE + (uint32_t)WTERMSIG(wait_status);
    }
    return (uint32_t)WEXITSTATUS(wait_status);
}

static void process_exited(struct process *process, int wait_status) {
    struct container *container = process->container;
    bool is_init = container->init == process;
    proc_read_reports(process);
    process->pid = 0;
    bool created = !is_init || process->phase != PHASE_LAUNCHING;
    if (!process->failed) {
        process->status = status_of(wait_status);
    }
    process->exited_at_ns = wall_clock_ns();
    process->phase = PHASE_EXITED;
    loop_remove(&process->report);
    container_check_oom(container);
    if (!created) {
        container_release(container, (struct call){0});
    } else if (is_init) {
        container_init_died(container);
    } else {
        if (!process->failed) {
            events_exited(container->id, process->exec_id, (pid_t)process->shown_pid,
                          process->status, process->exited_at_ns);
        }
        container_exec_died(container);
    }
}

void reap_children(void) {
    for (;;) {
        int status = 0;
        pid_t pid = RETRY(waitpid(-1, &status, WNOHANG));
        if (pid <= 0) {
            return; /* 0: others still run; -1: there is none */
        }
        struct process *process = proc_of_pid(pid);
        if (process != NULL) {
            process_exited(process, status);
        } else {
            log_debug("reaped orphan %d", pid);
        }
    }
}

void reap_kill_all(void) {
    struct process *process = NULL;
    while ((process = proc_next(NULL, process)) != NULL) {
        if (process->pid > 0) {
            kill(process->pid, SIGKILL);
        }
    }
}
