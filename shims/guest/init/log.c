#include "log.h"

#include "base.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>

enum { LINE_MAX_BYTES = 512 };

static int log_fd = STDERR_FILENO;
static enum log_level log_limit = LOG_LEVEL_INFO;

void log_open(const char *path) {
    /* Non-blocking: a console that nobody drains must not stop PID 1. */
    int fd = open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) {
        log_fd = fd;
    }
}

void log_set_level(enum log_level level) {
    log_limit = level;
}

void log_line(enum log_level level, const char *format, ...) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if (level > log_limit) {
        return;
    }
    int saved = errno;
    char line[LINE_MAX_BYTES];
    int used = snprintf(line, sizeof line, "void-init: %s: ", names[level]);
    va_list arguments;
    va_start(arguments, format);
    errno = saved;
    int more = vsnprintf(line + used, sizeof line - (size_t)used, format, arguments);
    va_end(arguments);
    if (more > 0) {
        used += more;
    }
    if (used > (int)sizeof line - 1) {
        used = (int)sizeof line - 1;
    }
    line[used++] = '\n';
    ssize_t ignored = RETRY(write(log_fd, line, (size_t)used));
    (void)ignored;
    errno = saved;
}
