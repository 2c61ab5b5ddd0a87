#include "files.h"

#include "base.h"
#include "link.h"
#include "log.h"
#include "remove.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define WRITABLE_ROOT "/run/void/"
#define STAGING ".staging"

enum { KIND_FILE = 1, KIND_DIRECTORY = 2, KIND_SYMLINK = 3 };
enum { READ_DEFAULT = 256 << 10, MODE_BITS = 07777, DIRECTORY_MODE = 0755 };

struct write_request {
    struct pb_slice path, data;
    uint64_t kind, mode, uid, gid, offset;
    bool last, in_place;
};

static const char *guest_root = "";
static int writable_fd = -1, staging_fd = -1;

static int open_directory(int parent, const char *name) {
    int fd = openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int make_directory(int parent, const char *name) {
    if (mkdirat(parent, name, DIRECTORY_MODE) < 0 && errno != EEXIST) {
        return -errno;
    }
    return open_directory(parent, name);
}

int files_init(const char *root) {
    guest_root = root;
    AUTO_CLOSE int top = open_directory(AT_FDCWD, root[0] != 0 ? root : "/");
    AUTO_CLOSE int run = top < 0 ? top : make_directory(top, "run");
    if (run < 0) {
        return run;
    }
    writable_fd = make_directory(run, "void");
    staging_fd = writable_fd < 0 ? writable_fd : make_directory(writable_fd, STAGING);
    return staging_fd < 0 ? staging_fd : 0;
}

int files_real_path(struct pb_slice path, char *out, size_t capacity) {
    size_t before = strlen(guest_root);
    if (path.size == 0 || path.data[0] != '/') {
        return -EINVAL;
    }
    if (before >= capacity) {
        return -ENAMETOOLONG;
    }
    memcpy(out, guest_root, before);
    return pb_string(path, out + before, capacity - before);
}

/*
 * Walks `path` below /run/void one component at a time, so that no link is ever followed, and opens
 * the parent of its last component, whose name is left in `name`.
 */
static int open_parent(struct pb_slice path, bool create, int *parent, char name[NAME_MAX + 1]) {
    char text[PATH_MAX];
    int error = pb_string(path, text, sizeof text);
    if (error < 0) {
        return error;
    }
    if (strncmp(text, WRITABLE_ROOT, strlen(WRITABLE_ROOT)) != 0) {
        return -EPERM;
    }
    char *rest = text + strlen(WRITABLE_ROOT);
    AUTO_CLOSE int at = fcntl(writable_fd, F_DUPFD_CLOEXEC, 0);
    for (;;) {
        char *slash = strchr(rest, '/');
        size_t size = slash != NULL ? (size_t)(slash - rest) : strlen(rest);
        if (size == 0 || size > NAME_MAX) {
            return -EINVAL;
        }
        memcpy(name, rest, size);
        name[size] = 0;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, STAGING) == 0) {
            return -EINVAL;
        }
        if (slash == NULL) {
            *parent = take_fd(&at);
            return 0;
        }
        int next = create ? make_directory(at, name) : open_directory(at, name);
        if (next < 0) {
            return next;
        }
        close(at);
        at = next;
        rest = slash + 1;
    }
}

/* Pieces of one file meet under a name made from its path; nobody watching the volume sees it. */
static void staging_name(struct pb_slice path, char name[17]) {
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a */
    for (size_t i = 0; i < path.size; i++) {
        hash = (hash ^ path.data[i]) * 0x100000001b3ULL;
    }
    snprintf(name, 17, "%016llx", (unsigned long long)hash);
}

static int write_all(int fd, struct pb_slice data, uint64_t offset) {
    size_t done = 0;
    while (done < data.size) {
        off_t at = (off_t)(offset + done);
        ssize_t size = RETRY(pwrite(fd, data.data + done, data.size - done, at));
        if (size < 0) {
            return -errno;
        }
        done += (size_t)size;
    }
    return 0;
}

