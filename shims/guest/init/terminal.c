#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base.h"
#include "kernel.h"
#include "paths.h"

/* linux/magic.h and linux/major.h: what tells the multiplexer from a trap left by the container. */
enum { DEVPTS_MAGIC = 0x1cd1, PTMX_MAJOR = 5, PTMX_MINOR = 2 };

/* _IO('T', 0x41): opens the slave without a path that the container could have replaced. */
enum { OPEN_PEER = 0x5441 };

static bool is_multiplexer(int fd) {
    struct stat status;
    struct statfs filesystem;
    return fstat(fd, &status) == 0 && S_ISCHR(status.st_mode) &&
           status.st_rdev == makedev(PTMX_MAJOR, PTMX_MINOR) && fstatfs(fd, &filesystem) == 0 &&
           filesystem.f_type == DEVPTS_MAGIC;
}

/* The path is looked at before it is opened: opening a device or a fifo can have effects. */
static int open_multiplexer(int root) {
    static const char path[] = "/dev/ptmx";
    struct pb_slice slice = {(const uint8_t *)path, sizeof path - 1};
    AUTO_CLOSE int found = path_open(root, slice, PATH_EXISTING);
    if (found < 0) {
        return found;
    }
    if (!is_multiplexer(found)) {
        return -ENODEV;
    }
    AUTO_CLOSE int opened = kernel_openat2(root, path, O_RDWR | O_NOCTTY,
                                           RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (opened < 0) {
        return -errno;
    }
    return is_multiplexer(opened) ? take_fd(&opened) : -ENODEV;
}

int terminal_open(int root, uint64_t rows, uint64_t columns, struct terminal *terminal,
                  struct failure *failure) {
    AUTO_CLOSE int master = open_multiplexer(root);
    if (master < 0) {
        return fail(failure, master, "a terminal needs a devpts at /dev/pts and /dev/ptmx");
    }
    int locked = 0;
    if (ioctl(master, TIOCSPTLCK, &locked) < 0) {
        return fail(failure, errno, "unlock the terminal");
    }
    AUTO_CLOSE int slave = ioctl(master, OPEN_PEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0) {
        return fail(failure, errno, "open the terminal");
    }
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    if ((rows | columns) != 0 && ioctl(master, TIOCSWINSZ, &size) < 0) {
        return fail(failure, errno, "size the terminal");
    }
    *terminal = (struct terminal){take_fd(&master), take_fd(&slave)};
    return 0;
}

int terminal_adopt(int slave, struct failure *failure) {
    if (ioctl(slave, TIOCSCTTY, 0) < 0) {
        return fail(failure, errno, "make the terminal the controlling one");
    }
    for (int stream = 0; stream < 3; stream++) {
        if (RETRY(dup2(slave, stream)) < 0) {
            return fail(failure, errno, "put the terminal on stream %d", stream);
        }
    }
    return 0;
}
