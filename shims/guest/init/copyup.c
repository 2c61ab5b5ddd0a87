#include "copyup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "base.h"

enum { DEPTH_MAX = 64, CHUNK = 1 << 20 };

/* The directories between the top and the one being read; no recursion, so no unbounded stack. */
struct level {
    DIR *from;
    int to;
};

static int copy_owner_and_mode(int to, const char *name, const struct stat *status) {
    if (fchownat(to, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) < 0) {
        return -errno;
    }
    if (!S_ISLNK(status->st_mode) && fchmodat(to, name, status->st_mode & 07777, 0) < 0) {
        return -errno;
    }
    return 0;
}

static int copy_content(int from, int to, const char *name, off_t size) {
    AUTO_CLOSE int source = RETRY(openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    AUTO_CLOSE int target =
        source < 0 ? -1 : RETRY(openat(to, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
    if (target < 0) {
        return -errno;
    }
    while (size > 0) {
        ssize_t sent = RETRY(sendfile(target, source, NULL, size < CHUNK ? (size_t)size : CHUNK));
        if (sent < 0) {
            return -errno;
        }
        if (sent == 0) {
            break;
        }
        size -= sent;
    }
    return 0;
}

static int copy_symlink(int from, int to, const char *name) {
    char target[PATH_MAX];
    ssize_t size = readlinkat(from, name, target, sizeof target - 1);
    if (size < 0) {
        return -errno;
    }
    target[size] = 0;
    return symlinkat(target, to, name) < 0 ? -errno : 0;
}

/* Copies one entry; a directory is made empty, and the caller goes into it. */
static int copy_entry(int from, int to, const char *name, struct stat *status) {
    if (fstatat(from, name, status, AT_SYMLINK_NOFOLLOW) < 0) {
        return -errno;
    }
    int error = 0;
    if (S_ISDIR(status->st_mode)) {
        error = mkdirat(to, name, 0700) < 0 ? -errno : 0;
    } else if (S_ISLNK(status->st_mode)) {
        error = copy_symlink(from, to, name);
    } else if (S_ISREG(status->st_mode)) {
        error = copy_content(from, to, name, status->st_size);
    } else {
        error = mknodat(to, name, status->st_mode, status->st_rdev) < 0 ? -errno : 0;
    }
    return error < 0 ? error : copy_owner_and_mode(to, name, status);
}

static int enter(struct level *levels, size_t *depth, int from, int to, const char *name) {
    if (*depth == DEPTH_MAX) {
        return -ELOOP;
    }
    AUTO_CLOSE int source = RETRY(openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    AUTO_CLOSE int target =
        source < 0 ? -1 : RETRY(openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (target < 0) {
        return -errno;
    }
    DIR *directory = fdopendir(source);
    if (directory == NULL) {
        return -errno;
    }
    take_fd(&source);
    levels[(*depth)++] = (struct level){directory, take_fd(&target)};
    return 0;
}

static void leave(struct level *levels, size_t *depth) {
    (*depth)--;
    closedir(levels[*depth].from);
    close(levels[*depth].to);
}

static bool is_dot(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

int copyup_directory(int from, int to) {
    struct level levels[DEPTH_MAX];
    size_t depth = 0;
    int error = enter(levels, &depth, from, to, ".");
    struct stat status;
    if (error < 0 || depth == 0) {
        return error;
    }
    while (depth > 0 && error == 0) {
        struct level *level = &levels[depth - 1];
        errno = 0;
        const struct dirent *entry = readdir(level->from);
        if (entry == NULL) {
            error = -errno;
            leave(levels, &depth);
        } else if (!is_dot(entry->d_name)) {
            error = copy_entry(dirfd(level->from), level->to, entry->d_name, &status);
            if (error == 0 && S_ISDIR(status.st_mode)) {
                error = enter(levels, &depth, dirfd(level->from), level->to, entry->d_name);
            }
        }
    }
    while (depth > 0) {
        leave(levels, &depth);
    }
    return error;
}
