#include "creds.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "base.h"

/* linux/sched/types.h and linux/ioprio.h, which older headers lack. */
struct kernel_sched_attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};
enum { KERNEL_IOPRIO_WHO_PROCESS = 1 };

/* linux/key.h is not for programs: the possessor may do everything, other processes of root may
 * view, read, search and link. */
enum { KEYRING_PERMISSIONS = 0x3f1b0000 };

enum { CAPABILITIES_MAX = 64, BPF_MAX_BYTES = BPF_MAXINSNS * (int)sizeof(struct sock_filter) };

static int write_oom_score(const struct process_plan *process, struct failure *failure) {
    char text[24];
    int size = snprintf(text, sizeof text, "%lld", (long long)process->oom_score_adj);
    AUTO_CLOSE int file = RETRY(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
    if (file < 0 || RETRY(write(file, text, (size_t)size)) < 0) {
        return fail(failure, errno, "set the OOM score adjustment to %s", text);
    }
    return 0;
}

/* A session keyring of its own, by name, so that an exec shares it with its container and nothing
 * shares void-init's. A kernel without keyrings has nothing to keep apart. */
static int join_keyring(struct pb_slice container_id, struct failure *failure) {
    char name[160] = "_ses.";
    int error = pb_string(container_id, name + 5, sizeof name - 5);
    if (error < 0) {
        return fail(failure, error, "the container's id");
    }
    long keyring = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name);
    /* Only a keyring that others may search is found by its name. */
    if (keyring >= 0) {
        keyring = syscall(SYS_keyctl, KEYCTL_SETPERM, keyring, KEYRING_PERMISSIONS);
    }
    if (keyring < 0 && errno != ENOSYS && errno != EACCES) {
        return fail(failure, errno, "join the session keyring");
    }
    return 0;
}

int creds_prepare(const struct process_plan *process, struct pb_slice container_id,
                  struct failure *failure) {
    if (process->has_oom_score_adj) {
        int error = write_oom_score(process, failure);
        if (error < 0) {
            return error;
        }
    }
    return container_id.size > 0 ? join_keyring(container_id, failure) : 0;
}

static struct rlimit given_files; /* what void-init had before it raised its own; 0: it did not */

int creds_raise_files(rlim_t wanted) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &given_files) < 0) {
        return -errno;
    }
    limit = given_files;
    limit.rlim_max = limit.rlim_max < wanted ? wanted : limit.rlim_max;
    limit.rlim_cur = limit.rlim_cur < wanted ? wanted : limit.rlim_cur;
    return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : 0;
}

static int apply_rlimits(const struct process_plan *process, struct failure *failure) {
    if (given_files.rlim_max > 0 && setrlimit(RLIMIT_NOFILE, &given_files) < 0) {
        return fail(failure, errno, "restore the limit of open files");
    }
    for (size_t i = 0; i < process->rlimit_count; i++) {
        const struct plan_rlimit *wanted = &process->rlimits[i];
        struct rlimit limit = {wanted->soft, wanted->hard};
        if (syscall(SYS_prlimit64, 0, wanted->resource, &limit, NULL) < 0) {
            return fail(failure, errno, "set resource limit %llu to %llu/%llu",
                        (unsigned long long)wanted->resource, (unsigned long long)wanted->soft,
                        (unsigned long long)wanted->hard);
        }
    }
    return 0;
}

static int apply_scheduler(const struct process_plan *process, struct failure *failure) {
    const struct plan_scheduler *wanted = &process->scheduler;
    struct kernel_sched_attr attr = {
        .size = sizeof attr,
        .policy = (uint32_t)wanted->policy,
        .flags = wanted->flags,
        .nice = (int32_t)wanted->nice,
        .priority = (uint32_t)wanted->priority,
        .runtime = wanted->runtime,
        .deadline = wanted->deadline,
        .period = wanted->period,
    };
    if (process->has_scheduler && syscall(SYS_sched_setattr, 0, &attr, 0U) < 0) {
        return fail(failure, errno, "set the scheduling policy");
    }
    if (process->has_io_priority &&
        syscall(SYS_ioprio_set, KERNEL_IOPRIO_WHO_PROCESS, 0, (int)process->io_priority) < 0) {
        return fail(failure, errno, "set the I/O priority");
    }
    if (process->cpu_affinity.size > 0 &&
        syscall(SYS_sched_setaffinity, 0, process->cpu_affinity.size, process->cpu_affinity.data) < 0) {
        return fail(failure, errno, "set the CPU affinity");
    }
    return 0;
}

/* The streams belong to the user that the process becomes, so that it can reopen /dev/stdout. */
static int give_streams(const struct process_plan *process, struct failure *failure) {
    for (int stream = 0; stream < 3; stream++) {
        struct stat status;
        if (fstat(stream, &status) < 0) {
            return fail(failure, errno, "look at stream %d", stream);
        }
        bool null = S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3);
        if (null || status.st_uid == process->uid) {
            continue;
        }
        if (fchown(stream, (uid_t)process->uid, (gid_t)-1) < 0 && errno != EINVAL &&
            errno != EPERM && errno != EROFS) {
            return fail(failure, errno, "give stream %d to user %llu", stream,
                        (unsigned long long)process->uid);
        }
    }
    return 0;
}

