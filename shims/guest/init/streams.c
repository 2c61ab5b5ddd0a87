/* The calls about standard streams, and what Hello tells about the processes that are there. */
#include "proc.h"

#include <string.h>

enum { STREAM_STDOUT = 1, STREAM_STDERR = 2 };

/* Fields 3 and 4 of the stream calls: a number each, or the data of a write. */
struct stream_fields {
    uint64_t third, fourth;
    struct pb_slice data;
};

static struct process *read_call(struct call call, struct pb_slice request,
                                 struct stream_fields *fields) {
    struct process_ref ref;
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    if (!proc_read_ref(call, request, &ref)) {
        return NULL;
    }
    *fields = (struct stream_fields){0};
    while (pb_field(&reader, &field) > 0) {
        if (field.number == 3) {
            fields->third = field.varint;
            fields->data = field.bytes;
        } else if (field.number == 4) {
            fields->fourth = field.varint;
        }
    }
    return proc_require_process(call, &ref);
}

void proc_handle_read_stdio(struct call call, struct pb_slice request) {
    struct stream_fields fields;
    struct process *process = read_call(call, request, &fields);
    if (process == NULL) {
        return;
    }
    if (fields.third != STREAM_STDOUT && fields.third != STREAM_STDERR) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "stream %llu: 1 is stdout, 2 is stderr",
                 (unsigned long long)fields.third);
        return;
    }
    uint32_t limit = fields.fourth > UINT32_MAX ? UINT32_MAX : (uint32_t)fields.fourth;
    stdio_read(&process->stdio, (unsigned)fields.third - STREAM_STDOUT, limit, call);
}

void proc_handle_write_stdio(struct call call, struct pb_slice request) {
    struct stream_fields fields;
    struct process *process = read_call(call, request, &fields);
    if (process != NULL) {
        stdio_write(&process->stdio, fields.data, fields.fourth != 0, call);
    }
}

void proc_handle_resize(struct call call, struct pb_slice request) {
    struct stream_fields fields;
    struct process *process = read_call(call, request, &fields);
    if (process == NULL) {
        return;
    }
    if (fields.third > UINT16_MAX || fields.fourth > UINT16_MAX) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "a terminal has at most %d rows and columns",
                 UINT16_MAX);
        return;
    }
    int error = stdio_resize(&process->stdio, (unsigned short)fields.third,
                             (unsigned short)fields.fourth);
    if (error == -ENOTTY) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "process \"%s\" has no terminal", process->exec_id);
    } else if (error < 0) {
        rpc_fail_errno(call, error, "resize");
    } else {
        rpc_done(call);
    }
}

/* ProcessPhase of guest.proto. */
static uint64_t shown_phase(enum phase phase) {
    switch (phase) {
    case PHASE_RUNNING:
    case PHASE_STARTING:
        return 2;
    case PHASE_EXITED:
        return 3;
    default:
        return 1;
    }
}

static void put_process(struct pb_writer *writer, const struct process *process) {
    uint8_t *mark = pb_begin(writer, 2);
    pb_put_string(writer, 1, process->exec_id);
    pb_put_varint(writer, 2, process->shown_pid);
    pb_put_varint(writer, 3, shown_phase(process->phase));
    pb_put_varint(writer, 4, process->status);
    pb_put_varint(writer, 5, process->exited_at_ns);
    pb_end(writer, mark);
}

void proc_put_states(struct pb_writer *writer, uint32_t field) {
    struct container *container = NULL;
    while ((container = container_next(container)) != NULL) {
        if (container->deleting) {
            continue;
        }
        uint8_t *mark = pb_begin(writer, field);
        pb_put_string(writer, 1, container->id);
        struct process *process = NULL;
        while ((process = proc_next(container, process)) != NULL) {
            put_process(writer, process);
        }
        pb_end(writer, mark);
    }
}
