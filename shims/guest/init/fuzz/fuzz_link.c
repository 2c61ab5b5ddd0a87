/*
 * Fuzz target: what a host sends, from bytes to decoded plans. The first byte chooses the layer.
 *
 * Built with libFuzzer (make fuzz), or with -DREPLAY as a program that runs the files it is given
 * (make replay), which needs no clang.
 */
#include "link.h"
#include "plan.h"
#include "rpc.h"
#include "stdio.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What link.c calls when there is room for bulk: there are no streams here. */
void stdio_link_has_room(void) {
}

bool stdio_wants_room(void) {
    return false;
}

static void lonely(void) {
}

static void read_fields(struct pb_slice message) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    uint32_t numbers[16];
    size_t count = 0;
    char text[64];
    while (pb_field(&reader, &field) > 0) {
        if (field.wire == PB_BYTES) {
            pb_string(field.bytes, text, sizeof text);
        }
        pb_repeat_u32(&field, numbers, &count, 16);
    }
}

static void read_plan(struct pb_slice message) {
    struct pb_reader reader = pb_read(message);
    static struct launch_plan plan;
    static struct process_plan process;
    struct plan_step step;
    struct mount_step mount;
    struct small_step small;
    plan_decode(message, &plan);
    plan_decode_process(message, &process);
    plan_decode_mount(message, &mount);
    while (plan_next_step(&reader, &step) > 0) {
        plan_decode_small(&step, &small);
    }
    char **strings = plan_strings(message, PROCESS_ARGS, 2);
    for (char **at = strings; at != NULL && *at != NULL; at++) {
        free(*at);
    }
    free(strings);
}

static void answer_everything(struct call call, struct pb_slice request) {
    struct reply reply;
    rpc_greeted();
    read_fields(request);
    if (rpc_begin(&reply, call, 64 + request.size)) {
        pb_put_bytes(&reply.writer, 1, request.data, request.size);
        rpc_end(&reply);
    }
}

/* In two pieces, and the second one in single bytes when it is short: seams are where parsers err. */
static void send_to_link(const uint8_t *data, size_t size) {
    size_t cut = size > 0 ? data[0] % (size + 1) : 0;
    static const uint8_t preamble[] = "voidbox-link-v1\n0123456789abcdef";
    link_abandon();
    link_receive(preamble, sizeof preamble - 1);
    link_receive(data, cut);
    for (size_t at = cut; at < size && size - cut < 256; at++) {
        link_receive(data + at, 1);
    }
    if (size - cut >= 256) {
        link_receive(data + cut, size - cut);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct rpc_method methods[] = {
        {"Hello", answer_everything, true}, {"Stats", answer_everything, false}, {NULL, NULL, false}};
    if (size == 0) {
        return 0;
    }
    struct pb_slice rest = {data + 1, size - 1};
    link_init(lonely);
    rpc_serve("voidbox.guest.v1.Guest", methods);
    switch (data[0] % 3) {
    case 0:
        send_to_link(rest.data, rest.size);
        break;
    case 1:
        read_fields(rest);
        break;
    default:
        read_plan(rest);
        break;
    }
    return 0;
}

#ifdef REPLAY
int main(int argc, char **argv) {
    static uint8_t input[8 << 20];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "re");
        if (file == NULL) {
            perror(argv[i]);
            return 1;
        }
        size_t size = fread(input, 1, sizeof input, file);
        fclose(file);
        /* A copy of exact size, so that a byte read too far is noticed. */
        uint8_t *copy = malloc(size + 1);
        if (copy == NULL) {
            return 1;
        }
        memcpy(copy + 1, input, size);
        LLVMFuzzerTestOneInput(copy + 1, size);
        free(copy);
    }
    return 0;
}
#endif
