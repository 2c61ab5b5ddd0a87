/* Removing a file, or a directory with everything in it. */
#ifndef VOID_REMOVE_H
#define VOID_REMOVE_H

#include <stdbool.h>

/* Removes `name` in `parent`; follows no link and leaves what is mounted there. 0 or -errno. */
int remove_entry(int parent, const char *name, bool recursive);

#endif
