#include "plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Each decoder is a table of where a field's value goes; a message has at most two levels here, so
 * that tables say all there is to say. Fields without an entry are stepped over, as proto3 asks.
 */
enum target_kind { INTO_NUMBER, INTO_ZIGZAG, INTO_SLICE, INTO_BOOL };

struct target {
    uint32_t field;
    enum target_kind kind;
    void *into;
    bool *present;
};

static void store(const struct target *target, const struct pb_field *field) {
    switch (target->kind) {
    case INTO_NUMBER:
        *(uint64_t *)target->into = field->varint;
        break;
    case INTO_ZIGZAG:
        *(int64_t *)target->into = pb_zigzag(field->varint);
        break;
    case INTO_SLICE:
        *(struct pb_slice *)target->into = field->bytes;
        break;
    case INTO_BOOL:
        *(bool *)target->into = field->varint != 0;
        break;
    }
    if (target->present != NULL) {
        *target->present = true;
    }
}

static void store_any(const struct target *targets, size_t count, const struct pb_field *field) {
    for (size_t i = 0; i < count; i++) {
        if (targets[i].field == field->number) {
            store(&targets[i], field);
        }
    }
}

static int decode(struct pb_slice message, const struct target *targets, size_t count) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        store_any(targets, count, &field);
    }
    return more;
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int add_namespace(struct launch_plan *plan, struct pb_slice message) {
    if (plan->namespace_count == PLAN_NAMESPACES_MAX) {
        return -E2BIG;
    }
    struct plan_namespace *added = &plan->namespaces[plan->namespace_count++];
    const struct target targets[] = {
        {1, INTO_NUMBER, &added->kind, NULL},
        {2, INTO_SLICE, &added->join_container, NULL},
    };
    return decode(message, targets, COUNT(targets));
}

static int add_offset(struct launch_plan *plan, struct pb_slice message) {
    if (plan->offset_count == PLAN_OFFSETS_MAX) {
        return -E2BIG;
    }
    struct plan_time_offset *added = &plan->offsets[plan->offset_count++];
    const struct target targets[] = {
        {1, INTO_NUMBER, &added->clock, NULL},
        {2, INTO_ZIGZAG, &added->seconds, NULL},
        {3, INTO_NUMBER, &added->nanoseconds, NULL},
    };
    return decode(message, targets, COUNT(targets));
}

static int decode_cgroup(struct launch_plan *plan) {
    const struct target targets[] = {
        {1, INTO_SLICE, &plan->cgroup_path, NULL},
        {3, INTO_SLICE, &plan->device_filter, NULL},
    };
    return decode(plan->cgroup, targets, COUNT(targets));
}

int plan_decode(struct pb_slice message, struct launch_plan *plan) {
    memset(plan, 0, sizeof *plan);
    plan->whole = message;
    const struct target targets[] = {
        {1, INTO_SLICE, &plan->container_id, NULL},
        {3, INTO_SLICE, &plan->cgroup, NULL},
        {5, INTO_SLICE, &plan->rootfs, NULL},
        {6, INTO_SLICE, &plan->process, NULL},
    };
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        int error = 0;
        if (field.number == 2) {
            error = add_namespace(plan, field.bytes);
        } else if (field.number == 7) {
            error = add_offset(plan, field.bytes);
        } else {
            store_any(targets, COUNT(targets), &field);
        }
        if (error < 0) {
            return error;
        }
    }
    return more < 0 ? more : decode_cgroup(plan);
}

int plan_next_step(struct pb_reader *reader, struct plan_step *step) {
    struct pb_field field;
    int more;
    while ((more = pb_field(reader, &field)) > 0) {
        if (field.number == 4) {
            struct pb_reader inner = pb_read(field.bytes);
            struct pb_field action = {0};
            int found = pb_field(&inner, &action);
            if (found <= 0) {
                return -EBADMSG;
            }
            *step = (struct plan_step){action.number, action.bytes};
            return 1;
        }
    }
    return more;
}

