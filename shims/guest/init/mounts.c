#include "mounts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "attributes.h"
#include "base.h"
#include "copyup.h"
#include "disk.h"
#include "kernel.h"
#include "paths.h"
#include "shares.h"

/* Where a file system is mounted while one path of it is bound elsewhere; seen by this process only. */
static const char ASIDE[] = "/run/void/aside";

enum { DATA_MAX = 4096, FD_PATH_MAX = 32, ATTEMPTS = 1024 };

static void fd_path(int fd, char path[FD_PATH_MAX]) {
    snprintf(path, FD_PATH_MAX, "/proc/self/fd/%d", fd);
}

static int slice_print(struct pb_slice slice) {
    return slice.size > 200 ? 200 : (int)slice.size;
}

/* "%.*s" for a slice in a format string. */
#define SLICE(slice) slice_print(slice), (const char *)(slice).data

static int open_in_rootfs(const char *rootfs, struct pb_slice path, enum path_make make) {
    AUTO_CLOSE int root = path_open_root(rootfs);
    return root < 0 ? root : path_open(root, path, make);
}

static int open_where(uint64_t where, struct pb_slice path, const char *rootfs, enum path_make make) {
    return open_in_rootfs(where == WHERE_ROOTFS ? rootfs : "/", path, make);
}

static int set_recursive_attributes(int fd, const struct mount_step *step) {
    if ((step->set_attributes | step->clear_attributes) == 0) {
        return 0;
    }
    struct kernel_mount_attr attr = {
        .attr_set = step->set_attributes,
        .attr_clr = step->clear_attributes,
    };
    /* The kernel wants the whole access time field cleared before one of its values is set. */
    if (attr.attr_set & KERNEL_MOUNT_ATTR_ATIME) {
        attr.attr_clr |= KERNEL_MOUNT_ATTR_ATIME;
    }
    return kernel_mount_setattr(fd, KERNEL_AT_RECURSIVE, &attr) < 0 ? -errno : 0;
}

/* A detached copy of the mount at `source` with its flags set before anybody can see it. */
static int clone_tree(int source, const struct mount_step *step) {
    unsigned recursive = step->flags & MS_REC ? KERNEL_AT_RECURSIVE : 0;
    AUTO_CLOSE int tree =
        kernel_open_tree(source, "", AT_EMPTY_PATH | KERNEL_OPEN_TREE_CLONE | recursive);
    if (tree < 0) {
        return -errno;
    }
    int error = attributes_set_flags(tree, step->flags);
    if (error == 0) {
        error = set_recursive_attributes(tree, step);
    }
    return error < 0 ? error : take_fd(&tree);
}

static bool is_directory(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
}

static int attach(int tree, const struct mount_step *step, const char *rootfs,
                  struct failure *failure) {
    enum path_make make = is_directory(tree) ? PATH_DIRECTORY : PATH_FILE;
    AUTO_CLOSE int target =
        open_where(step->where, step->target, rootfs, step->make_target ? make : PATH_EXISTING);
    if (target < 0) {
        return fail(failure, target, "the mount point");
    }
    if (kernel_move_mount(tree, target) < 0) {
        int error = errno;
        if (error == ENOTDIR || (error == EINVAL && is_directory(target) != is_directory(tree))) {
            return fail_plain(failure, ENOTDIR, "the source is a %s, but the mount point is a %s",
                              is_directory(tree) ? "directory" : "file",
                              is_directory(target) ? "directory" : "file");
        }
        return fail(failure, error, "attach");
    }
    return 0;
}

static int finish(const struct mount_step *step, const char *rootfs, struct failure *failure) {
    bool bind = (step->flags & MS_BIND) != 0;
    if (step->propagation == 0 && (bind || (step->set_attributes | step->clear_attributes) == 0)) {
        return 0;
    }
    AUTO_CLOSE int mounted = open_where(step->where, step->target, rootfs, PATH_EXISTING);
    if (mounted < 0) {
        return fail(failure, mounted, "open what was mounted");
    }
    int error = bind ? 0 : set_recursive_attributes(mounted, step);
    if (error < 0) {
        return fail(failure, error, "set mount attributes");
    }
    error = attributes_set_propagation(mounted, step->propagation);
    return error < 0 ? fail(failure, error, "set propagation") : 0;
}

static int run_bind(const struct mount_step *step, const char *rootfs, struct failure *failure) {
    uint64_t where = step->source_kind == SOURCE_ROOTFS_PATH ? WHERE_ROOTFS : WHERE_GUEST;
    AUTO_CLOSE int source = open_where(where, step->source, rootfs, PATH_EXISTING);
    if (source < 0) {
        return fail(failure, source, "the source");
    }
    AUTO_CLOSE int tree = clone_tree(source, step);
    if (tree < 0) {
        return fail(failure, tree, "bind");
    }
    int error = attach(tree, step, rootfs, failure);
    return error < 0 ? error : finish(step, rootfs, failure);
}

