#include "standby.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base.h"
#include "cgroup.h"
#include "kernel.h"

/* No container's cgroup is called like that: ids begin with a letter or a digit. */
static const char STANDBY_CGROUP[] = "_standby";
static const char FILTER_CGROUP[] = "_filter";
static const uint64_t STANDBY_FLAGS = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;

enum {
    STREAMS = 3,
    HOSTNAME_MAX = 65,
    FILTER_MAX = 1 << 15,
    PLAN_BYTES_MAX = 1 << 20,
    USUAL_PLAN_BYTES = 1 << 13,
    EXIT_NOT_NEEDED = 0,
    STANDBY_CONTROL_FD = 3,
    STANDBY_CGROUP_FD,
    STANDBY_FILTER_FD,
    STANDBY_FIRST_FOREIGN_FD,
};

/* What the process is told; the open streams come along as descriptors, in their order. */
struct order {
    size_t plan_size;
    bool stream_open[STREAMS];
    char hostname[HOSTNAME_MAX];
};

static pid_t standby_pid;
static int control_fd = -1;
static int standby_cgroup_fd = -1;
static uint8_t *plan_bytes; /* shared with the process */
static uint8_t filter_bytes[FILTER_MAX];
static struct pb_slice filter = {filter_bytes, 0};
static int filter_fd = -1;

static union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(STREAMS * sizeof(int))];
} ancillary;

/* ---- in the process that waits --------------------------------------------------------------- */

static bool receive(struct order *order, int streams[STREAMS]) {
    struct iovec part = {order, sizeof *order};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = ancillary.bytes,
        .msg_controllen = sizeof ancillary.bytes,
    };
    if (RETRY(recvmsg(STANDBY_CONTROL_FD, &message, MSG_CMSG_CLOEXEC)) != (ssize_t)sizeof *order) {
        return false;
    }
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    size_t came = head == NULL ? 0 : (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int received[STREAMS];
    if (came > 0 && came <= STREAMS) {
        memcpy(received, CMSG_DATA(head), came * sizeof(int));
    }
    size_t next = 0;
    for (int i = 0; i < STREAMS; i++) {
        streams[i] = order->stream_open[i] && next < came ? received[next++] : -1;
    }
    return true;
}

static _Noreturn void stand_by(void) {
    static struct launch_plan plan;
    static struct process_plan process;
    struct order order = {0};
    int streams[STREAMS];
    char ready = 1;
    setsid(); /* child_run() does it for those that have not */
    if (RETRY(send(STANDBY_CONTROL_FD, &ready, 1, MSG_NOSIGNAL)) != 1 ||
        !receive(&order, streams)) {
        _exit(EXIT_NOT_NEEDED);
    }
    /* Void-init has read it without complaint. */
    struct pb_slice whole = {plan_bytes, order.plan_size};
    if (plan_decode(whole, &plan) < 0 || plan_decode_process(plan.process, &process) < 0 ||
        sethostname(order.hostname, strlen(order.hostname)) < 0) {
        _exit(EXIT_NOT_NEEDED);
    }
    struct child child = {
        .plan = &plan,
        .init_pidfd = -1,
        .process = &process,
        .container_id = plan.container_id,
        .io = {streams[0], streams[1], streams[2]},
        .control_fd = STANDBY_CONTROL_FD,
        .cgroup_fd = STANDBY_CGROUP_FD,
        .filter_fd = STANDBY_FILTER_FD,
        .loaded_filter = filter,
    };
    child_run(&child);
}

/* Nothing of void-init's stays open in it: the port would never hang up. */
static _Noreturn void begin(int control) {
    const int wanted[] = {control, standby_cgroup_fd, filter_fd};
    int parked[sizeof wanted / sizeof wanted[0]];
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        parked[i] = fcntl(wanted[i], F_DUPFD_CLOEXEC, STANDBY_FIRST_FOREIGN_FD);
    }
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        if (parked[i] < 0 || dup3(parked[i], STANDBY_CONTROL_FD + (int)i, O_CLOEXEC) < 0) {
            _exit(EXIT_NOT_NEEDED);
        }
    }
    if (kernel_close_range(STANDBY_FIRST_FOREIGN_FD) < 0) {
        _exit(EXIT_NOT_NEEDED);
    }
    stand_by();
}

/* ---- in void-init ---------------------------------------------------------------------------- */

/* Ends it, if it is still ours to end. */
static void discard(void) {
    /* It ends when its socket closes. Its empty cgroup stays, and harms nobody. */
    if (control_fd >= 0) {
        close_fd(&control_fd);
    }
    if (standby_cgroup_fd >= 0) {
        close_fd(&standby_cgroup_fd);
    }
    if (filter_fd >= 0) {
        close_fd(&filter_fd);
    }
    /* What is shared with it stays mapped: unmapping takes longer than it is worth. */
}

