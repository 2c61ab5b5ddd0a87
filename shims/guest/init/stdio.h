/*
 * Standard streams of the processes. Output stays in its pipe until the host asks for it, so a
 * flood costs the writer its own pace and nobody else anything; input is written as the pipe takes
 * it, in the order of the calls.
 */
#ifndef VOID_STDIO_H
#define VOID_STDIO_H

#include "launch.h"
#include "loop.h"
#include "pb.h"
#include "rpc.h"

/* Calls that wait for one stream; two in flight hide the way between host and guest. */
enum { STDIO_READS_MAX = 4 };

struct stdio_read {
    struct call call;
    uint32_t limit;
};

struct stdio_output {
    struct watch watch; /* one-shot, armed while a call waits for bytes */
    int fd;             /* -1: not open yet, or ended */
    bool expected;      /* a terminal that has not arrived yet: not the end */
    struct stdio_read reads[STDIO_READS_MAX]; /* answered in their order */
    unsigned read_count;
    struct stdio_output *next_for_room;
    bool waits_for_room;
};

struct stdio_write;

struct stdio_input {
    struct watch watch; /* one-shot, armed while calls wait for room in the pipe */
    int fd;
    bool expected;
    bool closed;       /* by a call with `end` */
    bool mid_line;     /* the last byte written was not a newline */
    struct stdio_write *first;
};

struct stdio {
    bool terminal;
    unsigned short rows, columns;
    struct stdio_input input;
    struct stdio_output output[2]; /* stdout, stderr */
};

void stdio_init(struct stdio *stdio);

/* Makes the pipes that an encoded ProcessPlan asks for; `child` gets the process's ends, which the
 * caller closes after the launch. 0 or -errno, with nothing left open. */
int stdio_open(struct stdio *stdio, struct pb_slice process_plan, struct launch_io *child);
void stdio_close_child_ends(struct launch_io *child);

/* stdin.c: writes what waits as far as it goes; or gives up the pipe, answering what waits. */
void stdin_push(struct stdio_input *input);
void stdin_break(struct stdio_input *input);

/* Takes over the terminal's master when the launcher delivers it. 0 or -errno. */
int stdio_attach_terminal(struct stdio *stdio, int master);
/* Remembered until there is a terminal. 0 or -errno; -ENOTTY: this process has none. */
int stdio_resize(struct stdio *stdio, unsigned short rows, unsigned short columns);

void stdio_read(struct stdio *stdio, unsigned index, uint32_t limit, struct call call);
void stdio_write(struct stdio *stdio, struct pb_slice data, bool end, struct call call);

/* The process will never come: waiting for its terminal is over. */
void stdio_never_started(struct stdio *stdio);

/* Answers what still waits and closes everything; output that was not read is gone. */
void stdio_close(struct stdio *stdio);

/* Called by link.c: bulk answers may be written again. Streams take turns. */
void stdio_link_has_room(void);
bool stdio_wants_room(void);

#endif