/* What mount(2) takes as its source: a label, a device found by serial, or a virtiofs tag. */
static int source_name(const struct mount_step *step, char name[PATH_MAX], struct failure *failure) {
    int error = pb_string(step->source, name, PATH_MAX);
    if (error < 0) {
        return fail(failure, error, "the source");
    }
    if (step->source_kind != SOURCE_DISK) {
        return 0;
    }
    char device[PATH_MAX];
    error = disk_find_by_serial(name, (uint32_t)step->wait_ms, device, sizeof device);
    if (error < 0) {
        return fail(failure, error, "disk %s", name);
    }
    memcpy(name, device, sizeof device);
    return 0;
}

struct mount_arguments {
    char source[PATH_MAX];
    char fstype[64];
    char data[DATA_MAX];
};

static int mount_arguments(const struct mount_step *step, struct mount_arguments *out,
                           struct failure *failure) {
    int error = source_name(step, out->source, failure);
    if (error < 0) {
        return error;
    }
    error = pb_string(step->fstype, out->fstype, sizeof out->fstype);
    if (error < 0) {
        return fail(failure, error, "the file system type");
    }
    error = pb_string(step->data, out->data, sizeof out->data);
    return error < 0 ? fail(failure, error, "the mount options") : 0;
}

static int mount_on(int target, const struct mount_arguments *arguments, uint64_t flags,
                    struct failure *failure) {
    char path[FD_PATH_MAX];
    fd_path(target, path);
    const char *data = arguments->data[0] != 0 ? arguments->data : NULL;
    if (mount_when_there(arguments->source, path, arguments->fstype, flags, data) < 0) {
        return fail(failure, errno, "%s with options \"%.120s\"", arguments->fstype,
                    arguments->data);
    }
    return 0;
}

/* A tmpfs over a directory of the image takes that directory's mode unless its options say one. */
static void inherit_mode(int target, struct mount_arguments *arguments) {
    struct stat status;
    if (strcmp(arguments->fstype, "tmpfs") != 0 || fstat(target, &status) < 0) {
        return;
    }
    char joined[DATA_MAX];
    int size = snprintf(joined, sizeof joined, "mode=%04o%s%s", status.st_mode & 07777U,
                        arguments->data[0] != 0 ? "," : "", arguments->data);
    if (size > 0 && (size_t)size < sizeof joined) {
        memcpy(arguments->data, joined, (size_t)size + 1);
    }
}

static int run_filesystem(const struct mount_step *step, const char *rootfs,
                          struct failure *failure) {
    struct mount_arguments arguments;
    int error = mount_arguments(step, &arguments, failure);
    if (error < 0) {
        return error;
    }
    AUTO_CLOSE int target = open_where(step->where, step->target, rootfs, PATH_EXISTING);
    if (target >= 0) {
        inherit_mode(target, &arguments);
    } else if (target == -ENOENT && step->make_target) {
        target = open_where(step->where, step->target, rootfs, PATH_DIRECTORY);
    }
    if (target < 0) {
        return fail(failure, target, "the mount point");
    }
    error = mount_on(target, &arguments, step->flags, failure);
    if (error == 0 && step->copy_up) {
        AUTO_CLOSE int mounted = open_where(step->where, step->target, rootfs, PATH_EXISTING);
        error = mounted < 0 ? mounted : copyup_directory(target, mounted);
        if (error < 0) {
            return fail(failure, error, "copy what the image has there");
        }
    }
    return error < 0 ? error : finish(step, rootfs, failure);
}

static int bind_subpath(const struct mount_step *step, const char *rootfs,
                        struct failure *failure) {
    AUTO_CLOSE int source = open_in_rootfs(ASIDE, step->source_subpath, PATH_EXISTING);
    if (source < 0) {
        return fail(failure, source, "%.*s in it", SLICE(step->source_subpath));
    }
    AUTO_CLOSE int tree = clone_tree(source, step);
    if (tree < 0) {
        return fail(failure, tree, "bind %.*s of it", SLICE(step->source_subpath));
    }
    int error = attach(tree, step, rootfs, failure);
    return error < 0 ? error : finish(step, rootfs, failure);
}

