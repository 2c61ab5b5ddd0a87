#include "net.h"

#include "base.h"
#include "failure.h"
#include "log.h"

#include <arpa/inet.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { MESSAGE_MAX = 1024, MAC_SIZE = 6, ADDRESS_MAX = 16, TEXT_MAX = INET6_ADDRSTRLEN };

/* A request under construction; `overflow` is checked once, when it is sent. */
struct request {
    union {
        struct nlmsghdr header;
        uint8_t bytes[MESSAGE_MAX];
    };
    bool overflow;
};

static void *begin(struct request *request, uint16_t type, uint16_t flags, size_t body) {
    memset(request, 0, sizeof *request);
    request->header.nlmsg_len = (uint32_t)NLMSG_LENGTH(body);
    request->header.nlmsg_type = type;
    request->header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
    return request->bytes + NLMSG_HDRLEN;
}

static void attribute(struct request *request, uint16_t type, const void *data, size_t size) {
    size_t at = NLMSG_ALIGN(request->header.nlmsg_len);
    if (at + RTA_SPACE(size) > MESSAGE_MAX) {
        request->overflow = true;
        return;
    }
    struct rtattr head = {.rta_len = (uint16_t)RTA_LENGTH(size), .rta_type = type};
    memcpy(request->bytes + at, &head, sizeof head);
    memcpy(request->bytes + at + RTA_LENGTH(0), data, size);
    request->header.nlmsg_len = (uint32_t)(at + RTA_LENGTH(size));
}

static void attribute_u32(struct request *request, uint16_t type, uint32_t value) {
    attribute(request, type, &value, sizeof value);
}

static void attribute_slice(struct request *request, uint16_t type, struct pb_slice value) {
    if (value.size > 0) {
        attribute(request, type, value.data, value.size);
    }
}

/* Sends and waits for the kernel's verdict, which it gives before send() returns. */
static int ask(int fd, struct request *request) {
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        uint8_t rest[MESSAGE_MAX];
    } answer;
    if (request->overflow) {
        return -E2BIG;
    }
    if (RETRY(send(fd, request->bytes, request->header.nlmsg_len, 0)) < 0) {
        return -errno;
    }
    ssize_t size = RETRY(recv(fd, &answer, sizeof answer, MSG_DONTWAIT));
    if (size < 0) {
        return -errno;
    }
    if ((size_t)size < sizeof answer.header + sizeof answer.error.error ||
        answer.header.nlmsg_type != NLMSG_ERROR) {
        return -EPROTO;
    }
    return answer.error.error;
}

static bool is_address(struct pb_slice address) {
    return address.size == 4 || address.size == 16;
}

static uint8_t family_of(struct pb_slice address) {
    return address.size == 16 ? AF_INET6 : AF_INET;
}

static const char *show(struct pb_slice address, char text[TEXT_MAX]) {
    if (!is_address(address) ||
        inet_ntop(family_of(address), address.data, text, TEXT_MAX) == NULL) {
        snprintf(text, TEXT_MAX, "%zu bytes", address.size);
    }
    return text;
}

/* ---- links ----------------------------------------------------------------------------------- */

struct link_plan {
    struct pb_slice match_mac, mac;
    char name[IF_NAMESIZE];
    uint64_t mtu;
    bool up;
};

static unsigned find_by_mac(int fd, struct pb_slice mac) {
    unsigned found = 0;
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *at = all; at != NULL && at->if_index != 0 && found == 0; at++) {
        struct ifreq query = {0};
        strncpy(query.ifr_name, at->if_name, IF_NAMESIZE - 1);
        if (ioctl(fd, SIOCGIFHWADDR, &query) == 0 &&
            memcmp(query.ifr_hwaddr.sa_data, mac.data, MAC_SIZE) == 0) {
            found = at->if_index;
        }
    }
    if_freenameindex(all);
    return found;
}

static int set_link(int fd, unsigned index, const struct link_plan *plan, bool up) {
    struct request request;
    struct ifinfomsg *body = begin(&request, RTM_NEWLINK, 0, sizeof *body);
    body->ifi_index = (int)index;
    body->ifi_change = IFF_UP;
    body->ifi_flags = up ? IFF_UP : 0;
    if (plan != NULL && plan->name[0] != 0) {
        attribute(&request, IFLA_IFNAME, plan->name, strlen(plan->name) + 1);
    }
    if (plan != NULL) {
        attribute_slice(&request, IFLA_ADDRESS, plan->mac);
    }
    if (plan != NULL && plan->mtu > 0) {
        attribute_u32(&request, IFLA_MTU, (uint32_t)plan->mtu);
    }
    return ask(fd, &request);
}

