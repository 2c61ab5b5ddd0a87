/* A terminal of the container's own devpts, so that ttyname(3) finds it there. */
#ifndef VOID_TERMINAL_H
#define VOID_TERMINAL_H

#include <stdint.h>

#include "failure.h"

struct terminal {
    int master;
    int slave;
};

/* Opens a new terminal through /dev/ptmx as seen from the directory `root`. `rows` and `columns` may
 * be 0. 0 or -errno with `failure` filled in. */
int terminal_open(int root, uint64_t rows, uint64_t columns, struct terminal *terminal,
                  struct failure *failure);

/* Makes the slave the controlling terminal of the calling session, and its streams 0, 1 and 2. */
int terminal_adopt(int slave, struct failure *failure);

#endif
