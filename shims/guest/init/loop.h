/*
 * The one event loop: descriptors by epoll, deadlines by epoll's timeout. While nothing is pending
 * there is no timer at all, so an idle VM does not wake up.
 */
#ifndef VOID_LOOP_H
#define VOID_LOOP_H

#include <stdbool.h>
#include <stdint.h>

/* Lives inside its owner; `ready` may remove any watch, its own included. */
struct watch {
    int fd; /* -1: not watched */
    void (*ready)(struct watch *watch, uint32_t events);
};

/* Lives inside its owner, which must clear it before it goes away. */
struct deadline {
    uint64_t at_ms;
    struct deadline *next;
    bool armed;
    void (*expired)(struct deadline *deadline);
};

int loop_open(void);
int loop_add(struct watch *watch, int fd, uint32_t events,
             void (*ready)(struct watch *watch, uint32_t events));
int loop_change(struct watch *watch, uint32_t events);
void loop_remove(struct watch *watch);

void loop_set_deadline(struct deadline *deadline, uint64_t in_ms,
                       void (*expired)(struct deadline *deadline));
void loop_clear_deadline(struct deadline *deadline);

/* Waits for, and handles, one batch of events; `busy`: there is work to do at once. */
void loop_turn(bool busy);

uint64_t loop_now_ms(void);
uint64_t wall_clock_ns(void);

#endif
