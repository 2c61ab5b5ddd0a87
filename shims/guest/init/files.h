/*
 * Files of the VM itself. Writes and removals stay below /run/void and follow no symbolic link; a
 * file becomes visible by rename, whole, or is written in place where a bind mount holds it.
 */
#ifndef VOID_FILES_H
#define VOID_FILES_H

#include "rpc.h"

/* `root` is "" in a VM, and the directory that stands for its root under test. 0 or -errno. */
int files_init(const char *root);

/* The guest path with that root before it. -ENAMETOOLONG, or -EINVAL when it is not absolute. */
int files_real_path(struct pb_slice path, char *out, size_t capacity);

void files_handle_write(struct call call, struct pb_slice request);
void files_handle_read(struct call call, struct pb_slice request);
void files_handle_remove(struct call call, struct pb_slice request);

#endif
