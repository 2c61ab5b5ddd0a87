#include "shares.h"

#include <errno.h>
#include <string.h>
#include <sys/mount.h>
#include <time.h>

enum { WAIT_MS = 3000, RETRY_MS = 5 };

/*
 * A share that was plugged in a moment ago may not be there yet, and unlike a disk it has no name
 * below /sys by which to wait for it (that came with Linux 6.9). So this asks again.
 */
int mount_when_there(const char *source, const char *path, const char *fstype, uint64_t flags,
                     const char *data) {
    struct timespec pause = {.tv_nsec = RETRY_MS * 1000000L};
    int result = mount(source, path, fstype, flags, data);
    if (strcmp(fstype, "virtiofs") != 0) {
        return result;
    }
    for (int waited = 0; result < 0 && errno == EINVAL && waited < WAIT_MS; waited += RETRY_MS) {
        nanosleep(&pause, NULL);
        result = mount(source, path, fstype, flags, data);
    }
    return result;
}
