#include "rpc.h"

#include "link.h"
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { FRAME_REQUEST = 1, FRAME_RESPONSE = 2 };
enum { REQUEST_SERVICE = 1, REQUEST_METHOD = 2, REQUEST_PAYLOAD = 3 };
enum { RESPONSE_STATUS = 1, RESPONSE_PAYLOAD = 2, STATUS_CODE = 1, STATUS_MESSAGE = 2 };
/* Room for the frame's header and for the head of Response.payload. */
enum { REPLY_OVERHEAD = 32, MESSAGE_MAX = 512, NAME_SHOWN_MAX = 80 };

struct frame {
    uint32_t size, stream;
    uint8_t type, flags;
};

static const char *served_service;
static const struct rpc_method *served_methods;
static uint32_t epoch;
static uint32_t last_stream;
static uint64_t discard; /* bytes of an oversize frame that are still to come */
static bool greeted;

void rpc_serve(const char *service, const struct rpc_method *methods) {
    served_service = service;
    served_methods = methods;
}

void rpc_reset(void) {
    epoch++;
    last_stream = 0;
    discard = 0;
    greeted = false;
}

void rpc_greeted(void) {
    greeted = true;
}

bool rpc_live(struct call call) {
    return call.stream != 0 && call.epoch == epoch;
}

static uint32_t load_u32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void store_u32(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

static bool begin_frame(struct pb_writer *writer, size_t data_max) {
    if (data_max > RPC_DATA_MAX) {
        return false;
    }
    uint8_t *space = link_reserve(data_max + RPC_HEADER_SIZE);
    if (space == NULL) {
        return false;
    }
    *writer = pb_write(space, data_max + RPC_HEADER_SIZE);
    writer->at += RPC_HEADER_SIZE;
    return true;
}

static void end_frame(struct pb_writer *writer, uint32_t stream) {
    size_t size = pb_written(writer);
    store_u32(writer->start, (uint32_t)(size - RPC_HEADER_SIZE));
    store_u32(writer->start + 4, stream);
    writer->start[8] = FRAME_RESPONSE;
    writer->start[9] = 0;
    link_commit(size);
}

bool rpc_begin(struct reply *reply, struct call call, size_t payload_max) {
    if (!rpc_live(call)) {
        return false;
    }
    if (!begin_frame(&reply->writer, payload_max + REPLY_OVERHEAD)) {
        log_error("no room for an answer of %zu bytes: the link starts over", payload_max);
        link_abandon();
        return false;
    }
    reply->call = call;
    reply->payload = pb_begin(&reply->writer, RESPONSE_PAYLOAD);
    return true;
}

void rpc_end(struct reply *reply) {
    if (reply->writer.overflow) {
        rpc_fail(reply->call, RPC_RESOURCE_EXHAUSTED, "the answer does not fit in one frame");
        return;
    }
    pb_end(&reply->writer, reply->payload);
    end_frame(&reply->writer, reply->call.stream);
}

void rpc_done(struct call call) {
    struct reply reply;
    if (rpc_begin(&reply, call, 0)) {
        rpc_end(&reply);
    }
}

static void answer_failure(struct call call, enum rpc_code code, const char *message) {
    struct pb_writer writer;
    if (!rpc_live(call) || !begin_frame(&writer, MESSAGE_MAX + REPLY_OVERHEAD)) {
        return;
    }
    uint8_t *status = pb_begin(&writer, RESPONSE_STATUS);
    pb_put_varint(&writer, STATUS_CODE, code);
    pb_put_string(&writer, STATUS_MESSAGE, message);
    pb_end(&writer, status);
    end_frame(&writer, call.stream);
}

void rpc_fail(struct call call, enum rpc_code code, const char *format, ...) {
    char message[MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    answer_failure(call, code, message);
}

static enum rpc_code code_of_errno(int error) {
    switch (error) {
    case ENOENT:
    case ESRCH:
        return RPC_NOT_FOUND;
    case EEXIST:
        return RPC_ALREADY_EXISTS;
    case EPERM:
    case EACCES:
    case EROFS:
        return RPC_PERMISSION_DENIED;
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
    case EAGAIN:
        return RPC_RESOURCE_EXHAUSTED;
    case ETIMEDOUT:
        return RPC_DEADLINE_EXCEEDED;
    case EBUSY:
    case ENOTEMPTY:
        return RPC_FAILED_PRECONDITION;
    case ENOSYS:
    case EOPNOTSUPP:
        return RPC_UNIMPLEMENTED;
    case EINVAL:
    case EBADMSG:
    case ELOOP:
    case EXDEV:
    case ENOTDIR:
    case EISDIR:
    case ENAMETOOLONG:
    case E2BIG:
    case ENOEXEC:
        return RPC_INVALID_ARGUMENT;
    default:
        return RPC_INTERNAL;
    }
}

void rpc_fail_errno(struct call call, int error, const char *format, ...) {
    char message[MESSAGE_MAX];
    int number = error < 0 ? -error : error;
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (used >= 0 && (size_t)used < sizeof message) {
        snprintf(message + used, sizeof message - (size_t)used, ": %s", strerror(number));
    }
    answer_failure(call, code_of_errno(number), message);
}

static const struct rpc_method *find_method(struct pb_slice name) {
    for (const struct rpc_method *method = served_methods; method->name != NULL; method++) {
        if (pb_equals(name, method->name)) {
            return method;
        }
    }
    return NULL;
}

static int shown_size(struct pb_slice name) {
    return name.size > NAME_SHOWN_MAX ? NAME_SHOWN_MAX : (int)name.size;
}

static const char *shown_text(struct pb_slice name) {
    return name.size > 0 ? (const char *)name.data : "";
}

static void dispatch(struct call call, struct pb_slice data) {
    struct pb_slice service = {0}, name = {0}, payload = {0};
    struct pb_reader reader = pb_read(data);
    struct pb_field field;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        if (field.number == REQUEST_SERVICE) {
            service = field.bytes;
        } else if (field.number == REQUEST_METHOD) {
            name = field.bytes;
        } else if (field.number == REQUEST_PAYLOAD) {
            payload = field.bytes;
        }
    }
    if (more < 0) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "the request is not a ttrpc request message");
        return;
    }
    const struct rpc_method *method = pb_equals(service, served_service) ? find_method(name) : NULL;
    if (method == NULL) {
        rpc_fail(call, RPC_UNIMPLEMENTED, "no method %.*s/%.*s", shown_size(service),
                 shown_text(service), shown_size(name), shown_text(name));
    } else if (!greeted && !method->before_hello) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "Hello comes first on every connection");
    } else {
        method->handle(call, payload);
    }
}

