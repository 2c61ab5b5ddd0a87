/*
 * Why something did not come about: a positive errno, which becomes the code of the answer, and a
 * whole sentence for the person who reads it ("step 3 (mount proc on /proc): No such device").
 */
#ifndef VOID_FAILURE_H
#define VOID_FAILURE_H

enum { FAILURE_TEXT_MAX = 384 };

struct failure {
    int error;
    char text[FAILURE_TEXT_MAX];
};

/* Fills `failure` with the formatted sentence, a colon and the text of `error` (a positive or
 * negative errno), and returns -errno, so that a caller can return the call. */
int fail(struct failure *failure, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with the sentence as it is, for failures that errno does not explain. */
int fail_plain(struct failure *failure, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts the formatted text and ": " before the sentence that is there already. */
void fail_context(struct failure *failure, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