int plan_decode_mount(struct pb_slice message, struct mount_step *step) {
    memset(step, 0, sizeof *step);
    const struct target targets[] = {
        {1, INTO_NUMBER, &step->source_kind, NULL},
        {2, INTO_SLICE, &step->source, NULL},
        {3, INTO_NUMBER, &step->where, NULL},
        {4, INTO_SLICE, &step->target, NULL},
        {5, INTO_SLICE, &step->fstype, NULL},
        {6, INTO_NUMBER, &step->flags, NULL},
        {7, INTO_SLICE, &step->data, NULL},
        {8, INTO_NUMBER, &step->propagation, NULL},
        {9, INTO_BOOL, &step->make_target, NULL},
        {10, INTO_NUMBER, &step->set_attributes, NULL},
        {11, INTO_NUMBER, &step->wait_ms, NULL},
        {12, INTO_BOOL, &step->copy_up, NULL},
        {13, INTO_SLICE, &step->source_subpath, NULL},
        {14, INTO_NUMBER, &step->clear_attributes, NULL},
    };
    return decode(message, targets, COUNT(targets));
}

int plan_decode_small(const struct plan_step *step, struct small_step *small) {
    memset(small, 0, sizeof *small);
    const struct target node[] = {
        {1, INTO_NUMBER, &small->where, NULL}, {2, INTO_SLICE, &small->path, NULL},
        {3, INTO_NUMBER, &small->mode, NULL},  {4, INTO_NUMBER, &small->major, NULL},
        {5, INTO_NUMBER, &small->minor, NULL}, {6, INTO_NUMBER, &small->uid, NULL},
        {7, INTO_NUMBER, &small->gid, NULL},
    };
    const struct target symlink[] = {
        {1, INTO_NUMBER, &small->where, NULL},
        {2, INTO_SLICE, &small->path, NULL},
        {3, INTO_SLICE, &small->target, NULL},
    };
    const struct target directory[] = {
        {1, INTO_NUMBER, &small->where, NULL}, {2, INTO_SLICE, &small->path, NULL},
        {3, INTO_NUMBER, &small->mode, NULL},  {4, INTO_NUMBER, &small->uid, NULL},
        {5, INTO_NUMBER, &small->gid, NULL},
    };
    const struct target sysctl[] = {
        {1, INTO_SLICE, &small->path, NULL},
        {2, INTO_SLICE, &small->value, NULL},
        {3, INTO_BOOL, &small->optional, NULL},
    };
    const struct target hostname[] = {
        {1, INTO_SLICE, &small->value, NULL},
        {2, INTO_SLICE, &small->domainname, NULL},
    };
    const struct target pivot[] = {
        {1, INTO_BOOL, &small->readonly, NULL},
        {2, INTO_NUMBER, &small->propagation, NULL},
    };
    const struct target path_and_flags[] = {
        {1, INTO_SLICE, &small->path, NULL},
        {2, INTO_NUMBER, &small->flags, NULL},
    };
    switch (step->kind) {
    case STEP_NODE:
        return decode(step->body, node, COUNT(node));
    case STEP_SYMLINK:
        return decode(step->body, symlink, COUNT(symlink));
    case STEP_DIRECTORY:
        return decode(step->body, directory, COUNT(directory));
    case STEP_SYSCTL:
        return decode(step->body, sysctl, COUNT(sysctl));
    case STEP_HOSTNAME:
        return decode(step->body, hostname, COUNT(hostname));
    case STEP_PIVOT:
        return decode(step->body, pivot, COUNT(pivot));
    default:
        return decode(step->body, path_and_flags, COUNT(path_and_flags));
    }
}

static int decode_capabilities(struct pb_slice message, struct plan_capabilities *capabilities) {
    const struct target targets[] = {
        {1, INTO_NUMBER, &capabilities->bounding, NULL},
        {2, INTO_NUMBER, &capabilities->effective, NULL},
        {3, INTO_NUMBER, &capabilities->permitted, NULL},
        {4, INTO_NUMBER, &capabilities->inheritable, NULL},
        {5, INTO_NUMBER, &capabilities->ambient, NULL},
    };
    return decode(message, targets, COUNT(targets));
}

