/* Shared directories (virtiofs), which the host plugs in while the VM runs. */
#ifndef SHARES_H
#define SHARES_H

#include <stdint.h>

/*
 * mount(2), which for a share waits until the device is there. Returns 0, or -1 with errno.
 * The kernel names no missing share: it answers EINVAL, as for an option that it does not know.
 */
int mount_when_there(const char *source, const char *path, const char *fstype, uint64_t flags,
                     const char *data);

#endif
