/*
 * System calls that musl does not wrap, and that glibc wraps under headers which clash with the
 * kernel's. Each behaves like a libc wrapper: -1 and errno on failure.
 */
#ifndef VOID_KERNEL_H
#define VOID_KERNEL_H

#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* clone3(2), mount_setattr(2), open_tree(2), move_mount(2): values of the kernel's ABI. */
struct kernel_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal;
    uint64_t stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

struct kernel_mount_attr {
    uint64_t attr_set, attr_clr, propagation, userns_fd;
};

#define KERNEL_CLONE_INTO_CGROUP 0x200000000ULL
#define KERNEL_CLONE_NEWTIME 0x00000080
#define KERNEL_CLONE_NEWCGROUP 0x02000000

#define KERNEL_OPEN_TREE_CLONE 1U
#define KERNEL_MOVE_FROM_EMPTY_PATH 0x00000004U
#define KERNEL_MOVE_TO_EMPTY_PATH 0x00000040U
#define KERNEL_AT_RECURSIVE 0x8000U

#define KERNEL_MOUNT_ATTR_RDONLY 0x00000001U
#define KERNEL_MOUNT_ATTR_NOSUID 0x00000002U
#define KERNEL_MOUNT_ATTR_NODEV 0x00000004U
#define KERNEL_MOUNT_ATTR_NOEXEC 0x00000008U
#define KERNEL_MOUNT_ATTR_ATIME 0x00000070U
#define KERNEL_MOUNT_ATTR_NOATIME 0x00000010U
#define KERNEL_MOUNT_ATTR_STRICTATIME 0x00000020U
#define KERNEL_MOUNT_ATTR_NODIRATIME 0x00000080U
#define KERNEL_MOUNT_ATTR_NOSYMFOLLOW 0x00200000U

static inline int kernel_openat2(int directory, const char *path, uint64_t flags, uint64_t resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}

static inline pid_t kernel_clone3(struct kernel_clone_args *arguments) {
    return (pid_t)syscall(SYS_clone3, arguments, sizeof *arguments);
}

static inline int kernel_open_tree(int fd, const char *path, unsigned flags) {
    return (int)syscall(SYS_open_tree, fd, path, flags | O_CLOEXEC);
}

static inline int kernel_move_mount(int from, int to) {
    return (int)syscall(SYS_move_mount, from, "", to, "",
                        KERNEL_MOVE_FROM_EMPTY_PATH | KERNEL_MOVE_TO_EMPTY_PATH);
}

static inline int kernel_mount_setattr(int fd, unsigned flags, const struct kernel_mount_attr *attr) {
    return (int)syscall(SYS_mount_setattr, fd, "", flags | AT_EMPTY_PATH, attr, sizeof *attr);
}

static inline int kernel_pivot_root(const char *new_root, const char *put_old) {
    return (int)syscall(SYS_pivot_root, new_root, put_old);
}

static inline int kernel_close_range(unsigned first) {
    return (int)syscall(SYS_close_range, first, ~0U, 0U);
}

static inline int kernel_pidfd_open(pid_t pid) {
    return (int)syscall(SYS_pidfd_open, pid, 0U);
}

#endif
