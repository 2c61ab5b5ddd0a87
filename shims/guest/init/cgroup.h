/*
 * cgroup v2 as void-init uses it. Functions return 0 or -errno; out-parameters are untouched on
 * failure. `cgroup_fd` is an O_PATH directory of one container's cgroup.
 */
#ifndef VOID_CGROUP_H
#define VOID_CGROUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pb.h"

/* Sets the directory below which containers get their cgroups (created if need be) and enables
 * every controller from the top of the hierarchy down to it. Once, before the first container. */
int cgroup_setup(const char *root);

/* Creates the cgroup `path` (relative, no "..") with its parents, controllers enabled in each of
 * them, and opens it. *created says whether the last component was new. */
int cgroup_create(const char *path, int *cgroup_fd, bool *created);

/* Opens the cgroup that a process is in now, which a container may have made itself. */
int cgroup_open_of(pid_t pid);

/* Writes a control file: one write(2), whose errno is the kernel's verdict on the value. */
int cgroup_write(int cgroup_fd, const char *file, struct pb_slice value);

/* Carries out one encoded CgroupWrite, or each of the encoded messages that has them as field
 * `field` (Cgroup.writes = 2, UpdateCgroupRequest.writes = 2). On failure `file` (at least 64 bytes)
 * names the file. An optional write that the kernel refuses is no failure. */
int cgroup_write_all(int cgroup_fd, struct pb_slice message, uint32_t field, char file[64]);

/* Reads a control file whole into `buffer` (NUL-terminated, truncated to `size`); returns the length. */
ssize_t cgroup_read(int cgroup_fd, const char *file, char *buffer, size_t size);

/* The number behind `key` in a flat keyed file ("cgroup.events", "memory.events"). */
int cgroup_read_key(int cgroup_fd, const char *file, const char *key, uint64_t *value);

/* Opens a control file for polling: EPOLLPRI when its content changed ("cgroup.events" for populated
 * and frozen, "memory.events" for OOM kills). Returns the fd or -errno. */
int cgroup_watch(int cgroup_fd, const char *file);

/* Asks for freezing or thawing; the state is reached when cgroup_read_key("cgroup.events", "frozen")
 * says so, which cgroup_watch() announces. */
int cgroup_freeze(int cgroup_fd, bool frozen);

/* Waits until `key` of "cgroup.events" has `value`, at most `timeout_ms`: 0, or -ETIMEDOUT. */
int cgroup_wait(int cgroup_fd, const char *key, uint64_t value, int timeout_ms);

/* SIGKILL to every process in the cgroup and below it, atomically. */
int cgroup_kill(int cgroup_fd);

/* OOM kills so far in the cgroup and below it. */
int cgroup_oom_kills(int cgroup_fd, uint64_t *kills);

/* Attaches a device filter (struct bpf_insn[] as bytes) in place of one that is there already. */
int cgroup_device_filter(int cgroup_fd, struct pb_slice instructions);

/* The two halves of it. The descriptor of the program, or -errno; 0 or -errno. */
int device_filter_load(struct pb_slice instructions);
int device_filter_attach(int cgroup_fd, int program);

/* Removes the cgroup `path`, what the container made below it, and then each parent up to the root
 * that is empty. Waits at most `timeout_ms` for processes that are dying; -EBUSY after that. -EAGAIN:
 * a part is done and there is more, call again. */
int cgroup_remove(const char *path, int timeout_ms);

#endif
