#include "failure.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void vformat(struct failure *failure, int error, const char *format, va_list arguments) {
    failure->error = abs(error);
    vsnprintf(failure->text, sizeof failure->text, format, arguments);
}

/* In the lower case that Go programs use, because people and tools above look for those words. */
static void append_errno(struct failure *failure) {
    size_t used = strlen(failure->text);
    const char *text = strerror(failure->error);
    snprintf(failure->text + used, sizeof failure->text - used, ": %s", text);
    if (used + 3 < sizeof failure->text && islower((unsigned char)text[1])) {
        failure->text[used + 2] = (char)tolower((unsigned char)text[0]);
    }
}

int fail(struct failure *failure, int error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vformat(failure, error, format, arguments);
    va_end(arguments);
    append_errno(failure);
    return -failure->error;
}

int fail_plain(struct failure *failure, int error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vformat(failure, error, format, arguments);
    va_end(arguments);
    return -failure->error;
}

void fail_context(struct failure *failure, const char *format, ...) {
    char sentence[FAILURE_TEXT_MAX];
    memcpy(sentence, failure->text, sizeof sentence);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure->text, sizeof failure->text, format, arguments);
    va_end(arguments);
    size_t used = strlen(failure->text);
    snprintf(failure->text + used, sizeof failure->text - used, ": %s", sentence);
}
