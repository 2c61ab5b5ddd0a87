/*
 * What turns a fully privileged process into the one that the plan describes. Functions return 0 or
 * -errno with `failure` filled in; a failure leaves the process unfit for anything but exiting.
 */
#ifndef VOID_CREDS_H
#define VOID_CREDS_H

#include <sys/resource.h>

#include "failure.h"
#include "plan.h"

/* Lets void-init itself open `wanted` files or more; creds_apply() gives processes the limits from
 * before. 0 or -errno. */
int creds_raise_files(rlim_t wanted);

/* Before the mount namespace is left: what needs the VM's /proc. */
int creds_prepare(const struct process_plan *process, struct pb_slice container_id,
                  struct failure *failure);

/* Limits, scheduling, ids and capabilities, in the order in which each still may be set. Loads the
 * seccomp filter before privileges go, unless no_new_privileges lets creds_seal() do it last. */
int creds_apply(const struct process_plan *process, struct failure *failure);

/* The very last step before execve. */
int creds_seal(const struct process_plan *process, struct failure *failure);

#endif