/* One path of a disk or a share: mounted aside, bound from there, and detached again. */
static int run_subpath(const struct mount_step *step, const char *rootfs,
                       struct failure *failure) {
    struct mount_arguments arguments;
    int error = mount_arguments(step, &arguments, failure);
    if (error < 0) {
        return error;
    }
    struct pb_slice aside = {(const uint8_t *)ASIDE, sizeof ASIDE - 1};
    AUTO_CLOSE int target = open_in_rootfs("/", aside, PATH_DIRECTORY);
    if (target < 0) {
        return fail(failure, target, "%s", ASIDE);
    }
    error = mount_on(target, &arguments, step->flags & ~(uint64_t)(MS_BIND | MS_REC), failure);
    if (error < 0) {
        return error;
    }
    struct mount_step bind = *step;
    bind.flags |= MS_BIND;
    error = bind_subpath(&bind, rootfs, failure);
    if (umount2(ASIDE, MNT_DETACH) < 0 && error == 0) {
        return fail(failure, errno, "detach %s", ASIDE);
    }
    return error;
}

int mounts_run(const struct mount_step *step, const char *rootfs, struct failure *failure) {
    if (step->source_kind == SOURCE_PATH || step->source_kind == SOURCE_ROOTFS_PATH) {
        return run_bind(step, rootfs, failure);
    }
    if (step->source_subpath.size > 0) {
        return run_subpath(step, rootfs, failure);
    }
    return run_filesystem(step, rootfs, failure);
}

static int mask_file(int target, struct failure *failure) {
    AUTO_CLOSE int source = RETRY(open("/dev/null", O_PATH | O_CLOEXEC));
    if (source < 0) {
        return fail(failure, errno, "/dev/null");
    }
    struct mount_step step = {.flags = MS_BIND};
    AUTO_CLOSE int tree = clone_tree(source, &step);
    if (tree < 0) {
        return fail(failure, tree, "bind /dev/null");
    }
    return kernel_move_mount(tree, target) < 0 ? fail(failure, errno, "attach") : 0;
}

int mounts_mask(struct pb_slice path, const char *rootfs, struct failure *failure) {
    AUTO_CLOSE int target = open_in_rootfs(rootfs, path, PATH_EXISTING);
    if (target == -ENOENT || target == -ENOTDIR) {
        return 0;
    }
    if (target < 0) {
        return fail(failure, target, "open");
    }
    if (!is_directory(target)) {
        return mask_file(target, failure);
    }
    const struct mount_arguments empty = {"tmpfs", "tmpfs", "nr_blocks=1,nr_inodes=1"};
    return mount_on(target, &empty, MS_RDONLY, failure);
}

int mounts_readonly(struct pb_slice path, const char *rootfs, struct failure *failure) {
    struct mount_step step = {
        .source_kind = SOURCE_ROOTFS_PATH,
        .where = WHERE_ROOTFS,
        .source = path,
        .target = path,
        .flags = MS_BIND | MS_REC | MS_RDONLY,
    };
    AUTO_CLOSE int there = open_in_rootfs(rootfs, path, PATH_EXISTING);
    if (there == -ENOENT || there == -ENOTDIR) {
        return 0;
    }
    return run_bind(&step, rootfs, failure);
}

int mounts_remount(struct pb_slice path, uint64_t flags, const char *rootfs,
                   struct failure *failure) {
    AUTO_CLOSE int target = open_in_rootfs(rootfs, path, PATH_EXISTING);
    if (target < 0) {
        return fail(failure, target, "open");
    }
    int error = attributes_set_flags(target, flags);
    return error < 0 ? fail(failure, error, "remount") : 0;
}

int mounts_console(int slave, const char *rootfs, struct failure *failure) {
    struct mount_step step = {.flags = MS_BIND, .where = WHERE_ROOTFS, .make_target = true};
    step.target = (struct pb_slice){(const uint8_t *)"/dev/console", 12};
    AUTO_CLOSE int tree = clone_tree(slave, &step);
    if (tree < 0) {
        return fail(failure, tree, "bind the terminal");
    }
    return attach(tree, &step, rootfs, failure);
}

static int bind_new(const char *source_path, int directory, const char *name) {
    AUTO_CLOSE int source = RETRY(open(source_path, O_PATH | O_CLOEXEC));
    if (source < 0) {
        return -errno;
    }
    struct mount_step step = {.flags = MS_BIND};
    AUTO_CLOSE int tree = clone_tree(source, &step);
    if (tree < 0) {
        return tree;
    }
    const int flags = O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC;
    AUTO_CLOSE int target = RETRY(openat(directory, name, flags, 0600));
    return target < 0 || kernel_move_mount(tree, target) < 0 ? -errno : 0;
}

int mounts_node(int directory, const char *name, mode_t mode, dev_t device) {
    char ours[FD_PATH_MAX];
    int error = -EEXIST;
    for (unsigned number = 0; error == -EEXIST && number < ATTEMPTS; number++) {
        snprintf(ours, sizeof ours, "/dev/.node-%u", number);
        error = mknod(ours, mode, device) < 0 ? -errno : 0;
    }
    if (error == 0) {
        error = bind_new(ours, directory, name);
        unlink(ours); /* the mount keeps it */
    }
    return error;
}
