/*
 * ttrpc, server side, unary calls only: frames in, one answer per call out. No system calls here:
 * bytes come from link.c and answers go into its queue, which is also what the fuzz target drives.
 *
 * Wire format: containerd/ttrpc, PROTOCOL.md. A frame is a header of ten bytes (length u32, stream
 * u32, both big endian, type, flags) and at most 4 MiB of data.
 */
#ifndef VOID_RPC_H
#define VOID_RPC_H

#include "pb.h"

#include <stdbool.h>

enum { RPC_HEADER_SIZE = 10, RPC_DATA_MAX = 4 << 20 };

enum rpc_code {
    RPC_INVALID_ARGUMENT = 3,
    RPC_DEADLINE_EXCEEDED = 4,
    RPC_NOT_FOUND = 5,
    RPC_ALREADY_EXISTS = 6,
    RPC_PERMISSION_DENIED = 7,
    RPC_RESOURCE_EXHAUSTED = 8,
    RPC_FAILED_PRECONDITION = 9,
    RPC_UNIMPLEMENTED = 12,
    RPC_INTERNAL = 13,
    RPC_UNAVAILABLE = 14,
};

/* Whom to answer. An answer to a call of an earlier connection is dropped; stream 0 is nobody. */
struct call {
    uint32_t stream, epoch;
};

/* Handlers answer exactly once, at once or later. The request lies in the receive buffer: what is
 * needed later has to be copied. */
typedef void (*rpc_handler)(struct call call, struct pb_slice request);

struct rpc_method {
    const char *name;
    rpc_handler handle;
    bool before_hello;
};

/* Methods end with a name of NULL. */
void rpc_serve(const char *service, const struct rpc_method *methods);

/* A connection begins: earlier calls are void, and only Hello is answered until rpc_greeted. */
void rpc_reset(void);
void rpc_greeted(void);

/* Handles the frames that are complete in `data`; returns how many bytes it has consumed. Stops
 * early when link_accepts_calls() says that the answers pile up. */
size_t rpc_consume(const uint8_t *data, size_t size);

static inline bool call_none(struct call call) {
    return call.stream == 0;
}

/* False when the call's connection is gone: there is nobody to answer. */
bool rpc_live(struct call call);

/*
 * An answer is written in place in the outbound queue: begin reserves, the caller writes the
 * response message with `writer`, end sends it. begin is false when the call is void.
 */
struct reply {
    struct pb_writer writer;
    uint8_t *payload;
    struct call call;
};
bool rpc_begin(struct reply *reply, struct call call, size_t payload_max);
void rpc_end(struct reply *reply);

void rpc_done(struct call call); /* answers with an empty message */
void rpc_fail(struct call call, enum rpc_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Fails with the code that suits an errno (positive or negative), its text appended. */
void rpc_fail_errno(struct call call, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
