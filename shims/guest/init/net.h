/* The VM's network, as the host found it in the pod: one rtnetlink conversation, no tools. */
#ifndef VOID_NET_H
#define VOID_NET_H

#include "rpc.h"

void net_handle_configure(struct call call, struct pb_slice request);

#endif