static int load_seccomp(const struct process_plan *process, struct failure *failure) {
    /* Copied, because instructions in a message may be unaligned. */
    static struct sock_filter filter[BPF_MAXINSNS];
    size_t size = process->seccomp.size;
    if (size == 0) {
        return 0;
    }
    if (size % sizeof filter[0] != 0 || size > BPF_MAX_BYTES) {
        return fail_plain(failure, EINVAL, "the seccomp filter has an impossible size (%zu)", size);
    }
    memcpy(filter, process->seccomp.data, size);
    struct sock_fprog program = {(unsigned short)(size / sizeof filter[0]), filter};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned)process->seccomp_flags, &program) != 0) {
        return fail(failure, errno, "load the seccomp filter");
    }
    return 0;
}

/* Kernels know fewer capabilities than bits: the first unknown one ends the list. */
static int drop_bounding(uint64_t keep, struct failure *failure) {
    for (unsigned capability = 0; capability < CAPABILITIES_MAX; capability++) {
        if (keep >> capability & 1) {
            continue;
        }
        if (prctl(PR_CAPBSET_DROP, capability, 0UL, 0UL, 0UL) < 0) {
            return errno == EINVAL ? 0 : fail(failure, errno, "drop capability %u", capability);
        }
    }
    return 0;
}

/* Raw calls: libc's wrappers signal every thread, and a cloned process has none that they know. */
static int change_ids(const struct process_plan *process, struct failure *failure) {
    if (prctl(PR_SET_KEEPCAPS, 1UL, 0UL, 0UL, 0UL) < 0) {
        return fail(failure, errno, "keep capabilities over setuid");
    }
    if (syscall(SYS_setgroups, process->group_count, process->groups) < 0) {
        return fail(failure, errno, "set %zu additional groups", process->group_count);
    }
    if (syscall(SYS_setresgid, process->gid, process->gid, process->gid) < 0) {
        return fail(failure, errno, "become group %llu", (unsigned long long)process->gid);
    }
    if (syscall(SYS_setresuid, process->uid, process->uid, process->uid) < 0) {
        return fail(failure, errno, "become user %llu", (unsigned long long)process->uid);
    }
    if (prctl(PR_SET_KEEPCAPS, 0UL, 0UL, 0UL, 0UL) < 0) {
        return fail(failure, errno, "stop keeping capabilities");
    }
    return 0;
}

static int raise_ambient(uint64_t wanted, struct failure *failure) {
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0UL, 0UL, 0UL) < 0) {
        return fail(failure, errno, "clear ambient capabilities");
    }
    for (unsigned capability = 0; capability < CAPABILITIES_MAX; capability++) {
        if ((wanted >> capability & 1) == 0) {
            continue;
        }
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, (unsigned long)capability, 0UL, 0UL) < 0) {
            return fail(failure, errno, "raise ambient capability %u", capability);
        }
    }
    return 0;
}

static int set_capabilities(const struct plan_capabilities *wanted, struct failure *failure) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    for (unsigned half = 0; half < 2; half++) {
        unsigned shift = 32 * half;
        data[half].effective = (uint32_t)(wanted->effective >> shift);
        data[half].permitted = (uint32_t)(wanted->permitted >> shift);
        data[half].inheritable = (uint32_t)(wanted->inheritable >> shift);
    }
    if (syscall(SYS_capset, &header, data) < 0) {
        return fail(failure, errno, "set capabilities");
    }
    return raise_ambient(wanted->ambient, failure);
}

static int apply_limits(const struct process_plan *process, struct failure *failure) {
    if (process->has_personality && syscall(SYS_personality, process->personality) < 0) {
        return fail(failure, errno, "set the personality");
    }
    int error = apply_scheduler(process, failure);
    if (error == 0) {
        error = apply_rlimits(process, failure);
    }
    if (error == 0) {
        error = give_streams(process, failure);
    }
    umask(process->has_umask ? (mode_t)process->umask : 0022);
    return error;
}

/* With no_new_privileges an unprivileged process may load a filter, so it is loaded last and need
 * not allow what comes before; without, only a process that still has CAP_SYS_ADMIN may. */
static int load_early(const struct process_plan *process, struct failure *failure) {
    if (!process->no_new_privileges) {
        return load_seccomp(process, failure);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL) < 0) {
        return fail(failure, errno, "set no_new_privs");
    }
    return 0;
}

int creds_apply(const struct process_plan *process, struct failure *failure) {
    int error = apply_limits(process, failure);
    if (error == 0) {
        error = load_early(process, failure);
    }
    if (error == 0 && process->has_capabilities) {
        error = drop_bounding(process->capabilities.bounding, failure);
    }
    if (error == 0) {
        error = change_ids(process, failure);
    }
    if (error == 0 && process->has_capabilities) {
        error = set_capabilities(&process->capabilities, failure);
    }
    return error;
}

int creds_seal(const struct process_plan *process, struct failure *failure) {
    return process->no_new_privileges ? load_seccomp(process, failure) : 0;
}
