#include "attributes.h"

#include <errno.h>
#include <sys/mount.h>

#include "kernel.h"

/* MS_NOSYMFOLLOW, which older headers lack. */
#define MS_NOSYMFOLLOW_FLAG 256

static const uint64_t BIND_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME |
                                   MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME |
                                   MS_NOSYMFOLLOW_FLAG;
static const uint64_t ATIME_FLAGS = MS_NOATIME | MS_RELATIME | MS_STRICTATIME;
static const uint64_t PROPAGATION_FLAGS = MS_PRIVATE | MS_SLAVE | MS_SHARED | MS_UNBINDABLE;

/* The MS_* flags that a bind can carry, as mount_setattr(2) wants them. */
static struct kernel_mount_attr bind_attributes(uint64_t flags) {
    struct kernel_mount_attr attr = {0};
    attr.attr_set |= flags & MS_RDONLY ? KERNEL_MOUNT_ATTR_RDONLY : 0;
    attr.attr_set |= flags & MS_NOSUID ? KERNEL_MOUNT_ATTR_NOSUID : 0;
    attr.attr_set |= flags & MS_NODEV ? KERNEL_MOUNT_ATTR_NODEV : 0;
    attr.attr_set |= flags & MS_NOEXEC ? KERNEL_MOUNT_ATTR_NOEXEC : 0;
    attr.attr_set |= flags & MS_NOSYMFOLLOW_FLAG ? KERNEL_MOUNT_ATTR_NOSYMFOLLOW : 0;
    attr.attr_set |= flags & MS_NODIRATIME ? KERNEL_MOUNT_ATTR_NODIRATIME : 0;
    if (flags & ATIME_FLAGS) {
        attr.attr_clr |= KERNEL_MOUNT_ATTR_ATIME;
        attr.attr_set |= flags & MS_NOATIME ? KERNEL_MOUNT_ATTR_NOATIME : 0;
        attr.attr_set |= flags & MS_STRICTATIME ? KERNEL_MOUNT_ATTR_STRICTATIME : 0;
    }
    return attr;
}

int attributes_set_flags(int fd, uint64_t flags) {
    if ((flags & BIND_FLAGS) == 0) {
        return 0;
    }
    struct kernel_mount_attr attr = bind_attributes(flags);
    return kernel_mount_setattr(fd, 0, &attr) < 0 ? -errno : 0;
}

int attributes_set_propagation(int fd, uint64_t propagation) {
    if (propagation == 0) {
        return 0;
    }
    struct kernel_mount_attr attr = {.propagation = propagation & PROPAGATION_FLAGS};
    unsigned recursive = propagation & MS_REC ? KERNEL_AT_RECURSIVE : 0;
    return kernel_mount_setattr(fd, recursive, &attr) < 0 ? -errno : 0;
}
