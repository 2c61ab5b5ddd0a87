/*
 * void-init: PID 1 of a microVM. It prepares the place, connects to the host, and then carries out
 * what the host asks for (protos/voidbox/guest/v1/guest.proto), one event at a time.
 *
 * Under test it runs as an ordinary process with --test-fd: a subreaper instead of PID 1, on a
 * descriptor instead of a virtio port, ending instead of powering off.
 */
#include "base.h"
#include "boot.h"
#include "cgroup.h"
#include "creds.h"
#include "disk.h"
#include "files.h"
#include "link.h"
#include "log.h"
#include "loop.h"
#include "modules.h"
#include "port.h"
#include "proc.h"
#include "service.h"
#include "standby.h"
#include "uevent.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#define MODULE_LIST "/etc/void-modules"

#define DEVICE_FILTER "/etc/void-device-filter"
#define DISKS_OPTION " void.disks="

/* For full tables of containers and processes, each with its streams. */
enum { OPEN_FILES = 4096 };

enum { EXIT_USAGE = 100, EXIT_SYSTEM = 111, FLUSH_MS = 500, DISKS_WAIT_MS = 5000 };

struct options {
    int test_fd; /* -1: we are PID 1 */
    const char *root, *cgroup;
};

static struct watch signals = {.fd = -1};
static bool under_test;

/* The end, wanted or not: a VM without its PID 1 is no use, and a test wants its process gone. */
static _Noreturn void end(int status) {
    if (under_test) {
        reap_kill_all();
        exit(status);
    }
    boot_power_off();
}

/* Before the host has said hello there is nobody to tell; after it we log and carry on. */
static _Noreturn void bail(const char *what, int error) {
    log_error("%s: %s", what, strerror(error < 0 ? -error : error));
    end(EXIT_SYSTEM);
}

static void lonely(void) {
    end(EXIT_SUCCESS);
}

static void signals_ready(struct watch *watch, uint32_t events) {
    struct signalfd_siginfo info;
    (void)events;
    while (RETRY(read(watch->fd, &info, sizeof info)) == (ssize_t)sizeof info) {
        bool stop = info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT;
        if (stop && under_test) {
            end(EXIT_SUCCESS);
        }
    }
    reap_children(); /* one SIGCHLD may stand for many */
}

/* All signals wait in a descriptor, except those that mean that we are broken. */
static int catch_signals(void) {
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
    sigset_t set;
    sigfillset(&set);
    for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) {
        sigdelset(&set, fatal[i]);
    }
    if (sigprocmask(SIG_SETMASK, &set, NULL) < 0) {
        return -errno;
    }
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : loop_add(&signals, fd, EPOLLIN, signals_ready);
}

static int parse_options(int argc, char **argv, struct options *options) {
    static const struct option known[] = {
        {"test-fd", required_argument, NULL, 'f'},
        {"root", required_argument, NULL, 'r'},
        {"cgroup", required_argument, NULL, 'c'},
        {"debug", no_argument, NULL, 'd'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'f':
            options->test_fd = atoi(optarg);
            break;
        case 'r':
            options->root = optarg;
            break;
        case 'c':
            options->cgroup = optarg;
            break;
        case 'd':
            log_set_level(LOG_LEVEL_DEBUG);
            break;
        default:
            return -EINVAL;
        }
    }
    return 0;
}

/* The host announces the disks of a template on the command line, as void.disks=COUNT. */
static void await_disks(void) {
    char line[4096] = "";
    AUTO_CLOSE int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || RETRY(read(fd, line, sizeof line - 1)) < 0) {
        return;
    }
    const char *option = strstr(line, DISKS_OPTION);
    unsigned long count = option == NULL ? 0 : strtoul(option + sizeof DISKS_OPTION - 1, NULL, 10);
    if (count > 0 && disk_await((unsigned)count, DISKS_WAIT_MS) < 0) {
        log_error("%lu disks were announced and did not come", count);
    }
}

/* Everything that a clone should not have to do again happens before the link opens: the host takes
 * its template as soon as the preamble is answered, before the first Hello. */
static void start_machine(const struct options *options) {
    int error = boot_prepare();
    if (error < 0) {
        bail("preparing the machine", error);
    }
    if ((error = uevent_open()) < 0) {
        bail("uevent socket", error);
    }
    modules_load(MODULE_LIST);
    await_disks();
    if ((error = boot_link_up("lo")) < 0) {
        log_error("loopback: %s", strerror(-error));
    }
    if ((error = cgroup_setup(options->cgroup)) < 0) {
        log_error("cgroup %s: %s", options->cgroup, strerror(-error));
    }
    if ((error = files_init("")) < 0) {
        bail("/run/void", error);
    }
    if ((error = standby_prepare(DEVICE_FILTER)) < 0) {
        log_error("no process stands by: %s", strerror(-error));
    }
    if ((error = port_listen_vsock()) < 0 && error != -ENOENT) {
        log_warn("vsock: %s", strerror(-error));
    }
    port_changed(); /* the port may have come with its module */
}

static void start_test(const struct options *options) {
    under_test = true;
    umask(0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int error = cgroup_setup(options->cgroup);
    if (error < 0) {
        log_warn("cgroup %s: %s", options->cgroup, strerror(-error));
    }
    if ((error = files_init(options->root)) < 0) {
        bail("--root", error);
    }
    if ((error = port_serve_fd(options->test_fd)) < 0) {
        bail("--test-fd", error);
    }
}

int main(int argc, char **argv) {
    struct options options = {.test_fd = -1, .root = "", .cgroup = BOOT_CGROUP_ROOT};
    if (parse_options(argc, argv, &options) < 0 || (options.test_fd < 0 && getpid() != 1)) {
        fprintf(stderr, "usage: %s --test-fd N [--root DIR] [--cgroup DIR] [--debug]\n", argv[0]);
        return EXIT_USAGE;
    }
    int error = loop_open();
    if (error == 0) {
        error = catch_signals();
    }
    if (error < 0) {
        bail("event loop", error);
    }
    if ((error = creds_raise_files(OPEN_FILES)) < 0) {
        log_warn("the limit of open files stays: %s", strerror(-error));
    }
    link_init(lonely);
    service_init(options.test_fd < 0);
    if (options.test_fd < 0) {
        start_machine(&options);
    } else {
        start_test(&options);
    }
    /* From here on main does not return: if something breaks now, it is ours to survive. */
    for (bool busy = true; !service_powering_off();) {
        loop_turn(busy);
        busy = link_work();
    }
    link_drain(FLUSH_MS);
    end(EXIT_SUCCESS);
}
