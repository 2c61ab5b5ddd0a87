/* Kernel modules, in the order in which the guest image lists them. */
#ifndef VOID_MODULES_H
#define VOID_MODULES_H

/* Loads each path in `list`, one per line; '#' begins a comment. A module that does not load is
 * logged and skipped: whoever needs it fails with its own error. */
void modules_load(const char *list);

#endif
