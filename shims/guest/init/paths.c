#include "paths.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base.h"
#include "kernel.h"

enum { SYMLINKS_MAX = 40, RACES_MAX = 64 };

/* A walk that creates what is missing: `done` is free of symlinks, `rest` is still to be walked. */
struct walk {
    int root;
    enum path_make make;
    int symlinks;
    char done[PATH_MAX];
    char rest[PATH_MAX];
};

int path_open_root(const char *directory) {
    int fd = RETRY(open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC));
    return fd < 0 ? -errno : fd;
}

/* The kernel answers EAGAIN when a rename elsewhere made ".." ambiguous; the next try settles it. */
static int open_below(int root, const char *path, uint64_t flags) {
    for (int i = 0; i < RACES_MAX; i++) {
        int fd = kernel_openat2(root, path[0] == 0 ? "." : path, flags | O_PATH,
                                RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
        if (fd >= 0) {
            return fd;
        }
        if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        }
    }
    return -EAGAIN;
}

/* Takes the first component off `rest`; false when nothing is left. */
static bool next_component(struct walk *walk, char name[NAME_MAX + 1], int *error) {
    const char *start = walk->rest + strspn(walk->rest, "/");
    size_t size = strcspn(start, "/");
    if (size == 0) {
        return false;
    }
    if (size > NAME_MAX) {
        *error = -ENAMETOOLONG;
        return false;
    }
    memcpy(name, start, size);
    name[size] = 0;
    memmove(walk->rest, start + size, strlen(start + size) + 1);
    return true;
}

static int append_done(struct walk *walk, const char *name) {
    size_t used = strlen(walk->done);
    if (used + strlen(name) + 2 > sizeof walk->done) {
        return -ENAMETOOLONG;
    }
    snprintf(walk->done + used, sizeof walk->done - used, "%s%s", used > 0 ? "/" : "", name);
    return 0;
}

static void strip_done(struct walk *walk) {
    char *slash = strrchr(walk->done, '/');
    *(slash != NULL ? slash : walk->done) = 0;
}

/* Puts the target of a symlink before what is left. */
static int follow(struct walk *walk, const char *target) {
    char joined[2 * PATH_MAX + 2];
    if (++walk->symlinks > SYMLINKS_MAX) {
        return -ELOOP;
    }
    int size = snprintf(joined, sizeof joined, "%s/%s", target, walk->rest);
    if (size < 0 || (size_t)size >= sizeof walk->rest) {
        return -ENAMETOOLONG;
    }
    memcpy(walk->rest, joined, (size_t)size + 1);
    if (target[0] == '/') {
        walk->done[0] = 0;
    }
    return 0;
}

static int create(const struct walk *walk, int directory, const char *name) {
    bool last = walk->rest[strspn(walk->rest, "/")] == 0;
    if (walk->make == PATH_EXISTING) {
        return -ENOENT;
    }
    if (!last || walk->make == PATH_DIRECTORY) {
        return mkdirat(directory, name, 0755) < 0 && errno != EEXIST ? -errno : 0;
    }
    AUTO_CLOSE int file =
        RETRY(openat(directory, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644));
    return file < 0 && errno != EEXIST ? -errno : 0;
}

static int step_into(struct walk *walk, const char *name) {
    if (strcmp(name, ".") == 0) {
        return 0;
    }
    if (strcmp(name, "..") == 0) {
        strip_done(walk);
        return 0;
    }
    AUTO_CLOSE int directory = open_below(walk->root, walk->done, O_DIRECTORY);
    if (directory < 0) {
        return directory;
    }
    char target[PATH_MAX];
    ssize_t size = readlinkat(directory, name, target, sizeof target - 1);
    if (size >= 0) {
        target[size] = 0;
        return follow(walk, target);
    }
    if (errno != EINVAL && errno != ENOENT) {
        return -errno;
    }
    int error = errno == ENOENT ? create(walk, directory, name) : 0;
    return error < 0 ? error : append_done(walk, name);
}

static int walk_and_open(struct walk *walk) {
    char name[NAME_MAX + 1];
    int error = 0;
    while (error == 0 && next_component(walk, name, &error)) {
        error = step_into(walk, name);
    }
    return error < 0 ? error : open_below(walk->root, walk->done, 0);
}

int path_open(int root, struct pb_slice path, enum path_make make) {
    struct walk walk = {.root = root, .make = make};
    int error = pb_string(path, walk.rest, sizeof walk.rest);
    if (error < 0) {
        return error;
    }
    int fd = open_below(root, walk.rest, 0);
    return fd == -ENOENT && make != PATH_EXISTING ? walk_and_open(&walk) : fd;
}

int path_open_parent(int root, struct pb_slice path, char name[NAME_MAX + 1]) {
    while (path.size > 0 && path.data[path.size - 1] == '/') {
        path.size--;
    }
    if (path.size == 0) {
        return -EINVAL;
    }
    size_t start = path.size;
    while (start > 0 && path.data[start - 1] != '/') {
        start--;
    }
    char last[NAME_MAX + 1];
    int error = pb_string((struct pb_slice){path.data + start, path.size - start}, last, sizeof last);
    if (error < 0) {
        return error;
    }
    if (last[0] == 0 || strcmp(last, ".") == 0 || strcmp(last, "..") == 0) {
        return -EINVAL;
    }
    int fd = path_open(root, (struct pb_slice){path.data, start}, PATH_DIRECTORY);
    if (fd >= 0) {
        memcpy(name, last, sizeof last);
    }
    return fd;
}
