/* Standard input: calls are written to the pipe or terminal in their order, and answered then. */
#include "stdio.h"

#include "base.h"
#include "log.h"

#include <string.h>
#include <sys/epoll.h>
#include <termios.h>

/* Writes of one process that wait in our memory because its pipe is full. A bound of its own for
 * each: one that does not read must not keep input from another. */
enum { WRITES_MAX = 4 };

struct stdio_write {
    struct stdio_write *next;
    struct call call;
    bool end;
    size_t at, size;
    uint8_t data[];
};

static void finish_write(struct stdio_input *input) {
    struct stdio_write *write = input->first;
    input->first = write->next;
    rpc_done(write->call);
    free(write);
}

void stdin_break(struct stdio_input *input) {
    loop_remove(&input->watch);
    close_fd(&input->fd);
    input->expected = false;
    while (input->first != NULL) {
        finish_write(input);
    }
}

/* A terminal's end of input is a character, and only where the line discipline makes it one. In the
 * middle of a line the first one merely hands over the line. */
static void type_end_of_file(struct stdio_input *input) {
    struct termios settings;
    if (tcgetattr(input->fd, &settings) < 0 || (settings.c_lflag & ICANON) == 0) {
        return;
    }
    char keys[2] = {(char)settings.c_cc[VEOF], (char)settings.c_cc[VEOF]};
    ssize_t ignored = RETRY(write(input->fd, keys, input->mid_line ? 2 : 1));
    (void)ignored;
}

static void end_input(struct stdio_input *input, bool terminal) {
    input->closed = true;
    if (input->fd >= 0 && terminal) {
        type_end_of_file(input);
    } else {
        loop_remove(&input->watch);
        close_fd(&input->fd);
    }
}

/* Writes what fits; returns the count, or -errno when the reader is gone for good. */
static ssize_t push(struct stdio_input *input, const uint8_t *data, size_t size) {
    size_t done = 0;
    while (done < size) {
        ssize_t piece = RETRY(write(input->fd, data + done, size - done));
        if (piece < 0 && errno == EAGAIN) {
            break;
        }
        if (piece < 0) {
            return -errno;
        }
        done += (size_t)piece;
    }
    if (done > 0) {
        input->mid_line = data[done - 1] != '\n';
    }
    return (ssize_t)done;
}

static struct stdio *stdio_of_input(struct stdio_input *input) {
    return (struct stdio *)((char *)input - offsetof(struct stdio, input));
}

static void input_ready(struct watch *watch, uint32_t events);

static void wait_for_space(struct stdio_input *input) {
    int error = input->watch.fd < 0
                    ? loop_add(&input->watch, input->fd, EPOLLOUT | EPOLLONESHOT, input_ready)
                    : loop_change(&input->watch, EPOLLOUT | EPOLLONESHOT);
    if (error < 0) {
        log_error("cannot watch a stream: %s", strerror(-error));
        stdin_break(input);
    }
}

void stdin_push(struct stdio_input *input) {
    while (input->first != NULL && input->fd >= 0) {
        struct stdio_write *write = input->first;
        ssize_t done = push(input, write->data + write->at, write->size - write->at);
        if (done < 0) {
            stdin_break(input);
            return;
        }
        write->at += (size_t)done;
        if (write->at < write->size) {
            wait_for_space(input);
            return;
        }
        if (write->end) {
            end_input(input, stdio_of_input(input)->terminal);
        }
        finish_write(input);
    }
}

static void input_ready(struct watch *watch, uint32_t events) {
    (void)events;
    stdin_push((struct stdio_input *)watch); /* its first member */
}

static void write_or_wait(struct stdio_input *input, struct pb_slice data, bool end,
                          struct call call) {
    struct stdio_write **last = &input->first;
    int waiting = 0;
    for (; *last != NULL; last = &(*last)->next) {
        waiting++;
    }
    if (waiting >= WRITES_MAX) { /* nothing was taken: the call may be made again */
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "%d writes of this process wait for its pipe",
                 waiting);
        return;
    }
    bool idle = input->first == NULL && input->fd >= 0;
    ssize_t done = idle ? push(input, data.data, data.size) : 0;
    if (done < 0) {
        stdin_break(input);
        rpc_done(call);
        return;
    }
    size_t left = data.size - (size_t)done;
    if (idle && left == 0) { /* no memory was taken: most writes fit, and large ones cost a mmap */
        if (end) {
            end_input(input, stdio_of_input(input)->terminal);
        }
        rpc_done(call);
        return;
    }
    struct stdio_write *write = malloc(sizeof *write + left);
    if (write == NULL) {
        rpc_fail(call, RPC_INTERNAL, "no memory for standard input, of which %zd bytes were taken",
                 done);
        return;
    }
    *write = (struct stdio_write){.call = call, .end = end, .size = left};
    if (left > 0) {
        memcpy(write->data, data.data + done, left);
    }
    *last = write;
    if (idle) {
        wait_for_space(input);
    }
}

void stdio_write(struct stdio *stdio, struct pb_slice data, bool end, struct call call) {
    struct stdio_input *input = &stdio->input;
    if (input->closed) {
        if (data.size > 0) {
            rpc_fail(call, RPC_FAILED_PRECONDITION, "standard input was closed before");
        } else {
            rpc_done(call);
        }
    } else if (input->fd < 0 && !input->expected) {
        rpc_done(call); /* nobody reads: the bytes go where those of a broken pipe go */
    } else {
        write_or_wait(input, data, end, call);
    }
}
