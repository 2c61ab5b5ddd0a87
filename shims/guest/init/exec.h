/* The program that a process plan names: found, its environment complete, its user taken on. */
#ifndef VOID_EXEC_H
#define VOID_EXEC_H

#include <limits.h>

#include "failure.h"
#include "plan.h"

struct program {
    char path[PATH_MAX];
    char **args;
    char **env;
};

/* In the container's namespaces and root: working directory, credentials, and the search for args[0].
 * Afterwards only creds_seal() and execve(2) are left. 0 or -errno with `failure` filled in. */
int exec_become(const struct process_plan *process, struct program *program,
                struct failure *failure);

#endif
