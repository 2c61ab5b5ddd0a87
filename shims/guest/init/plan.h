/*
 * Decodes launch plans (guest.proto) into structs of fixed size. Nothing here has side effects.
 *
 * Slices point into the encoded message, which must outlive the struct. What may be large (argv,
 * env, steps) stays encoded and is walked where it is used.
 */
#ifndef VOID_PLAN_H
#define VOID_PLAN_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "pb.h"

enum {
    PLAN_NAMESPACES_MAX = 8,
    PLAN_OFFSETS_MAX = 2,
    PLAN_GROUPS_MAX = 1024,
    PLAN_RLIMITS_MAX = 16,
};

/* Values of the enums in guest.proto. */
enum plan_namespace_kind {
    NAMESPACE_MOUNT = 1,
    NAMESPACE_PID = 2,
    NAMESPACE_IPC = 3,
    NAMESPACE_UTS = 4,
    NAMESPACE_NETWORK = 5,
    NAMESPACE_CGROUP = 6,
    NAMESPACE_TIME = 7,
};
enum plan_where { WHERE_GUEST = 1, WHERE_ROOTFS = 2 };
enum plan_source {
    SOURCE_NONE = 1,
    SOURCE_PATH = 2,
    SOURCE_DISK = 3,
    SOURCE_TAG = 4,
    SOURCE_ROOTFS_PATH = 5,
};
enum plan_step_kind {
    STEP_MOUNT = 1,
    STEP_NODE = 2,
    STEP_SYMLINK = 3,
    STEP_DIRECTORY = 4,
    STEP_SYSCTL = 5,
    STEP_MASK = 6,
    STEP_READONLY = 7,
    STEP_HOSTNAME = 8,
    STEP_PIVOT = 9,
    STEP_LINK_UP = 10,
    STEP_REMOUNT = 11,
};

struct plan_namespace {
    uint64_t kind;
    struct pb_slice join_container;
};

struct plan_time_offset {
    uint64_t clock;
    int64_t seconds;
    uint64_t nanoseconds;
};

struct launch_plan {
    struct pb_slice container_id;
    struct plan_namespace namespaces[PLAN_NAMESPACES_MAX];
    size_t namespace_count;
    struct plan_time_offset offsets[PLAN_OFFSETS_MAX];
    size_t offset_count;
    struct pb_slice cgroup; /* the Cgroup message, for cgroup_write_all */
    struct pb_slice cgroup_path;
    struct pb_slice device_filter;
    struct pb_slice rootfs;
    struct pb_slice process;
    struct pb_slice whole; /* where the steps are */
};

struct plan_step {
    uint32_t kind;
    struct pb_slice body;
};

struct mount_step {
    uint64_t source_kind, where, flags, propagation;
    uint64_t set_attributes, clear_attributes, wait_ms;
    struct pb_slice source, target, fstype, data, source_subpath;
    bool make_target, copy_up;
};

/* One struct for the steps that say little: each uses the members its message has. */
struct small_step {
    uint64_t where, mode, major, minor, uid, gid, flags, propagation;
    struct pb_slice path, target, value, domainname;
    bool optional, readonly;
};

struct plan_rlimit {
    uint64_t resource, soft, hard;
};

struct plan_capabilities {
    uint64_t bounding, effective, permitted, inheritable, ambient;
};

struct plan_scheduler {
    uint64_t policy, priority, flags, runtime, deadline, period;
    int64_t nice;
};

struct process_plan {
    struct pb_slice whole; /* where args and env are */
    struct pb_slice cwd, seccomp, cpu_affinity;
    uint64_t rows, columns, uid, gid, umask, seccomp_flags, io_priority, personality;
    int64_t oom_score_adj;
    uint32_t groups[PLAN_GROUPS_MAX];
    size_t group_count;
    struct plan_rlimit rlimits[PLAN_RLIMITS_MAX];
    size_t rlimit_count;
    struct plan_capabilities capabilities;
    struct plan_scheduler scheduler;
    bool terminal, no_new_privileges, has_umask, has_capabilities;
    bool has_oom_score_adj, has_io_priority, has_scheduler, has_personality;
};

enum { PROCESS_ARGS = 1, PROCESS_ENV = 2 };

/* All of them: 0, -EBADMSG (not a message), or -E2BIG (more entries than the struct holds). */
int plan_decode(struct pb_slice message, struct launch_plan *plan);
int plan_decode_process(struct pb_slice message, struct process_plan *process);
int plan_decode_mount(struct pb_slice message, struct mount_step *step);
int plan_decode_small(const struct plan_step *step, struct small_step *small);

/* Finds the next step. 1: there is one, 0: no more, -EBADMSG. */
int plan_next_step(struct pb_reader *reader, struct plan_step *step);

/* The strings of field `field` (PROCESS_ARGS, PROCESS_ENV) as a NULL-terminated array on the heap
 * with room for `spare` more pointers. NULL when memory is short or a string holds a NUL byte. */
char **plan_strings(struct pb_slice process, uint32_t field, size_t spare);

#endif
