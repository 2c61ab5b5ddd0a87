/* Leaving the VM's file system for the container's. */
#include <errno.h>
#include <sys/mount.h>

#include "attributes.h"
#include "base.h"
#include "kernel.h"
#include "mounts.h"

int mounts_isolate(struct failure *failure) {
    if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0) {
        return fail(failure, errno, "make the mount namespace a slave of the VM's");
    }
    return 0;
}

/* Stacks the old root on the new one, so that no directory for it is needed in the image. Returns a
 * descriptor of the new root. */
static int pivot(const char *rootfs) {
    AUTO_CLOSE int new_root = RETRY(open(rootfs, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (new_root < 0 || fchdir(new_root) < 0 || kernel_pivot_root(".", ".") < 0) {
        return -errno;
    }
    return take_fd(&new_root);
}

/* pivot_root(2) wants a mount point; a plain directory becomes one by being bound to itself. */
static int pivot_anywhere(const char *rootfs, struct failure *failure) {
    int new_root = pivot(rootfs);
    if (new_root == -EINVAL || new_root == -EBUSY) {
        if (mount(rootfs, rootfs, NULL, MS_BIND | MS_REC, NULL) < 0) {
            return fail(failure, errno, "bind %s to itself", rootfs);
        }
        new_root = pivot(rootfs);
    }
    return new_root < 0 ? fail(failure, new_root, "pivot_root to %s", rootfs) : new_root;
}

int mounts_pivot(const char *rootfs, bool readonly, uint64_t propagation,
                 struct failure *failure) {
    AUTO_CLOSE int old_root = RETRY(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (old_root < 0) {
        return fail(failure, errno, "open /");
    }
    AUTO_CLOSE int new_root = pivot_anywhere(rootfs, failure);
    if (new_root < 0) {
        return new_root;
    }
    if (fchdir(old_root) < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) {
        return fail(failure, errno, "let go of the VM's file system");
    }
    int error = attributes_set_propagation(new_root, propagation);
    if (error == 0) {
        error = attributes_set_flags(new_root, readonly ? MS_RDONLY : 0);
    }
    return error < 0 ? fail(failure, error, "set up the new root") : 0;
}
