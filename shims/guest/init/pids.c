/* The processes of a container, read from its cgroup and those that it made below it. */
#include "proc.h"

#include "log.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* A container may nest cgroups without end; deeper ones than this are not listed. */
enum { DEPTH_MAX = 16, LIST_MAX = 8192, ENTRY_BYTES = ID_MAX + 32 };

struct pid_list {
    pid_t *pids;
    size_t count, capacity;
};

static void read_pids(int directory, struct pid_list *list) {
    int fd = openat(directory, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "re");
    if (file == NULL) {
        close_fd(&fd);
        return; /* a threaded cgroup has no list of processes, its parent's has them */
    }
    int pid = 0;
    while (list->count < list->capacity && fscanf(file, "%d", &pid) == 1) {
        if (pid > 0) {
            list->pids[list->count++] = pid;
        }
    }
    fclose(file);
}

static DIR *open_directory(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL) {
        close_fd(&fd);
    }
    return directory;
}

static const struct dirent *next_directory(DIR *directory) {
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
            return entry;
        }
    }
    return NULL;
}

ssize_t container_pids(struct container *container, pid_t *pids, size_t capacity) {
    struct pid_list list = {pids, 0, capacity};
    DIR *open_path[DEPTH_MAX];
    int depth = 0;
    open_path[0] = open_directory(container->init->launched.cgroup_fd, ".");
    if (open_path[0] == NULL) {
        return -errno;
    }
    read_pids(dirfd(open_path[0]), &list);
    while (depth >= 0) {
        const struct dirent *entry = next_directory(open_path[depth]);
        if (entry == NULL) {
            closedir(open_path[depth--]);
            continue;
        }
        DIR *below = depth + 1 < DEPTH_MAX ? open_directory(dirfd(open_path[depth]), entry->d_name)
                                           : NULL;
        if (below != NULL) {
            read_pids(dirfd(below), &list);
            open_path[++depth] = below;
        }
    }
    return (ssize_t)list.count;
}

void container_handle_list(struct call call, struct pb_slice request) {
    static pid_t pids[LIST_MAX];
    struct process_ref ref;
    struct container *container;
    struct reply reply;
    if (!proc_read_ref(call, request, &ref) ||
        (container = proc_require_container(call, ref.container)) == NULL) {
        return;
    }
    ssize_t count = container_pids(container, pids, LIST_MAX);
    if (count < 0) {
        rpc_fail_errno(call, (int)count, "processes of \"%s\"", ref.container);
        return;
    }
    if (!rpc_begin(&reply, call, (size_t)count * ENTRY_BYTES)) {
        return;
    }
    for (ssize_t i = 0; i < count; i++) {
        const struct process *process = proc_of_pid(pids[i]);
        uint8_t *mark = pb_begin(&reply.writer, 1);
        pb_put_varint(&reply.writer, 1, (uint64_t)pids[i]);
        if (process != NULL) {
            pb_put_string(&reply.writer, 2, process->exec_id);
            pb_put_bool(&reply.writer, 3, true);
        }
        pb_end(&reply.writer, mark);
    }
    rpc_end(&reply);
}
