#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "base.h"
#include "cgroup.h"
#include "creds.h"
#include "exec.h"
#include "kernel.h"
#include "mounts.h"
#include "paths.h"
#include "steps.h"
#include "terminal.h"

/* After the streams; everything above is closed before anything else happens. */
enum { CONTROL_FD = 3, CGROUP_FD, INIT_PIDFD, FILTER_FD, FIRST_FOREIGN_FD, PARKING_FD = 16, EXIT_FAILED = 255 };

static const struct {
    uint64_t kind;
    const char *file;
    int flag;
} namespaces[] = {
    {NAMESPACE_MOUNT, "mnt", CLONE_NEWNS},
    {NAMESPACE_IPC, "ipc", CLONE_NEWIPC},
    {NAMESPACE_UTS, "uts", CLONE_NEWUTS},
    {NAMESPACE_NETWORK, "net", CLONE_NEWNET},
    {NAMESPACE_CGROUP, "cgroup", KERNEL_CLONE_NEWCGROUP},
    {NAMESPACE_TIME, "time", KERNEL_CLONE_NEWTIME},
};

/* Moves a descriptor to its number; -1 becomes /dev/null. Nothing may be lost on the way, so all are
 * parked above first. */
static int park(int fd) {
    int source = fd >= 0 ? fd : RETRY(open("/dev/null", O_RDWR | O_CLOEXEC));
    return source < 0 ? -errno : fcntl(source, F_DUPFD_CLOEXEC, PARKING_FD);
}

static int settle_descriptors(struct child *child) {
    const int wanted[] = {child->io.stdin_fd, child->io.stdout_fd, child->io.stderr_fd,
                          child->control_fd, child->cgroup_fd, child->init_pidfd,
                          child->filter_fd};
    int parked[FIRST_FOREIGN_FD];
    for (int i = 0; i < FIRST_FOREIGN_FD; i++) {
        parked[i] = park(wanted[i]);
        if (parked[i] < 0) {
            return -EMFILE;
        }
    }
    for (int i = 0; i < FIRST_FOREIGN_FD; i++) {
        if (RETRY(dup3(parked[i], i, i >= CONTROL_FD ? O_CLOEXEC : 0)) < 0) {
            return -errno;
        }
    }
    child->control_fd = CONTROL_FD;
    child->cgroup_fd = CGROUP_FD;
    child->init_pidfd = INIT_PIDFD;
    child->filter_fd = FILTER_FD;
    return kernel_close_range(FIRST_FOREIGN_FD) < 0 ? -errno : 0;
}

/* void-init blocks signals for its signalfd and ignores some; a container begins with a clean slate. */
static void reset_signals(void) {
    struct sigaction standard = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++) {
        sigaction(number, &standard, NULL);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void send_report(const struct child *child, enum report_kind kind,
                        const struct failure *failure) {
    struct report report = {.kind = kind};
    if (failure != NULL) {
        report.failure = *failure;
    }
    /* Plain write(2): a seccomp filter that is loaded already may not know sendmsg(2). */
    if (RETRY(write(child->control_fd, &report, sizeof report)) < 0) {
        _exit(EXIT_FAILED);
    }
}

static int send_terminal(const struct child *child, int master, struct failure *failure) {
    struct report report = {.kind = REPORT_TERMINAL};
    struct iovec part = {&report, sizeof report};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof master)];
    } control = {0};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof master);
    memcpy(CMSG_DATA(head), &master, sizeof master);
    if (RETRY(sendmsg(child->control_fd, &message, MSG_NOSIGNAL)) < 0) {
        return fail(failure, errno, "hand over the terminal");
    }
    return 0;
}

static int set_up_terminal(const struct child *child, const char *root_path, bool console,
                           struct failure *failure) {
    AUTO_CLOSE int root = path_open_root(root_path);
    if (root < 0) {
        return fail(failure, root, "open %s", root_path);
    }
    struct terminal terminal;
    int error = terminal_open(root, child->process->rows, child->process->columns, &terminal, failure);
    if (error < 0) {
        return error;
    }
    error = send_terminal(child, terminal.master, failure);
    if (error == 0 && console) {
        error = mounts_console(terminal.slave, root_path, failure);
    }
    if (error == 0) {
        error = terminal_adopt(terminal.slave, failure);
    }
    close(terminal.master);
    close(terminal.slave);
    return error;
}

static int join_namespace(pid_t pid, const char *file, int flag, struct failure *failure) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, file);
    AUTO_CLOSE int fd = RETRY(open(path, O_RDONLY | O_CLOEXEC));
    if (fd < 0 || setns(fd, flag) < 0) {
        return fail(failure, errno, "join the %s namespace of process %d", file, pid);
    }
    return 0;
}

static int join_planned(const struct child *child, struct failure *failure) {
    for (size_t i = 0; i < child->plan->namespace_count; i++) {
        uint64_t kind = child->plan->namespaces[i].kind;
        for (size_t n = 0; child->joins[i] > 0 && n < sizeof namespaces / sizeof namespaces[0]; n++) {
            if (namespaces[n].kind != kind) {
                continue;
            }
            int error =
                join_namespace(child->joins[i], namespaces[n].file, namespaces[n].flag, failure);
            if (error < 0) {
                return error;
            }
        }
    }
    return 0;
}

static bool wants_new(const struct child *child, uint64_t kind) {
    for (size_t i = 0; i < child->plan->namespace_count; i++) {
        if (child->plan->namespaces[i].kind == kind && child->joins[i] == 0) {
            return true;
        }
    }
    return false;
}

/* A new time namespace takes its offsets before anybody is in it: unshare only prepares it for the
 * next child, the offsets are written, and then this process enters. */
