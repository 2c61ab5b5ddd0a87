#include "port.h"

#include "base.h"
#include "link.h"
#include "log.h"
#include "loop.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define PORTS "/sys/class/virtio-ports"
#define VSOCK_TRANSPORT "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"

static struct watch listener = {.fd = -1};

static bool has_our_name(const char *port) {
    char path[128], name[sizeof PORT_NAME + 1] = "";
    snprintf(path, sizeof path, PORTS "/%.32s/name", port);
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : RETRY(read(fd, name, sizeof name - 1));
    return size > 0 && strcmp(name, PORT_NAME "\n") == 0;
}

static void open_port(const char *port) {
    char path[64];
    snprintf(path, sizeof path, "/dev/%.32s", port);
    AUTO_CLOSE int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int error = fd < 0 ? -errno : link_adopt(fd, LINK_SURVIVES);
    if (error < 0) {
        log_warn("%s: %s", path, strerror(-error));
        return;
    }
    take_fd(&fd);
}

void port_changed(void) {
    if (link_has_stream()) {
        return;
    }
    DIR *directory = opendir(PORTS);
    const struct dirent *entry;
    while (directory != NULL && !link_has_stream() && (entry = readdir(directory)) != NULL) {
        if (entry->d_name[0] != '.' && has_our_name(entry->d_name)) {
            open_port(entry->d_name);
        }
    }
    if (directory != NULL) {
        closedir(directory);
    }
}

/* Only the host may talk to us, not a process in a container over a local transport. */
static bool is_host(int fd) {
    struct sockaddr_vm peer = {0};
    socklen_t size = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &size) < 0) {
        return false;
    }
    return peer.svm_family != AF_VSOCK || peer.svm_cid == VMADDR_CID_HOST;
}

static void somebody_connects(struct watch *watch, uint32_t events) {
    (void)events;
    AUTO_CLOSE int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0 && is_host(fd) && link_adopt(fd, LINK_BRINGS_MORE) == 0) {
        take_fd(&fd);
    }
}

int port_listen_vsock(void) {
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT_VSOCK};
    if (access(VSOCK_TRANSPORT, F_OK) < 0) {
        return -errno;
    }
    AUTO_CLOSE int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4) < 0) {
        return -errno;
    }
    int error = loop_add(&listener, fd, EPOLLIN, somebody_connects);
    if (error == 0) {
        take_fd(&fd);
    }
    return error;
}

int port_serve_fd(int fd) {
    int listening = 0;
    socklen_t size = sizeof listening;
    if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return -errno;
    }
    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
    if (listening != 0) {
        return loop_add(&listener, fd, EPOLLIN, somebody_connects);
    }
    return link_adopt(fd, LINK_LAST);
}
