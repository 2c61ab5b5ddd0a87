#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base.h"
#include "cgroup.h"
#include "child.h"
#include "kernel.h"
#include "standby.h"

/* Decoded plans live here, not on the stack: void-init launches one process at a time. */
static struct launch_plan plan_buffer;
static struct process_plan process_buffer;

static const struct {
    uint64_t kind;
    uint64_t flag;
} clone_flags[] = {
    {NAMESPACE_MOUNT, CLONE_NEWNS},     {NAMESPACE_PID, CLONE_NEWPID},
    {NAMESPACE_IPC, CLONE_NEWIPC},      {NAMESPACE_UTS, CLONE_NEWUTS},
    {NAMESPACE_NETWORK, CLONE_NEWNET},
};

static void close_if_open(int *fd) {
    if (*fd >= 0) {
        close_fd(fd);
    }
}

/* Resolves whom the plan joins, collects the namespaces that clone makes. */
static int plan_namespaces(struct child *child, const struct launch_context *context,
                           uint64_t *flags, pid_t *pid_namespace_of, struct failure *failure) {
    for (size_t i = 0; i < child->plan->namespace_count; i++) {
        const struct plan_namespace *wanted = &child->plan->namespaces[i];
        if (wanted->join_container.size > 0) {
            pid_t pid = context == NULL ? -ENOENT
                                        : context->pid_of(context->argument, wanted->join_container);
            if (pid <= 0) {
                return fail_plain(failure, ENOENT, "container \"%.*s\", whose namespaces it joins, does not run",
                                  (int)(wanted->join_container.size & 0xff),
                                  (const char *)wanted->join_container.data);
            }
            child->joins[i] = pid;
            *pid_namespace_of = wanted->kind == NAMESPACE_PID ? pid : *pid_namespace_of;
            continue;
        }
        for (size_t n = 0; n < sizeof clone_flags / sizeof clone_flags[0]; n++) {
            *flags |= clone_flags[n].kind == wanted->kind ? clone_flags[n].flag : 0;
        }
    }
    return 0;
}

/* Chooses the pid namespace of the children to come: that of `pid`, or void-init's own again. */
static int choose_pid_namespace(pid_t pid) {
    char path[48] = "/proc/self/ns/pid";
    if (pid > 0) {
        snprintf(path, sizeof path, "/proc/%d/ns/pid", pid);
    }
    AUTO_CLOSE int fd = RETRY(open(path, O_RDONLY | O_CLOEXEC));
    return fd < 0 || setns(fd, CLONE_NEWPID) < 0 ? -errno : 0;
}

static pid_t clone_into(int cgroup_fd, uint64_t flags) {
    struct kernel_clone_args arguments = {
        .flags = flags | KERNEL_CLONE_INTO_CGROUP,
        .exit_signal = SIGCHLD,
        .cgroup = (uint64_t)cgroup_fd,
    };
    pid_t pid = kernel_clone3(&arguments);
    return pid < 0 ? -errno : pid;
}

/* Clones with the child's end of the control socket; returns in the parent only. */
static int spawn(struct child *child, uint64_t flags, pid_t pid_namespace_of,
                 struct launched *launched, struct failure *failure) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        return fail(failure, errno, "make a control socket");
    }
    AUTO_CLOSE int ours = ends[0];
    AUTO_CLOSE int theirs = ends[1];
    int error = pid_namespace_of > 0 ? choose_pid_namespace(pid_namespace_of) : 0;
    if (error < 0) {
        return fail(failure, error, "join the pid namespace of process %d", pid_namespace_of);
    }
    pid_t pid = clone_into(child->cgroup_fd, flags);
    if (pid == 0) {
        child->control_fd = theirs;
        child_run(child);
    }
    if (pid_namespace_of > 0 && choose_pid_namespace(0) < 0) {
        return fail(failure, errno, "return to the VM's pid namespace");
    }
    if (pid < 0) {
        return fail(failure, pid, "clone");
    }
    launched->pid = pid;
    launched->control_fd = take_fd(&ours);
    launched->terminal_fd = -1;
    return 0;
}