static int decode_scheduler(struct pb_slice message, struct plan_scheduler *scheduler) {
    const struct target targets[] = {
        {1, INTO_NUMBER, &scheduler->policy, NULL},   {2, INTO_ZIGZAG, &scheduler->nice, NULL},
        {3, INTO_NUMBER, &scheduler->priority, NULL}, {4, INTO_NUMBER, &scheduler->flags, NULL},
        {5, INTO_NUMBER, &scheduler->runtime, NULL},  {6, INTO_NUMBER, &scheduler->deadline, NULL},
        {7, INTO_NUMBER, &scheduler->period, NULL},
    };
    return decode(message, targets, COUNT(targets));
}

static int add_rlimit(struct process_plan *process, struct pb_slice message) {
    if (process->rlimit_count == PLAN_RLIMITS_MAX) {
        return -E2BIG;
    }
    struct plan_rlimit *added = &process->rlimits[process->rlimit_count++];
    const struct target targets[] = {
        {1, INTO_NUMBER, &added->resource, NULL},
        {2, INTO_NUMBER, &added->soft, NULL},
        {3, INTO_NUMBER, &added->hard, NULL},
    };
    return decode(message, targets, COUNT(targets));
}

/* The fields of a ProcessPlan that are messages or lists. */
static int decode_part(struct process_plan *process, const struct pb_field *field) {
    switch (field->number) {
    case 9:
        return pb_repeat_u32(field, process->groups, &process->group_count, PLAN_GROUPS_MAX);
    case 11:
        process->has_capabilities = true;
        return decode_capabilities(field->bytes, &process->capabilities);
    case 12:
        return add_rlimit(process, field->bytes);
    case 21:
        process->has_scheduler = true;
        return decode_scheduler(field->bytes, &process->scheduler);
    default:
        return 0;
    }
}

int plan_decode_process(struct pb_slice message, struct process_plan *process) {
    memset(process, 0, sizeof *process);
    process->whole = message;
    const struct target targets[] = {
        {3, INTO_SLICE, &process->cwd, NULL},
        {4, INTO_BOOL, &process->terminal, NULL},
        {5, INTO_NUMBER, &process->rows, NULL},
        {6, INTO_NUMBER, &process->columns, NULL},
        {7, INTO_NUMBER, &process->uid, NULL},
        {8, INTO_NUMBER, &process->gid, NULL},
        {10, INTO_NUMBER, &process->umask, &process->has_umask},
        {13, INTO_BOOL, &process->no_new_privileges, NULL},
        {14, INTO_ZIGZAG, &process->oom_score_adj, &process->has_oom_score_adj},
        {15, INTO_SLICE, &process->seccomp, NULL},
        {16, INTO_NUMBER, &process->seccomp_flags, NULL},
        {20, INTO_NUMBER, &process->io_priority, &process->has_io_priority},
        {22, INTO_SLICE, &process->cpu_affinity, NULL},
        {23, INTO_NUMBER, &process->personality, &process->has_personality},
    };
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        store_any(targets, COUNT(targets), &field);
        int error = decode_part(process, &field);
        if (error < 0) {
            return error;
        }
    }
    return more;
}

static size_t count_field(struct pb_slice message, uint32_t number) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    size_t count = 0;
    while (pb_field(&reader, &field) > 0) {
        count += field.number == number ? 1 : 0;
    }
    return count;
}

char **plan_strings(struct pb_slice process, uint32_t number, size_t spare) {
    char **strings = calloc(count_field(process, number) + spare + 1, sizeof *strings);
    if (strings == NULL) {
        return NULL;
    }
    struct pb_reader reader = pb_read(process);
    struct pb_field field;
    size_t count = 0;
    while (pb_field(&reader, &field) > 0) {
        if (field.number != number) {
            continue;
        }
        strings[count] = pb_strdup(field.bytes);
        if (strings[count++] == NULL) {
            while (count > 0) {
                free(strings[--count]);
            }
            free(strings);
            return NULL;
        }
    }
    return strings;
}
