#include "service.h"

#include "base.h"
#include "disk.h"
#include "events.h"
#include "files.h"
#include "link.h"
#include "log.h"
#include "loop.h"
#include "net.h"
#include "proc.h"
#include "rpc.h"
#include "stats.h"

#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <time.h>

enum { PROTOCOL = 1, ENTROPY_MAX = 256, MACHINE_ID_SIZE = 32, HOSTNAME_SIZE = 64 };
enum { STATES_BYTES = PROCESSES_MAX * (ID_MAX + 64) + CONTAINERS_MAX * (ID_MAX + 32) };

struct hello {
    uint64_t protocol, wall_clock_ns, lonely_ms;
    struct pb_slice entropy, hostname, machine_id, token;
};

static bool owns_machine;
static bool powering_off;

/* ---- Hello ----------------------------------------------------------------------------------- */

static int decode_hello(struct pb_slice request, struct hello *hello) {
    struct pb_reader reader = pb_read(request);
    struct pb_field field;
    int more;
    *hello = (struct hello){0};
    while ((more = pb_field(&reader, &field)) > 0) {
        switch (field.number) {
        case 1:
            hello->protocol = field.varint;
            break;
        case 2:
            hello->wall_clock_ns = field.varint;
            break;
        case 3:
            hello->entropy = field.bytes;
            break;
        case 4:
            hello->hostname = field.bytes;
            break;
        case 5:
            hello->machine_id = field.bytes;
            break;
        case 6:
            hello->token = field.bytes;
            break;
        case 7:
            hello->lonely_ms = field.varint;
            break;
        default:
            break;
        }
    }
    return more;
}

/* A clone has the generator's state of its template: it must not hand out a byte before this. */
static int reseed(struct pb_slice entropy) {
    struct {
        struct rand_pool_info info;
        uint8_t bytes[ENTROPY_MAX];
    } pool = {0};
    if (entropy.size == 0) {
        return 0;
    }
    size_t size = entropy.size < ENTROPY_MAX ? entropy.size : ENTROPY_MAX;
    pool.info.entropy_count = (int)(size * 8);
    pool.info.buf_size = (int)size;
    memcpy((uint8_t *)&pool + sizeof pool.info, entropy.data, size);
    AUTO_CLOSE int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0) {
        return -errno;
    }
    return 0;
}

static int set_clock(uint64_t wall_clock_ns) {
    if (wall_clock_ns == 0) {
        return 0;
    }
    struct timespec now = {.tv_sec = (time_t)(wall_clock_ns / 1000000000),
                           .tv_nsec = (long)(wall_clock_ns % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &now) < 0 ? -errno : 0;
}

static int set_hostname(struct pb_slice hostname) {
    if (hostname.size == 0) {
        return 0;
    }
    return sethostname((const char *)hostname.data, hostname.size) < 0 ? -errno : 0;
}

static int set_machine_id(struct pb_slice id) {
    if (id.size == 0) {
        return 0;
    }
    AUTO_CLOSE int fd = open("/etc/machine-id", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
    if (fd < 0 || RETRY(write(fd, id.data, id.size)) < 0 || RETRY(write(fd, "\n", 1)) < 0) {
        return -errno;
    }
    return 0;
}

static bool check_hello(struct call call, const struct hello *hello) {
    if (hello->protocol != PROTOCOL) {
        rpc_fail(call, RPC_UNIMPLEMENTED, "protocol %llu is not spoken here, only %d",
                 (unsigned long long)hello->protocol, PROTOCOL);
    } else if (hello->token.size != 0 && hello->token.size != LINK_TOKEN_SIZE) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "resync_token has %d bytes", LINK_TOKEN_SIZE);
    } else if (hello->machine_id.size != 0 && hello->machine_id.size != MACHINE_ID_SIZE) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "machine_id has %d digits", MACHINE_ID_SIZE);
    } else if (hello->hostname.size > HOSTNAME_SIZE || hello->lonely_ms > UINT32_MAX) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "hostname has at most %d bytes", HOSTNAME_SIZE);
    } else {
        return true;
    }
    return false;
}

/* Entropy before anything else: setting a clock or a name may already draw a random number. */
static int take_identity(const struct hello *hello) {
    int error = reseed(hello->entropy);
    error = error < 0 ? error : set_clock(hello->wall_clock_ns);
    error = error < 0 ? error : set_hostname(hello->hostname);
    return error < 0 ? error : set_machine_id(hello->machine_id);
}

static void answer_hello(struct call call) {
    struct reply reply;
    struct utsname names = {0};
    struct timespec up = {0};
    uname(&names);
    clock_gettime(CLOCK_BOOTTIME, &up);
    if (!rpc_begin(&reply, call, STATES_BYTES + 1024)) {
        return;
    }
    pb_put_varint(&reply.writer, 1, PROTOCOL);
    pb_put_string(&reply.writer, 2, VOID_INIT_VERSION);
    pb_put_string(&reply.writer, 3, names.release);
    pb_put_string(&reply.writer, 4, names.machine);
    pb_put_varint(&reply.writer, 5, (uint64_t)up.tv_sec * 1000000000 + (uint64_t)up.tv_nsec);
    proc_put_states(&reply.writer, 6);
    pb_put_varint(&reply.writer, 7, events_last());
    rpc_end(&reply);
}

static void handle_hello(struct call call, struct pb_slice request) {
    struct hello hello;
    if (decode_hello(request, &hello) < 0) {
        rpc_fail(call, RPC_INVALID_ARGUMENT, "a malformed Hello");
        return;
    }
    if (!check_hello(call, &hello)) {
        return;
    }
    int error = owns_machine ? take_identity(&hello) : 0;
    if (error < 0) {
        rpc_fail_errno(call, error, "time, entropy or names");
        return;
    }
    if (hello.token.size != 0) {
        link_set_token(hello.token.data);
    }
    link_set_lonely_ms((uint32_t)hello.lonely_ms);
    rpc_greeted();
    answer_hello(call);
}

/* ---- the service ----------------------------------------------------------------------------- */

static void handle_power_off(struct call call, struct pb_slice request) {
    (void)request;
    powering_off = true;
    rpc_done(call);
}

bool service_powering_off(void) {
    return powering_off;
}

static const struct rpc_method methods[] = {
    {"Hello", handle_hello, true},
    {"CreateContainer", proc_handle_create, false},
    {"AddProcess", proc_handle_add, false},
    {"StartProcess", proc_handle_start, false},
    {"SignalProcess", container_handle_signal, false},
    {"DeleteProcess", proc_handle_delete, false},
    {"ListProcesses", container_handle_list, false},
    {"NextEvents", events_handle_next, false},
    {"ReadStdio", proc_handle_read_stdio, false},
    {"WriteStdio", proc_handle_write_stdio, false},
    {"ResizeTerminal", proc_handle_resize, false},
    {"Freeze", container_handle_freeze, false},
    {"Stats", stats_handle_container, false},
    {"UpdateCgroup", container_handle_update, false},
    {"WriteFile", files_handle_write, false},
    {"ReadFile", files_handle_read, false},
    {"RemoveFile", files_handle_remove, false},
    {"ProbeDisk", disk_handle_probe, false},
    {"ReleaseDisk", disk_handle_release, false},
    {"ConfigureNetwork", net_handle_configure, false},
    {"Telemetry", stats_handle_telemetry, false},
    {"PowerOff", handle_power_off, false},
    {NULL, NULL, false},
};

void service_init(bool in_vm) {
    owns_machine = in_vm;
    rpc_serve("voidbox.guest.v1.Guest", methods);
}
