/* Copies an image's directory into the tmpfs that was mounted over it ("tmpcopyup"). */
#ifndef VOID_COPYUP_H
#define VOID_COPYUP_H

/* Copies what is in `from` (owners, modes, symlinks, devices, contents) to `to`, both descriptors of
 * directories, O_PATH or not. 0 or -errno; -ELOOP when the tree is deeper than 64 directories. */
int copyup_directory(int from, int to);

#endif
