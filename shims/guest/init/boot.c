#include "boot.h"

#include "base.h"
#include "log.h"

#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>

struct early_mount {
    const char *source, *target, *type;
    unsigned long flags;
    const char *data;
};

static const struct early_mount early_mounts[] = {
    {"proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"},
    {"devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"},
    {"tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"},
    {"tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};
enum { EARLY_MOUNTS = sizeof early_mounts / sizeof early_mounts[0] };

/*
 * pivot_root(2) refuses to leave the initramfs itself. A bind of it that is moved over the root is
 * a mount like any other, so that every container can pivot away from it.
 */
static int leave_initramfs(void) {
    if ((mkdir("/mnt", 0755) < 0 && errno != EEXIST) ||
        mount("/", "/mnt", NULL, MS_BIND, NULL) < 0 || chdir("/mnt") < 0 ||
        mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0) {
        return -errno;
    }
    return 0;
}

static int mount_early(void) {
    for (size_t i = 0; i < EARLY_MOUNTS; i++) {
        const struct early_mount *at = &early_mounts[i];
        if (mkdir(at->target, 0755) < 0 && errno != EEXIST) {
            return -errno;
        }
        if (mount(at->source, at->target, at->type, at->flags, at->data) < 0) {
            int error = -errno;
            log_error("mount %s: %m", at->target);
            return error;
        }
    }
    return 0;
}

static int write_file(const char *path, const char *text) {
    AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || RETRY(write(fd, text, strlen(text))) < 0) {
        return -errno;
    }
    return 0;
}

/* A cgroup with processes in it cannot hand controllers down, so that we move to a leaf first. */
static int leave_root_cgroup(void) {
    if (mkdir("/sys/fs/cgroup/void-init", 0755) < 0 && errno != EEXIST) {
        return -errno;
    }
    return write_file("/sys/fs/cgroup/void-init/cgroup.procs", "0");
}

int boot_prepare(void) {
    umask(0);
    int error = leave_initramfs();
    if (error == 0) {
        error = mount_early();
    }
    if (error < 0) {
        return error;
    }
    log_open("/dev/console");
    error = leave_root_cgroup();
    if (error < 0) {
        log_error("cgroup: %s", strerror(-error));
    }
    /* Propagation stays private, as the kernel makes it; what containers share they ask for. */
    symlink("/proc/self/fd", "/dev/fd");
    mkdir("/etc", 0755);
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    return 0;
}

int boot_link_up(const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    AUTO_CLOSE int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || ioctl(sock, SIOCGIFFLAGS, &request) < 0) {
        return -errno;
    }
    request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
    return ioctl(sock, SIOCSIFFLAGS, &request) < 0 ? -errno : 0;
}

_Noreturn void boot_power_off(void) {
    sync();
    reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT);
    for (;;) {
        pause();
    }
}