static int add_address(int fd, unsigned index, struct pb_slice message, struct failure *failure) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    struct pb_slice address = {0}, broadcast = {0};
    uint64_t prefix = 0, scope = 0;
    char text[TEXT_MAX];
    while (pb_field(&reader, &field) > 0) {
        address = field.number == 1 ? field.bytes : address;
        prefix = field.number == 2 ? field.varint : prefix;
        broadcast = field.number == 3 ? field.bytes : broadcast;
        scope = field.number == 4 ? field.varint : scope;
    }
    if (!is_address(address) || prefix > 8 * address.size) {
        return fail(failure, EINVAL, "address %s/%u", show(address, text), (unsigned)prefix);
    }
    struct request request;
    struct ifaddrmsg *body = begin(&request, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE,
                                   sizeof *body);
    body->ifa_family = family_of(address);
    body->ifa_prefixlen = (uint8_t)prefix;
    body->ifa_scope = (uint8_t)scope;
    body->ifa_index = index;
    /* The address was tried out where it comes from: no second duplicate detection. */
    body->ifa_flags = address.size == 16 ? IFA_F_NODAD : 0;
    attribute_slice(&request, IFA_LOCAL, address);
    attribute_slice(&request, IFA_ADDRESS, address);
    attribute_slice(&request, IFA_BROADCAST, broadcast);
    int error = ask(fd, &request);
    return error < 0 ? fail(failure, error, "address %s/%u", show(address, text), (unsigned)prefix)
                     : 0;
}

static int read_link(struct pb_slice message, struct link_plan *plan, struct failure *failure) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    int more, error = 0;
    *plan = (struct link_plan){0};
    while ((more = pb_field(&reader, &field)) > 0) {
        plan->match_mac = field.number == 1 ? field.bytes : plan->match_mac;
        plan->mac = field.number == 3 ? field.bytes : plan->mac;
        plan->mtu = field.number == 4 ? field.varint : plan->mtu;
        plan->up = field.number == 6 ? field.varint != 0 : plan->up;
        if (field.number == 2 && error == 0) {
            error = pb_string(field.bytes, plan->name, sizeof plan->name);
        }
    }
    if (more < 0 || error < 0 || (plan->match_mac.size != 0 && plan->match_mac.size != MAC_SIZE) ||
        (plan->mac.size != 0 && plan->mac.size != MAC_SIZE) || plan->mtu > UINT32_MAX) {
        return fail(failure, EINVAL, "link %s", plan->name);
    }
    return 0;
}

static int configure_link(int fd, struct pb_slice message, struct failure *failure) {
    struct link_plan plan;
    int error = read_link(message, &plan, failure);
    if (error < 0) {
        return error;
    }
    unsigned index = plan.match_mac.size > 0 ? find_by_mac(fd, plan.match_mac)
                                             : if_nametoindex(plan.name);
    if (index == 0 && plan.mac.size > 0) {
        index = find_by_mac(fd, plan.mac); /* a plan may be carried out again */
    }
    if (index == 0) {
        return fail(failure, ENODEV, "link %s", plan.name);
    }
    /* A link that is up can be neither renamed nor given another address. */
    error = set_link(fd, index, NULL, false);
    if (error == 0) {
        error = set_link(fd, index, &plan, plan.up);
    }
    if (error < 0) {
        return fail(failure, error, "link %s", plan.name);
    }
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    while (error == 0 && pb_field(&reader, &field) > 0) {
        error = field.number == 5 ? add_address(fd, index, field.bytes, failure) : 0;
    }
    if (error < 0) {
        fail_context(failure, "link %s", plan.name);
    }
    return error;
}

/* ---- routes and neighbours ------------------------------------------------------------------- */

struct route_plan {
    struct pb_slice destination, gateway, source, interface;
    uint64_t prefix, metric, scope, onlink, ipv6, mtu, advmss, locked, kind;
};

static void read_route(struct pb_slice message, struct route_plan *plan) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    *plan = (struct route_plan){0};
    struct pb_slice *const slices[] = {[1] = &plan->destination, [3] = &plan->gateway,
                                       [4] = &plan->interface, [5] = &plan->source};
    uint64_t *const numbers[] = {[2] = &plan->prefix, [6] = &plan->metric, [7] = &plan->scope,
                                 [8] = &plan->onlink, [9] = &plan->ipv6,   [10] = &plan->mtu,
                                 [11] = &plan->advmss, [12] = &plan->locked, [13] = &plan->kind};
    while (pb_field(&reader, &field) > 0) {
        if (field.number < sizeof slices / sizeof slices[0] && slices[field.number] != NULL) {
            *slices[field.number] = field.bytes;
        } else if (field.number < sizeof numbers / sizeof numbers[0] &&
                   numbers[field.number] != NULL) {
            *numbers[field.number] = field.varint;
        }
    }
}

static int index_of(struct pb_slice interface, unsigned *index) {
    char name[IF_NAMESIZE];
    if (interface.size == 0) {
        *index = 0;
        return 0;
    }
    if (pb_string(interface, name, sizeof name) < 0 || (*index = if_nametoindex(name)) == 0) {
        return -ENODEV;
    }
    return 0;
}

static void attribute_metrics(struct request *request, const struct route_plan *plan) {
    const struct {
        uint16_t type;
        uint64_t value;
    } known[] = {{RTAX_LOCK, plan->locked}, {RTAX_MTU, plan->mtu}, {RTAX_ADVMSS, plan->advmss}};
    struct {
        struct rtattr head;
        uint32_t value;
    } metrics[sizeof known / sizeof known[0]];
    size_t count = 0;
    for (size_t at = 0; at < sizeof known / sizeof known[0]; at++) {
        if (known[at].value != 0) {
            metrics[count].head = (struct rtattr){sizeof metrics[0], known[at].type};
            metrics[count++].value = (uint32_t)known[at].value;
        }
    }
    if (count > 0) {
        attribute(request, RTA_METRICS, metrics, count * sizeof metrics[0]);
    }
}