/* The piece must begin where the last one ended, or the file was begun again in between. */
static int write_piece(int fd, const struct write_request *request) {
    struct stat now;
    if (request->offset > 0 &&
        (fstat(fd, &now) < 0 || (uint64_t)now.st_size != request->offset)) {
        return -ESPIPE;
    }
    int error = write_all(fd, request->data, request->offset);
    if (error == 0 && request->last &&
        (fchown(fd, (uid_t)request->uid, (gid_t)request->gid) < 0 ||
         fchmod(fd, (mode_t)request->mode & MODE_BITS) < 0)) {
        error = -errno;
    }
    return error;
}

/* What failed must not stay: the next write to this path finds the same name. */
static int drop_staged(const char *staged, int error) {
    unlinkat(staging_fd, staged, 0);
    return error;
}

static int publish(const char *staged, int parent, const char *name) {
    if (renameat(staging_fd, staged, parent, name) < 0) {
        return drop_staged(staged, -errno);
    }
    return 0;
}

static int write_file(const struct write_request *request, int parent, const char *name) {
    char staged[17];
    staging_name(request->path, staged);
    int flags = O_WRONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
    flags |= request->offset == 0 ? O_CREAT | O_TRUNC : 0;
    AUTO_CLOSE int fd = request->in_place ? openat(parent, name, flags, 0600)
                                          : openat(staging_fd, staged, flags, 0600);
    if (fd < 0) {
        return -errno;
    }
    int error = write_piece(fd, request);
    if (request->in_place) {
        return error;
    }
    if (error == 0) {
        return request->last ? publish(staged, parent, name) : 0;
    }
    /* A piece at the wrong place says nothing about those that came before. */
    return error == -ESPIPE ? error : drop_staged(staged, error);
}

static int write_symlink(const struct write_request *request, int parent, const char *name) {
    char staged[17], target[PATH_MAX];
    staging_name(request->path, staged);
    int error = pb_string(request->data, target, sizeof target);
    if (error < 0) {
        return error;
    }
    unlinkat(staging_fd, staged, 0); /* pieces of a file that was never finished */
    if (symlinkat(target, staging_fd, staged) < 0) {
        return -errno;
    }
    if (fchownat(staging_fd, staged, (uid_t)request->uid, (gid_t)request->gid,
                 AT_SYMLINK_NOFOLLOW) < 0) {
        return drop_staged(staged, -errno);
    }
    return publish(staged, parent, name);
}

static int write_directory(const struct write_request *request, int parent, const char *name) {
    if (mkdirat(parent, name, 0700) < 0 && errno != EEXIST) {
        return -errno;
    }
    AUTO_CLOSE int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchown(fd, (uid_t)request->uid, (gid_t)request->gid) < 0 ||
        fchmod(fd, (mode_t)request->mode & MODE_BITS) < 0) {
        return -errno;
    }
    return 0;
}

static int decode_write(struct pb_slice request, struct write_request *out) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    int more;
    uint64_t *const numbers[] = {[2] = &out->kind, [3] = &out->mode,   [4] = &out->uid,
                                 [5] = &out->gid,  [7] = &out->offset};
    while ((more = pb_field(&reader, &field)) > 0) {
        if (field.number == 1) {
            out->path = field.bytes;
        } else if (field.number == 6) {
            out->data = field.bytes;
        } else if (field.number == 8) {
            out->last = field.varint != 0;
        } else if (field.number == 9) {
            out->in_place = field.varint != 0;
        } else if (field.number < sizeof numbers / sizeof numbers[0]) {
            *numbers[field.number] = field.varint;
        }
    }
    return more;
}

