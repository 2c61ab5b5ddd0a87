#include "remove.h"

#include "base.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/*
 * No recursion and a fixed number of open directories: a directory that lies deeper than the stack
 * is moved up to the top and has its turn there.
 */
enum { DEPTH_MAX = 24 };

static DIR *open_directory(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL) {
        close_fd(&fd);
    }
    return directory;
}

static int move_to_top(DIR *from, const char *name, DIR *top) {
    static unsigned number;
    char new_name[32];
    snprintf(new_name, sizeof new_name, ".void-deep-%u", number++);
    return renameat(dirfd(from), name, dirfd(top), new_name) < 0 ? -errno : 0;
}

/* Removes one entry of the innermost directory, or opens it as the next. */
static int remove_one(DIR **stack, int *depth, const char *name) {
    if (unlinkat(dirfd(stack[*depth]), name, 0) == 0 || errno == ENOENT) {
        return 0;
    }
    if (errno != EISDIR && errno != EPERM) {
        return -errno;
    }
    if (unlinkat(dirfd(stack[*depth]), name, AT_REMOVEDIR) == 0) {
        return 0;
    }
    if (errno != ENOTEMPTY && errno != EEXIST) {
        return -errno;
    }
    if (*depth + 1 == DEPTH_MAX) {
        return move_to_top(stack[*depth], name, stack[0]);
    }
    DIR *below = open_directory(dirfd(stack[*depth]), name);
    if (below == NULL) {
        return -errno;
    }
    stack[++*depth] = below;
    return 0;
}

static const struct dirent *next_entry(DIR *directory) {
    const struct dirent *entry = readdir(directory);
    while (entry != NULL && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)) {
        entry = readdir(directory);
    }
    return entry;
}

/* Empties the directory `name`. An inner directory is found non-empty, emptied, and found again
 * when its parent is read from the start; `rounds` ends that if somebody keeps filling it. */
static int empty_directory(int parent, const char *name) {
    enum { ROUNDS_MAX = 1 << 20 };
    DIR *stack[DEPTH_MAX];
    int depth = 0, error = 0;
    stack[0] = open_directory(parent, name);
    if (stack[0] == NULL) {
        return -errno;
    }
    for (unsigned rounds = 0; depth >= 0 && error == 0; rounds++) {
        const struct dirent *entry = next_entry(stack[depth]);
        if (rounds > ROUNDS_MAX) {
            error = -EBUSY;
        } else if (entry != NULL) {
            error = remove_one(stack, &depth, entry->d_name);
        } else {
            closedir(stack[depth--]);
            if (depth >= 0) {
                rewinddir(stack[depth]);
            }
        }
    }
    while (depth >= 0) {
        closedir(stack[depth--]);
    }
    return error;
}

int remove_entry(int parent, const char *name, bool recursive) {
    if (unlinkat(parent, name, 0) == 0) {
        return 0;
    }
    if (errno != EISDIR && errno != EPERM) {
        return -errno;
    }
    int error = recursive ? empty_directory(parent, name) : 0;
    if (error < 0) {
        return error;
    }
    return unlinkat(parent, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}
