#include "stdio.h"

#include "base.h"
#include "link.h"
#include "log.h"

#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>

enum { PIPE_BYTES = 1 << 20, READ_DEFAULT = 64 << 10 };
enum { PLAN_TERMINAL = 4, PLAN_ROWS = 5, PLAN_COLUMNS = 6, PLAN_UID = 7 };
enum { PLAN_STDIN = 17, PLAN_STDOUT = 18, PLAN_STDERR = 19 };
enum { STDIO_DATA = 1, STDIO_END = 2 };

struct wanted {
    bool terminal, in, out, err;
    uint32_t rows, columns, uid;
};

static struct stdio_output *room_first, *room_last;

/* ---- opening --------------------------------------------------------------------------------- */

void stdio_init(struct stdio *stdio) {
    memset(stdio, 0, sizeof *stdio);
    stdio->input.fd = stdio->input.watch.fd = -1;
    for (int i = 0; i < 2; i++) {
        stdio->output[i].fd = stdio->output[i].watch.fd = -1;
    }
}

static int read_wanted(struct pb_slice plan, struct wanted *wanted) {
    struct pb_reader reader = pb_read(plan);
    struct pb_field field;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        switch (field.number) {
        case PLAN_TERMINAL:
            wanted->terminal = field.varint != 0;
            break;
        case PLAN_ROWS:
            wanted->rows = (uint32_t)field.varint;
            break;
        case PLAN_COLUMNS:
            wanted->columns = (uint32_t)field.varint;
            break;
        case PLAN_UID:
            wanted->uid = (uint32_t)field.varint;
            break;
        case PLAN_STDIN:
            wanted->in = field.varint != 0;
            break;
        case PLAN_STDOUT:
            wanted->out = field.varint != 0;
            break;
        case PLAN_STDERR:
            wanted->err = field.varint != 0;
            break;
        default:
            break;
        }
    }
    return more;
}

/* A pipe whose ours-end does not block and whose child's end belongs to the process's user, so that
 * it can open /dev/stdout again. */
static int open_pipe(int *ours, int *theirs, bool ours_reads, uid_t uid) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) {
        return -errno;
    }
    *ours = ends[ours_reads ? 0 : 1];
    *theirs = ends[ours_reads ? 1 : 0];
    /* Bigger is only faster; a refusal (pipe-max-size) leaves 64 KiB. */
    fcntl(*ours, F_SETPIPE_SZ, PIPE_BYTES);
    if (fcntl(*ours, F_SETFL, O_NONBLOCK) < 0 || fchown(*theirs, uid, (gid_t)-1) < 0) {
        int error = -errno;
        close_fd(ours);
        close_fd(theirs);
        return error;
    }
    return 0;
}

static int open_pipes(struct stdio *stdio, const struct wanted *wanted, struct launch_io *child) {
    int error = 0;
    if (wanted->in) {
        error = open_pipe(&stdio->input.fd, &child->stdin_fd, false, wanted->uid);
    }
    if (error == 0 && wanted->out) {
        error = open_pipe(&stdio->output[0].fd, &child->stdout_fd, true, wanted->uid);
    }
    if (error == 0 && wanted->err) {
        error = open_pipe(&stdio->output[1].fd, &child->stderr_fd, true, wanted->uid);
    }
    return error;
}

int stdio_open(struct stdio *stdio, struct pb_slice process_plan, struct launch_io *child) {
    struct wanted wanted = {0};
    stdio_init(stdio);
    *child = (struct launch_io){.stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1};
    int error = read_wanted(process_plan, &wanted);
    if (error < 0) {
        return error;
    }
    if (wanted.terminal) {
        stdio->terminal = true;
        stdio->rows = (unsigned short)wanted.rows;
        stdio->columns = (unsigned short)wanted.columns;
        stdio->input.expected = stdio->output[0].expected = true;
        return 0;
    }
    error = open_pipes(stdio, &wanted, child);
    if (error < 0) {
        stdio_close_child_ends(child);
        stdio_close(stdio);
    }
    return error;
}

void stdio_close_child_ends(struct launch_io *child) {
    close_fd(&child->stdin_fd);
    close_fd(&child->stdout_fd);
    close_fd(&child->stderr_fd);
}

/* ---- output ---------------------------------------------------------------------------------- */

static void read_or_wait(struct stdio_output *output);

static void queue_for_room(struct stdio_output *output) {
    if (output->waits_for_room) {
        return;
    }
    output->waits_for_room = true;
    output->next_for_room = NULL;
    if (room_last != NULL) {
        room_last->next_for_room = output;
    } else {
        room_first = output;
    }
    room_last = output;
}

static void leave_room_queue(struct stdio_output *output) {
    struct stdio_output *before = NULL;
    for (struct stdio_output *at = room_first; at != NULL; before = at, at = at->next_for_room) {
        if (at != output) {
            continue;
        }
        if (before != NULL) {
            before->next_for_room = at->next_for_room;
        } else {
            room_first = at->next_for_room;
        }
        if (room_last == at) {
            room_last = before;
        }
        break;
    }
    output->waits_for_room = false;
}

void stdio_link_has_room(void) {
    while (room_first != NULL && link_has_bulk_room()) {
        struct stdio_output *output = room_first;
        leave_room_queue(output);
        read_or_wait(output);
    }
}

bool stdio_wants_room(void) {
    return room_first != NULL;
}

static void output_ready(struct watch *watch, uint32_t events) {
    (void)events;
    struct stdio_output *output = (struct stdio_output *)watch; /* its first member */
    queue_for_room(output);
    stdio_link_has_room();
}

