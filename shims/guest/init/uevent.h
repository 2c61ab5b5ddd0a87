/* The kernel's announcements of devices: what is waited for is heard of, never polled for. */
#ifndef VOID_UEVENT_H
#define VOID_UEVENT_H

/* A socket that hears every announcement from now on; non-blocking. The descriptor, or -errno. */
int uevent_socket(void);

/* Opens the socket for the event loop; from here on nothing is missed. 0 or -errno. */
int uevent_open(void);

#endif
