/* Disks as sysfs shows them, and the wait of a launch for one: it runs in the launched process. */
#include "disk.h"

#include "base.h"
#include "loop.h"
#include "uevent.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { VPD_HEADER = 4, LASTING_MAX = 8 };

ssize_t disk_read_attribute(const char *disk, const char *attribute, char *out, size_t capacity) {
    char path[256];
    snprintf(path, sizeof path, "/sys/block/%s/%s", disk, attribute);
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : RETRY(read(fd, out, capacity - 1));
    if (size < 0) {
        return -errno;
    }
    out[size] = 0;
    return size;
}

static void trim(const char *text, size_t size, char out[DISK_SERIAL_MAX]) {
    while (size > 0 && (text[0] == ' ' || text[0] == '\n')) {
        text++;
        size--;
    }
    while (size > 0 && (text[size - 1] == ' ' || text[size - 1] == '\n' || text[size - 1] == 0)) {
        size--;
    }
    size = size < DISK_SERIAL_MAX - 1 ? size : DISK_SERIAL_MAX - 1;
    memcpy(out, text, size);
    out[size] = 0;
}

bool disk_read_serial(const char *disk, char out[DISK_SERIAL_MAX]) {
    char text[256];
    ssize_t size = disk_read_attribute(disk, "serial", text, sizeof text);
    if (size >= 0) {
        trim(text, (size_t)size, out);
        return true;
    }
    size = disk_read_attribute(disk, "device/vpd_pg80", text, sizeof text);
    if (size <= VPD_HEADER) {
        return false;
    }
    trim(text + VPD_HEADER, (size_t)size - VPD_HEADER, out);
    return true;
}

bool disk_find(const char *serial, char name[DISK_NAME_MAX]) {
    DIR *directory = opendir("/sys/block");
    const struct dirent *entry;
    bool found = false;
    while (directory != NULL && !found && (entry = readdir(directory)) != NULL) {
        char seen[DISK_SERIAL_MAX];
        found = entry->d_name[0] != '.' && strlen(entry->d_name) < DISK_NAME_MAX &&
                disk_read_serial(entry->d_name, seen) && strcmp(seen, serial) == 0;
        if (found) {
            strcpy(name, entry->d_name);
        }
    }
    if (directory != NULL) {
        closedir(directory);
    }
    return found;
}

/* The disks that were there from the first moment. The host never takes them away, and looking for
 * one in sysfs is a long way for a clone, which has to translate every bit of it. */
static struct {
    char serial[DISK_SERIAL_MAX], name[DISK_NAME_MAX];
} lasting[LASTING_MAX];
static unsigned lasting_count;

static bool find_lasting(const char *serial, char *device, size_t capacity) {
    for (unsigned i = 0; i < lasting_count; i++) {
        if (strcmp(lasting[i].serial, serial) == 0) {
            snprintf(device, capacity, "/dev/%s", lasting[i].name);
            return true;
        }
    }
    return false;
}

static bool can_open(const char *name) {
    char device[sizeof "/dev/" + NAME_MAX];
    snprintf(device, sizeof device, "/dev/%s", name);
    AUTO_CLOSE int fd = open(device, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    return fd >= 0;
}

static void collect_lasting(void) {
    lasting_count = 0;
    DIR *directory = opendir("/sys/block");
    const struct dirent *entry;
    while (directory != NULL && lasting_count < LASTING_MAX &&
           (entry = readdir(directory)) != NULL) {
        if (entry->d_name[0] != '.' && strlen(entry->d_name) < DISK_NAME_MAX &&
            disk_read_serial(entry->d_name, lasting[lasting_count].serial) &&
            can_open(entry->d_name)) {
            strcpy(lasting[lasting_count++].name, entry->d_name);
        }
    }
    if (directory != NULL) {
        closedir(directory);
    }
}

/* Waits for the next announcement, at most `timeout_ms`. */
static void wait_announcement(int announcements, int timeout_ms) {
    struct pollfd wait = {.fd = announcements, .events = POLLIN};
    poll(&wait, 1, timeout_ms);
    char ignored[64];
    while (recv(announcements, ignored, sizeof ignored, MSG_DONTWAIT) > 0) {
    }
}

int disk_await(unsigned count, uint32_t wait_ms) {
    uint64_t until = loop_now_ms() + wait_ms;
    AUTO_CLOSE int announcements = uevent_socket();
    for (;;) {
        collect_lasting();
        uint64_t now = loop_now_ms();
        if (lasting_count >= count || count > LASTING_MAX) {
            return 0;
        }
        if (now >= until || announcements < 0) {
            return -ETIMEDOUT;
        }
        /* That a disk can be opened is not announced. */
        int left = (int)(until - now);
        wait_announcement(announcements, left > DISK_RETRY_MS ? DISK_RETRY_MS : left);
    }
}

/* 0 when the disk can be opened, -ENOENT, or why it cannot be opened (ENXIO: not yet). */
static int look(const char *serial, char *device, size_t capacity) {
    char name[DISK_NAME_MAX];
    if (!disk_find(serial, name)) {
        return -ENOENT;
    }
    snprintf(device, capacity, "/dev/%s", name);
    AUTO_CLOSE int fd = open(device, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? -errno : 0;
}

int disk_find_by_serial(const char *serial, uint32_t wait_ms, char *device, size_t capacity) {
    if (find_lasting(serial, device, capacity)) {
        return 0;
    }
    uint64_t until = loop_now_ms() + wait_ms;
    AUTO_CLOSE int announcements = uevent_socket();
    for (;;) {
        int error = look(serial, device, capacity);
        uint64_t now = loop_now_ms();
        if (error == 0 || now >= until || announcements < 0) {
            return error;
        }
        int left = (int)(until - now);
        bool soon = error != -ENOENT && left > DISK_RETRY_MS;
        wait_announcement(announcements, soon ? DISK_RETRY_MS : left);
    }
}
