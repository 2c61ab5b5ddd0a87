/* Changes the directory that it is started in as programs do that unpack archives, and says how each
 * step went. It runs as the only program of a container, and on the host under chroot. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static void report(const char *what, int result) {
    printf("%s: %s\n", what, result < 0 ? strerror(errno) : "done");
}

static int make(const char *name, mode_t mode) {
    int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, mode);
    return fd < 0 ? fd : close(fd);
}

int main(void) {
    static const unsigned char net_raw[20] = {1, 0, 0, 2, 0, 0x20};
    umask(0);
    report("make", make("own", 0644) + make("suid", 0755) + make("attributes", 0644));
    report("directory", mkdir("dir", 0711));
    report("chown", chown("own", 3000000000u, 70000));
    report("chown of a directory", chown("dir", 1000, 1001));
    report("chmod", chmod("own", 0640));
    report("chmod with setuid", chmod("suid", 06755));
    report("chmod with setgid", chmod("dir", 02775));
    report("make where the group is inherited", make("dir/inherits", 0660));
    report("lose setuid by chown", make("was-suid", 0755) + chmod("was-suid", 06755) + chown("was-suid", 5, 6));
    report("user attribute", setxattr("attributes", "user.note", "hello", 5, 0));
    report("capability", setxattr("attributes", "security.capability", net_raw, sizeof net_raw, 0));
    report("hard link", link("own", "dir/linked"));
    report("symbolic link", symlink("own", "link") + lchown("link", 7, 8));
    report("time", utimensat(AT_FDCWD, "own", (struct timespec[2]){{1, 2}, {3, 4}}, 0));
    report("rename", rename("attributes", "renamed"));
    report("remove", make("gone", 0600) + unlink("gone"));
    report("fifo", mkfifo("fifo", 0640));
    report("whiteout", mknod("whiteout", S_IFCHR, makedev(0, 0)));
    report("device", mknod("null", S_IFCHR | 0666, makedev(1, 3)));
    return 0;
}