static int add_route(int fd, struct pb_slice message, struct failure *failure) {
    struct route_plan plan;
    struct request request;
    unsigned index = 0;
    char text[TEXT_MAX];
    read_route(message, &plan);
    size_t width = plan.ipv6 != 0 ? 16 : 4;
    int error = index_of(plan.interface, &index);
    if (error == 0 && ((plan.destination.size != 0 && plan.destination.size != width) ||
                       (plan.gateway.size != 0 && plan.gateway.size != width) ||
                       (plan.source.size != 0 && plan.source.size != width) ||
                       plan.kind > RTN_PROHIBIT || plan.prefix > 8 * plan.destination.size)) {
        error = -EINVAL;
    }
    if (error == 0) {
        struct rtmsg *body = begin(&request, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE,
                                   sizeof *body);
        body->rtm_family = plan.ipv6 != 0 ? AF_INET6 : AF_INET;
        body->rtm_dst_len = (uint8_t)plan.prefix;
        body->rtm_table = RT_TABLE_MAIN;
        body->rtm_protocol = RTPROT_BOOT;
        body->rtm_scope = (uint8_t)plan.scope;
        body->rtm_type = plan.kind != 0 ? (uint8_t)plan.kind : RTN_UNICAST;
        body->rtm_flags = plan.onlink != 0 ? RTNH_F_ONLINK : 0;
        attribute_slice(&request, RTA_DST, plan.destination);
        attribute_slice(&request, RTA_GATEWAY, plan.gateway);
        attribute_slice(&request, RTA_PREFSRC, plan.source);
        if (index != 0) {
            attribute_u32(&request, RTA_OIF, index);
        }
        if (plan.metric != 0) {
            attribute_u32(&request, RTA_PRIORITY, (uint32_t)plan.metric);
        }
        attribute_metrics(&request, &plan);
        error = ask(fd, &request);
    }
    return error < 0 ? fail(failure, error, "route to %s/%u",
                            plan.destination.size > 0 ? show(plan.destination, text) : "default",
                            (unsigned)plan.prefix)
                     : 0;
}

static int add_neighbour(int fd, struct pb_slice message, struct failure *failure) {
    struct pb_reader reader = pb_read(message);
    struct pb_field field;
    struct pb_slice address = {0}, mac = {0}, interface = {0};
    struct request request;
    unsigned index = 0;
    char text[TEXT_MAX];
    while (pb_field(&reader, &field) > 0) {
        address = field.number == 1 ? field.bytes : address;
        mac = field.number == 2 ? field.bytes : mac;
        interface = field.number == 3 ? field.bytes : interface;
    }
    int error = index_of(interface, &index);
    if (error == 0 && (!is_address(address) || mac.size != MAC_SIZE)) {
        error = -EINVAL;
    }
    if (error == 0) {
        struct ndmsg *body = begin(&request, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE,
                                   sizeof *body);
        body->ndm_family = family_of(address);
        body->ndm_ifindex = (int)index;
        body->ndm_state = NUD_PERMANENT;
        attribute_slice(&request, NDA_DST, address);
        attribute_slice(&request, NDA_LLADDR, mac);
        error = ask(fd, &request);
    }
    return error < 0 ? fail(failure, error, "neighbour %s", show(address, text)) : 0;
}

/* ---- the plan -------------------------------------------------------------------------------- */

/* Links before routes before neighbours, whatever their order in the message. */
static int configure(int fd, struct pb_slice plan, struct failure *failure) {
    static int (*const steps[])(int, struct pb_slice, struct failure *) = {
        configure_link, add_route, add_neighbour};
    int error = set_link(fd, if_nametoindex("lo"), NULL, true);
    if (error < 0) {
        return fail(failure, error, "link lo");
    }
    for (uint32_t step = 0; step < sizeof steps / sizeof steps[0]; step++) {
        struct pb_reader reader = pb_read(plan);
        struct pb_field field;
        int more;
        while ((more = pb_field(&reader, &field)) > 0 && error == 0) {
            error = field.number == step + 1 ? steps[step](fd, field.bytes, failure) : 0;
        }
        if (error == 0 && more < 0) {
            return fail(failure, EBADMSG, "network plan");
        }
        if (error < 0) {
            return error;
        }
    }
    return 0;
}

void net_handle_configure(struct call call, struct pb_slice request) {
    struct failure failure = {0};
    AUTO_CLOSE int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0) {
        rpc_fail_errno(call, errno, "rtnetlink");
    } else if (configure(fd, request, &failure) < 0) {
        rpc_fail(call, failure.error == ENODEV ? RPC_NOT_FOUND : RPC_INVALID_ARGUMENT, "%s",
                 failure.text);
    } else {
        rpc_done(call);
    }
}
