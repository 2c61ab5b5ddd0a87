#include "modules.h"

#include "base.h"
#include "log.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

static void load(const char *path) {
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        log_warn("%s: %m", path);
        return;
    }
    if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST) {
        log_warn("module %s: %m", path);
    }
}

void modules_load(const char *list) {
    char line[PATH_MAX];
    FILE *file = fopen(list, "re");
    if (file == NULL) {
        log_warn("%s: %m", list);
        return;
    }
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "# \t\n")] = 0;
        if (line[0] != 0) {
            load(line);
        }
    }
    fclose(file);
}