/* A cgroup that is there already and empty is made anew: it may still have another container's
 * limits, and kernels since 6.15 kill what is cloned into a cgroup that cgroup.kill was used on. */
static int open_fresh_cgroup(struct launched *launched, bool *created, struct failure *failure) {
    const char *path = launched->cgroup_path;
    int error = cgroup_create(path, &launched->cgroup_fd, created);
    if (error == 0 && !*created) {
        close_if_open(&launched->cgroup_fd);
        do {
            error = cgroup_remove(path, 0);
        } while (error == -EAGAIN);
        if (error == -EBUSY) {
            return fail_plain(failure, EBUSY, "the cgroup %s has processes of another container",
                              path);
        }
        if (error == 0) {
            error = cgroup_create(path, &launched->cgroup_fd, created);
        }
    }
    return error < 0 ? fail(failure, error, "make the cgroup %s", path) : 0;
}

static int make_cgroup(const struct launch_plan *plan, struct launched *launched, bool *created,
                       struct failure *failure) {
    int error = pb_string(plan->cgroup_path, launched->cgroup_path, sizeof launched->cgroup_path);
    if (error < 0) {
        return fail(failure, error, "the cgroup's path");
    }
    error = open_fresh_cgroup(launched, created, failure);
    if (error < 0) {
        return error;
    }
    char file[64] = "";
    error = cgroup_write_all(launched->cgroup_fd, plan->cgroup, 2, file);
    return error < 0 ? fail(failure, error, "write the cgroup's %s", file) : 0;
}

/* "/run/void/c/ID/rootfs" gives "/run/void/c/ID": what launch_release() may clear of mount points. */
static void remember_directory(const struct launch_plan *plan, struct launched *launched) {
    static const char name[] = "/rootfs";
    size_t size = plan->rootfs.size;
    if (pb_string(plan->rootfs, launched->directory, sizeof launched->directory) < 0 ||
        size <= sizeof name || strcmp(launched->directory + size - (sizeof name - 1), name) != 0) {
        launched->directory[0] = 0;
        return;
    }
    launched->directory[size - (sizeof name - 1)] = 0;
}

int launch_container(struct pb_slice plan, const struct launch_io *io,
                     const struct launch_context *context, struct launched *launched,
                     struct failure *failure) {
    int error = plan_decode(plan, &plan_buffer);
    if (error == 0) {
        error = plan_decode_process(plan_buffer.process, &process_buffer);
    }
    if (error < 0) {
        return fail(failure, error, "decode the launch plan");
    }
    struct child child = {
        .plan = &plan_buffer,
        .init_pidfd = -1,
        .filter_fd = -1,
        .process = &process_buffer,
        .container_id = plan_buffer.container_id,
        .io = *io,
    };
    struct launched result = {.control_fd = -1, .terminal_fd = -1, .cgroup_fd = -1};
    uint64_t flags = 0;
    pid_t pid_namespace_of = 0;
    bool created = false;
    error = plan_namespaces(&child, context, &flags, &pid_namespace_of, failure);
    if (error < 0) {
        return error;
    }
    if (standby_fits(&child, flags) && standby_launch(&child, &result) == 0) {
        remember_directory(&plan_buffer, &result);
        *launched = result;
        return 0;
    }
    error = make_cgroup(&plan_buffer, &result, &created, failure);
    if (error == 0) {
        child.cgroup_fd = result.cgroup_fd;
        error = spawn(&child, flags, pid_namespace_of, &result, failure);
    }
    if (error < 0) {
        close_if_open(&result.cgroup_fd);
        if (created) {
            cgroup_remove(result.cgroup_path, 0);
        }
        return error;
    }
    remember_directory(&plan_buffer, &result);
    *launched = result;
    return 0;
}

