#include "uevent.h"

#include "base.h"
#include "disk.h"
#include "log.h"
#include "loop.h"
#include "port.h"

#include <linux/netlink.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { MESSAGE_MAX = 8192, KERNEL_GROUP = 1 };

static struct watch socket_watch = {.fd = -1};

/* A message is "action@devpath" and KEY=value strings, each with its NUL. */
static const char *value_of(const char *message, size_t size, const char *key) {
    size_t length = strlen(key);
    const char *end = message + size;
    for (const char *at = message; at < end; at += strlen(at) + 1) {
        if (strncmp(at, key, length) == 0 && at[length] == '=') {
            return at + length + 1;
        }
    }
    return "";
}

static void handle(const char *message, size_t size) {
    const char *subsystem = value_of(message, size, "SUBSYSTEM");
    const char *action = value_of(message, size, "ACTION");
    if (strcmp(subsystem, "virtio-ports") == 0) {
        port_changed();
    } else if (strcmp(subsystem, "block") == 0 &&
               strcmp(value_of(message, size, "DEVTYPE"), "disk") == 0) {
        disk_changed(value_of(message, size, "DEVNAME"), strcmp(action, "remove") != 0);
    }
}

static void uevent_ready(struct watch *watch, uint32_t events) {
    static char message[MESSAGE_MAX];
    (void)events;
    for (;;) {
        struct sockaddr_nl sender = {0};
        socklen_t sender_size = sizeof sender;
        ssize_t size = RETRY(recvfrom(watch->fd, message, sizeof message - 1, MSG_DONTWAIT,
                                      (struct sockaddr *)&sender, &sender_size));
        if (size < 0 && errno == ENOBUFS) {
            disk_rescan(); /* announcements were lost: look for yourself */
            port_changed();
            continue;
        }
        if (size <= 0) {
            return;
        }
        if (sender.nl_pid == 0) { /* the kernel, not a process in a container */
            message[size] = 0;
            handle(message, (size_t)size);
        }
    }
}

int uevent_socket(void) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = KERNEL_GROUP};
    AUTO_CLOSE int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                               NETLINK_KOBJECT_UEVENT);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        return -errno;
    }
    return take_fd(&fd);
}

int uevent_open(void) {
    AUTO_CLOSE int fd = uevent_socket();
    int error = fd < 0 ? fd : loop_add(&socket_watch, fd, EPOLLIN, uevent_ready);
    if (error == 0) {
        take_fd(&fd);
    }
    return error;
}
