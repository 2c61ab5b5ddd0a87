/* What a container leaves behind, and its removal. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base.h"
#include "cgroup.h"
#include "launch.h"

/* Mount points are one level deep ("rootfs", "lower0", "upper", …) and empty once the container's
 * mount namespace is gone; rmdir removes nothing else, so content can never be lost here. */
static int remove_mount_points(const char *path) {
    AUTO_CLOSE int fd = RETRY(open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL) {
        return errno == ENOENT ? 0 : -errno;
    }
    take_fd(&fd);
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            unlinkat(dirfd(directory), entry->d_name, AT_REMOVEDIR);
        }
    }
    closedir(directory);
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR) < 0 && errno != ENOENT ? -errno : 0;
}

int launch_release(struct launched *launched, int timeout_ms) {
    if (launched->cgroup_fd >= 0) {
        cgroup_kill(launched->cgroup_fd);
    }
    launch_close(launched);
    int error = launched->cgroup_path[0] != 0 ? cgroup_remove(launched->cgroup_path, timeout_ms) : 0;
    if (error == 0 && launched->directory[0] != 0) {
        error = remove_mount_points(launched->directory);
    }
    return error;
}
