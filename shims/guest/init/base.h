/*
 * What every file of void-init uses: scope-bound file descriptors and heap, and the error rule.
 *
 * Error rule: a function that can fail returns 0 (or a count, or a descriptor) on success and
 * -errno on failure; out-parameters are left alone on failure. Callers read errno only right after
 * a system call said that it failed.
 */
#ifndef VOID_BASE_H
#define VOID_BASE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define VOID_INIT_VERSION "0.1.0"

/* Longest container id or exec id that we keep, with its NUL. */
enum { ID_MAX = 144 };

static inline void cleanup_close(int *fd) {
    if (*fd >= 0) {
        int saved = errno;
        close(*fd);
        errno = saved;
    }
}

static inline void cleanup_free(void *pointer) {
    free(*(void **)pointer);
}

#define AUTO_CLOSE __attribute__((cleanup(cleanup_close)))
#define AUTO_FREE __attribute__((cleanup(cleanup_free)))

/* Repeats a system call that a signal interrupted; evaluates to its result. */
#define RETRY(call)                                                                                \
    ({                                                                                             \
        __typeof__(call) retry_result;                                                             \
        do {                                                                                       \
            retry_result = (call);                                                                 \
        } while (retry_result == -1 && errno == EINTR);                                            \
        retry_result;                                                                              \
    })

/* Hands a descriptor on: the variable forgets it, so that its cleanup does nothing. */
static inline int take_fd(int *fd) {
    int taken = *fd;
    *fd = -1;
    return taken;
}

static inline void close_fd(int *fd) {
    cleanup_close(fd);
    *fd = -1;
}

#endif
