#include "loop.h"

#include "base.h"
#include "log.h"

#include <limits.h>
#include <sys/epoll.h>
#include <time.h>

enum { BATCH = 32 };

static int epoll_fd = -1;
static struct deadline *deadlines;
static struct epoll_event batch[BATCH];
static int batch_size;

uint64_t loop_now_ms(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint64_t wall_clock_ns(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int loop_open(void) {
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return epoll_fd < 0 ? -errno : 0;
}

int loop_add(struct watch *watch, int fd, uint32_t events,
             void (*ready)(struct watch *watch, uint32_t events)) {
    struct epoll_event event = {.events = events, .data = {.ptr = watch}};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        return -errno;
    }
    watch->fd = fd;
    watch->ready = ready;
    return 0;
}

int loop_change(struct watch *watch, uint32_t events) {
    struct epoll_event event = {.events = events, .data = {.ptr = watch}};
    return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, watch->fd, &event) < 0 ? -errno : 0;
}

void loop_remove(struct watch *watch) {
    if (watch->fd < 0) {
        return;
    }
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    watch->fd = -1;
    /* The batch that is being worked off may hold more events of this watch: they are void. */
    for (int i = 0; i < batch_size; i++) {
        if (batch[i].data.ptr == watch) {
            batch[i].data.ptr = NULL;
        }
    }
}

void loop_clear_deadline(struct deadline *deadline) {
    if (!deadline->armed) {
        return;
    }
    for (struct deadline **at = &deadlines; *at != NULL; at = &(*at)->next) {
        if (*at == deadline) {
            *at = deadline->next;
            break;
        }
    }
    deadline->armed = false;
}

void loop_set_deadline(struct deadline *deadline, uint64_t in_ms,
                       void (*expired)(struct deadline *deadline)) {
    loop_clear_deadline(deadline);
    deadline->at_ms = loop_now_ms() + in_ms;
    deadline->expired = expired;
    deadline->armed = true;
    struct deadline **at = &deadlines;
    while (*at != NULL && (*at)->at_ms <= deadline->at_ms) {
        at = &(*at)->next;
    }
    deadline->next = *at;
    *at = deadline;
}

static int next_timeout(bool busy) {
    if (busy) {
        return 0;
    }
    if (deadlines == NULL) {
        return -1;
    }
    uint64_t now = loop_now_ms();
    if (deadlines->at_ms <= now) {
        return 0;
    }
    uint64_t left = deadlines->at_ms - now;
    return left > INT_MAX ? INT_MAX : (int)left;
}

static void expire_deadlines(void) {
    uint64_t now = deadlines != NULL ? loop_now_ms() : 0;
    while (deadlines != NULL && deadlines->at_ms <= now) {
        struct deadline *due = deadlines;
        deadlines = due->next;
        due->armed = false;
        due->expired(due);
    }
}

void loop_turn(bool busy) {
    int count = epoll_wait(epoll_fd, batch, BATCH, next_timeout(busy));
    if (count < 0 && errno != EINTR) {
        log_error("epoll_wait: %m");
    }
    batch_size = count < 0 ? 0 : count;
    for (int i = 0; i < batch_size; i++) {
        struct watch *watch = batch[i].data.ptr;
        if (watch != NULL) {
            watch->ready(watch, batch[i].events);
        }
    }
    batch_size = 0;
    expire_deadlines();
}
