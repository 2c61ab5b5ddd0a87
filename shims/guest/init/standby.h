/*
 * A process that waits, in a cgroup and in namespaces of its own, to become the first process of
 * the first container. Making one takes a kernel path of 8000 blocks of code, which a clone of a
 * template would have to translate; made before the template is taken, it is simply there.
 */
#ifndef VOID_STANDBY_H
#define VOID_STANDBY_H

#include "child.h"

/* Makes the process, and loads the device filter in the file `filter` for it. 0 or -errno; without
 * one, containers are launched as ever. */
int standby_prepare(const char *filter);

/* Whether there is one that can carry out the plan, which asks for namespaces `flags`. */
bool standby_fits(const struct child *child, uint64_t flags);

/* Lets it carry out the plan. 0: `launched` is filled in; -errno: it is gone, launch another way. */
int standby_launch(const struct child *child, struct launched *launched);

#endif
