/* Where the stream to the host comes from: a virtio-serial port, vsock, or a test's descriptor. */
#ifndef VOID_PORT_H
#define VOID_PORT_H

#define PORT_NAME "dev.void-box.guest.0"

enum { PORT_VSOCK = 10240 };

/* uevent.c: a virtio port came, got its name, or went. Opens ours if it is there. */
void port_changed(void);

/* Listens on vsock where the kernel has a transport to the host. 0 or -errno. */
int port_listen_vsock(void);

/* Serves a descriptor that was handed over: a stream, or a listening socket. 0 or -errno. */
int port_serve_fd(int fd);

#endif