/* Odd and increasing, as ttrpc wants it; the comparison survives the wrap after 2^31 calls. */
static bool accept_stream(uint32_t stream) {
    if (stream % 2 == 0 || (last_stream != 0 && (int32_t)(stream - last_stream) <= 0)) {
        return false;
    }
    last_stream = stream;
    return true;
}

static void handle_frame(const struct frame *frame, const uint8_t *data) {
    if (frame->type != FRAME_REQUEST) {
        return; /* data of a stream that we refused, or a type that is not known yet */
    }
    struct call call = {frame->stream, epoch};
    if (!accept_stream(frame->stream)) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "stream %u is even or was used before", frame->stream);
    } else if (data == NULL) {
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "message of %u bytes exceeds the maximum of %d",
                 frame->size, RPC_DATA_MAX);
    } else if (frame->flags != 0) {
        rpc_fail(call, RPC_UNIMPLEMENTED, "streaming calls are not served");
    } else {
        dispatch(call, (struct pb_slice){data, frame->size});
    }
}

static size_t drop_oversize(size_t size) {
    size_t dropped = discard < size ? (size_t)discard : size;
    discard -= dropped;
    return dropped;
}

size_t rpc_consume(const uint8_t *data, size_t size) {
    size_t used = drop_oversize(size);
    uint32_t served_epoch = epoch;
    while (size - used >= RPC_HEADER_SIZE && link_accepts_calls() && epoch == served_epoch) {
        const uint8_t *at = data + used;
        struct frame frame = {load_u32(at), load_u32(at + 4), at[8], at[9]};
        if (frame.size > RPC_DATA_MAX) {
            used += RPC_HEADER_SIZE;
            discard = frame.size;
            handle_frame(&frame, NULL);
            used += drop_oversize(size - used);
            continue;
        }
        if (size - used - RPC_HEADER_SIZE < frame.size) {
            break;
        }
        used += RPC_HEADER_SIZE + frame.size;
        handle_frame(&frame, at + RPC_HEADER_SIZE);
    }
    return used;
}