static void end_output(struct stdio_output *output) {
    loop_remove(&output->watch);
    close_fd(&output->fd);
    output->expected = false;
}

/* Reads until the space is full, the pipe is empty or the end is there. EIO is how a terminal says
 * that nobody has it open any more. */
static size_t drain_pipe(struct stdio_output *output, uint8_t *space, size_t size) {
    size_t got = 0;
    while (got < size) {
        ssize_t piece = RETRY(read(output->fd, space + got, size - got));
        if (piece > 0) {
            got += (size_t)piece;
        } else if (piece < 0 && errno == EAGAIN) {
            break;
        } else {
            end_output(output);
            break;
        }
    }
    return got;
}

static int wait_for_bytes(struct stdio_output *output) {
    if (output->watch.fd < 0) {
        return loop_add(&output->watch, output->fd, EPOLLIN | EPOLLONESHOT, output_ready);
    }
    return loop_change(&output->watch, EPOLLIN | EPOLLONESHOT);
}

static bool output_ended(const struct stdio_output *output) {
    return output->fd < 0 && !output->expected;
}

static void drop_first_read(struct stdio_output *output) {
    output->read_count--;
    memmove(output->reads, output->reads + 1, output->read_count * sizeof output->reads[0]);
}

/* Answers the first waiting call if there is anything to say; the answer is built in place and only
 * committed when there is. False: nothing to say yet. */
static bool answer_read(struct stdio_output *output, const struct stdio_read *read) {
    struct reply reply;
    if (!rpc_begin(&reply, read->call, read->limit + 16)) {
        return true;
    }
    if (output->fd >= 0) {
        uint8_t *start = reply.writer.at;
        uint8_t *mark = pb_begin(&reply.writer, STDIO_DATA);
        size_t got = drain_pipe(output, reply.writer.at, read->limit);
        reply.writer.at += got;
        pb_end(&reply.writer, mark);
        if (got == 0) {
            reply.writer.at = start;
        }
        if (got == 0 && !output_ended(output)) {
            return false;
        }
    }
    pb_put_bool(&reply.writer, STDIO_END, output_ended(output));
    rpc_end(&reply);
    return true;
}

/* One answer at most, so that streams take turns; whoever has more to ask queues again. */
static void read_or_wait(struct stdio_output *output) {
    while (output->read_count > 0 && !rpc_live(output->reads[0].call)) {
        drop_first_read(output); /* of an earlier connection */
    }
    if (output->read_count == 0 || (output->fd < 0 && output->expected)) {
        return; /* stdio_attach_terminal() comes back here */
    }
    struct stdio_read read = output->reads[0];
    if (answer_read(output, &read)) {
        drop_first_read(output);
        if (output->read_count > 0) {
            queue_for_room(output);
        }
        return;
    }
    int error = wait_for_bytes(output);
    if (error < 0) {
        log_error("cannot watch a stream: %s", strerror(-error));
        end_output(output);
        queue_for_room(output);
    }
}

void stdio_read(struct stdio *stdio, unsigned index, uint32_t limit, struct call call) {
    struct stdio_output *output = &stdio->output[index];
    while (output->read_count > 0 && !rpc_live(output->reads[0].call)) {
        drop_first_read(output);
    }
    if (output->read_count == STDIO_READS_MAX) {
        rpc_fail(call, RPC_FAILED_PRECONDITION, "%d calls read this stream already",
                 STDIO_READS_MAX);
        return;
    }
    if (limit == 0) {
        limit = READ_DEFAULT;
    }
    limit = limit < LINK_BULK_MAX ? limit : LINK_BULK_MAX;
    output->reads[output->read_count++] = (struct stdio_read){call, limit};
    queue_for_room(output);
    stdio_link_has_room();
}

/* ---- terminals and the end ------------------------------------------------------------------- */

static int apply_size(struct stdio *stdio) {
    struct winsize size = {.ws_row = stdio->rows, .ws_col = stdio->columns};
    if (stdio->rows == 0 && stdio->columns == 0) {
        return 0;
    }
    return ioctl(stdio->output[0].fd, TIOCSWINSZ, &size) < 0 ? -errno : 0;
}

int stdio_attach_terminal(struct stdio *stdio, int master) {
    int writer = fcntl(master, F_DUPFD_CLOEXEC, 0);
    if (writer < 0 || fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
        int error = -errno;
        close_fd(&writer);
        close(master);
        return error;
    }
    stdio->output[0].fd = master;
    stdio->input.fd = writer;
    stdio->output[0].expected = stdio->input.expected = false;
    int error = apply_size(stdio);
    stdin_push(&stdio->input);
    read_or_wait(&stdio->output[0]);
    return error;
}

int stdio_resize(struct stdio *stdio, unsigned short rows, unsigned short columns) {
    if (!stdio->terminal) {
        return -ENOTTY;
    }
    stdio->rows = rows;
    stdio->columns = columns;
    return stdio->output[0].fd >= 0 ? apply_size(stdio) : 0;
}

void stdio_never_started(struct stdio *stdio) {
    if (!stdio->output[0].expected) {
        return;
    }
    stdin_break(&stdio->input);
    stdio->output[0].expected = false;
    read_or_wait(&stdio->output[0]);
}

void stdio_close(struct stdio *stdio) {
    stdin_break(&stdio->input);
    for (int i = 0; i < 2; i++) {
        end_output(&stdio->output[i]);
        while (stdio->output[i].read_count > 0) {
            read_or_wait(&stdio->output[i]);
        }
        leave_room_queue(&stdio->output[i]);
    }
}
