#include "disk.h"

#include "base.h"
#include "events.h"
#include "log.h"
#include "loop.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

enum {
    PROBES_MAX = 32,
    DISKS_MAX = 64,
    SECTOR_BYTES = 512,
};

/* A ProbeDisk that waits. */
struct probe {
    bool used;
    char serial[DISK_SERIAL_MAX];
    struct call call;
    struct deadline until, retry;
};

/* Which serial a device had: when it goes, sysfs no longer tells. */
struct known_disk {
    char name[DISK_NAME_MAX], serial[DISK_SERIAL_MAX];
};

static struct probe probes[PROBES_MAX];
static struct known_disk known[DISKS_MAX];

/* ---- waiting for a disk ---------------------------------------------------------------------- */

static void end_probe(struct probe *probe) {
    loop_clear_deadline(&probe->until);
    loop_clear_deadline(&probe->retry);
    probe->used = false;
}

static void answer_probe(struct probe *probe, const char *name) {
    char device[64], size[32] = "0";
    struct reply reply;
    snprintf(device, sizeof device, "/dev/%s", name);
    disk_read_attribute(name, "size", size, sizeof size);
    if (rpc_begin(&reply, probe->call, 128)) {
        pb_put_string(&reply.writer, 1, device);
        pb_put_varint(&reply.writer, 2, strtoull(size, NULL, 10) * SECTOR_BYTES);
        rpc_end(&reply);
    }
    end_probe(probe);
}

static void try_probe(struct probe *probe);

static void retry_probe(struct deadline *deadline) {
    try_probe((struct probe *)((char *)deadline - offsetof(struct probe, retry)));
}

static void probe_expired(struct deadline *deadline) {
    struct probe *probe = (struct probe *)((char *)deadline - offsetof(struct probe, until));
    rpc_fail(probe->call, RPC_NOT_FOUND, "no disk with serial \"%s\"", probe->serial);
    end_probe(probe);
}

/* The node is there before the disk can be opened; that moment passes without an announcement. */
static void try_probe(struct probe *probe) {
    char name[DISK_NAME_MAX], device[64];
    if (!disk_find(probe->serial, name)) {
        return;
    }
    snprintf(device, sizeof device, "/dev/%s", name);
    AUTO_CLOSE int fd = open(device, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        loop_set_deadline(&probe->retry, DISK_RETRY_MS, retry_probe);
    } else {
        answer_probe(probe, name);
    }
}

static void try_probes(void) {
    for (struct probe *probe = probes; probe < probes + PROBES_MAX; probe++) {
        if (probe->used) {
            try_probe(probe);
        }
    }
}

static bool read_request(struct call call, struct pb_slice request, char serial[DISK_SERIAL_MAX],
                         uint64_t *wait_ms) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    struct pb_slice name = {0};
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        name = field.number == 1 ? field.bytes : name;
        *wait_ms = field.number == 2 ? field.varint : *wait_ms;
    }
    if (more < 0 || name.size == 0 || pb_string(name, serial, DISK_SERIAL_MAX) < 0) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "a serial has 1 to %d bytes", DISK_SERIAL_MAX - 1);
        return false;
    }
    return true;
}

static struct probe *new_probe(struct call call, const char *serial) {
    struct probe *probe = probes;
    while (probe < probes + PROBES_MAX && probe->used && rpc_live(probe->call)) {
        probe++;
    }
    if (probe == probes + PROBES_MAX) {
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "%d disks are waited for already", PROBES_MAX);
        return NULL;
    }
    end_probe(probe); /* what waited here belonged to an earlier connection */
    probe->used = true;
    probe->call = call;
    strcpy(probe->serial, serial);
    return probe;
}

void disk_handle_probe(struct call call, struct pb_slice request) {
    char serial[DISK_SERIAL_MAX];
    uint64_t wait_ms = 0;
    struct probe *probe;
    if (read_request(call, request, serial, &wait_ms) &&
        (probe = new_probe(call, serial)) != NULL) {
        loop_set_deadline(&probe->until, wait_ms, probe_expired);
        try_probe(probe);
    }
}

void disk_handle_release(struct call call, struct pb_slice request) {
    char serial[DISK_SERIAL_MAX], name[DISK_NAME_MAX], path[128];
    uint64_t ignored = 0;
    if (!read_request(call, request, serial, &ignored)) {
        return;
    }
    if (!disk_find(serial, name)) {
        rpc_done(call);
        return;
    }
    /* SCSI lets go when told; virtio-blk leaves with its device and has no such file. */
    snprintf(path, sizeof path, "/sys/block/%s/device/delete", name);
    AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 ? errno != ENOENT : RETRY(write(fd, "1", 1)) < 0) {
        rpc_fail_errno(call, errno, "release of disk \"%s\"", serial);
        return;
    }
    rpc_done(call);
}

/* ---- comings and goings ---------------------------------------------------------------------- */

static struct known_disk *find_known(const char *name) {
    for (struct known_disk *at = known; at < known + DISKS_MAX; at++) {
        if (strcmp(at->name, name) == 0) {
            return at;
        }
    }
    return NULL;
}

static void disk_went(struct known_disk *disk) {
    events_disk(disk->serial, false);
    disk->name[0] = 0;
}

static void disk_came(const char *name) {
    struct known_disk *disk = find_known(name);
    char serial[DISK_SERIAL_MAX];
    if (!disk_read_serial(name, serial)) {
        return;
    }
    if (disk != NULL && strcmp(disk->serial, serial) == 0) {
        return; /* it only changed */
    }
    if (disk != NULL) {
        disk_went(disk); /* its leaving was not announced, or the announcement was lost */
    }
    if ((disk = find_known("")) == NULL) {
        return;
    }
    strcpy(disk->name, name);
    strcpy(disk->serial, serial);
    events_disk(serial, true);
}

void disk_changed(const char *device, bool present) {
    if (device[0] == 0 || strlen(device) >= DISK_NAME_MAX) {
        return;
    }
    if (present) {
        disk_came(device);
        try_probes();
        return;
    }
    struct known_disk *disk = find_known(device);
    if (disk != NULL) {
        disk_went(disk);
    }
}

void disk_rescan(void) {
    try_probes();
}
