#include "cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include "base.h"

enum { CGROUP_V2_MAGIC = 0x63677270, FILE_MAX = 4096, FILE_NAME_MAX = 64 };
/* Nested cgroups that one call of cgroup_remove() removes: a few milliseconds. */
enum { REMOVALS_MAX = 64 };

static char cgroup_root[PATH_MAX];

static int open_directory(const char *path) {
    int fd = RETRY(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return fd < 0 ? -errno : fd;
}

static int write_text(int cgroup_fd, const char *file, const char *text) {
    return cgroup_write(cgroup_fd, file, (struct pb_slice){(const uint8_t *)text, strlen(text)});
}

int cgroup_write(int cgroup_fd, const char *file, struct pb_slice value) {
    AUTO_CLOSE int fd = RETRY(openat(cgroup_fd, file, O_WRONLY | O_NOFOLLOW | O_CLOEXEC));
    if (fd < 0) {
        return -errno;
    }
    return RETRY(write(fd, value.data, value.size)) < 0 ? -errno : 0;
}

/* Enables each controller of `cgroup_fd` for its children; one by one, because a single write fails
 * as a whole when one controller cannot be enabled there. */
static int enable_controllers(int cgroup_fd) {
    char available[FILE_MAX];
    char enabled[FILE_MAX];
    ssize_t size = cgroup_read(cgroup_fd, "cgroup.controllers", available, sizeof available);
    if (size < 0 || cgroup_read(cgroup_fd, "cgroup.subtree_control", enabled, sizeof enabled) < 0) {
        return size < 0 ? (int)size : -EIO;
    }
    if (strcmp(available, enabled) == 0) {
        return 0;
    }
    char *rest = NULL;
    for (char *name = strtok_r(available, " \n", &rest); name != NULL;
         name = strtok_r(NULL, " \n", &rest)) {
        char change[FILE_NAME_MAX];
        snprintf(change, sizeof change, "+%s", name);
        int error = write_text(cgroup_fd, "cgroup.subtree_control", change);
        /* A realtime or threaded neighbour can keep one controller away; the write of a limit
         * that needs it then fails by name, which says more than a failure here. */
        if (error < 0 && error != -EBUSY && error != -EINVAL && error != -EOPNOTSUPP &&
            error != -ENOENT) {
            return error;
        }
    }
    return 0;
}

static bool is_cgroup2(const char *path) {
    struct statfs filesystem;
    return statfs(path, &filesystem) == 0 && filesystem.f_type == CGROUP_V2_MAGIC;
}

/* Creates what is missing of `path` below `depth` characters of it, enabling controllers in each
 * directory on the way to the last. */
static int make_path(char *path, size_t depth, bool *created) {
    for (char *at = path + depth;; at++) {
        at += strcspn(at, "/");
        char ended_by = *at;
        *at = 0;
        bool made = mkdir(path, 0755) == 0;
        int error = made || errno == EEXIST ? 0 : -errno;
        if (error == 0 && ended_by != 0 && is_cgroup2(path)) {
            AUTO_CLOSE int fd = open_directory(path);
            error = fd < 0 ? fd : enable_controllers(fd);
        }
        *at = ended_by;
        if (error < 0) {
            return error;
        }
        if (ended_by == 0) {
            *created = made;
            return 0;
        }
    }
}

int cgroup_setup(const char *root) {
    char path[PATH_MAX];
    size_t size = strlen(root);
    bool created = false;
    if (size == 0 || size >= sizeof path || root[0] != '/') {
        return -EINVAL;
    }
    memcpy(path, root, size + 1);
    int error = make_path(path, 1, &created);
    if (error < 0) {
        return error;
    }
    if (!is_cgroup2(path)) {
        return -EOPNOTSUPP;
    }
    memcpy(cgroup_root, path, size + 1);
    AUTO_CLOSE int fd = open_directory(path);
    return fd < 0 ? fd : enable_controllers(fd);
}

static bool is_safe(const char *path) {
    const char *at = path;
    if (*at == 0 || *at == '/') {
        return false;
    }
    while (*at != 0) {
        size_t size = strcspn(at, "/");
        if (size == 0 || (size <= 2 && strncmp(at, "..", size) == 0)) {
            return false;
        }
        at += size;
        at += *at == '/' ? 1 : 0;
    }
    return true;
}

static int absolute(const char *path, char out[PATH_MAX]) {
    if (cgroup_root[0] == 0 || !is_safe(path)) {
        return -EINVAL;
    }
    int size = snprintf(out, PATH_MAX, "%s/%s", cgroup_root, path);
    return size < 0 || size >= PATH_MAX ? -ENAMETOOLONG : 0;
}

int cgroup_create(const char *path, int *cgroup_fd, bool *created) {
    char full[PATH_MAX];
    bool made = false;
    int error = absolute(path, full);
    if (error == 0) {
        error = make_path(full, strlen(cgroup_root) + 1, &made);
    }
    if (error < 0) {
        return error;
    }
    int fd = open_directory(full);
    if (fd < 0) {
        return fd;
    }
    *cgroup_fd = fd;
    *created = made;
    return 0;
}

/* The top of the hierarchy is the last directory above our root that is still a cgroup. */
static void find_top(char top[PATH_MAX]) {
    memcpy(top, cgroup_root, strlen(cgroup_root) + 1);
    for (char *slash = strrchr(top, '/'); slash != NULL && slash > top; slash = strrchr(top, '/')) {
        *slash = 0;
        if (!is_cgroup2(top)) {
            *slash = '/';
            return;
        }
    }
}

int cgroup_open_of(pid_t pid) {
    char name[32];
    char content[FILE_MAX];
    snprintf(name, sizeof name, "/proc/%d/cgroup", pid);
    ssize_t size = cgroup_read(AT_FDCWD, name, content, sizeof content);
    if (size < 0) {
        return (int)size;
    }
    char *rest = NULL;
    for (char *line = strtok_r(content, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        char top[PATH_MAX];
        char path[PATH_MAX];
        if (strncmp(line, "0::/", 4) != 0) {
            continue;
        }
        find_top(top);
        int length = snprintf(path, sizeof path, "%s/%s", top, line + 4);
        return length < 0 || (size_t)length >= sizeof path ? -ENAMETOOLONG : open_directory(path);
    }
    return -ENOENT;
}

/* The file names in a plan come from an OCI spec ("unified"): one component, nothing else. */
static bool is_control_file(const char *file) {
    return file[0] != 0 && strchr(file, '/') == NULL && file[0] != '.';
}

static int write_one(int cgroup_fd, struct pb_slice message, char file[64]) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    struct pb_slice value = {0};
    bool optional = false;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        int error = field.number == 1 ? pb_string(field.bytes, file, FILE_NAME_MAX) : 0;
        if (error < 0) {
            return error;
        }
        value = field.number == 2 ? field.bytes : value;
        optional = field.number == 3 ? field.varint != 0 : optional;
    }
    if (more < 0 || !is_control_file(file)) {
        return more < 0 ? more : -EINVAL;
    }
    int error = cgroup_write(cgroup_fd, file, value);
    return optional ? 0 : error;
}