static int write_request(const struct write_request *request) {
    char name[NAME_MAX + 1];
    AUTO_CLOSE int parent = -1;
    if (request->offset > INT64_MAX - request->data.size) {
        return -EINVAL;
    }
    int error = open_parent(request->path, true, &parent, name);
    if (error < 0) {
        return error;
    }
    switch (request->kind) {
    case KIND_FILE:
        return write_file(request, parent, name);
    case KIND_DIRECTORY:
        return write_directory(request, parent, name);
    case KIND_SYMLINK:
        return write_symlink(request, parent, name);
    default:
        return -EINVAL;
    }
}

static void answer(struct call call, int error, const char *what, struct pb_slice path) {
    if (error < 0) {
        rpc_fail_errno(call, error, "%s %.*s", what, (int)(path.size < 200 ? path.size : 200),
                       path.size > 0 ? (const char *)path.data : "");
    } else {
        rpc_done(call);
    }
}

void files_handle_write(struct call call, struct pb_slice bytes) {
    struct write_request request = {0};
    int error = decode_write(bytes, &request);
    answer(call, error < 0 ? error : write_request(&request), "write", request.path);
}

void files_handle_remove(struct call call, struct pb_slice request) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    struct pb_slice path = {0};
    bool recursive = false;
    char name[NAME_MAX + 1];
    AUTO_CLOSE int parent = -1;
    while (pb_field(&reader, &field) > 0) {
        path = field.number == 1 ? field.bytes : path;
        recursive = field.number == 2 ? field.varint != 0 : recursive;
    }
    int error = open_parent(path, false, &parent, name);
    if (error == 0) {
        error = remove_entry(parent, name, recursive);
    }
    answer(call, error == -ENOENT ? 0 : error, "remove", path);
}

/* ---- reading --------------------------------------------------------------------------------- */

static int open_regular(struct pb_slice path, struct stat *facts) {
    char real[PATH_MAX];
    int error = files_real_path(path, real, sizeof real);
    if (error < 0) {
        return error;
    }
    /* Non-blocking, so that a fifo or a device does not hold up PID 1. */
    AUTO_CLOSE int fd = open(real, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, facts) < 0) {
        return -errno;
    }
    return S_ISREG(facts->st_mode) ? take_fd(&fd) : -EINVAL;
}

static void read_file(struct call call, int fd, const struct stat *facts, uint64_t offset,
                      uint32_t limit) {
    struct reply reply;
    if (!rpc_begin(&reply, call, limit + 64)) {
        return;
    }
    uint8_t *start = reply.writer.at;
    uint8_t *mark = pb_begin(&reply.writer, 1);
    size_t got = 0;
    ssize_t size = 1;
    while (got < limit && size > 0) {
        size = RETRY(pread(fd, reply.writer.at + got, limit - got, (off_t)(offset + got)));
        got += size > 0 ? (size_t)size : 0;
    }
    if (size < 0) {
        rpc_fail_errno(call, errno, "read");
        return;
    }
    reply.writer.at += got;
    pb_end(&reply.writer, mark);
    if (got == 0) {
        reply.writer.at = start;
    }
    pb_put_bool(&reply.writer, 2, size == 0);
    pb_put_varint(&reply.writer, 3, (uint64_t)facts->st_size);
    pb_put_varint(&reply.writer, 4, facts->st_mode & MODE_BITS);
    rpc_end(&reply);
}

void files_handle_read(struct call call, struct pb_slice request) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    struct pb_slice path = {0};
    uint64_t offset = 0, limit = 0;
    struct stat facts;
    while (pb_field(&reader, &field) > 0) {
        path = field.number == 1 ? field.bytes : path;
        offset = field.number == 2 ? field.varint : offset;
        limit = field.number == 3 ? field.varint : limit;
    }
    limit = limit == 0 ? READ_DEFAULT : limit;
    limit = limit > LINK_BULK_MAX ? LINK_BULK_MAX : limit;
    AUTO_CLOSE int fd = offset > INT64_MAX / 2 ? -EINVAL : open_regular(path, &facts);
    if (fd < 0) {
        answer(call, fd, "read", path);
        return;
    }
    read_file(call, fd, &facts, offset, (uint32_t)limit);
}
