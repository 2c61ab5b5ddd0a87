/*
 * The connection's life. CLOSED: everything that arrives is thrown away until the token shows up.
 * NONCE: the 16 bytes after the token are collected and sent back. OPEN: ttrpc. The token is looked
 * for in every state and across reads, because a host may vanish in the middle of a frame and come
 * back on the same stream of bytes.
 *
 * Waiting: the stream is watched edge-triggered. A virtio port without a host reports readable and
 * hung-up for ever, which a level-triggered loop would answer by spinning; its wait queue is woken
 * when the host comes or goes (virtio_console, VIRTIO_CONSOLE_PORT_OPEN), and that is an edge.
 */
#include "link.h"

#include "base.h"
#include "log.h"
#include "loop.h"
#include "rpc.h"
#include "stdio.h"

#include <poll.h>
#include <string.h>
#include <sys/epoll.h>

enum {
    READ_CHUNK = 128 << 10,
    IN_SIZE = RPC_DATA_MAX + RPC_HEADER_SIZE + READ_CHUNK,
    /* More calls are read only while less than this is queued: a host that does not read its
     * answers waits for itself. One call adds at most one frame. */
    CALLS_ROOM = 2 << 20,
    OUT_SIZE = CALLS_ROOM + RPC_DATA_MAX + (2 << 20),
    ROUND_MAX = 1 << 20, /* bytes read, and written, before the rest of the loop has its turn */
};

enum link_state { LINK_CLOSED, LINK_NONCE, LINK_OPEN };

static uint8_t in[IN_SIZE];
static size_t in_start, in_end;
static bool calls_wait; /* whole frames may be in the buffer: the queue was too full for answers */
static uint8_t out[OUT_SIZE];
static size_t out_start, out_end;

static enum link_state state;
static size_t greeting_left; /* bytes of the nonce that the host has not taken yet */
static uint8_t token[LINK_TOKEN_SIZE + 1] = "voidbox-link-v1\n";
static uint8_t tail[LINK_TOKEN_SIZE - 1]; /* the last bytes seen, for a token cut in two */
static size_t tail_size;

static struct watch stream = {.fd = -1};
static enum link_end stream_end;
static bool readable, writable;
static uint32_t lonely_ms;
static struct deadline lonely_deadline;
static link_lonely on_lonely;

void link_set_token(const uint8_t new_token[LINK_TOKEN_SIZE]) {
    memcpy(token, new_token, LINK_TOKEN_SIZE);
}

static void lonely_expired(struct deadline *deadline) {
    (void)deadline;
    log_warn("no host for %u ms", lonely_ms);
    on_lonely();
}

/* A host is there for certain once it has taken our answer to its preamble. */
static bool has_host(void) {
    return state == LINK_OPEN && greeting_left == 0;
}

static void watch_loneliness(void) {
    if (has_host() || lonely_ms == 0) {
        loop_clear_deadline(&lonely_deadline);
    } else if (!lonely_deadline.armed) {
        loop_set_deadline(&lonely_deadline, lonely_ms, lonely_expired);
    }
}

void link_set_lonely_ms(uint32_t milliseconds) {
    lonely_ms = milliseconds;
    loop_clear_deadline(&lonely_deadline);
    watch_loneliness();
}

void link_init(link_lonely lonely) {
    on_lonely = lonely;
}

bool link_has_stream(void) {
    return stream.fd >= 0;
}

/* ---- the outbound queue ---------------------------------------------------------------------- */

size_t link_queued(void) {
    return out_end - out_start;
}

bool link_accepts_calls(void) {
    return link_queued() < CALLS_ROOM;
}

bool link_has_bulk_room(void) {
    return link_queued() < LINK_BULK_ROOM;
}

uint8_t *link_reserve(size_t size) {
    if (OUT_SIZE - link_queued() < size) {
        return NULL;
    }
    if (OUT_SIZE - out_end < size) {
        memmove(out, out + out_start, link_queued());
        out_end -= out_start;
        out_start = 0;
    }
    return out + out_end;
}

void link_commit(size_t size) {
    out_end += size;
}

static void drop_connection(enum link_state next) {
    out_start = out_end = 0;
    state = next;
    rpc_reset();
    watch_loneliness();
}

void link_abandon(void) {
    in_start = in_end = 0;
    drop_connection(LINK_CLOSED);
}

/* ---- what arrives ---------------------------------------------------------------------------- */

/* Finds the token in what came before plus `data`; returns the index in `data` after it, or 0. */
static size_t find_token(const uint8_t *data, size_t size) {
    uint8_t seam[2 * sizeof tail];
    size_t ahead = size < sizeof tail ? size : sizeof tail;
    memcpy(seam, tail, tail_size);
    memcpy(seam + tail_size, data, ahead);
    const uint8_t *found = memmem(seam, tail_size + ahead, token, LINK_TOKEN_SIZE);
    if (found != NULL) {
        return (size_t)(found - seam) + LINK_TOKEN_SIZE - tail_size;
    }
    found = memmem(data, size, token, LINK_TOKEN_SIZE);
    return found != NULL ? (size_t)(found - data) + LINK_TOKEN_SIZE : 0;
}

static void remember_tail(const uint8_t *data, size_t size) {
    if (size >= sizeof tail) {
        memcpy(tail, data + size - sizeof tail, sizeof tail);
        tail_size = sizeof tail;
        return;
    }
    size_t keep = sizeof tail - size < tail_size ? sizeof tail - size : tail_size;
    memmove(tail, tail + tail_size - keep, keep);
    memcpy(tail + keep, data, size);
    tail_size = keep + size;
}

