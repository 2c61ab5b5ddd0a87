/*
 * The byte stream to the host: preamble and resynchronisation (protos/guest-link.md), one receive
 * buffer, one outbound queue with a bound, and the host's coming and going.
 */
#ifndef VOID_LINK_H
#define VOID_LINK_H

#include "pb.h"

#include <stdbool.h>

enum { LINK_TOKEN_SIZE = 16, LINK_NONCE_SIZE = 16 };
enum { LINK_VSOCK_PORT = 10240 };

/* Bulk answers (stdio, file contents) are written only while less than this is queued, so that an
 * answer about control never waits behind more than this and one bulk answer. */
enum { LINK_BULK_ROOM = 256 << 10, LINK_BULK_MAX = 1 << 20 };

/* What happens when the host is gone: main.c decides (power off, or exit in a test). */
typedef void (*link_lonely)(void);

void link_init(link_lonely lonely);

/* What the end of the stream means: a virtio port comes back to life, a listener brings another
 * stream, and after the last one nobody can ever come. */
enum link_end { LINK_SURVIVES, LINK_BRINGS_MORE, LINK_LAST };

/* Serves `fd`, in place of what was served before, which is closed. 0 or -errno. */
int link_adopt(int fd, enum link_end end);
bool link_has_stream(void);

void link_set_token(const uint8_t token[LINK_TOKEN_SIZE]);
void link_set_lonely_ms(uint32_t milliseconds);

/* What arrived, from wherever: the entry of the fuzz target too. */
void link_receive(const uint8_t *data, size_t size);

/* The outbound queue, for rpc.c. NULL: the queue is full. */
uint8_t *link_reserve(size_t size);
void link_commit(size_t size);
void link_abandon(void);
bool link_accepts_calls(void);
bool link_has_bulk_room(void);
size_t link_queued(void);

/* One round of reading and writing. True while there is more to do at once. */
bool link_work(void);
/* Blocks until everything queued has left, or `milliseconds` are over. */
void link_drain(int milliseconds);

#endif
