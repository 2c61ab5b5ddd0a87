/*
 * Paths inside a root directory that somebody else filled: an image's symlinks cannot lead outside,
 * not even when a process changes them meanwhile, because every step is openat2(2) below the root.
 *
 * Functions return an O_PATH descriptor or -errno.
 */
#ifndef VOID_PATHS_H
#define VOID_PATHS_H

#include <limits.h>

#include "pb.h"

enum path_make {
    PATH_EXISTING,  /* -ENOENT when it is not there */
    PATH_DIRECTORY, /* create missing directories, 0755, the last component included */
    PATH_FILE,      /* create missing directories, and an empty file as the last component */
};

/* Opens `path`, absolute or not, as seen from `root`. Symlinks, the last one included, are followed. */
int path_open(int root, struct pb_slice path, enum path_make make);

/* Opens the directory that holds the last component of `path`, creating it if need be, and copies
 * that component, which is not resolved. -EINVAL when there is none ("/", "..", "."). */
int path_open_parent(int root, struct pb_slice path, char name[NAME_MAX + 1]);

/* Opens the root directory of the VM, or the container's at `rootfs`. */
int path_open_root(const char *directory);

#endif
