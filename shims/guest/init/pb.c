#include "pb.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 4, LENGTH_MAX = (1 << 28) - 1 };

int pb_varint(struct pb_reader *reader, uint64_t *value) {
    uint64_t result = 0;
    const uint8_t *at = reader->at;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (at >= reader->end) {
            return -EBADMSG;
        }
        uint8_t byte = *at++;
        if (shift == 63 && byte > 1) {
            return -EBADMSG;
        }
        result |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            reader->at = at;
            *value = result;
            return 0;
        }
    }
    return -EBADMSG;
}

int pb_next(struct pb_reader *reader, uint32_t *field, uint32_t *wire) {
    if (reader->at >= reader->end) {
        return 0;
    }
    uint64_t key = 0;
    if (pb_varint(reader, &key) < 0 || key > UINT32_MAX || key >> 3 == 0) {
        return -EBADMSG;
    }
    *field = (uint32_t)(key >> 3);
    *wire = (uint32_t)(key & 7);
    return 1;
}

int pb_bytes(struct pb_reader *reader, struct pb_slice *value) {
    struct pb_reader ahead = *reader;
    uint64_t size = 0;
    if (pb_varint(&ahead, &size) < 0 || size > (uint64_t)(ahead.end - ahead.at)) {
        return -EBADMSG;
    }
    *value = (struct pb_slice){ahead.at, (size_t)size};
    reader->at = ahead.at + size;
    return 0;
}

static int read_fixed(struct pb_reader *reader, size_t size, uint64_t *value) {
    if ((size_t)(reader->end - reader->at) < size) {
        return -EBADMSG;
    }
    uint64_t result = 0;
    for (size_t i = 0; i < size; i++) {
        result |= (uint64_t)reader->at[i] << (8 * i);
    }
    reader->at += size;
    *value = result;
    return 0;
}

int pb_skip(struct pb_reader *reader, uint32_t wire) {
    uint64_t ignored_number = 0;
    struct pb_slice ignored_bytes;
    switch (wire) {
    case PB_VARINT:
        return pb_varint(reader, &ignored_number);
    case PB_FIXED64:
        return read_fixed(reader, 8, &ignored_number);
    case PB_BYTES:
        return pb_bytes(reader, &ignored_bytes);
    case PB_FIXED32:
        return read_fixed(reader, 4, &ignored_number);
    default:
        return -EBADMSG;
    }
}

int pb_field(struct pb_reader *reader, struct pb_field *field) {
    struct pb_field found = {0};
    int more = pb_next(reader, &found.number, &found.wire);
    if (more <= 0) {
        return more;
    }
    int error = -EBADMSG;
    switch (found.wire) {
    case PB_VARINT:
        error = pb_varint(reader, &found.varint);
        break;
    case PB_FIXED64:
        error = read_fixed(reader, 8, &found.varint);
        break;
    case PB_BYTES:
        error = pb_bytes(reader, &found.bytes);
        break;
    case PB_FIXED32:
        error = read_fixed(reader, 4, &found.varint);
        break;
    default:
        break;
    }
    if (error < 0) {
        return error;
    }
    *field = found;
    return 1;
}

static int append_u32(uint64_t value, uint32_t *items, size_t *count, size_t capacity) {
    if (value > UINT32_MAX) {
        return -EBADMSG;
    }
    if (*count >= capacity) {
        return -E2BIG;
    }
    items[(*count)++] = (uint32_t)value;
    return 0;
}

int pb_repeat_u32(const struct pb_field *field, uint32_t *items, size_t *count, size_t capacity) {
    if (field->wire != PB_BYTES) {
        return append_u32(field->varint, items, count, capacity);
    }
    struct pb_reader reader = pb_read(field->bytes);
    while (reader.at < reader.end) {
        uint64_t value = 0;
        int error = pb_varint(&reader, &value);
        if (error == 0) {
            error = append_u32(value, items, count, capacity);
        }
        if (error < 0) {
            return error;
        }
    }
    return 0;
}

