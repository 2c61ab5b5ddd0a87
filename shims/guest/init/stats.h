/* Numbers for the host: cgroup files and interfaces of a container, and the VM's load. */
#ifndef VOID_STATS_H
#define VOID_STATS_H

#include "rpc.h"

void stats_handle_container(struct call call, struct pb_slice request);
void stats_handle_telemetry(struct call call, struct pb_slice request);

#endif
