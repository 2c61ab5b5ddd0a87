/*
 * Mounts of a launch plan, made in the mount namespace of the calling process. Functions return 0
 * or -errno with `failure` filled in.
 *
 * Needs /proc of the VM at /proc: a mount point that was opened safely is handed to mount(2) as
 * /proc/self/fd/N, so that no path is resolved twice.
 */
#ifndef VOID_MOUNTS_H
#define VOID_MOUNTS_H

#include <stdint.h>
#include <sys/types.h>

#include "failure.h"
#include "pb.h"
#include "plan.h"

/* Carries out one MountStep. `rootfs` is the guest path of the container's root. */
int mounts_run(const struct mount_step *step, const char *rootfs, struct failure *failure);

/* Hides a path of the rootfs: a directory under an empty read-only tmpfs, else under /dev/null. */
int mounts_mask(struct pb_slice path, const char *rootfs, struct failure *failure);

/* Makes a path of the rootfs, and what is mounted below it, read-only. */
int mounts_readonly(struct pb_slice path, const char *rootfs, struct failure *failure);

/* Sets flags (MS_RDONLY, …) of the mount at a path of the rootfs. */
int mounts_remount(struct pb_slice path, uint64_t flags, const char *rootfs, struct failure *failure);

/* Puts the terminal behind `slave` on /dev/console of the rootfs. */
int mounts_console(int slave, const char *rootfs, struct failure *failure);

/* Makes every mount of this namespace a slave of the VM's, so that nothing leaks back. */
int mounts_isolate(struct failure *failure);

/* Makes `rootfs` the root, lets go of the old one. */
int mounts_pivot(const char *rootfs, bool readonly, uint64_t propagation, struct failure *failure);

/*
 * Binds a device node of the machine's own over a new, empty file `name`: for a directory of the
 * host, in which nobody may make one. Returns 0 or -errno.
 */
int mounts_node(int directory, const char *name, mode_t mode, dev_t device);

#endif
