/* Prints what a program can learn of the tree that it finds itself in, one line per entry.
 *
 * It runs as the only program of a container, and on the host in the same layers under chroot: both
 * outputs must be equal. Names and targets are printed in hex, directories in sorted order; other
 * mounts (/proc and the like) are not entered. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static dev_t root_device;

static void print_hex(const char *label, const void *data, size_t size) {
    const unsigned char *bytes = data;
    printf(" %s=", label);
    for (size_t i = 0; i < size; i++) {
        printf("%02x", bytes[i]);
    }
}

static uint64_t hash_of(int fd) {
    static unsigned char buffer[1 << 16];
    uint64_t hash = 14695981039346656037u;
    ssize_t got;
    while ((got = read(fd, buffer, sizeof buffer)) > 0) {
        for (ssize_t i = 0; i < got; i++) {
            hash = (hash ^ buffer[i]) * 1099511628211u;
        }
    }
    return got < 0 ? (uint64_t)errno : hash;
}

static int by_name(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static void print_attributes(const char *name) {
    static char names[1 << 16], value[1 << 16];
    ssize_t size = llistxattr(name, names, sizeof names);
    char *sorted[256];
    size_t count = 0;
    for (char *at = names; size > 0 && at < names + size; at += strlen(at) + 1) {
        sorted[count++] = at;
    }
    qsort(sorted, count, sizeof *sorted, by_name);
    for (size_t i = 0; i < count; i++) {
        ssize_t length = lgetxattr(name, sorted[i], value, sizeof value);
        print_hex(sorted[i], value, length > 0 ? (size_t)length : 0);
    }
}

static void print_entry(const char *path, const char *name, const struct stat *found) {
    char target[PATH_MAX + 1];
    print_hex("path", path, strlen(path));
    printf(" mode=%o ids=%u:%u", found->st_mode, found->st_uid, found->st_gid);
    if (strcmp(path, ".") != 0) {
        printf(" time=%jd.%09ld", (intmax_t)found->st_mtim.tv_sec, found->st_mtim.tv_nsec);
    }
    if (S_ISREG(found->st_mode)) {
        int fd = open(name, O_RDONLY | O_NOFOLLOW);
        printf(" size=%jd links=%ju hash=%" PRIx64, (intmax_t)found->st_size,
               (uintmax_t)found->st_nlink, hash_of(fd));
        close(fd);
    } else if (S_ISLNK(found->st_mode)) {
        ssize_t size = readlink(name, target, sizeof target);
        print_hex("target", target, size > 0 ? (size_t)size : 0);
    } else if (S_ISCHR(found->st_mode) || S_ISBLK(found->st_mode)) {
        printf(" device=%u:%u", major(found->st_rdev), minor(found->st_rdev));
    }
    print_attributes(name);
    printf("\n");
}

/* Walks the working directory; deep trees and long names make paths no system call would take. */
static void walk(const char *path) {
    char *names[4096];
    size_t count = 0;
    DIR *directory = opendir(".");
    struct dirent *entry;
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && count < 4096) {
            names[count++] = strdup(entry->d_name);
        }
    }
    closedir(directory);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        struct stat found;
        char *below;
        if (asprintf(&below, "%s/%s", path, names[i]) < 0 || lstat(names[i], &found) < 0) {
            printf("cannot stat %s: %s\n", names[i], strerror(errno));
            continue;
        }
        int here = S_ISDIR(found.st_mode) ? open(".", O_RDONLY | O_DIRECTORY) : -1;
        if (S_ISDIR(found.st_mode) && found.st_dev != root_device) {
            printf(" mount=%s\n", below);
        } else {
            print_entry(below, names[i], &found);
            if (here >= 0 && chdir(names[i]) == 0) {
                walk(below);
                if (fchdir(here) < 0) {
                    exit(1);
                }
            }
        }
        if (here >= 0) {
            close(here);
        }
        free(below);
        free(names[i]);
    }
}

int main(void) {
    struct stat root;
    if (chdir("/") < 0 || lstat(".", &root) < 0) {
        return 1;
    }
    root_device = root.st_dev;
    print_entry(".", ".", &root);
    walk(".");
    printf("end\n");
    return 0;
}