int cgroup_write_all(int cgroup_fd, struct pb_slice message, uint32_t number, char file[64]) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    int more;
    while ((more = pb_field(&reader, &field)) > 0) {
        if (field.number != number) {
            continue;
        }
        char name[FILE_NAME_MAX] = "";
        int error = write_one(cgroup_fd, field.bytes, name);
        if (error < 0) {
            memcpy(file, name, sizeof name);
            return error;
        }
    }
    return more;
}

ssize_t cgroup_read(int cgroup_fd, const char *file, char *buffer, size_t size) {
    AUTO_CLOSE int fd = RETRY(openat(cgroup_fd, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (fd < 0) {
        return -errno;
    }
    size_t used = 0;
    while (used + 1 < size) {
        ssize_t got = RETRY(read(fd, buffer + used, size - 1 - used));
        if (got < 0) {
            return -errno;
        }
        if (got == 0) {
            break;
        }
        used += (size_t)got;
    }
    buffer[used] = 0;
    return (ssize_t)used;
}

int cgroup_read_key(int cgroup_fd, const char *file, const char *key, uint64_t *value) {
    char content[FILE_MAX];
    ssize_t size = cgroup_read(cgroup_fd, file, content, sizeof content);
    if (size < 0) {
        return (int)size;
    }
    char *rest = NULL;
    size_t length = strlen(key);
    for (char *line = strtok_r(content, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            *value = strtoull(line + length + 1, NULL, 10);
            return 0;
        }
    }
    return -ENODATA;
}

int cgroup_watch(int cgroup_fd, const char *file) {
    int fd = RETRY(openat(cgroup_fd, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    return fd < 0 ? -errno : fd;
}

int cgroup_freeze(int cgroup_fd, bool frozen) {
    return write_text(cgroup_fd, "cgroup.freeze", frozen ? "1" : "0");
}

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int cgroup_wait(int cgroup_fd, const char *key, uint64_t value, int timeout_ms) {
    AUTO_CLOSE int watched = cgroup_watch(cgroup_fd, "cgroup.events");
    if (watched < 0) {
        return watched;
    }
    int64_t until = now_ms() + timeout_ms;
    for (;;) {
        /* Reading through the watched descriptor arms its next POLLPRI. */
        char content[FILE_MAX];
        if (RETRY(pread(watched, content, sizeof content, 0)) < 0) {
            return -errno;
        }
        uint64_t found = 0;
        int error = cgroup_read_key(cgroup_fd, "cgroup.events", key, &found);
        if (error < 0 || found == value) {
            return error;
        }
        int64_t left = until - now_ms();
        struct pollfd change = {.fd = watched, .events = POLLPRI};
        if (left <= 0 || RETRY(poll(&change, 1, (int)left)) == 0) {
            return -ETIMEDOUT;
        }
    }
}

int cgroup_kill(int cgroup_fd) {
    return write_text(cgroup_fd, "cgroup.kill", "1");
}

int cgroup_oom_kills(int cgroup_fd, uint64_t *kills) {
    return cgroup_read_key(cgroup_fd, "memory.events", "oom_kill", kills);
}

/* Finds a cgroup below `path` and appends its name: 1, 0 when there is none, or -errno. */
static int descend(char path[PATH_MAX]) {
    AUTO_CLOSE int fd = open_directory(path);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL) {
        return fd < 0 ? fd : -errno;
    }
    take_fd(&fd);
    int found = 0;
    const struct dirent *entry;
    while (found == 0 && (entry = readdir(directory)) != NULL) {
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
            size_t used = strlen(path);
            int size = snprintf(path + used, PATH_MAX - used, "/%s", entry->d_name);
            found = size < 0 || (size_t)size >= PATH_MAX - used ? -ENAMETOOLONG : 1;
        }
    }
    closedir(directory);
    return found;
}

/* Removes the cgroups below `top`, deepest first: down to a leaf, remove it, begin again above. A
 * container may have made thousands, so each call does a part of them: -EAGAIN, there are more. */
static int remove_children(const char *top) {
    char path[PATH_MAX];
    size_t length = strlen(top);
    memcpy(path, top, length + 1);
    for (int removed = 0; removed < REMOVALS_MAX;) {
        int found = descend(path);
        if (found < 0) {
            return found;
        }
        if (found > 0) {
            continue;
        }
        if (strlen(path) == length) {
            return 0;
        }
        if (rmdir(path) < 0 && errno != ENOENT) {
            return -errno;
        }
        removed++;
        *strrchr(path, '/') = 0;
    }
    return -EAGAIN;
}

static void remove_empty_parents(char *path) {
    size_t root = strlen(cgroup_root);
    for (char *slash = strrchr(path, '/'); slash != NULL && slash > path + root;
         slash = strrchr(path, '/')) {
        *slash = 0;
        if (rmdir(path) < 0) {
            return;
        }
    }
}

int cgroup_remove(const char *path, int timeout_ms) {
    char full[PATH_MAX];
    int error = absolute(path, full);
    if (error < 0) {
        return error;
    }
    AUTO_CLOSE int fd = open_directory(full);
    if (fd < 0) {
        return fd == -ENOENT ? 0 : fd;
    }
    error = cgroup_wait(fd, "populated", 0, timeout_ms);
    if (error == 0) {
        error = remove_children(full);
    }
    if (error == 0 && rmdir(full) < 0 && errno != ENOENT) {
        error = -errno;
    }
    if (error < 0) {
        return error == -ETIMEDOUT ? -EBUSY : error;
    }
    remove_empty_parents(full);
    return 0;
}