/* A process that is on its way out has given back its memory, long before it can be waited for. */
static bool is_exiting(pid_t pid) {
    char path[48], target[8];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    return readlink(path, target, sizeof target) < 0 && errno == ENOENT;
}

int launch_exec(const struct launch_target *target, struct pb_slice process,
                const struct launch_io *io, struct launched *launched, struct failure *failure) {
    int error = plan_decode_process(process, &process_buffer);
    if (error < 0) {
        return fail(failure, error, "decode the process plan");
    }
    AUTO_CLOSE int pidfd = kernel_pidfd_open(target->init_pid);
    if (pidfd < 0) {
        return fail(failure, errno, "the container's first process is gone");
    }
    struct child child = {
        .init_pidfd = pidfd,
        .filter_fd = -1,
        .process = &process_buffer,
        .container_id = target->container_id,
        .io = *io,
        .cgroup_fd = target->cgroup_fd,
    };
    struct launched result = {.control_fd = -1, .terminal_fd = -1, .cgroup_fd = -1};
    error = spawn(&child, 0, target->init_pid, &result, failure);
    if (error == -EBUSY) {
        /* The container made cgroups of its own and moved its processes there: follow its first. */
        AUTO_CLOSE int actual = cgroup_open_of(target->init_pid);
        child.cgroup_fd = actual;
        error = actual < 0 ? fail(failure, actual, "find the container's cgroup")
                           : spawn(&child, 0, target->init_pid, &result, failure);
    }
    if (error < 0 && is_exiting(target->init_pid)) {
        /* What the kernel says then (ENOMEM, of a dying pid namespace) would mislead. */
        return fail_plain(failure, ESRCH, "the container is not running: its first process exits");
    }
    if (error == 0) {
        *launched = result;
    }
    return error;
}

static void take_terminal(struct msghdr *message, struct launched *launched) {
    const struct cmsghdr *head = CMSG_FIRSTHDR(message);
    if (head != NULL && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        close_if_open(&launched->terminal_fd);
        memcpy(&launched->terminal_fd, CMSG_DATA(head), sizeof launched->terminal_fd);
    }
}

static enum launch_phase ended(const struct launched *launched, struct failure *failure) {
    if (launched->start_asked) {
        return LAUNCH_STARTED;
    }
    fail_plain(failure, ECHILD, "the process died before it was ready (killed, or out of memory)");
    return LAUNCH_FAILED;
}

/* The next report without the one that only brings the terminal: the failure behind that must not
 * be left unread. The size of what came, 0 at the end, or -1 with errno. */
static ssize_t receive(struct launched *launched, struct report *report) {
    struct iovec part = {report, sizeof *report};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
    };
    for (;;) {
        message.msg_controllen = sizeof control.bytes;
        ssize_t size =
            RETRY(recvmsg(launched->control_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
        if (size != (ssize_t)sizeof *report || report->kind != REPORT_TERMINAL) {
            return size;
        }
        take_terminal(&message, launched);
    }
}

enum launch_phase launch_read(struct launched *launched, struct failure *failure) {
    struct report report;
    ssize_t size = receive(launched, &report);
    if (size < 0 && errno == EAGAIN) {
        return LAUNCH_PENDING;
    }
    if (size != (ssize_t)sizeof report) {
        return ended(launched, failure);
    }
    if (report.kind == REPORT_READY) {
        return LAUNCH_READY;
    }
    *failure = report.failure;
    return LAUNCH_FAILED;
}

int launch_start(struct launched *launched) {
    char start = 1;
    if (RETRY(send(launched->control_fd, &start, 1, MSG_NOSIGNAL)) < 0) {
        return -errno;
    }
    launched->start_asked = true;
    return 0;
}

void launch_close(struct launched *launched) {
    close_if_open(&launched->control_fd);
    close_if_open(&launched->terminal_fd);
    close_if_open(&launched->cgroup_fd);
}