/* Everything up to the newest token in the last `fresh` bytes is void. */
static void scan(size_t fresh) {
    size_t from = in_end - fresh;
    size_t after;
    while (fresh > 0 && (after = find_token(in + from, fresh)) > 0) {
        from += after;
        fresh -= after;
        tail_size = 0;
        in_start = from;
        drop_connection(LINK_NONCE);
    }
    remember_tail(in + from, fresh);
}

static void answer_nonce(void) {
    uint8_t *space = link_reserve(LINK_NONCE_SIZE);
    if (space == NULL) {
        return;
    }
    memcpy(space, in + in_start, LINK_NONCE_SIZE);
    link_commit(LINK_NONCE_SIZE);
    in_start += LINK_NONCE_SIZE;
    state = LINK_OPEN;
    greeting_left = LINK_NONCE_SIZE;
}

static void consume(void) {
    if (state == LINK_NONCE && in_end - in_start >= LINK_NONCE_SIZE) {
        answer_nonce();
    }
    if (state == LINK_OPEN) {
        in_start += rpc_consume(in + in_start, in_end - in_start);
    }
    calls_wait = in_start < in_end && !link_accepts_calls();
    if (state == LINK_CLOSED || in_start == in_end) {
        in_start = in_end = 0;
    }
}

static size_t make_in_space(void) {
    if (IN_SIZE - in_end < READ_CHUNK && in_start > 0) {
        memmove(in, in + in_start, in_end - in_start);
        in_end -= in_start;
        in_start = 0;
    }
    return IN_SIZE - in_end;
}

void link_receive(const uint8_t *data, size_t size) {
    while (size > 0) {
        size_t space = make_in_space();
        size_t piece = size < space ? size : space;
        if (piece == 0) {
            link_abandon(); /* refused calls fill the buffer: only without link_work */
            continue;
        }
        memcpy(in + in_end, data, piece);
        in_end += piece;
        scan(piece);
        consume();
        data += piece;
        size -= piece;
    }
}

/* ---- the stream ------------------------------------------------------------------------------ */

static void stream_ready(struct watch *watch, uint32_t events) {
    (void)watch;
    /* A hang-up is learnt by reading, after the bytes that came before it. */
    readable |= (events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0;
    writable |= (events & EPOLLOUT) != 0;
}

static void close_stream(void) {
    int fd = stream.fd;
    loop_remove(&stream);
    close_fd(&fd);
}

/*
 * The end of the stream. On a virtio port that is the driver's opinion of the moment, and news of a
 * host that comes may be slower than that host's first bytes: a preamble that we could not answer
 * yet is one of those, and must not be thrown away.
 */
static void hang_up(void) {
    if (stream_end == LINK_SURVIVES && !has_host() && state != LINK_CLOSED) {
        return;
    }
    log_debug("the host is gone");
    link_abandon();
    tail_size = 0;
    if (stream_end == LINK_SURVIVES) {
        return;
    }
    close_stream();
    if (stream_end == LINK_LAST) {
        on_lonely();
    }
}

int link_adopt(int fd, enum link_end end) {
    close_stream();
    link_abandon();
    tail_size = 0;
    stream_end = end;
    readable = writable = true;
    return loop_add(&stream, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, stream_ready);
}

static void read_round(void) {
    size_t got = 0;
    while (readable && stream.fd >= 0 && got < ROUND_MAX && link_accepts_calls()) {
        size_t space = make_in_space();
        if (space > READ_CHUNK) {
            space = READ_CHUNK;
        }
        ssize_t size = RETRY(read(stream.fd, in + in_end, space));
        if (size < 0 && errno == EAGAIN) {
            readable = false;
        } else if (size <= 0) {
            readable = false;
            hang_up();
        } else {
            got += (size_t)size;
            in_end += (size_t)size;
            scan((size_t)size);
            consume();
        }
    }
}

static void take_greeting(size_t sent) {
    if (greeting_left == 0) {
        return;
    }
    greeting_left -= sent < greeting_left ? sent : greeting_left;
    if (greeting_left == 0) {
        log_debug("a host has connected");
        watch_loneliness();
    }
}

static void write_round(void) {
    size_t sent = 0;
    while (writable && stream.fd >= 0 && out_start < out_end && sent < ROUND_MAX) {
        ssize_t size = RETRY(write(stream.fd, out + out_start, out_end - out_start));
        if (size > 0) {
            sent += (size_t)size;
            out_start += (size_t)size;
            take_greeting((size_t)size);
        } else if (size < 0 && errno == EAGAIN) {
            writable = false;
        } else {
            writable = false;
            readable = true; /* EPIPE: read() tells what happened */
        }
    }
    if (out_start == out_end) {
        out_start = out_end = 0;
    }
}

bool link_work(void) {
    write_round();
    if (calls_wait && link_accepts_calls()) {
        consume();
    }
    read_round();
    if (link_has_bulk_room()) {
        stdio_link_has_room();
    }
    write_round();
    return ((readable || calls_wait) && link_accepts_calls()) ||
           (writable && out_start < out_end) || (stdio_wants_room() && link_has_bulk_room());
}

void link_drain(int milliseconds) {
    uint64_t until = loop_now_ms() + (uint64_t)milliseconds;
    bool flushed = false;
    while (stream.fd >= 0 && !flushed && loop_now_ms() < until) {
        /* Writable again after the last byte: on a virtio port the host has taken it. */
        flushed = out_start == out_end;
        struct pollfd wait = {.fd = stream.fd, .events = POLLOUT};
        poll(&wait, 1, (int)(until - loop_now_ms()));
        if ((wait.revents & POLLHUP) != 0) {
            return;
        }
        writable = true;
        write_round();
    }
}