static int enter_time_namespace(const struct child *child, struct failure *failure) {
    if (unshare(KERNEL_CLONE_NEWTIME) < 0) {
        return fail(failure, errno, "make a time namespace");
    }
    AUTO_CLOSE int offsets = RETRY(open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC));
    if (offsets < 0) {
        return fail(failure, errno, "open timens_offsets");
    }
    for (size_t i = 0; i < child->plan->offset_count; i++) {
        const struct plan_time_offset *offset = &child->plan->offsets[i];
        if (dprintf(offsets, "%llu %lld %llu\n", (unsigned long long)offset->clock,
                    (long long)offset->seconds, (unsigned long long)offset->nanoseconds) < 0) {
            return fail(failure, errno, "set the offset of clock %llu",
                        (unsigned long long)offset->clock);
        }
    }
    AUTO_CLOSE int entered = RETRY(open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC));
    if (entered < 0 || setns(entered, KERNEL_CLONE_NEWTIME) < 0) {
        return fail(failure, errno, "enter the time namespace");
    }
    return 0;
}

/* What clone3 could not do: the cgroup namespace has to be made inside the cgroup, the time namespace
 * needs its offsets, and others' namespaces are joined. */
static int enter_namespaces(const struct child *child, struct failure *failure) {
    int error = join_planned(child, failure);
    if (error < 0) {
        return error;
    }
    if (wants_new(child, NAMESPACE_CGROUP) && unshare(KERNEL_CLONE_NEWCGROUP) < 0) {
        return fail(failure, errno, "make a cgroup namespace");
    }
    if (wants_new(child, NAMESPACE_TIME)) {
        return enter_time_namespace(child, failure);
    }
    return 0;
}

static int run_steps(const struct child *child, struct failure *failure) {
    char rootfs[PATH_MAX];
    int error = pb_string(child->plan->rootfs, rootfs, sizeof rootfs);
    if (error < 0) {
        return fail(failure, error, "the path of the rootfs");
    }
    struct pb_reader reader = pb_read(child->plan->whole);
    struct plan_step step;
    int more;
    for (size_t index = 0; (more = plan_next_step(&reader, &step)) > 0; index++) {
        if (step.kind == STEP_PIVOT && child->process->terminal) {
            error = set_up_terminal(child, rootfs, true, failure);
        }
        if (error == 0) {
            error = steps_run(&step, index, rootfs, failure);
        }
        if (error < 0) {
            return error;
        }
    }
    return more < 0 ? fail(failure, more, "decode the steps") : 0;
}

static int filter_devices(const struct child *child) {
    struct pb_slice wanted = child->plan->device_filter;
    if (wanted.size == 0) {
        return 0;
    }
    if (wanted.size == child->loaded_filter.size &&
        memcmp(wanted.data, child->loaded_filter.data, wanted.size) == 0) {
        return device_filter_attach(child->cgroup_fd, child->filter_fd);
    }
    return cgroup_device_filter(child->cgroup_fd, wanted);
}

static int enter_new_container(const struct child *child, struct failure *failure) {
    int error = enter_namespaces(child, failure);
    if (error == 0) {
        error = mounts_isolate(failure);
    }
    if (error == 0) {
        error = run_steps(child, failure);
    }
    if (error == 0) {
        error = filter_devices(child);
        if (error < 0) {
            fail(failure, error, "attach the device filter");
        }
    }
    return error;
}

/* One setns(2) for all of them; the pid namespace was chosen by void-init before the clone. */
static int enter_running_container(const struct child *child, struct failure *failure) {
    int flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | KERNEL_CLONE_NEWCGROUP;
    /* A kernel without time namespaces refuses the flag, and has nothing to join. */
    if (setns(child->init_pidfd, flags | KERNEL_CLONE_NEWTIME) < 0 &&
        (errno != EINVAL || setns(child->init_pidfd, flags) < 0)) {
        return fail(failure, errno, "join the container's namespaces");
    }
    return child->process->terminal ? set_up_terminal(child, "/", false, failure) : 0;
}

static int prepare(struct child *child, struct failure *failure) {
    reset_signals();
    /* Processes of the container that it joins must not look into a copy of void-init. */
    if ((getsid(0) != getpid() && setsid() < 0) || prctl(PR_SET_DUMPABLE, 0UL, 0UL, 0UL, 0UL) < 0) {
        return fail(failure, errno, "leave void-init's session");
    }
    int error = creds_prepare(child->process, child->container_id, failure);
    if (error == 0) {
        error = child->plan != NULL ? enter_new_container(child, failure)
                                    : enter_running_container(child, failure);
    }
    /* The last ways back into the VM, gone before the working directory could be set to one. */
    close(child->cgroup_fd);
    close(child->init_pidfd);
    close(child->filter_fd);
    return error;
}

void child_run(struct child *child) {
    struct failure failure = {0};
    struct program program = {0};
    int error = settle_descriptors(child);
    if (error < 0) {
        fail(&failure, error, "arrange the descriptors");
    } else {
        error = prepare(child, &failure);
    }
    if (error == 0) {
        error = exec_become(child->process, &program, &failure);
    }
    if (error == 0) {
        send_report(child, REPORT_READY, NULL);
        char start = 0;
        if (RETRY(read(child->control_fd, &start, 1)) != 1) {
            _exit(EXIT_FAILED);
        }
        error = creds_seal(child->process, &failure);
    }
    if (error == 0) {
        execve(program.path, program.args, program.env);
        fail(&failure, errno, "exec: \"%.200s\"", program.args[0]);
    }
    send_report(child, REPORT_FAILED, &failure);
    _exit(EXIT_FAILED);
}
