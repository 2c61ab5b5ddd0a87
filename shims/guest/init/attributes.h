/*
 * Attributes of a mount that exists: flags and propagation, through mount_setattr(2) on a descriptor
 * of its root. Functions return 0 or -errno.
 */
#ifndef VOID_ATTRIBUTES_H
#define VOID_ATTRIBUTES_H

#include <stdint.h>

/* Sets those of the MS_* flags that belong to a mount (MS_RDONLY, MS_NOSUID, the access times, …) and
 * leaves the others as they are. */
int attributes_set_flags(int fd, uint64_t flags);

/* Sets MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE, with MS_REC for everything below too; 0
 * leaves the propagation as it is. */
int attributes_set_propagation(int fd, uint64_t propagation);

#endif
