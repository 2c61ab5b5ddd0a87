#include "stats.h"

#include "cgroup.h"
#include "log.h"
#include "loop.h"
#include "proc.h"

#include <stdio.h>
#include <string.h>

enum { CONTENT_MAX = 16 << 10, INTERFACES_MAX = 64, INTERFACE_BYTES = 160 };

static const char *const cgroup_files[] = {
    "cpu.stat",      "cpu.pressure",        "memory.current",  "memory.max",    "memory.peak",
    "memory.stat",   "memory.events",       "memory.pressure", "memory.low",    "memory.high",
    "memory.swap.current", "memory.swap.max", "pids.current",  "pids.max",      "io.stat",
    "io.pressure",   "hugetlb.2MB.current", "hugetlb.2MB.max", "cgroup.events",
};
enum { FILES = sizeof cgroup_files / sizeof cgroup_files[0] };

static void put_cgroup_files(struct pb_writer *writer, int cgroup_fd) {
    static char content[CONTENT_MAX];
    for (size_t i = 0; i < FILES; i++) {
        ssize_t size = cgroup_read(cgroup_fd, cgroup_files[i], content, sizeof content);
        if (size < 0) {
            continue; /* a controller that this kernel, or this cgroup, does not have */
        }
        uint8_t *mark = pb_begin(writer, 1);
        pb_put_string(writer, 1, cgroup_files[i]);
        pb_put_bytes(writer, 2, content, (size_t)size);
        pb_end(writer, mark);
    }
}

/* One line of /proc/PID/net/dev: "  eth0: bytes packets errs drop fifo frame compressed multicast",
 * then the same for transmission. */
static void put_interface(struct pb_writer *writer, uint32_t field, char *line) {
    unsigned long long rx[4], tx[4];
    char *colon = strchr(line, ':');
    if (colon == NULL) {
        return;
    }
    *colon = 0;
    if (sscanf(colon + 1, "%llu %llu %llu %llu %*u %*u %*u %*u %llu %llu %llu %llu", &rx[0], &rx[1],
               &rx[2], &rx[3], &tx[0], &tx[1], &tx[2], &tx[3]) != 8) {
        return;
    }
    uint8_t *mark = pb_begin(writer, field);
    pb_put_string(writer, 1, line + strspn(line, " "));
    for (uint32_t i = 0; i < 4; i++) {
        pb_put_varint(writer, 2 + i, rx[i]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        pb_put_varint(writer, 6 + i, tx[i]);
    }
    pb_end(writer, mark);
}

static void put_interfaces(struct pb_writer *writer, uint32_t field, pid_t pid) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/net/dev", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return;
    }
    for (int i = 0; i < INTERFACES_MAX && fgets(line, sizeof line, file) != NULL; i++) {
        put_interface(writer, field, line); /* the two lines of heading have no counters */
    }
    fclose(file);
}

void stats_handle_container(struct call call, struct pb_slice request) {
    struct process_ref ref;
    struct container *container;
    struct reply reply;
    if (!proc_read_ref(call, request, &ref) ||
        (container = proc_require_container(call, ref.container)) == NULL) {
        return;
    }
    if (!rpc_begin(&reply, call, FILES * (CONTENT_MAX + 64) + INTERFACES_MAX * INTERFACE_BYTES)) {
        return;
    }
    put_cgroup_files(&reply.writer, container->init->launched.cgroup_fd);
    if (container->init->pid != 0) {
        put_interfaces(&reply.writer, 2, container->init->pid);
    }
    rpc_end(&reply);
}

/* ---- the VM ---------------------------------------------------------------------------------- */

struct load {
    unsigned long long busy_ns, total_ns, memory_total, memory_available, open_files;
    unsigned running;
};

static void read_cpu_line(const char *line, struct load *load) {
    unsigned long long t[8] = {0};
    if (sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2], &t[3],
               &t[4], &t[5], &t[6], &t[7]) < 4) {
        return;
    }
    unsigned long long tick = 1000000000ULL / (unsigned long long)sysconf(_SC_CLK_TCK);
    unsigned long long idle = t[3] + t[4];
    unsigned long long busy = t[0] + t[1] + t[2] + t[5] + t[6] + t[7];
    load->busy_ns = busy * tick;
    load->total_ns = (busy + idle) * tick;
}

static void read_load(struct load *load) {
    char line[512];
    FILE *file = fopen("/proc/stat", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "cpu ", 4) == 0) {
            read_cpu_line(line, load);
        }
        (void)sscanf(line, "procs_running %u", &load->running);
    }
    if (file != NULL) {
        fclose(file);
    }
    file = fopen("/proc/meminfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        (void)sscanf(line, "MemTotal: %llu", &load->memory_total);
        (void)sscanf(line, "MemAvailable: %llu", &load->memory_available);
    }
    if (file != NULL) {
        fclose(file);
    }
    file = fopen("/proc/sys/fs/file-nr", "re");
    if (file != NULL) {
        (void)!fscanf(file, "%llu", &load->open_files);
        fclose(file);
    }
}

void stats_handle_telemetry(struct call call, struct pb_slice request) {
    struct load load = {0};
    struct reply reply;
    (void)request;
    read_load(&load);
    if (!rpc_begin(&reply, call, 128 + INTERFACES_MAX * INTERFACE_BYTES)) {
        return;
    }
    pb_put_varint(&reply.writer, 1, wall_clock_ns());
    pb_put_varint(&reply.writer, 2, load.busy_ns);
    pb_put_varint(&reply.writer, 3, load.total_ns);
    pb_put_varint(&reply.writer, 4, load.memory_total * 1024);
    pb_put_varint(&reply.writer, 5, load.memory_available * 1024);
    pb_put_varint(&reply.writer, 6, load.running);
    pb_put_varint(&reply.writer, 7, load.open_files);
    put_interfaces(&reply.writer, 8, getpid());
    rpc_end(&reply);
}
