#include "events.h"

#include "base.h"
#include "log.h"
#include "loop.h"

#include <string.h>

enum { JOURNAL_SIZE = 1024, ANSWER_EVENTS_MAX = 128, EVENT_BYTES_MAX = 512 };
/* Processes may be added below this; what lies above is kept for their exits. */
enum { JOURNAL_ROOM = JOURNAL_SIZE / 2 };

enum { EVENT_SEQUENCE = 1, EVENT_AT = 2, EVENT_EXITED = 3, EVENT_OOM = 4, EVENT_DISK = 5 };

struct event {
    uint64_t sequence, at_ns;
    int kind;
    char name[ID_MAX]; /* container, or serial of a disk */
    char exec[ID_MAX];
    uint32_t pid, status;
    uint64_t number; /* kills; or 1: the disk is present */
};

static struct event journal[JOURNAL_SIZE];
static uint64_t first_sequence = 1, last_sequence;
static struct call waiting;
static uint64_t waiting_after;
static struct deadline waiting_until;

uint64_t events_last(void) {
    return last_sequence;
}

static size_t journal_used(void) {
    return (size_t)(last_sequence + 1 - first_sequence);
}

bool events_have_room(void) {
    return journal_used() < JOURNAL_ROOM;
}

static struct event *event_at(uint64_t sequence) {
    return &journal[sequence % JOURNAL_SIZE];
}

static void put_event(struct pb_writer *writer, const struct event *event) {
    uint8_t *outer = pb_begin(writer, 1);
    pb_put_varint(writer, EVENT_SEQUENCE, event->sequence);
    pb_put_varint(writer, EVENT_AT, event->at_ns);
    uint8_t *inner = pb_begin(writer, (uint32_t)event->kind);
    pb_put_string(writer, 1, event->name);
    if (event->kind == EVENT_EXITED) {
        pb_put_string(writer, 2, event->exec);
        pb_put_varint(writer, 3, event->pid);
        pb_put_varint(writer, 4, event->status);
    } else {
        pb_put_varint(writer, 2, event->number);
    }
    pb_end(writer, inner);
    pb_end(writer, outer);
}

static void answer(struct call call, uint64_t after) {
    struct reply reply;
    uint64_t from = after + 1 > first_sequence ? after + 1 : first_sequence;
    uint64_t to = last_sequence;
    if (to - from + 1 > ANSWER_EVENTS_MAX && to >= from) {
        to = from + ANSWER_EVENTS_MAX - 1;
    }
    if (!rpc_begin(&reply, call, ANSWER_EVENTS_MAX * EVENT_BYTES_MAX)) {
        return;
    }
    for (uint64_t sequence = from; sequence <= to; sequence++) {
        put_event(&reply.writer, event_at(sequence));
    }
    rpc_end(&reply);
}

static void answer_waiting(void) {
    loop_clear_deadline(&waiting_until);
    answer(waiting, waiting_after);
    waiting = (struct call){0};
}

static void waited_enough(struct deadline *deadline) {
    (void)deadline;
    answer_waiting();
}

static struct event *new_event(int kind, const char *name) {
    if (journal_used() == JOURNAL_SIZE) {
        log_error("nobody fetches events: number %llu is lost", (unsigned long long)first_sequence);
        first_sequence++;
    }
    struct event *event = event_at(++last_sequence);
    *event = (struct event){.sequence = last_sequence, .at_ns = wall_clock_ns(), .kind = kind};
    strncpy(event->name, name, sizeof event->name - 1);
    return event;
}

static void announce(void) {
    if (!call_none(waiting)) {
        answer_waiting();
    }
}

void events_exited(const char *container, const char *exec, pid_t pid, uint32_t status,
                   uint64_t at_ns) {
    struct event *event = new_event(EVENT_EXITED, container);
    strncpy(event->exec, exec, sizeof event->exec - 1);
    event->pid = (uint32_t)pid;
    event->status = status;
    event->at_ns = at_ns;
    announce();
}

/* What may come in floods is dropped before it can push out an exit. */
void events_oom(const char *container, uint64_t kills) {
    if (!events_have_room()) {
        return;
    }
    new_event(EVENT_OOM, container)->number = kills;
    announce();
}

void events_disk(const char *serial, bool present) {
    if (!events_have_room()) {
        return;
    }
    new_event(EVENT_DISK, serial)->number = present ? 1 : 0;
    announce();
}

void events_handle_next(struct call call, struct pb_slice request) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    uint64_t after = 0, wait_ms = 0;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        if (field.number == 1) {
            after = field.varint;
        } else if (field.number == 2) {
            wait_ms = field.varint;
        }
    }
    if (more < 0 || after > last_sequence) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "event %llu has not happened yet, the last is %llu",
                 (unsigned long long)after, (unsigned long long)last_sequence);
        return;
    }
    if (!call_none(waiting)) {
        answer_waiting(); /* the newest call is the one that waits */
    }
    if (after >= first_sequence) {
        first_sequence = after + 1;
    }
    if (after < last_sequence || wait_ms == 0) {
        answer(call, after);
        return;
    }
    waiting = call;
    waiting_after = after;
    loop_set_deadline(&waiting_until, wait_ms, waited_enough);
}
