/* Disks, found by the serial number that the host gave them: SCSI VPD page 0x80 or virtio-blk. */
#ifndef VOID_DISK_H
#define VOID_DISK_H

#include "rpc.h"

#include <stdbool.h>
#include <sys/types.h>

enum {
    DISK_SERIAL_MAX = 64,
    DISK_NAME_MAX = 32,
    DISK_RETRY_MS = 5, /* while a disk is announced but cannot be opened yet (ENXIO) */
};

/* Waits in the calling process, at most `wait_ms`, until the disk can be opened; for launches,
 * which have a process to wait in. 0, or -ENOENT. */
int disk_find_by_serial(const char *serial, uint32_t wait_ms, char *device, size_t capacity);

/* Waits, before there is any host to ask, for the `count` disks that a template has; from then on
 * disk_find_by_serial() knows them without looking. 0, or -ETIMEDOUT. */
int disk_await(unsigned count, uint32_t wait_ms);

bool disk_find(const char *serial, char name[DISK_NAME_MAX]);
bool disk_read_serial(const char *name, char serial[DISK_SERIAL_MAX]);
ssize_t disk_read_attribute(const char *name, const char *attribute, char *out, size_t capacity);

/* uevent.c: a whole disk came, changed or went; or anything may have. */
void disk_changed(const char *device, bool present);
void disk_rescan(void);

void disk_handle_probe(struct call call, struct pb_slice request);
void disk_handle_release(struct call call, struct pb_slice request);

#endif
