#include "steps.h"

#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base.h"
#include "boot.h"
#include "kernel.h"
#include "mounts.h"
#include "paths.h"

enum { STEP_NAME_MAX = 224 };

static int clip(struct pb_slice slice, int most) {
    return slice.size > (size_t)most ? most : (int)slice.size;
}

#define SLICE(slice, most) clip(slice, most), (const char *)(slice).data

/* Opens the directory that a node, a symlink or a directory goes into. */
static int open_parent(const struct small_step *step, const char *rootfs, char name[NAME_MAX + 1]) {
    AUTO_CLOSE int root = path_open_root(step->where == WHERE_ROOTFS ? rootfs : "/");
    return root < 0 ? root : path_open_parent(root, step->path, name);
}

static bool same_node(int directory, const char *name, mode_t mode, dev_t device) {
    struct stat status;
    return fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
           (status.st_mode & S_IFMT) == (mode & S_IFMT) &&
           (S_ISFIFO(mode) || status.st_rdev == device);
}

static int make_new_node(int directory, const char *name, mode_t mode, dev_t device) {
    if (mknodat(directory, name, mode, device) == 0) {
        return 0;
    }
    return errno == EPERM ? mounts_node(directory, name, mode, device) : -errno;
}

/* What the image has in the node's place is replaced, unless it is the same node. */
static int make_node(int directory, const char *name, mode_t mode, dev_t device) {
    int error = make_new_node(directory, name, mode, device);
    if (error != -EEXIST || same_node(directory, name, mode, device)) {
        return error == -EEXIST ? 0 : error;
    }
    return unlinkat(directory, name, 0) < 0 ? -errno : make_new_node(directory, name, mode, device);
}

static int set_owner_and_mode(int directory, const char *name, const struct small_step *step) {
    if (fchownat(directory, name, (uid_t)step->uid, (gid_t)step->gid, AT_SYMLINK_NOFOLLOW) < 0 ||
        fchmodat(directory, name, (mode_t)step->mode & 07777, 0) < 0) {
        return -errno;
    }
    return 0;
}

static int run_node(const struct small_step *step, const char *rootfs, struct failure *failure) {
    char name[NAME_MAX + 1];
    AUTO_CLOSE int directory = open_parent(step, rootfs, name);
    if (directory < 0) {
        return fail(failure, directory, "the directory");
    }
    dev_t device = makedev((unsigned)step->major, (unsigned)step->minor);
    int error = make_node(directory, name, (mode_t)step->mode, device);
    if (error == 0) {
        error = set_owner_and_mode(directory, name, step);
    }
    return error < 0 ? fail(failure, error, "mknod") : 0;
}

static int run_symlink(const struct small_step *step, const char *rootfs, struct failure *failure) {
    char name[NAME_MAX + 1];
    char target[PATH_MAX];
    int error = pb_string(step->target, target, sizeof target);
    if (error < 0) {
        return fail(failure, error, "the target");
    }
    AUTO_CLOSE int directory = open_parent(step, rootfs, name);
    if (directory < 0) {
        return fail(failure, directory, "the directory");
    }
    if (symlinkat(target, directory, name) == 0) {
        return 0;
    }
    if (errno != EEXIST) {
        return fail(failure, errno, "symlink");
    }
    /* The image may have an older link, or a file, in its place; a directory stays. */
    if (unlinkat(directory, name, 0) < 0) {
        return errno == EISDIR ? 0 : fail(failure, errno, "remove what is there");
    }
    return symlinkat(target, directory, name) < 0 ? fail(failure, errno, "symlink") : 0;
}

static int run_directory(const struct small_step *step, const char *rootfs,
                         struct failure *failure) {
    AUTO_CLOSE int root = path_open_root(step->where == WHERE_ROOTFS ? rootfs : "/");
    if (root < 0) {
        return fail(failure, root, "open %s", rootfs);
    }
    AUTO_CLOSE int there = path_open(root, step->path, PATH_EXISTING);
    if (there >= 0) {
        struct stat status;
        bool directory = fstat(there, &status) == 0 && S_ISDIR(status.st_mode);
        return directory ? 0 : fail(failure, ENOTDIR, "there is something else");
    }
    AUTO_CLOSE int made = path_open(root, step->path, PATH_DIRECTORY);
    if (made < 0) {
        return fail(failure, made, "mkdir");
    }
    /* An O_PATH descriptor takes no fchmod; "." below it does. */
    int error = set_owner_and_mode(made, ".", step);
    return error < 0 ? fail(failure, error, "set owner and mode") : 0;
}