int pb_string(struct pb_slice slice, char *out, size_t capacity) {
    if (slice.size >= capacity) {
        return -ENAMETOOLONG;
    }
    if (slice.size > 0 && memchr(slice.data, 0, slice.size) != NULL) {
        return -EBADMSG;
    }
    if (slice.size > 0) {
        memcpy(out, slice.data, slice.size);
    }
    out[slice.size] = 0;
    return 0;
}

char *pb_strdup(struct pb_slice slice) {
    char *copy = malloc(slice.size + 1);
    if (copy != NULL && pb_string(slice, copy, slice.size + 1) < 0) {
        free(copy);
        return NULL;
    }
    return copy;
}

bool pb_equals(struct pb_slice slice, const char *text) {
    size_t size = strlen(text);
    return slice.size == size && (size == 0 || memcmp(slice.data, text, size) == 0);
}

static void put_byte(struct pb_writer *writer, uint8_t byte) {
    if (writer->overflow || writer->at >= writer->end) {
        writer->overflow = true;
        return;
    }
    *writer->at++ = byte;
}

static void put_raw_varint(struct pb_writer *writer, uint64_t value) {
    while (value >= 0x80) {
        put_byte(writer, (uint8_t)(value | 0x80));
        value >>= 7;
    }
    put_byte(writer, (uint8_t)value);
}

static void put_key(struct pb_writer *writer, uint32_t field, uint32_t wire) {
    put_raw_varint(writer, (uint64_t)field << 3 | wire);
}

void pb_put_varint(struct pb_writer *writer, uint32_t field, uint64_t value) {
    if (value == 0) {
        return;
    }
    put_key(writer, field, PB_VARINT);
    put_raw_varint(writer, value);
}

void pb_put_bool(struct pb_writer *writer, uint32_t field, bool value) {
    pb_put_varint(writer, field, value ? 1 : 0);
}

void pb_put_bytes(struct pb_writer *writer, uint32_t field, const void *data, size_t size) {
    if (size == 0) {
        return;
    }
    put_key(writer, field, PB_BYTES);
    put_raw_varint(writer, size);
    if (writer->overflow || (size_t)(writer->end - writer->at) < size) {
        writer->overflow = true;
        return;
    }
    memcpy(writer->at, data, size);
    writer->at += size;
}

/* How many bytes the UTF-8 character at `at` has; 0: it is none. The NUL ends a character, too. */
static size_t utf8_size(const uint8_t *at) {
    size_t size = 4;
    if (at[0] < 0x80) {
        size = 1;
    } else if (at[0] < 0xc2) {
        size = 0;
    } else if (at[0] < 0xf0) {
        size = at[0] < 0xe0 ? 2 : 3;
    }
    /* Neither overlong forms, nor surrogates, nor what lies above the last character. */
    bool bad = (at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
               (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f) || at[0] > 0xf4;
    for (size_t i = 1; i < size && !bad; i++) {
        bad = (at[i] & 0xc0) != 0x80;
    }
    return bad ? 0 : size;
}

void pb_put_string(struct pb_writer *writer, uint32_t field, const char *text) {
    size_t size = strlen(text);
    pb_put_bytes(writer, field, text, size);
    if (writer->overflow || size == 0) {
        return;
    }
    uint8_t *copy = writer->at - size;
    for (size_t at = 0; at < size;) {
        size_t whole = utf8_size((const uint8_t *)text + at);
        if (whole == 0) {
            copy[at] = '?';
        }
        at += whole > 0 ? whole : 1;
    }
}

uint8_t *pb_begin(struct pb_writer *writer, uint32_t field) {
    put_key(writer, field, PB_BYTES);
    uint8_t *mark = writer->at;
    for (int i = 0; i < LENGTH_BYTES; i++) {
        put_byte(writer, 0);
    }
    return mark;
}

void pb_end(struct pb_writer *writer, uint8_t *mark) {
    if (writer->overflow) {
        return;
    }
    size_t size = (size_t)(writer->at - mark) - LENGTH_BYTES;
    if (size > LENGTH_MAX) {
        writer->overflow = true;
        return;
    }
    for (int i = 0; i < LENGTH_BYTES; i++) {
        bool more = i < LENGTH_BYTES - 1;
        mark[i] = (uint8_t)((size >> (7 * i) & 0x7f) | (more ? 0x80 : 0));
    }
}
