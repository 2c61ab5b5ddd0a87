#include "cgroup.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>

#include "base.h"

enum { INSTRUCTIONS_MAX = 4096, FILTERS_MAX = 64 };

static int bpf(enum bpf_cmd command, union bpf_attr *attr) {
    int result = (int)syscall(SYS_bpf, command, attr, sizeof *attr);
    return result < 0 ? -errno : result;
}

int device_filter_load(struct pb_slice instructions) {
    static struct bpf_insn program[INSTRUCTIONS_MAX];
    if (instructions.size % sizeof program[0] != 0 || instructions.size > sizeof program) {
        return -EINVAL;
    }
    memcpy(program, instructions.data, instructions.size);
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attr.insns = (uint64_t)(uintptr_t)program;
    attr.insn_cnt = (uint32_t)(instructions.size / sizeof program[0]);
    attr.license = (uint64_t)(uintptr_t) "Apache-2.0";
    return bpf(BPF_PROG_LOAD, &attr);
}

/* Opens the filter that is attached there already: -ENOENT when there is none. */
static int open_attached(int cgroup_fd) {
    uint32_t ids[FILTERS_MAX];
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.query.target_fd = (uint32_t)cgroup_fd;
    attr.query.attach_type = BPF_CGROUP_DEVICE;
    attr.query.prog_ids = (uint64_t)(uintptr_t)ids;
    attr.query.prog_cnt = FILTERS_MAX;
    int error = bpf(BPF_PROG_QUERY, &attr);
    if (error < 0 || attr.query.prog_cnt == 0) {
        return error < 0 ? error : -ENOENT;
    }
    uint32_t first = ids[0];
    memset(&attr, 0, sizeof attr);
    attr.prog_id = first;
    return bpf(BPF_PROG_GET_FD_BY_ID, &attr);
}

/* "Multi", so that a runtime inside the container can add filters below, but never replace ours. */
int device_filter_attach(int cgroup_fd, int program) {
    AUTO_CLOSE int old = open_attached(cgroup_fd);
    if (old < 0 && old != -ENOENT) {
        return old;
    }
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.target_fd = (uint32_t)cgroup_fd;
    attr.attach_bpf_fd = (uint32_t)program;
    attr.attach_type = BPF_CGROUP_DEVICE;
    attr.attach_flags = BPF_F_ALLOW_MULTI;
    if (old >= 0) {
        attr.attach_flags |= BPF_F_REPLACE;
        attr.replace_bpf_fd = (uint32_t)old;
    }
    return bpf(BPF_PROG_ATTACH, &attr);
}

int cgroup_device_filter(int cgroup_fd, struct pb_slice instructions) {
    AUTO_CLOSE int program = device_filter_load(instructions);
    return program < 0 ? program : device_filter_attach(cgroup_fd, program);
}
