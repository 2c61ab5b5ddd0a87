/* Standard input: calls are written to the pipe or terminal in their order, and answered then. */
#include "stdio.h"

#include "base.h"
#include "log.h"

#include <string.h>
#include <sys/epoll.h>
#include <termios.h>

/* Bounds on input that waits in our memory because the pipes are full. */
enum { WRITES_MAX = 64, WRITE_BYTES_MAX = 16 << 20 };

struct stdio_write {
    struct stdio_write *next;
    struct call call;
    bool end;
    size_t at, size;
    uint8_t data[];
};

static size_t waiting_writes, waiting_bytes;

static void finish_write(struct stdio_input *input) {
    struct stdio_write *write = input->first;
    input->first = write->next;
    waiting_writes--;
    waiting_bytes -= write->size;
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

static void queue_write(struct stdio_input *input, struct pb_slice data, bool end,
                        struct call call) {
    if (waiting_writes >= WRITES_MAX || waiting_bytes + data.size > WRITE_BYTES_MAX) {
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "too many writes wait for their pipes");
        return;
    }
    struct stdio_write *write = malloc(sizeof *write + data.size);
    if (write == NULL) {
        rpc_fail_errno(call, ENOMEM, "stdin");
        return;
    }
    *write = (struct stdio_write){.call = call, .end = end, .size = data.size};
    if (data.size > 0) {
        memcpy(write->data, data.data, data.size);
    }
    struct stdio_write **last = &input->first;
    while (*last != NULL) {
        last = &(*last)->next;
    }
    *last = write;
    waiting_writes++;
    waiting_bytes += data.size;
}

void stdio_write(struct stdio *stdio, struct pb_slice data, bool end, struct call call) {
    struct stdio_input *input = &stdio->input;
    if (input->closed) {
        if (data.size > 0) {
            rpc_fail(call, RPC_FAILED_PRECONDITION, "standard input was closed before");
        } else {
            rpc_done(call);
        }
        return;
    }
    if (input->fd < 0 && !input->expected) {
        rpc_done(call); /* nobody reads: the bytes go where those of a broken pipe go */
        return;
    }
    if (input->first == NULL && input->fd >= 0) {
        ssize_t done = push(input, data.data, data.size);
        if (done < 0) {
            stdin_break(input);
            rpc_done(call);
            return;
        }
        data.data += done;
        data.size -= (size_t)done;
    }
    if (data.size == 0 && input->first == NULL && input->fd >= 0) {
        if (end) {
            end_input(input, stdio->terminal);
        }
        rpc_done(call);
        return;
    }
    queue_write(input, data, end, call);
    if (input->first != NULL && input->fd >= 0) {
        wait_for_space(input);
    }
}