/* Attached to an empty cgroup, too: the first attachment of all patches the kernel's code. */
static int load_filter(const char *path) {
    AUTO_CLOSE int fd = RETRY(open(path, O_RDONLY | O_CLOEXEC));
    ssize_t size = fd < 0 ? -1 : RETRY(read(fd, filter_bytes, sizeof filter_bytes));
    if (size < 0) {
        return -errno;
    }
    filter.size = (size_t)size;
    filter_fd = device_filter_load(filter);
    if (filter_fd < 0) {
        return filter_fd;
    }
    bool created = false;
    int empty = -1;
    int error = cgroup_create(FILTER_CGROUP, &empty, &created);
    if (error == 0) {
        error = device_filter_attach(empty, filter_fd);
        close(empty);
    }
    return error;
}

static int clone_standby(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        return -errno;
    }
    control_fd = ends[0];
    AUTO_CLOSE int theirs = ends[1];
    struct kernel_clone_args arguments = {
        .flags = STANDBY_FLAGS | KERNEL_CLONE_INTO_CGROUP,
        .exit_signal = SIGCHLD,
        .cgroup = (uint64_t)standby_cgroup_fd,
    };
    standby_pid = kernel_clone3(&arguments);
    if (standby_pid == 0) {
        begin(theirs);
    }
    return standby_pid < 0 ? -errno : 0;
}

int standby_prepare(const char *filter_path) {
    bool created = false;
    int error = cgroup_create(STANDBY_CGROUP, &standby_cgroup_fd, &created);
    if (error < 0) {
        return error;
    }
    void *shared =
        mmap(NULL, PLAN_BYTES_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        discard();
        return -ENOMEM;
    }
    plan_bytes = shared;
    memset(plan_bytes, 1, USUAL_PLAN_BYTES); /* these pages are there already */
    error = load_filter(filter_path);
    if (error == 0) {
        error = clone_standby();
    }
    /* The template must not be taken before it waits. */
    char ready = 0;
    if (error == 0 && RETRY(recv(control_fd, &ready, 1, 0)) != 1) {
        error = -ECHILD;
    }
    if (error < 0) {
        discard();
    }
    return error;
}

bool standby_fits(const struct child *child, uint64_t flags) {
    const struct launch_plan *plan = child->plan;
    for (size_t i = 0; i < plan->namespace_count; i++) {
        if (child->joins[i] != 0) {
            return false;
        }
    }
    /* A cgroup below others has its place among them. */
    bool plain = memchr(plan->cgroup_path.data, '/', plan->cgroup_path.size) == NULL;
    return control_fd >= 0 && flags == STANDBY_FLAGS && plain && plan->cgroup_path.size > 0 &&
           plan->device_filter.size > 0 && plan->whole.size <= PLAN_BYTES_MAX;
}

static int send_order(const struct child *child) {
    const int streams[STREAMS] = {child->io.stdin_fd, child->io.stdout_fd, child->io.stderr_fd};
    struct order order = {.plan_size = child->plan->whole.size};
    int open[STREAMS];
    size_t count = 0;
    for (int i = 0; i < STREAMS; i++) {
        order.stream_open[i] = streams[i] >= 0;
        if (streams[i] >= 0) {
            open[count++] = streams[i];
        }
    }
    if (gethostname(order.hostname, sizeof order.hostname - 1) < 0) {
        return -errno;
    }
    memcpy(plan_bytes, child->plan->whole.data, child->plan->whole.size);
    struct iovec part = {&order, sizeof order};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        memset(&ancillary, 0, sizeof ancillary);
        message.msg_control = ancillary.bytes;
        message.msg_controllen = (socklen_t)CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *head = &ancillary.align;
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = (socklen_t)CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(head), open, count * sizeof(int));
    }
    return RETRY(sendmsg(control_fd, &message, MSG_NOSIGNAL)) < 0 ? -errno : 0;
}

int standby_launch(const struct child *child, struct launched *launched) {
    char file[64] = "";
    int error = cgroup_write_all(standby_cgroup_fd, child->plan->cgroup, 2, file);
    if (error == 0) {
        error = send_order(child);
    }
    if (error < 0) {
        discard();
        return error;
    }
    memcpy(launched->cgroup_path, STANDBY_CGROUP, sizeof STANDBY_CGROUP);
    launched->pid = standby_pid;
    launched->control_fd = take_fd(&control_fd);
    launched->cgroup_fd = take_fd(&standby_cgroup_fd);
    launched->terminal_fd = -1;
    discard(); /* what is still ours */
    return 0;
}
