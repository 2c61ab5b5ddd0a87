/*
 * Protocol Buffers, as little as guest.proto needs: a reader over bytes that somebody else owns and
 * a writer into a buffer of fixed size. Neither allocates, neither recurses; every length is
 * checked against the bytes that are really there.
 *
 * Wire format: https://protobuf.dev/programming-guides/encoding/
 */
#ifndef VOID_PB_H
#define VOID_PB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

struct pb_slice {
    const uint8_t *data;
    size_t size;
};

struct pb_reader {
    const uint8_t *at, *end;
};

static inline struct pb_reader pb_read(struct pb_slice slice) {
    /* A field that is absent has no address, to which nothing may be added, not even 0. */
    return (struct pb_reader){slice.data, slice.data != NULL ? slice.data + slice.size : NULL};
}

/* Reads the next field's head. 1: a field, 0: the end, -EBADMSG: not a message. */
int pb_next(struct pb_reader *reader, uint32_t *field, uint32_t *wire);

/* Reads a value of wire type PB_VARINT; bits above 64 are refused. 0 or -EBADMSG. */
int pb_varint(struct pb_reader *reader, uint64_t *value);

/* Reads a value of wire type PB_BYTES; the slice points into the message. 0 or -EBADMSG. */
int pb_bytes(struct pb_reader *reader, struct pb_slice *value);

/* Steps over a value of any wire type that proto3 has (groups are refused). 0 or -EBADMSG. */
int pb_skip(struct pb_reader *reader, uint32_t wire);

/*
 * One field at a time with its value, for decoders that look like a switch: exactly one of `number`
 * (PB_VARINT, PB_FIXED32, PB_FIXED64) and `bytes` (PB_BYTES) is filled, the other is zero, so a
 * field that arrives with the wrong wire type reads as empty or 0. 1: a field, 0: the end, or
 * -EBADMSG.
 */
struct pb_field {
    uint32_t number, wire;
    uint64_t varint;
    struct pb_slice bytes;
};
int pb_field(struct pb_reader *reader, struct pb_field *field);

/* Unpacks a repeated scalar, packed (PB_BYTES) or not, appending to items; -E2BIG when full. */
int pb_repeat_u32(const struct pb_field *field, uint32_t *items, size_t *count, size_t capacity);

static inline int64_t pb_zigzag(uint64_t value) {
    return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

/* Copies a slice as a C string. -ENAMETOOLONG: it does not fit, -EBADMSG: it holds a NUL. */
int pb_string(struct pb_slice slice, char *out, size_t capacity);

/* The same into fresh heap memory. NULL: no memory, or a NUL. */
char *pb_strdup(struct pb_slice slice);

bool pb_equals(struct pb_slice slice, const char *text);

/*
 * A writer never goes past `end`: what does not fit sets `overflow` and is dropped, so that the
 * caller checks once, at the end. Default values are left out, as proto3 does.
 */
struct pb_writer {
    uint8_t *at, *start, *end;
    bool overflow;
};

static inline struct pb_writer pb_write(uint8_t *buffer, size_t size) {
    return (struct pb_writer){buffer, buffer, buffer + size, false};
}

static inline size_t pb_written(const struct pb_writer *writer) {
    return (size_t)(writer->at - writer->start);
}

void pb_put_varint(struct pb_writer *writer, uint32_t field, uint64_t value);
void pb_put_bool(struct pb_writer *writer, uint32_t field, bool value);
void pb_put_bytes(struct pb_writer *writer, uint32_t field, const void *data, size_t size);
/* A string has to be UTF-8, or the host cannot decode the whole answer: bytes that are not become
 * question marks. */
void pb_put_string(struct pb_writer *writer, uint32_t field, const char *text);

/*
 * A submessage whose length is not known yet: begin returns a mark, end fills in the length. The
 * length takes four bytes however small it is (an overlong varint is legal protobuf), so that
 * nothing has to move.
 */
uint8_t *pb_begin(struct pb_writer *writer, uint32_t field);
void pb_end(struct pb_writer *writer, uint8_t *mark);

#endif
