/* load PORT UNIT ADDRESS COUNT CLIENTS SECONDS: CLIENTS connections to 127.0.0.1:PORT, each asking FC3 for COUNT
   registers again as soon as its answer is complete. Every answer is checked: transaction, lengths, unit, function.
   Prints: answers, seconds, p50 and p99 of the answer time in us. One thread, epoll. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_CLIENTS 256
#define MOST_ANSWERS (8 * 1024 * 1024)
#define ANSWER_BYTES 260

struct client {
    int fd, held;
    uint16_t transaction;
    int64_t asked_ns;
    uint8_t answer[ANSWER_BYTES];
};

static int unit, address, count;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int fail(const char *what)
{
    fprintf(stderr, "load: %s\n", what);
    exit(1);
}

static void ask(struct client *c)
{
    uint16_t t = ++c->transaction;
    uint8_t adu[12] = {t >> 8, t, 0, 0, 0, 6, unit, 3, address >> 8, address, count >> 8, count};
    c->held = 0;
    c->asked_ns = now_ns();
    if (send(c->fd, adu, sizeof adu, MSG_NOSIGNAL) != sizeof adu)
        fail("a request could not be sent: the server closed the connection");
}

static void check(const struct client *c)
{
    const uint8_t *a = c->answer;
    if ((a[0] << 8 | a[1]) != c->transaction || a[2] || a[3] || (a[4] << 8 | a[5]) != 3 + 2 * count || a[6] != unit
        || a[7] != 3 || a[8] != 2 * count)
        fail("an answer does not fit its request");
}

/* 1 when the answer is complete */
static int receive(struct client *c)
{
    int whole = 9 + 2 * count;
    ssize_t got = recv(c->fd, c->answer + c->held, ANSWER_BYTES - c->held, 0);
    if (got <= 0)
        fail("the server closed a connection; does it take that many?");
    c->held += got;
    if (c->held >= 9)
        check(c);
    if (c->held > whole)
        fail("more bytes than one answer");
    return c->held == whole;
}

static int dial(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd == -1 || connect(fd, (struct sockaddr *)&to, sizeof to))
        fail("no connection");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static struct client clients[MOST_CLIENTS];
    static uint32_t took_ns[MOST_ANSWERS];
    struct epoll_event ready[MOST_CLIENTS];
    if (argc != 7)
        return fprintf(stderr, "usage: load PORT UNIT ADDRESS COUNT CLIENTS SECONDS\n"), 2;
    unit = atoi(argv[2]), address = atoi(argv[3]), count = atoi(argv[4]);
    int n = atoi(argv[5]), set = epoll_create1(0);
    if (n < 1 || n > MOST_CLIENTS || count < 1 || count > 125)
        fail("allowed: 1 to 256 clients, 1 to 125 registers");
    for (int i = 0; i < n; i++) {
        clients[i].fd = dial(atoi(argv[1]));
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(set, EPOLL_CTL_ADD, clients[i].fd, &event);
    }
    int64_t began = now_ns(), now = began, end = began + (int64_t)(atof(argv[6]) * 1e9);
    size_t answers = 0;
    for (int i = 0; i < n; i++)
        ask(&clients[i]);
    while (now < end && answers < MOST_ANSWERS - MOST_CLIENTS) {
        int woken = epoll_wait(set, ready, n, 2000);
        if (woken <= 0)
            fail("no answer for 2 s");
        for (int i = 0; i < woken; i++) {
            struct client *c = ready[i].data.ptr;
            if (!receive(c))
                continue;
            now = now_ns();
            took_ns[answers++] = now - c->asked_ns;
            ask(c);
        }
    }
    qsort(took_ns, answers, sizeof *took_ns, by_size);
    printf("%zu %.6f %.1f %.1f\n", answers, (now - began) / 1e9, took_ns[answers / 2] / 1e3,
           took_ns[answers * 99 / 100] / 1e3);
    return 0;
}
