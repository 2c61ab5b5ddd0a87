#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base.h"
#include "creds.h"

static const char DEFAULT_PATH[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static const char *find_variable(char *const *env, const char *name) {
    size_t size = strlen(name);
    for (; *env != NULL; env++) {
        if (strncmp(*env, name, size) == 0 && (*env)[size] == '=') {
            return *env + size + 1;
        }
    }
    return NULL;
}

/* Copies the home directory out of a line of passwd(5) when the line is about `uid`. */
static bool home_in_line(char *line, uint64_t uid, char home[PATH_MAX]) {
    char *rest = line;
    char *fields[6] = {0};
    for (size_t i = 0; i < 6; i++) {
        fields[i] = strsep(&rest, ":\n");
        if (fields[i] == NULL) {
            return false;
        }
    }
    char *end = NULL;
    unsigned long long found = strtoull(fields[2], &end, 10);
    if (end == fields[2] || *end != 0 || found != uid || fields[5][0] != '/') {
        return false;
    }
    snprintf(home, PATH_MAX, "%s", fields[5]);
    return true;
}

static void find_home(uint64_t uid, char home[PATH_MAX]) {
    snprintf(home, PATH_MAX, "/");
    /* O_NONBLOCK: the image may have a fifo there. */
    int fd = RETRY(open("/etc/passwd", O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    if (file == NULL) {
        return;
    }
    char line[PATH_MAX + 512];
    while (fgets(line, sizeof line, file) != NULL) {
        if (home_in_line(line, uid, home)) {
            break;
        }
    }
    fclose(file);
}

/* HOME is what the container's user database says, where the plan does not. */
static int complete_environment(const struct process_plan *process, struct program *program,
                                struct failure *failure) {
    program->args = plan_strings(process->whole, PROCESS_ARGS, 0);
    program->env = plan_strings(process->whole, PROCESS_ENV, 1);
    if (program->args == NULL || program->env == NULL) {
        return fail_plain(failure, EINVAL, "arguments or environment hold a NUL byte");
    }
    if (program->args[0] == NULL || program->args[0][0] == 0) {
        return fail_plain(failure, EINVAL, "there is no program to run");
    }
    if (find_variable(program->env, "HOME") != NULL) {
        return 0;
    }
    static char home[PATH_MAX + 5] = "HOME=";
    find_home(process->uid, home + 5);
    char **end = program->env;
    while (*end != NULL) {
        end++;
    }
    end[0] = home;
    return 0;
}

static int check_program(const char *path) {
    struct stat status;
    if (stat(path, &status) < 0) {
        return -errno;
    }
    if (S_ISDIR(status.st_mode)) {
        return -EISDIR;
    }
    return faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) < 0 ? -errno : 0;
}

/* execvp's search, done before the process is reported as created, so that a missing program is the
 * fault of Create and a half-started container never shows. */
static int find_program(struct program *program, struct failure *failure) {
    const char *name = program->args[0];
    if (strchr(name, '/') != NULL) {
        snprintf(program->path, sizeof program->path, "%s", name);
        int error = check_program(name);
        return error < 0 ? fail(failure, error, "exec: \"%.200s\"", name) : 0;
    }
    const char *search = find_variable(program->env, "PATH");
    bool denied = false;
    for (const char *at = search != NULL ? search : DEFAULT_PATH;; at++) {
        size_t size = strcspn(at, ":");
        int written = snprintf(program->path, sizeof program->path, "%.*s/%s",
                               size > 0 ? (int)size : 1, size > 0 ? at : ".", name);
        bool fits = written > 0 && (size_t)written < sizeof program->path;
        int error = fits ? check_program(program->path) : -ENAMETOOLONG;
        if (error == 0) {
            return 0;
        }
        denied = denied || error == -EACCES;
        at += size;
        if (*at == 0) {
            break;
        }
    }
    if (denied) {
        return fail(failure, EACCES, "exec: \"%.200s\"", name);
    }
    return fail_plain(failure, ENOENT, "exec: \"%.200s\": executable file not found in $PATH", name);
}

/* A directory reached through a descriptor that leads outside has no path from here. */
static int check_inside(struct failure *failure) {
    char path[PATH_MAX];
    if (getcwd(path, sizeof path) == NULL || path[0] != '/') {
        return fail_plain(failure, EPERM, "the working directory is outside the container");
    }
    return 0;
}

int exec_become(const struct process_plan *process, struct program *program,
                struct failure *failure) {
    int error = complete_environment(process, program, failure);
    if (error < 0) {
        return error;
    }
    char cwd[PATH_MAX] = "/";
    if (process->cwd.size > 0 && pb_string(process->cwd, cwd, sizeof cwd) < 0) {
        return fail_plain(failure, EINVAL, "the working directory is not a path");
    }
    /* As root first, for directories that the user may not search; a network file system may refuse
     * root, so then as the user. */
    bool there = chdir(cwd) == 0;
    if (!there && errno != EACCES && errno != EPERM) {
        return fail(failure, errno, "chdir to cwd (\"%.200s\")", cwd);
    }
    error = creds_apply(process, failure);
    if (error < 0) {
        return error;
    }
    if (!there && chdir(cwd) < 0) {
        return fail(failure, errno, "chdir to cwd (\"%.200s\")", cwd);
    }
    error = check_inside(failure);
    return error < 0 ? error : find_program(program, failure);
}