static int write_sysctl(const struct small_step *step) {
    char path[PATH_MAX];
    int error = pb_string(step->path, path, sizeof path);
    if (error < 0) {
        return error;
    }
    AUTO_CLOSE int base = RETRY(open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (base < 0) {
        return -errno;
    }
    AUTO_CLOSE int file =
        kernel_openat2(base, path, O_WRONLY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    if (file < 0) {
        return -errno;
    }
    return RETRY(write(file, step->value.data, step->value.size)) < 0 ? -errno : 0;
}

static int run_sysctl(const struct small_step *step, struct failure *failure) {
    int error = write_sysctl(step);
    if (error < 0 && !step->optional) {
        return fail(failure, error, "write \"%.*s\"", SLICE(step->value, 80));
    }
    return 0;
}

static int run_hostname(const struct small_step *step, struct failure *failure) {
    if (step->value.size > 0 && sethostname((const char *)step->value.data, step->value.size) < 0) {
        return fail(failure, errno, "sethostname");
    }
    if (step->domainname.size > 0 &&
        setdomainname((const char *)step->domainname.data, step->domainname.size) < 0) {
        return fail(failure, errno, "setdomainname");
    }
    return 0;
}

static int run_link_up(const struct small_step *step, struct failure *failure) {
    char name[IF_NAMESIZE];
    int error = pb_string(step->path, name, sizeof name);
    if (error < 0) {
        return fail(failure, error, "the name");
    }
    error = boot_link_up(name);
    return error < 0 ? fail(failure, error, "bring it up") : 0;
}

static int run_small(const struct plan_step *step, const char *rootfs, struct failure *failure) {
    struct small_step small;
    int error = plan_decode_small(step, &small);
    if (error < 0) {
        return fail(failure, error, "decode");
    }
    switch (step->kind) {
    case STEP_NODE:
        return run_node(&small, rootfs, failure);
    case STEP_SYMLINK:
        return run_symlink(&small, rootfs, failure);
    case STEP_DIRECTORY:
        return run_directory(&small, rootfs, failure);
    case STEP_SYSCTL:
        return run_sysctl(&small, failure);
    case STEP_MASK:
        return mounts_mask(small.path, rootfs, failure);
    case STEP_READONLY:
        return mounts_readonly(small.path, rootfs, failure);
    case STEP_HOSTNAME:
        return run_hostname(&small, failure);
    case STEP_PIVOT:
        return mounts_pivot(rootfs, small.readonly, small.propagation, failure);
    case STEP_LINK_UP:
        return run_link_up(&small, failure);
    case STEP_REMOUNT:
        return mounts_remount(small.path, small.flags, rootfs, failure);
    default:
        return fail_plain(failure, ENOSYS, "this guest does not know it");
    }
}

static void name_mount(const struct mount_step *mount, char name[STEP_NAME_MAX]) {
    bool bind = mount->source_kind == SOURCE_PATH || mount->source_kind == SOURCE_ROOTFS_PATH;
    snprintf(name, STEP_NAME_MAX, "%s %.*s on %.*s", bind ? "bind" : "mount",
             SLICE(mount->source, 80), SLICE(mount->target, 100));
}

static void name_small(const struct plan_step *step, char name[STEP_NAME_MAX]) {
    static const char *const verbs[] = {
        [STEP_NODE] = "make the device",      [STEP_SYMLINK] = "make the symlink",
        [STEP_DIRECTORY] = "make directory",  [STEP_SYSCTL] = "set sysctl",
        [STEP_MASK] = "hide",                 [STEP_READONLY] = "make read-only",
        [STEP_HOSTNAME] = "set the hostname", [STEP_PIVOT] = "change the root",
        [STEP_LINK_UP] = "bring up",          [STEP_REMOUNT] = "remount",
    };
    struct small_step small;
    bool known = step->kind < sizeof verbs / sizeof verbs[0] && verbs[step->kind] != NULL;
    if (!known || plan_decode_small(step, &small) < 0) {
        snprintf(name, STEP_NAME_MAX, "kind %u", step->kind);
        return;
    }
    struct pb_slice object = step->kind == STEP_HOSTNAME ? small.value : small.path;
    snprintf(name, STEP_NAME_MAX, "%s%s%.*s", verbs[step->kind], object.size > 0 ? " " : "",
             SLICE(object, 180));
}

int steps_run(const struct plan_step *step, size_t index, const char *rootfs,
              struct failure *failure) {
    char name[STEP_NAME_MAX] = "mount";
    int error = 0;
    if (step->kind == STEP_MOUNT) {
        struct mount_step mount;
        error = plan_decode_mount(step->body, &mount);
        if (error < 0) {
            fail(failure, error, "decode");
        } else {
            name_mount(&mount, name);
            error = mounts_run(&mount, rootfs, failure);
        }
    } else {
        name_small(step, name);
        error = run_small(step, rootfs, failure);
    }
    if (error < 0) {
        fail_context(failure, "step %zu (%s)", index, name);
    }
    return error;
}
