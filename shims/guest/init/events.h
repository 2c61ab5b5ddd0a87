/*
 * The journal of what happened, numbered. An event stays until the host has acknowledged it with
 * the `after` of a later NextEvents, so nothing is lost over a reconnect.
 */
#ifndef VOID_EVENTS_H
#define VOID_EVENTS_H

#include "rpc.h"

#include <sys/types.h>

void events_exited(const char *container, const char *exec, pid_t pid, uint32_t status,
                   uint64_t at_ns);
void events_oom(const char *container, uint64_t kills);
void events_disk(const char *serial, bool present);

/* Sequence number of the newest event, 0 before the first. */
uint64_t events_last(void);

/* True while there is room for the exit of one more process than there are. */
bool events_have_room(void);

void events_handle_next(struct call call, struct pb_slice request);

#endif
